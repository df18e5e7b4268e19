"""Writing a recovered checkpoint: the old folder with other weights, and what it says about itself brought up to date.

The layout, the names of the tensors and the files that hold them stay as they are.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from unicuco.checkpoint.card import PROVENANCE, file_digests, versions
from unicuco.checkpoint.reload import cast_while_running
from unicuco.checkpoint.verify import Verification, check_reload, probe_tokens
from unicuco.errors import RecoveryError
from unicuco.storage import atomic_folder, write_json

README = "README.md"
HEADING = "## Recovery"


def write_recovered(
    source: Path,
    target: Path,
    model: Any,
    changed: Mapping[str, Tensor],
    record: dict[str, Any],
    measured: Mapping[str, float],
    remote: bool,
    replace: bool,
    verify: bool = True,
) -> Verification | None:
    """Copies ``source`` to ``target`` with ``changed`` tensors, reloads it in a fresh process, and then keeps it.

    Args:
        model: the recovered model in memory, that the folder must reload to; of no use afterwards.
        record: how it was recovered, for ``unicuco.json``.
        measured: figures that take the place of those of the pruned checkpoint.
        remote: the folder needs ``trust_remote_code``.

    Raises:
        RecoveryError: a tensor is in no file of ``source``. CheckpointError: it reloads to something else.
        DiskFullError: nothing is left behind in any of these cases.
    """
    with atomic_folder(target, replace=replace) as scratch:
        missing = set(changed)
        for path in sorted(source.iterdir()):
            if path.suffix == ".safetensors":
                missing -= _copy_tensors(path, scratch / path.name, changed)
            elif path.is_file() and path.name != PROVENANCE:
                shutil.copyfile(path, scratch / path.name)
        if missing:
            raise RecoveryError(f"{source} holds no tensor {', '.join(sorted(missing)[:3])}; it cannot be rewritten.")
        verification = check_reload(scratch, *_expected(model), remote) if verify else None
        about = _read(source / PROVENANCE)
        about |= {
            "recovery": record | {"measured_before": about.get("measured", {})},
            "measured": dict(measured),
            "verification": asdict(verification) if verification else None,
            "versions": versions(),
        }
        _write_readme(source / README, scratch / README, record, measured, verification)
        about["files"] = file_digests(scratch)
        write_json(scratch / PROVENANCE, about)
    return verification


def _copy_tensors(source: Path, target: Path, changed: Mapping[str, Tensor]) -> set[str]:
    """Names of the changed tensors that were in this file."""
    with safe_open(source, framework="pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a mapping)
        about = file.metadata()
    found = set(tensors) & set(changed)
    for name in found:
        if tensors[name].shape != changed[name].shape:
            raise RecoveryError(f"{source.name} holds {name} in another shape; it cannot be rewritten.")
        tensors[name] = changed[name].detach().to("cpu", tensors[name].dtype).contiguous()
    save_file(tensors, target, metadata=about)
    target.chmod(source.stat().st_mode)
    return found


@torch.no_grad()
def _expected(model: Any) -> tuple[Tensor, Tensor]:
    """Probe tokens and their logits (float32, on the CPU), computed as ``check_reload`` does."""
    model = model.to("cpu").eval()
    tokens = probe_tokens(model.get_output_embeddings().weight.shape[0])
    for layer in model.get_decoder().layers:
        cast_while_running(layer)
    for name, parameter in model.named_parameters():
        if ".layers." not in name:
            parameter.data = parameter.data.float()
    model.set_attn_implementation("sdpa")
    return tokens, model(input_ids=tokens, use_cache=False).logits.float()


def _read(path: Path) -> dict[str, Any]:
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError):  # a model that is no checkpoint of ours
        return {}


def _write_readme(
    source: Path,
    target: Path,
    record: dict[str, Any],
    measured: Mapping[str, float],
    verification: Verification | None,
) -> None:
    """The card with this recovery's figures in the place of the pruned checkpoint's, and a section on how."""
    old = source.read_text(encoding="utf-8") if source.is_file() else ""
    lines = []
    for line in old.split(f"\n{HEADING}")[0].splitlines():
        name = line.removeprefix("| ").split(" (measured)")[0]
        if line.startswith(("| logits after reloading", "| reloaded and compared")):
            line = "| reloaded and compared | no |"
            if verification:
                line = f"| logits after reloading, largest difference (float32) | {verification.max_abs_diff:.2g} |"
        elif " (measured) |" in line:
            if name not in measured:
                continue  # measured before recovery, so no longer true
            line = f"| {name} (measured) | {measured[name]:.4g} |"
        lines.append(line)
    rows = ["| text | | before | after | dense |", "| --- | --- | --- | --- | --- |"]
    for text, figures in record["texts"].items():
        rows.append(
            f"| {text} | perplexity | {figures['perplexity_before']:.2f} | {figures['perplexity_after']:.2f} "
            f"| {figures['perplexity_dense']:.2f} |"
        )
        rows.append(f"| {text} | KL | {figures['kl_before']:.4f} | {figures['kl_after']:.4f} | 0 |")
    how = (
        f"Low-rank updates (rank {record['config']['rank']}) of all linear layers of the blocks, trained for "
        f"{record['steps']:,} steps of {record['tokens_per_step']:,} tokens of `{record['corpus']}` towards the dense "
        "model's distribution, and merged. KL is from the dense model, nats per token; no text here was trained on."
    )
    target.write_text("\n".join([*lines, "", HEADING, "", how, "", *rows, ""]), encoding="utf-8")
