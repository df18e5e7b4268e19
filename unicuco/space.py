"""The search space: what a strategy may decide, the exact size of every decision, and projection onto a budget.

A strategy is a vector of sparsities ``x`` in [0, 1]^d, one per site. Every site has a list of legal levels, ascending
in sparsity; ``snap`` turns ``x`` into level indices, and everything exact (sizes, shapes) is a sum of table look-ups
over those indices. Pure numpy: answering a request needs no model and no torch.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import numpy as np

from unicuco.errors import InfeasibleRequestError, SpaceError, StrategyError
from unicuco.levels import SPACES, Level, Site, SpaceConfig, build_sites, level_params
from unicuco.models.geometry import Geometry
from unicuco.projection import Projection

__all__ = ["MEASURES", "SPACES", "Measure", "SearchSpace", "Shape", "Size", "SpaceConfig", "budgets_of"]

Measure = Literal["params", "macs", "kv"]
MEASURES: tuple[Measure, ...] = ("params", "macs", "kv")


@dataclass(frozen=True)
class Shape:
    """A strategy as the model sees it: KV groups and neurons left in each block (``num_blocks`` integers each).

    Attributes:
        sparsity: of attention and MLP of each block (``num_blocks`` pairs), where a pruner sets weights to zero.
    """

    groups: tuple[int, ...]
    neurons: tuple[int, ...]
    sparsity: tuple[tuple[float, float], ...] = ()


@dataclass(frozen=True)
class Size:
    """Exact size of one strategy. ``kept`` and ``ratio`` as in docs/protocol: blocks only, and all parameters.

    Weights that a sparsity pruner sets to zero are not among ``params``, ``kept`` and ``ratio``; but bytes and
    multiply-adds are those of the dense model, because zeros in dense shapes are no smaller and no faster.
    """

    params: int
    bytes: int
    kept: float
    ratio: float
    flops_per_token: int
    """2 × multiply-adds of every weight matrix, head included, attention over the context left out."""
    kv_bytes_per_token: int


class SearchSpace:
    """Sites, levels and sizes for one geometry.

    Attributes:
        sites: ``num_sites`` sites, in block order, attention before MLP.

    Raises:
        SpaceError: no site has more than one level.
    """

    def __init__(self, geometry: Geometry, config: SpaceConfig | None = None) -> None:
        self.geometry = geometry
        self.config = config or SpaceConfig()
        self.sites = build_sites(geometry, self.config)

    @property
    def num_sites(self) -> int:
        return len(self.sites)

    @cached_property
    def num_levels(self) -> np.ndarray:
        """Levels per site (``num_sites``)."""
        return np.array([len(site.levels) for site in self.sites])

    @cached_property
    def levels(self) -> np.ndarray:
        """Sparsity of each level (``num_sites x max_levels``), padded on the right with +inf."""
        table = np.full((self.num_sites, int(self.num_levels.max())), np.inf)
        for i, site in enumerate(self.sites):
            table[i, : len(site.sparsity)] = site.sparsity
        return table

    @property
    def is_binary(self) -> bool:
        """Whether every site is kept or dropped and nothing in between."""
        return self.config.pruner == "depth"

    @property
    def is_sparse(self) -> bool:
        """Whether strategies set weights to zero in dense shapes."""
        return self.config.is_sparse

    @cached_property
    def deepest(self) -> np.ndarray:
        """The largest sparsity of each site (``num_sites``): 1 where it may be dropped."""
        return np.array([site.sparsity[-1] for site in self.sites])

    @cached_property
    def smallest(self) -> np.ndarray:
        """Level indices of the smallest strategy (``num_sites``)."""
        return self.num_levels - 1

    @cached_property
    def tables(self) -> dict[Measure, np.ndarray]:
        """For each measure, what a site costs at each level (``num_sites x max_levels``, the last one repeated)."""
        tables = {m: np.zeros(self.levels.shape, dtype=np.int64) for m in MEASURES}
        for i, site in enumerate(self.sites):
            for j in range(self.levels.shape[1]):
                level = site.levels[min(j, len(site.levels) - 1)]
                for measure, value in self._level_cost(site, level).items():
                    tables[measure][i, j] = value
        return tables

    @cached_property
    def fixed(self) -> dict[Measure, int]:
        """What no strategy can remove, per measure."""
        return {"params": self.geometry.fixed_params, "macs": self.geometry.fixed_macs, "kv": 0}

    def _level_cost(self, site: Site, level: Level) -> dict[Measure, int]:
        block = self.geometry.blocks[site.block]
        groups, neurons = level.groups or 0, level.neurons or 0
        return {
            "params": level_params(self.geometry, site.block, level, self.config.pruner),
            "macs": groups * block.macs_per_group + neurons * block.macs_per_neuron,
            "kv": 2 * groups * block.head_dim,  # numbers cached per token: one key and one value per KV head
        }

    def check_reach(self, kept: float) -> None:
        """Refuses a search down to ``kept``, a share of the blocks' parameters, where no strategy gets that small.

        Raises:
            SpaceError: it says how small they get.
        """
        smallest = float(self.kept(self.smallest))
        if smallest > kept:
            raise SpaceError(
                f"The smallest strategy of this search space keeps {smallest:.3f} of the blocks' parameters: let the "
                f"search end above that (learner.kept_low is {kept:g}), or choose "
                + ("higher sparsities." if self.is_sparse else "a space that drops sublayers.")
            )

    def check(self, x: np.ndarray) -> np.ndarray:
        """``x`` as a float64 array ``n x num_sites``.

        Raises:
            StrategyError: wrong length, not finite, or outside [0, 1].
        """
        x = np.atleast_2d(np.asarray(x, dtype=np.float64))
        if x.ndim != 2 or x.shape[1] != self.num_sites:
            raise StrategyError(f"A strategy here has {self.num_sites} sparsities, one per site; got {x.shape[-1]}.")
        if not (x.min(initial=0.0) >= -1e-9 and x.max(initial=0.0) <= 1 + 1e-9):  # neither holds of what is no number
            raise StrategyError("Every sparsity of a strategy lies between 0 (keep all) and 1 (drop the site).")
        return np.minimum(np.maximum(x, 0.0), 1.0)

    def check_levels(self, index: np.ndarray) -> np.ndarray:
        """``index`` as integers ``num_sites`` or ``n x num_sites``.

        Raises:
            StrategyError: wrong length, or a level that a site does not have.
        """
        index = np.asarray(index)
        if index.shape[-1:] != (self.num_sites,) or not np.issubdtype(index.dtype, np.integer):
            raise StrategyError(f"A strategy here has {self.num_sites} level indices, one per site.")
        if (index < 0).any() or (index >= self.num_levels).any():
            raise StrategyError("A strategy names a level that its site does not have.")
        return index.astype(np.int64)

    def snap(self, x: np.ndarray) -> np.ndarray:
        """Nearest legal level of every site (``n x num_sites`` integers); a tie keeps more."""
        return self._projection.nearest(self.check(x))

    def sparsities(self, index: np.ndarray) -> np.ndarray:
        """Sparsities of level indices (``n x num_sites``): the strategy exactly as it will be applied."""
        return self.levels[np.arange(self.num_sites), index]

    def total(self, index: np.ndarray, measure: Measure = "params") -> np.ndarray:
        """Exact total of ``measure`` for level indices ``n x num_sites`` (``n`` integers), fixed part included."""
        return self.tables[measure][self._all_sites, index].sum(axis=-1) + self.fixed[measure]

    @cached_property
    def _all_sites(self) -> np.ndarray:
        return np.arange(self.num_sites)

    def kept(self, index: np.ndarray) -> np.ndarray:
        """Share of the blocks' parameters that is left (``n``)."""
        return (self.total(index) - self.fixed["params"]) / self.geometry.block_params

    def size(self, index: np.ndarray, bytes_per_param: int = 2) -> Size:
        """Exact size of one strategy (``num_sites`` level indices), stored and cached at ``bytes_per_param``."""
        return self.sizes(np.asarray(index)[None], bytes_per_param)[0]

    def sizes(self, index: np.ndarray, bytes_per_param: int = 2) -> list[Size]:
        """``size`` of each of ``n x num_sites`` level indices."""
        params, macs, kv = (self.total(index, measure).tolist() for measure in MEASURES)
        return [
            Size(
                params=p,
                bytes=(self.geometry.params if self.is_sparse else p) * bytes_per_param,
                kept=(p - self.fixed["params"]) / self.geometry.block_params,
                ratio=p / self.geometry.params,
                flops_per_token=2 * m,
                kv_bytes_per_token=k * bytes_per_param,
            )
            for p, m, k in zip(params, macs, kv, strict=True)
        ]

    def shape(self, index: np.ndarray) -> Shape:
        """What one strategy (``num_sites`` level indices) leaves of each block."""
        groups, neurons = self.widths(np.asarray(index)[None])
        return Shape(tuple(groups[0].tolist()), tuple(neurons[0].tolist()), self._sparsity(index))

    def _sparsity(self, index: np.ndarray) -> tuple[tuple[float, float], ...]:
        if not self.is_sparse:
            return ()
        shares = [[0.0, 0.0] for _ in self.geometry.blocks]
        for site, level in zip(self.sites, np.asarray(index).tolist(), strict=True):
            for place, kind in enumerate(("attention", "mlp")):
                if site.kind in (kind, "block"):
                    shares[site.block][place] = site.levels[level].sparsity
        return tuple((attention, mlp) for attention, mlp in shares)

    def widths(self, index: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """KV groups and neurons left in each block (``n x num_blocks`` each) by ``n x num_sites`` level indices."""
        found = []
        for dense, blocks, sites, table in self._width_tables:
            widths = np.repeat(dense[None], len(index), axis=0)
            widths[:, blocks] = table[np.arange(len(sites)), index[:, sites]]
            found.append(widths)
        return found[0], found[1]

    @cached_property
    def _width_tables(self) -> list[tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]]:
        """For groups and for neurons: every block's when dense, the blocks that sites decide on, those sites, and what
        each of their levels leaves (``num_deciding x max_levels``)."""
        tables = []
        for name in ("groups", "neurons"):
            dense = np.array([getattr(block, name) for block in self.geometry.blocks])
            deciding = [i for i, site in enumerate(self.sites) if getattr(site.levels[-1], name) is not None]
            blocks = np.array([self.sites[i].block for i in deciding], dtype=np.int64)
            table = np.repeat(dense[blocks][:, None], self.levels.shape[1], axis=1)
            for row, i in enumerate(deciding):
                widths = [getattr(level, name) for level in self.sites[i].levels]
                table[row, : len(widths)] = [dense[self.sites[i].block] if w is None else w for w in widths]
            tables.append((dense, blocks, np.array(deciding, dtype=np.int64), table))
        return tables

    def project(self, x: np.ndarray, budgets: dict[Measure, np.ndarray]) -> np.ndarray:
        """The legal strategies nearest to ``x`` that fit every budget.

        All sparsities of a row are shifted together until the snapped strategy fits, then levels are given back one by
        one, to the site most over-pruned for its wish, until no single level fits any more.

        Args:
            x: ``n x num_sites`` sparsities.
            budgets: per measure, the largest allowed total (``n``, fixed part included).

        Returns:
            ``n x num_sites`` level indices, never over any budget, within one level of it.

        Raises:
            InfeasibleRequestError: even the smallest strategy exceeds a budget.
        """
        x = self.check(x)
        limits = {}
        for measure, budget in budgets.items():
            allowed, floor = np.full(len(x), budget, dtype=np.float64), self._floors[measure]
            if len(x) and allowed.min() < floor:
                raise InfeasibleRequestError(
                    f"No strategy has a {measure} total of {int(allowed.min()):,}: in the smallest, {floor:,} are left."
                )
            limits[measure] = allowed - self.fixed[measure]
        return self._projection.within(x, limits)

    @cached_property
    def _projection(self) -> Projection[Measure]:
        return Projection(self.levels, self.num_levels, self.tables)

    @cached_property
    def _floors(self) -> dict[Measure, int]:
        """Totals of the smallest strategy."""
        return {measure: int(self.total(self.smallest, measure)) for measure in MEASURES}


def budgets_of(space: SearchSpace, kept: np.ndarray) -> np.ndarray:
    """Parameter budgets (``n``) for shares of the blocks' parameters, fixed parameters included."""
    return np.asarray(kept) * space.geometry.block_params + space.fixed["params"]
