"""Preparation: what is computed once for (base model, space, calibration) and shared by evaluators and exports.

A folder named by the hash of everything it depends on:

- ``preparation.json``: what it is made of, the geometry, and the tokens that every window starts with;
- ``order.safetensors``: per block, KV groups and neurons from most to least important;
- ``factors.safetensors``: per block, the Cholesky factors of the ordered Gram matrices (width only);
- ``levels.*.safetensors``: in the place of both, the level database of a sparsity pruner (unicuco/level_database.py);
- ``damage.safetensors``: predicted damage of every level of every site (``num_sites x max_levels``), a prior;
- ``windows.safetensors``: the calibration, search and margin windows;
- ``reference/``: the dense model's outputs on the search windows, one file per dtype (unicuco/reference.py).
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pydantic import BaseModel as Config
from pydantic import ConfigDict, Field, ValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from unicuco.calibration import CalibrationConfig, Role, Windows, draw_windows, window_start
from unicuco.errors import PreparationError
from unicuco.level_database import LevelDatabase, build_levels
from unicuco.models.geometry import Geometry
from unicuco.models.load import BaseModel
from unicuco.models.sites import find_blocks
from unicuco.pruners.ordering import order_site
from unicuco.space import SearchSpace, SpaceConfig
from unicuco.statistics import collect_statistics
from unicuco.storage import atomic_folder, cache_dir, content_hash, write_json

FORMAT = 2
Progress = Callable[[str, int, int], None]
"""Called with (stage, done, total)."""


class PreparationConfig(Config):
    """What a preparation is computed from, besides the base model."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    calibration: CalibrationConfig = CalibrationConfig()
    space: SpaceConfig = SpaceConfig()
    dtype: str = Field(default="bfloat16", pattern="^(bfloat16|float32)$")
    """Of the forwards; Gram matrices are summed in float32 and factored in float64."""
    ridge: float = Field(default=1e-2, gt=0, le=1)
    """Added to the Gram matrices, as a share of their median diagonal."""
    elimination_step: int = Field(default=16, ge=1)
    """Neurons removed between two re-solves while ordering."""
    gradient_windows: int = Field(default=4, ge=1)
    """Calibration windows whose gradients weigh the outputs of each sublayer."""


@dataclass(frozen=True)
class Preparation:
    """A preparation on disk; everything is read lazily."""

    folder: Path
    digest: str
    model_digest: str
    config: PreparationConfig
    geometry: Geometry

    @classmethod
    def open(cls, folder: Path) -> Preparation:
        """Opens the preparation at ``folder``.

        Raises:
            PreparationError: there is none, or it was written by another version.
        """
        try:
            about = json.loads((Path(folder) / "preparation.json").read_text(encoding="utf-8"))
            if about["format"] != FORMAT:
                raise PreparationError(f"The preparation at {folder} has format {about['format']}, not {FORMAT}.")
            return cls(
                folder=Path(folder),
                digest=about["digest"],
                model_digest=about["model"]["digest"],
                config=PreparationConfig.model_validate(about["config"]),
                geometry=Geometry.model_validate(about["geometry"]),
            )
        except (OSError, ValueError, KeyError, TypeError, ValidationError) as error:
            raise PreparationError(f"No readable preparation at {folder}: {error}") from error

    @cached_property
    def space(self) -> SearchSpace:
        return SearchSpace(self.geometry, self.config.space)

    @cached_property
    def damage(self) -> np.ndarray:
        """Predicted damage in nats per token (``num_sites x max_levels``); 0 at dense, growing with the level."""
        return self._tensors("damage")["damage"].numpy()

    @cached_property
    def orders(self) -> dict[str, Tensor]:
        """``attention.B`` and ``mlp.B`` for each block B: units, most important first."""
        return self._tensors("order")

    @cached_property
    def factors(self) -> dict[str, Tensor]:
        """``attention.B`` and ``mlp.B``: lower Cholesky factors, float32, memory-mapped; empty for ``depth``."""
        return self._tensors("factors") if self.config.space.pruner == "width" else {}

    @cached_property
    def levels(self) -> LevelDatabase:
        """The level database of a sparsity pruner."""
        return LevelDatabase(self.folder)

    @cached_property
    def search_windows(self) -> Windows:
        return self._windows("search")

    @cached_property
    def calibration_windows(self) -> Windows:
        return self._windows("calibration")

    @cached_property
    def margin_groups(self) -> int:
        """Groups of windows that margins take turns on."""
        return len(self._windows("margins").tokens) // len(self.search_windows.tokens)

    def margin_windows(self, group: int) -> Windows:
        """One group of the margin windows: per domain as many as there are search windows."""
        found, each = self._windows("margins"), self.config.calibration.search_windows
        place = np.arange(len(found.tokens)) % max(self.margin_groups * each, 1)  # within its domain
        rows = place // each == group
        return Windows(found.tokens[rows], found.domain[rows], found.domains)

    def _windows(self, role: str) -> Windows:
        stored = self._tensors("windows")
        names = tuple(domain.name for domain in self.config.calibration.domains)
        return Windows(stored[f"{role}.tokens"].numpy(), stored[f"{role}.domain"].numpy(), names)

    def _tensors(self, name: str) -> dict[str, Tensor]:
        path = self.folder / f"{name}.safetensors"
        try:
            return load_file(path)
        except (OSError, SafetensorError) as error:
            raise PreparationError(f"The preparation at {self.folder} is broken: {path.name}: {error}") from error

    def check_model(self, digest: str, spec: str) -> None:
        """Refuses a base model with other content than the one prepared.

        Raises:
            PreparationError: naming both.
        """
        if digest != self.model_digest:
            raise PreparationError(
                f"The preparation {self.digest[:12]} belongs to another base model (content {self.model_digest[:12]}) "
                f"than {spec} (content {digest[:12]})."
            )


def preparation_digest(model_digest: str, config: PreparationConfig, windows: dict[str, Windows]) -> str:
    """The name of a preparation: a hash over the content of everything it depends on."""
    recipe = config.model_dump(mode="json", exclude={"calibration"})
    return content_hash([FORMAT, model_digest, recipe, *(found.digest for found in windows.values())])


def prepare(
    base: BaseModel,
    tokenizer: Any,
    config: PreparationConfig,
    progress: Progress | None = None,
    root: Path | None = None,
) -> Preparation:
    """Finds or builds the preparation of ``base`` under ``root`` (the cache by default).

    Costs one forward over all calibration windows, one forward and backward over ``gradient_windows`` of them, and
    per site an elimination of n³ multiply-adds (n: inputs of the output projection). A sparsity pruner's database takes
    its place: a sweep over every matrix for every level.

    Raises:
        CalibrationError: the text is missing or too short. DiskFullError: nothing was left behind.
    """
    from filelock import FileLock

    report = progress or (lambda stage, done, total: None)
    roles: tuple[Role, ...] = ("calibration", "search", "margins")
    windows: dict[str, Windows] = {role: draw_windows(config.calibration, tokenizer, role) for role in roles}
    digest = preparation_digest(base.source.digest, config, windows)
    target = (root or cache_dir() / "preparations") / digest[:24]
    target.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(str(target) + ".lock"):
        if not (target / "preparation.json").is_file():
            _clear_leftovers(target)
            with atomic_folder(target, replace=True) as scratch:  # what lies there lacks its description
                _build(scratch, base, config, windows, digest, window_start(tokenizer), report)
    return Preparation.open(target)


def _build(
    scratch: Path,
    base: BaseModel,
    config: PreparationConfig,
    windows: dict[str, Windows],
    digest: str,
    start: tuple[int, ...],
    report: Progress,
) -> None:
    space = SearchSpace(base.geometry, config.space)
    if space.is_sparse:
        curves = _build_levels(scratch, base, config, windows["calibration"], report)
    else:
        curves = _build_orders(scratch, base, config, windows["calibration"], report)
    save_file({"damage": torch.from_numpy(_damage_table(space, curves))}, scratch / "damage.safetensors")
    save_file(
        {
            f"{role}.{part}": torch.from_numpy(np.ascontiguousarray(getattr(found, part)))
            for role, found in windows.items()
            for part in ("tokens", "domain")
        },
        scratch / "windows.safetensors",
    )
    about = {
        "format": FORMAT,
        "digest": digest,
        "model": {"spec": base.source.spec, "digest": base.source.digest},
        "config": config.model_dump(mode="json"),
        "geometry": base.geometry.model_dump(mode="json"),
        "windows": {role: found.digest for role, found in windows.items()},
        "starts_with": list(start),  # for readers: the windows hold it, and their digests know it
        "torch": torch.__version__,
    }
    write_json(scratch / "preparation.json", about)


def _build_orders(
    scratch: Path, base: BaseModel, config: PreparationConfig, windows: Windows, report: Progress
) -> dict[str, Tensor]:
    """Writes orders and factors; returns the damage of every number of units left, of each site."""
    statistics = collect_statistics(base.model, windows, config.gradient_windows, report)
    orders: dict[str, Tensor] = {}
    factors: dict[str, Tensor] = {}
    curves: dict[str, Tensor] = {}
    blocks = find_blocks(base.model)
    for b, (block, found) in enumerate(zip(blocks, statistics, strict=True)):
        shape = base.geometry.blocks[b]
        sublayers = (
            ("attention", block.attention.o_proj.weight, shape.heads_per_group * shape.head_dim, 1),
            ("mlp", block.mlp.down_proj.weight, 1, config.elimination_step),
        )
        for kind, weight, unit, step in sublayers:
            order, factor, damage = order_site(found, kind, weight, unit, step, config.ridge)
            orders[f"{kind}.{b}"] = order
            curves[f"{kind}.{b}"] = damage
            if config.space.pruner == "width":
                factors[f"{kind}.{b}"] = factor
        report("ordering units", b + 1, len(blocks))
    save_file(orders, scratch / "order.safetensors")
    if factors:
        save_file(factors, scratch / "factors.safetensors")
    return curves


def _build_levels(
    scratch: Path, base: BaseModel, config: PreparationConfig, windows: Windows, report: Progress
) -> dict[str, Tensor]:
    """Writes the level database; returns the damage of every level, of each site."""
    curves = build_levels(scratch, base, config.space, windows, config.gradient_windows, report)
    return {name: torch.tensor(curve, dtype=torch.float64) for name, curve in curves.items()}


def _clear_leftovers(target: Path) -> None:
    """Removes what builders that were killed have left; whoever calls holds the lock, so nobody is at it."""
    for path in target.parent.glob(f".{target.name}.*"):
        shutil.rmtree(path, ignore_errors=True)


def _damage_table(space: SearchSpace, curves: dict[str, Tensor]) -> np.ndarray:
    table: np.ndarray = np.zeros(space.levels.shape)
    for i, site in enumerate(space.sites):
        for j in range(table.shape[1]):
            level = site.levels[min(j, len(site.levels) - 1)]
            own = min(j, len(site.levels) - 1) if space.is_sparse else None
            if level.groups is not None:
                table[i, j] += float(curves[f"attention.{site.block}"][level.groups if own is None else own])
            if level.neurons is not None:
                table[i, j] += float(curves[f"mlp.{site.block}"][level.neurons if own is None else own])
    return table
