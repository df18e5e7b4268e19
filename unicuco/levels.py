"""Sites and their legal levels: what each search space lets a strategy decide.

Users choose by name (``SPACES``): ``mixed``, every sublayer narrower or dropped; ``width``, narrower but never dropped;
``sublayers`` and ``blocks`` (the paper's), kept whole or dropped.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from unicuco.errors import SpaceError
from unicuco.models.geometry import Geometry


class SpaceConfig(BaseModel):
    """Which decisions a strategy makes. A space's name does in its place: ``"blocks"`` is ``SPACES["blocks"]``."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    sites: Literal["sublayer", "block"] = "sublayer"
    """``sublayer``: the attention and the MLP of each block. ``block``: one site per block (the paper)."""
    pruner: Literal["width", "depth"] = "width"
    """``depth`` allows only dense and dropped; ``width`` every level in between."""
    neuron_multiple: int = Field(default=64, ge=1)
    """MLP levels keep a multiple of this many neurons."""
    # Left out of every dump where it says nothing new: preparations and policies from before it keep their hashes.
    drop: bool = Field(default=True, exclude_if=bool)
    """Whether a site may be dropped; if not, at least one KV group, or one step of neurons, stays."""

    @model_validator(mode="before")
    @classmethod
    def _named(cls, value: Any) -> Any:
        if isinstance(value, str):
            if value not in SPACES:
                raise ValueError(f"'{value}' is no search space; choose {CHOICES}")
            return dict(SPACES[value])
        return value

    @model_validator(mode="after")
    def _something_to_decide(self) -> SpaceConfig:
        if self.pruner == "depth" and not self.drop:
            raise ValueError("the depth pruner does nothing but drop: it needs 'drop'")
        return self


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
    """What is left of a site's block at one level: KV groups and neurons (``None``: not this site's matter)."""

    groups: int | None
    neurons: int | None


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
    sites: list[Site] = []
    for b, block in enumerate(geometry.blocks):
        groups, neurons = _group_levels(block.groups, config), _neuron_levels(block.neurons, config)
        if config.sites == "sublayer":
            sites.append(_site(geometry, b, "attention", [Level(g, None) for g in groups]))
            sites.append(_site(geometry, b, "mlp", [Level(None, n) for n in neurons]))
        else:
            shares = [n / block.neurons for n in neurons]
            nearest = [Level(_nearest_groups(block.groups, s), n) for s, n in zip(shares, neurons, strict=True)]
            sites.append(_site(geometry, b, "block", nearest))
    if max(len(site.levels) for site in sites) == 1:
        raise SpaceError(
            "Nothing of this base model can be pruned without dropping sublayers: its attentions have one KV group and "
            f"its MLPs at most {config.neuron_multiple} neurons; choose another space than width."
        )
    return tuple(sites)


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


def _site(geometry: Geometry, block: int, kind: Literal["attention", "mlp", "block"], levels: list[Level]) -> Site:
    shape = geometry.blocks[block]
    params = [shape.attention_params(v.groups or 0) + shape.mlp_params(v.neurons or 0) for v in levels]
    sparsity = [1.0 - p / params[0] for p in params]
    name = f"blocks.{block}" if kind == "block" else f"blocks.{block}.{kind}"
    return Site(name, block, kind, tuple(levels), tuple(sparsity))
