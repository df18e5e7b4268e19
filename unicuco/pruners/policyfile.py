"""PruneNet policies on disk: a folder with ``policy.safetensors`` and ``policy.json``."""

from __future__ import annotations

import json
from pathlib import Path

from pydantic import ValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from unicuco.errors import PolicyError
from unicuco.pruners.prunenet import PolicyNetwork, PruneNetConfig, Training
from unicuco.storage import atomic_folder, write_json

FORMAT = 1
_WEIGHTS, _RECORD = "policy.safetensors", "policy.json"
_KIND = "prunenet"


def save_prunenet(
    folder: Path, network: PolicyNetwork, config: PruneNetConfig, training: Training, model_digest: str
) -> None:
    """Writes ``folder``, which must not exist.

    Raises:
        PolicyError: it exists. DiskFullError: nothing was left there.
    """
    check_free(folder)
    with atomic_folder(folder) as scratch:
        save_file({name: tensor.contiguous() for name, tensor in network.state_dict().items()}, scratch / _WEIGHTS)
        record = {
            "format": FORMAT,
            "kind": _KIND,
            "model_digest": model_digest,
            "config": config.model_dump(mode="json"),
            "rewards": training.rewards,
            "best": training.best,
        }
        write_json(scratch / _RECORD, record)
        # safetensors makes its files readable by nobody else, whatever the umask
        (scratch / _WEIGHTS).chmod((scratch / _RECORD).stat().st_mode)


def load_prunenet(folder: Path) -> tuple[PolicyNetwork, PruneNetConfig]:
    """The policy in ``folder``, and how it learned.

    Raises:
        PolicyError: no policy of PruneNet's is there, or it is broken.
    """
    try:
        record = json.loads((folder / _RECORD).read_text(encoding="utf-8"))
        if record["kind"] != _KIND or record["format"] != FORMAT:
            raise ValueError(f"format {record['format']} of kind {record['kind']}")
        # A policy from before there was a choice of rewards learned by the spectrum.
        config = PruneNetConfig.model_validate({"reward": "spectrum"} | record["config"])
        tensors = load_file(folder / _WEIGHTS)
        network = PolicyNetwork(*tensors["projection"].shape)
        network.load_state_dict(tensors)
    except (OSError, ValueError, KeyError, TypeError, RuntimeError, SafetensorError, ValidationError) as error:
        raise PolicyError(f"{folder} holds no PruneNet policy that can be read: {error}") from error
    return network.eval().requires_grad_(False), config


def is_prunenet(folder: Path) -> bool:
    return (folder / _RECORD).is_file()


def check_free(folder: Path) -> None:
    """
    Raises:
        PolicyError: something is there.
    """
    if folder.exists():
        raise PolicyError(f"{folder} exists already; choose another folder for the policy.")
