"""Sites and their legal levels: what each search space lets a strategy decide.

Users choose by name (``SPACES``): ``mixed``, every sublayer narrower or dropped; ``width``, narrower but never dropped;
``sublayers`` and ``blocks`` (the paper's), kept whole or dropped. With a sparsity pruner every site keeps its shape,
and a level is the share of its matrices' weights that become zero.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from unicuco.errors import SpaceError
from unicuco.models.geometry import Geometry
from unicuco.zeros import zeros_at

SPARSITY_PRUNERS = ("wanda", "sparsegpt", "sparsellm")
SPARSITIES = (0.0, 0.2, 0.3, 0.4, 0.45, 0.5, 0.55, 0.6, 0.65, 0.7, 0.75, 0.8, 0.85, 0.9)
"""Levels of the sparsity pruners: fine where models begin to break."""
MOST_SPARSITIES = 250
"""Wanda's level of a weight is one byte."""


class SpaceConfig(BaseModel):
    """Which decisions a strategy makes. A space's name does in its place: ``"blocks"`` is ``SPACES["blocks"]``."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    sites: Literal["sublayer", "block"] = "sublayer"
    """``sublayer``: the attention and the MLP of each block. ``block``: one site per block (the paper)."""
    pruner: Literal["width", "depth", "wanda", "sparsegpt", "sparsellm"] = "width"
    """``depth`` allows only dense and dropped; ``width`` every level in between; the others set weights to zero."""
    neuron_multiple: int = Field(default=64, ge=1)
    """MLP levels keep a multiple of this many neurons."""
    # Left out of every dump where it says nothing new: preparations and policies from before it keep their hashes.
    drop: bool = Field(default=True, exclude_if=bool)
    """Whether a site may be dropped; if not, at least one KV group, or one step of neurons, stays."""
    sparsities: tuple[float, ...] = Field(default=(), exclude_if=lambda found: not found)
    """Levels of a sparsity pruner: 0, then ascending; ``SPARSITIES`` where none are given."""

    @model_validator(mode="before")
    @classmethod
    def _named(cls, value: Any) -> Any:
        if isinstance(value, str):
            if value not in SPACES:
                raise ValueError(f"'{value}' is no search space; choose {CHOICES}")
            return dict(SPACES[value])
        if isinstance(value, dict) and value.get("pruner") in SPARSITY_PRUNERS:
            return {"drop": False, "sparsities": SPARSITIES} | value  # said in full: a later default changes no hash
        return value

    @model_validator(mode="after")
    def _something_to_decide(self) -> SpaceConfig:
        if self.pruner == "depth" and not self.drop:
            raise ValueError("the depth pruner does nothing but drop: it needs 'drop'")
        if not self.is_sparse:
            if self.sparsities:
                raise ValueError(f"'sparsities' are levels of the pruners {', '.join(SPARSITY_PRUNERS)}")
            return self
        if self.drop:
            raise ValueError(f"'{self.pruner}' drops nothing: leave 'drop' out")
        levels = self.sparsities
        ascending = all(a < b for a, b in pairwise(levels))
        if not (2 <= len(levels) <= MOST_SPARSITIES and levels[0] == 0 and levels[-1] < 1 and ascending):
            raise ValueError(f"'sparsities' begin with 0 and rise to below 1, 2 to {MOST_SPARSITIES} of them")
        return self

    @property
    def is_sparse(self) -> bool:
        """Whether levels are shares of weights that become zero, in dense shapes."""
        return self.pruner in SPARSITY_PRUNERS


SPACES = {
    "mixed": SpaceConfig(),
    "width": SpaceConfig(drop=False),
    "sublayers": SpaceConfig(pruner="depth"),
    "blocks": SpaceConfig(sites="block", pruner="depth"),
}
"""The search spaces by name, the default first."""
CHOICES = ", ".join(list(SPACES)[:-1]) + f" or {list(SPACES)[-1]}"


@dataclass(frozen=True)
class Level:
    """What is left of a site's block at one level: KV groups and neurons (``None``: not this site's matter).

    ``sparsity``: the share of the site's matrices that a sparsity pruner sets to zero; 0 with all others.
    """

    groups: int | None
    neurons: int | None
    sparsity: float = 0.0


@dataclass(frozen=True)
class Site:
    name: str
    block: int
    kind: Literal["attention", "mlp", "block"]
    levels: tuple[Level, ...]
    sparsity: tuple[float, ...]
    """Share of the site's dense parameters that each level removes: 0 first, ascending; 1 (dropped) last, if it may."""


def build_sites(geometry: Geometry, config: SpaceConfig) -> tuple[Site, ...]:
    """The sites of a space in block order, attention before MLP.

    A site that can neither be dropped nor narrowed (one KV group, say) has one level.

    Raises:
        SpaceError: that is true of all of them.
    """
    if config.is_sparse:
        return _sparse_sites(geometry, config)
    sites: list[Site] = []
    for b, block in enumerate(geometry.blocks):
        groups, neurons = _group_levels(block.groups, config), _neuron_levels(block.neurons, config)
        if config.sites == "sublayer":
            sites.append(_site(geometry, config.pruner, b, "attention", [Level(g, None) for g in groups]))
            sites.append(_site(geometry, config.pruner, b, "mlp", [Level(None, n) for n in neurons]))
        else:
            shares = [n / block.neurons for n in neurons]
            nearest = [Level(_nearest_groups(block.groups, s), n) for s, n in zip(shares, neurons, strict=True)]
            sites.append(_site(geometry, config.pruner, b, "block", nearest))
    if max(len(site.levels) for site in sites) == 1:
        raise SpaceError(
            "Nothing of this base model can be pruned without dropping sublayers: its attentions have one KV group and "
            f"its MLPs at most {config.neuron_multiple} neurons; choose another space than width."
        )
    return tuple(sites)


def _sparse_sites(geometry: Geometry, config: SpaceConfig) -> tuple[Site, ...]:
    sites = []
    for b, block in enumerate(geometry.blocks):
        if config.sites == "block":
            sites.append(
                _site(
                    geometry,
                    config.pruner,
                    b,
                    "block",
                    [Level(block.groups, block.neurons, s) for s in config.sparsities],
                )
            )
        else:
            attention = [Level(block.groups, None, s) for s in config.sparsities]
            sites.append(_site(geometry, config.pruner, b, "attention", attention))
            sites.append(
                _site(geometry, config.pruner, b, "mlp", [Level(None, block.neurons, s) for s in config.sparsities])
            )
    return tuple(sites)


def level_params(geometry: Geometry, block: int, level: Level, pruner: str) -> int:
    """Parameters of a site at one of its levels; of a sparse one, those that its pruner does not set to zero."""
    shape = geometry.blocks[block]
    params = shape.attention_params(level.groups or 0) + shape.mlp_params(level.neurons or 0)
    if level.sparsity and level.groups is not None:
        params -= zeros_at(geometry, block, "attention", level.sparsity, pruner)
    if level.sparsity and level.neurons is not None:
        params -= zeros_at(geometry, block, "mlp", level.sparsity, pruner)
    return params


def _group_levels(groups: int, config: SpaceConfig) -> list[int]:
    if config.pruner == "depth":
        return [groups, 0]
    return list(range(groups, -1 if config.drop else 0, -1))


def _neuron_levels(neurons: int, config: SpaceConfig) -> list[int]:
    if config.pruner == "depth":
        return [neurons, 0]
    widths = set(range(0, neurons + 1, config.neuron_multiple)) | {neurons}
    return sorted(widths if config.drop else widths - {0}, reverse=True)


def _nearest_groups(groups: int, share: float) -> int:
    return max(1, round(groups * share)) if share > 0 else 0


def _site(
    geometry: Geometry, pruner: str, block: int, kind: Literal["attention", "mlp", "block"], levels: list[Level]
) -> Site:
    params = [level_params(geometry, block, level, pruner) for level in levels]
    sparsity = [1.0 - p / params[0] for p in params]
    name = f"blocks.{block}" if kind == "block" else f"blocks.{block}.{kind}"
    return Site(name, block, kind, tuple(levels), tuple(sparsity))
