#!/usr/bin/env bash
# Makes one machine ready for UniCuCo, whatever it computes with: shared folder, token, Python's venv, shells' settings.
#
#   bash ~/unicuco/launch/prepare.sh SERVER:/EXPORT    # mounts it at /shared; any NFS server of version 4
#   bash ~/unicuco/launch/prepare.sh                   # /shared is there already
#
# Runs, the cache (preparations, converted models) and the service's checkpoints lie in /shared, so that every evaluator
# finds them and nothing is lost with a machine. It may be run again: what is there stays. UNICUCO_SHARED names another
# folder than /shared; the paths in the cluster definition must then say the same.
set -euo pipefail

say() { echo "prepare.sh: $*" >&2; }

export_="${1:-}"
shared="${UNICUCO_SHARED:-/shared}"
if [[ "$export_" == *EDIT* ]]; then
    say "'$export_' is still the example: write your own file server into the cluster definition."
    exit 2
fi
if [[ -n "$export_" && "$export_" != *:/* ]]; then
    say "'$export_' is no file server: write SERVER:/EXPORT, or leave it out where $shared is mounted already."
    exit 2
fi

# Other programs install too just after a machine's first start: wait for them.
apt() { sudo apt-get -o DPkg::Lock::Timeout=600 -qq "$@"; }
missing=()
if ! python3 -c 'import ensurepip' 2>/dev/null; then missing+=(python3-venv); fi
if [[ -n "$export_" ]] && ! command -v mount.nfs4 >/dev/null; then missing+=(nfs-common); fi
if [[ ${#missing[@]} -gt 0 ]]; then
    apt update
    apt install -y "${missing[@]}"
fi

if [[ -n "$export_" ]] && ! mountpoint -q "$shared"; then
    sudo mkdir -p "$shared"
    # hard: a file server that is away for a while makes a run wait; with soft, a write would fail and end it.
    sudo mount -t nfs4 -o hard,timeo=600,retrans=2 "$export_" "$shared"
fi
if [[ ! -d "$shared" ]]; then
    say "there is no $shared: mount the folder that all machines share, or give its server as SERVER:/EXPORT."
    exit 1
fi
for part in runs cache service; do
    if [[ ! -w "$shared/$part" ]]; then
        sudo mkdir -p "$shared/$part"
        sudo chown "$(id -u):$(id -g)" "$shared/$part"
    fi
done

# Who reads the token can run code on the cluster. `ray exec` and `ray attach` need to know that there is one.
chmod 600 ~/.ray/auth_token
if ! grep -qs 'unicuco/venv' ~/.bashrc; then
    # shellcheck disable=SC2016  # to be expanded by that shell, not here
    echo 'export PATH="$HOME/unicuco/venv/bin:$PATH" RAY_AUTH_MODE=token' >>~/.bashrc
fi
