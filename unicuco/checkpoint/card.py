"""What a checkpoint says about itself: ``README.md`` for people, ``unicuco.json`` for programs."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from unicuco.checkpoint.verify import Verification
from unicuco.models.geometry import Geometry
from unicuco.models.source import ModelSource
from unicuco.space import Shape
from unicuco.storage import file_digest

FORMAT = 1
PROVENANCE = "unicuco.json"
_PACKAGES = ("unicuco", "torch", "transformers", "safetensors")


@dataclass(frozen=True)
class CheckpointCard:
    """What the maker knows and the weights do not say. Every field is optional and goes into the files as it is."""

    request: dict[str, Any] | None = None
    """The request that was answered."""
    strategy: tuple[float, ...] | None = None
    """Sparsity per site."""
    measured: dict[str, Any] = field(default_factory=dict)
    """Figures measured on this strategy, by name, e.g. ``{"kl_heldout": 0.31, "perplexity": 14.2}``."""
    predicted: dict[str, Any] = field(default_factory=dict)
    """Figures predicted for it, by name."""
    calibration: dict[str, Any] = field(default_factory=dict)
    """Data, seed, tokens and dtype of what was measured and calibrated on."""
    preparation: str | None = None
    """Digest of the preparation."""
    command: str | None = None
    zeros: int | None = None
    """Weights of the blocks that a sparsity pruner set to zero, where one did."""
    supernet: dict[str, Any] | None = None
    """How a super-network was trained, and its ``teacher``, the base model that it is compared with."""


@dataclass(frozen=True)
class CheckpointSize:
    """Exact size, blocks and all; ``kept`` and ``ratio`` as for a strategy."""

    params: int
    bytes: int
    """Of the tensors, as stored."""
    kept: float
    ratio: float
    params_stored: int
    """Numbers in the files: ``params``, and for ``padded`` the zeros too."""


def provenance(
    source: ModelSource,
    geometry: Geometry,
    pruner: str,
    layout: str,
    dtype: str,
    shape: Shape,
    size: CheckpointSize,
    card: CheckpointCard,
    verification: Verification | None,
    folder: Path,
    digests: dict[str, dict[str, Any]],
) -> dict[str, Any]:
    """The content of ``unicuco.json``, with a digest of every file that lies in ``folder`` by now.

    Args:
        digests: of files where they are known, as ``file_digests`` gives them.
    """
    return {
        "format": FORMAT,
        "base_model": {"spec": source.spec, "digest": source.digest, "family": geometry.family},
        "pruner": pruner,
        "layout": layout,
        "dtype": dtype,
        "shape": {"groups": list(shape.groups), "neurons": list(shape.neurons)},
        "size": asdict(size),
        **asdict(card),
        "verification": asdict(verification) if verification else None,
        "versions": versions(),
        "files": file_digests(folder, digests),
    }


@cache
def versions() -> dict[str, str]:
    """Installed versions of the packages that make and load checkpoints."""
    found = {}
    for package in _PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def file_digests(folder: Path, known: dict[str, dict[str, Any]] | None = None) -> dict[str, dict[str, Any]]:
    """SHA-256 and bytes of every file in ``folder`` but ``unicuco.json`` itself; those ``known`` are not read."""
    paths = sorted(p for p in folder.rglob("*") if p.is_file() and p.name != PROVENANCE)
    found = known or {}
    return {
        name: found.get(name) or {"sha256": file_digest(p), "bytes": p.stat().st_size}
        for name, p in ((str(p.relative_to(folder)), p) for p in paths)
    }


def model_card(
    source: ModelSource,
    geometry: Geometry,
    pruner: str,
    layout: str,
    dtype: str,
    shape: Shape,
    size: CheckpointSize,
    card: CheckpointCard,
    verification: Verification | None,
) -> str:
    """The README of a checkpoint, in Markdown with the hub's metadata on top."""
    name = Path(source.spec).name
    title = f"{size.ratio:.0%} of its parameters"
    left = f"{size.params:,} of {geometry.params:,} parameters ({size.kept:.1%} of the blocks')"
    if card.zeros is not None:
        share = card.zeros / geometry.block_params
        title = f"{share:.0%} of its blocks' parameters zero"
        left = f"{card.zeros:,} of {geometry.block_params:,} parameters of the blocks are zero"
    about = f"Pruned by UniCuCo (`{pruner}`) from `{name}`: {left}, {dtype}, layout `{layout}`."
    if card.supernet is not None:
        title = "super-network"
        about = (
            f"`{name}` trained by UniCuCo so that its slices work ({card.supernet['steps']:,} steps, {dtype}), its "
            "units in the order of their importance. A base model to prune; quality is measured from the original."
        )
    parts = [
        _metadata(source),
        f"# {name}, {title}\n",
        f"{about}\n",
        _usage(layout),
        "## Figures\n",
        _table(("figure", "value"), _figures(size, card, verification)),
        "## What is left of each block\n",
        _table(("block", "KV groups", "query heads", "neurons"), _blocks(geometry, shape)),
        "## How it was made\n",
        _table(("", ""), _making(source, card)),
        f"The same, for programs, with a digest of every file: `{PROVENANCE}`.\n",
    ]
    return "\n".join(parts)


def _metadata(source: ModelSource) -> str:
    lines = ["---", "library_name: transformers", "pipeline_tag: text-generation", "tags: [unicuco, pruned]"]
    if source.spec.count("/") == 1 and not source.spec.startswith((".", "/", "~")):  # a hub id
        lines.append(f"base_model: {source.spec}")
    return "\n".join([*lines, "---", ""])


def _usage(layout: str) -> str:
    remote, note = (
        "",
        "Dense shapes, removed parts are zero: loads in every tool, and is no smaller or faster than the base model.",
    )
    if layout == "uniform":
        note = "A plain model of its family with fewer blocks, heads or neurons: loads in every tool."
    if layout == "hetero":
        remote = ", trust_remote_code=True"
        note = (
            "Layers differ in width: transformers runs the three small Python files in this folder. With UniCuCo "
            "installed, `import unicuco.models.hetero` makes it load without them, and without `trust_remote_code`."
        )
    code = (
        "from transformers import AutoModelForCausalLM, AutoTokenizer\n\n"
        f'model = AutoModelForCausalLM.from_pretrained("THIS FOLDER", dtype="auto"{remote})\n'
        f'tokenizer = AutoTokenizer.from_pretrained("THIS FOLDER"{remote})'
    )
    return f"```python\n{code}\n```\n\n{note}\n"


def _figures(size: CheckpointSize, card: CheckpointCard, verification: Verification | None) -> list[tuple[Any, ...]]:
    rows: list[tuple[Any, ...]] = [
        ("parameters", f"{size.params:,}"),
        ("bytes of tensors", f"{size.bytes:,}"),
        ("kept (of the blocks)", f"{size.kept:.4f}"),
        ("ratio (of all)", f"{size.ratio:.4f}"),
    ]
    rows += [(f"{name} (measured)", _show(value)) for name, value in card.measured.items()]
    rows += [(f"{name} (predicted)", _show(value)) for name, value in card.predicted.items()]
    if verification:
        rows.append(("logits after reloading, largest difference (float32)", f"{verification.max_abs_diff:.2g}"))
    else:
        rows.append(("reloaded and compared", "no"))
    return rows


def _blocks(geometry: Geometry, shape: Shape) -> list[tuple[Any, ...]]:
    rows = []
    for index, (block, groups, neurons) in enumerate(zip(geometry.blocks, shape.groups, shape.neurons, strict=True)):
        each = block.heads_per_group
        heads = f"{groups * each} of {block.groups * each}"
        rows.append((index, f"{groups} of {block.groups}", heads, f"{neurons} of {block.neurons}"))
    return rows


def _making(source: ModelSource, card: CheckpointCard) -> list[tuple[Any, ...]]:
    rows: list[tuple[Any, ...]] = [("base model", f"`{source.spec}`"), ("its digest", f"`{source.digest}`")]
    if card.request is not None:
        rows.append(("request", f"`{json.dumps(card.request)}`"))
    if card.strategy is not None:
        rows.append(("strategy (sparsity per site)", "`" + " ".join(f"{s:.3f}" for s in card.strategy) + "`"))
    rows += [(name, _show(value)) for name, value in card.calibration.items()]
    if card.preparation:
        rows.append(("preparation", f"`{card.preparation}`"))
    if card.command:
        rows.append(("command", f"`{card.command}`"))
    rows += [(f"{package} version", number) for package, number in versions().items()]
    return rows


def _table(head: tuple[str, ...], rows: list[tuple[Any, ...]]) -> str:
    lines = [head, ("---",) * len(head), *rows]
    cells = ([str(cell).replace("|", "\\|").replace("\n", " ") for cell in line] for line in lines)
    return "\n".join("| " + " | ".join(line) + " |" for line in cells) + "\n"


def _show(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
