"""What a policy is made of, and its folder: JSON, safetensors and Parquet.

The folder names the base model and the preparation by content hash and is read without either of them.
"""

from __future__ import annotations

import json
import shutil
import time
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pydantic import ValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from unicuco import __version__
from unicuco.costs import Costs
from unicuco.errors import EvaluationLogError, PolicyError
from unicuco.evaluations import Evaluation, read_evaluations, write_evaluations
from unicuco.latency import FOLDER as LATENCY
from unicuco.latency import LatencyError, NamedTable
from unicuco.models.geometry import Geometry
from unicuco.objectives import Scale
from unicuco.qualities import Qualities
from unicuco.request import explain_validation
from unicuco.space import SearchSpace, SpaceConfig
from unicuco.storage import atomic_folder, content_hash, write_json
from unicuco.stratnet import StratNet
from unicuco.surrogate import Surrogate, SurrogateConfig

FORMAT = 3


@dataclass(frozen=True)
class PolicyParts:
    """Everything a policy is made of.

    Attributes:
        surrogate: of the mean KL over the calibration domains.
        scale: of the objectives that ``net`` was trained on.
        provenance: model, preparation, calibration and versions, as JSON.
        domains: surrogates of the domains that are objectives of their own; ``None``: the mean KL is.
        latency: the table that latency is an objective by; ``None``: it is none.
    """

    space: SearchSpace
    damage: np.ndarray | None
    surrogate: Surrogate
    net: StratNet
    scale: Scale
    evaluations: tuple[Evaluation, ...]
    version: int
    provenance: dict[str, Any] = field(default_factory=dict)
    domains: Qualities | None = None
    latency: NamedTable | None = None

    @cached_property
    def costs(self) -> Costs:
        """What ``net`` was trained on beside ``qualities``."""
        return Costs(self.space, None if self.latency is None else self.latency.table)

    @property
    def whole_is_reference(self) -> bool:
        """Whether quality is measured from the whole base model; that of a super-network is measured, too."""
        return whole_is_reference(self.provenance)

    @property
    def qualities(self) -> Qualities:
        """What ``net`` was trained on."""
        return self.domains or Qualities.of_mean(self.surrogate)


def whole_is_reference(provenance: dict[str, Any]) -> bool:
    """Whether the base model of a run is compared with itself, and not with a teacher."""
    return (provenance.get("model") or {}).get("teacher") is None


def save_parts(parts: PolicyParts, folder: Path) -> None:
    """Writes ``parts`` to ``folder``, replacing the policy there.

    Raises:
        DiskFullError: the old one is still there, nothing is half-written.
    """
    with atomic_folder(folder, replace=True) as scratch:
        save_file({k: v.contiguous() for k, v in parts.net.state_dict().items()}, scratch / "stratnet.safetensors")
        surrogate = parts.surrogate.state()
        if parts.damage is not None:
            surrogate["damage"] = torch.as_tensor(parts.damage).contiguous()
        save_file(_untied(surrogate), scratch / "surrogate.safetensors")
        if parts.domains is not None:
            save_file(_untied(parts.domains.state()), scratch / "domains.safetensors")
        write_evaluations(scratch / "evaluations.parquet", parts.evaluations)
        about = {
            "format": FORMAT,
            "version": parts.version,
            "unicuco": __version__,
            "written": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            "space": {
                "geometry": parts.space.geometry.model_dump(mode="json"),
                "config": parts.space.config.model_dump(mode="json"),
            },
            "surrogate": parts.surrogate.config.model_dump(mode="json"),
            "stratnet": {"width": parts.net.layers[0].out_features},
            "scale": asdict(parts.scale),
            "domains": list(parts.domains.names) if parts.domains is not None else [],
            "provenance": parts.provenance,
        }
        if parts.latency is not None:
            about["latency"] = parts.latency.model_dump(mode="json")
        about["digest"] = content_hash([about["space"], about["provenance"], about["version"], about["written"]])
        if (folder / LATENCY).is_dir():  # a new version answers by the same tables
            shutil.copytree(folder / LATENCY, scratch / LATENCY)
        write_json(scratch / "policy.json", about)


def load_parts(folder: Path) -> PolicyParts:
    """Reads a policy folder, or the one in a run folder.

    Raises:
        PolicyError: there is none, or it is broken or of another format.
    """
    folder = Path(folder)
    if not (folder / "policy.json").is_file() and (folder / "policy" / "policy.json").is_file():
        folder = folder / "policy"  # a run folder was given
    try:
        about = json.loads((folder / "policy.json").read_text(encoding="utf-8"))
        if about["format"] != FORMAT:
            raise PolicyError(
                f"The policy at {folder} has format {about['format']}; this version reads {FORMAT}: train again."
            )
        space = SearchSpace(
            Geometry.model_validate(about["space"]["geometry"]),
            SpaceConfig.model_validate(about["space"]["config"]),
        )
        scale = _scale(about["scale"])
        deepest = torch.as_tensor(space.deepest)
        latency = NamedTable.model_validate(about["latency"]) if "latency" in about else None
        costs = len(Costs(space, None if latency is None else latency.table))
        net = StratNet(costs + scale.num_qualities, space.num_sites, about["stratnet"]["width"], deepest, costs)
        net.load_state_dict(load_file(folder / "stratnet.safetensors"))
        state = load_file(folder / "surrogate.safetensors")
        table = state.pop("damage", None)
        damage = None if table is None else table.numpy()
        config = SurrogateConfig.model_validate(about["surrogate"])
        surrogate = Surrogate.from_state(space, damage, config, state)
        names, domains = tuple(about.get("domains", ())), None
        if names:
            domains = Qualities.from_state(space, damage, config, names, load_file(folder / "domains.safetensors"))
        if max(len(names), 1) != scale.num_qualities:
            raise ValueError(f"{scale.num_qualities} qualities and {len(names)} domains")
        evaluations = tuple(read_evaluations(folder / "evaluations.parquet"))
    except (OSError, ValueError, KeyError, TypeError, RuntimeError, ValidationError, SafetensorError) as error:
        raise PolicyError(f"No readable policy at {folder}: {_first_line(error)}") from error
    except (EvaluationLogError, LatencyError) as error:
        raise PolicyError(f"The policy at {folder} is broken: {error}") from error
    return PolicyParts(
        space,
        damage,
        surrogate,
        net.eval(),
        scale,
        evaluations,
        about["version"],
        about["provenance"],
        domains,
        latency,
    )


def _scale(saved: dict[str, Any]) -> Scale:
    low, high = (tuple(map(float, saved[end])) for end in ("log_kl_low", "log_kl_high"))
    return Scale(float(saved["kept_low"]), low, high)


def _untied(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Copies: safetensors refuses tensors that share memory, and mean and kernel share the damage model."""
    return {name: tensor.clone().contiguous() for name, tensor in tensors.items()}


def _first_line(error: Exception) -> str:
    text = explain_validation(error) if isinstance(error, ValidationError) else str(error)
    return text.strip().split("\n")[0] or type(error).__name__
