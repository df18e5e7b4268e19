"""A base model that is only numbers, hard in the ways in which real ones are: what ablations search on in seconds.

The preparation predicts a damage D for every level of every site. The truth differs from it by

- one weight per site: a part that neighbouring blocks share, a part of its own, and a part that drifts with size;
- an interaction of each block's two sites: with errors eₐ and eₘ, KL grows like |eₐ + eₘ|², not |eₐ|² + |eₘ|²;
- an exponent per kind of site, and one for the whole.

Every window has weights of its own. A search sees the mean over its windows, margins come from other windows and are
wrong by factors that a site's margins share, that a base's share, and of their own. What counts is the KL at the mean
weights, which no window has. The best strategy within a size is known: an exact dynamic program over blocks.

Sizes of all these errors are as they were found on SmolLM2-135M (docs/decisions.md), those of windows and margins by
``benchmarks.margins``, roughly.
"""

from __future__ import annotations

import math

import numpy as np

from unicuco.baselines.knapsack import solve_all
from unicuco.evaluations import Candidate, Evaluation
from unicuco.models.geometry import BlockGeometry, Geometry
from unicuco.space import SearchSpace, SpaceConfig, budgets_of

BLOCKS, GROUPS, NEURONS, HIDDEN = 12, 3, 512, 64
WINDOWS, MARGIN_GROUPS = 4, 24
NEAR, OWN, DRIFTING = 0.6, 0.45, 0.35
"""Deviations of a site's log weight: shared with neighbours, its own, and drifting with size."""
REACH, PERIOD = 3.0, 1.2
"""Over how many blocks weights are alike, and over how much of the kept share a weight drifts there and back."""
WINDOW_ALL, WINDOW_SITE = 0.1, 0.6
"""How far one window's log weights are off: all together, and each site's."""
MARGIN_SITE, MARGIN_BASE, MARGIN_OWN = 0.12, 0.15, 0.1
"""How far margins are off, in logs: all of a site, all of one base and kind, and each."""
EXPONENTS, WHOLE = {"attention": 0.9, "mlp": 1.1}, 1.1


def make_space() -> SearchSpace:
    """Blocks as of a Llama whose groups and neurons cost incommensurate sums."""
    per_group = 2 * 3 * 16 * HIDDEN + 2 * 16 * HIDDEN  # q and o of three heads, k and v of one
    block = BlockGeometry(
        groups=GROUPS,
        heads_per_group=3,
        head_dim=16,
        neurons=NEURONS,
        attention_fixed=HIDDEN,
        params_per_group=per_group,
        macs_per_group=per_group,
        mlp_fixed=HIDDEN,
        params_per_neuron=3 * HIDDEN,
        macs_per_neuron=3 * HIDDEN,
    )
    geometry = Geometry(
        family="llama",
        hidden_size=HIDDEN,
        vocab_size=300,
        blocks=(block,) * BLOCKS,
        fixed_params=300 * HIDDEN,
        fixed_macs=300 * HIDDEN,
    )
    return SearchSpace(geometry, SpaceConfig(neuron_multiple=32))


class MadeUp:
    """One such model.

    Attributes:
        table: what the preparation predicts, ``num_sites x max_levels``; 0 at dense, growing with the level.
    """

    def __init__(self, space: SearchSpace, seed: int) -> None:
        self.space = space
        rng = np.random.default_rng([seed, 0x5EED])
        sites = space.num_sites
        sparsity = np.where(np.isinf(space.levels), 1.0, space.levels)
        size, bend = np.exp(rng.normal(-1.4, 0.7, sites)), rng.uniform(2.0, 4.0, sites)
        self.table = size[:, None] * np.expm1(bend[:, None] * sparsity) / np.expm1(bend)[:, None]
        self._exponent = np.array([EXPONENTS[site.kind] for site in space.sites])
        self._weight = NEAR * _smooth(space, rng) + rng.normal(0, OWN, sites)
        self._drift = rng.normal(0, DRIFTING, (2, sites))
        self._pair = rng.uniform(-0.5, 1.0, BLOCKS)
        self._windows = rng.normal(0, WINDOW_ALL, (WINDOWS, 1)) + rng.normal(0, WINDOW_SITE, (WINDOWS, sites))
        mean_of = math.sqrt(WINDOWS)  # a group of margin windows is as many as an evaluation has
        self._groups = rng.normal(0, WINDOW_ALL / mean_of, (MARGIN_GROUPS, 1))
        self._groups = self._groups + rng.normal(0, WINDOW_SITE / mean_of, (MARGIN_GROUPS, sites))
        self._margin_site = rng.normal(0, MARGIN_SITE, sites)
        self._seed = seed

    def kl(self, levels: np.ndarray) -> np.ndarray:
        """The KL that counts, of level indices ``n x num_sites``."""
        return self._kl(np.atleast_2d(levels), np.zeros(self.space.num_sites))

    def optimum(self, sizes: np.ndarray) -> np.ndarray:
        """The best strategy within each kept share (``n x num_sites``), by an exact program over blocks.

        Exact but for the weights' drift between a bound and the size just below it that a strategy really has.
        """
        found = []
        for kept in sizes:
            blocks = _Blocks(self.space)
            damage = self._terms(self.table, np.array([kept]), np.zeros(self.space.num_sites))[0]
            both = damage[0::2, :, None] + damage[1::2, None, :]
            both = both + self._pair[:, None, None] * np.sqrt(damage[0::2, :, None] * damage[1::2, None, :])
            joint = both[:, : blocks.attention_levels, : blocks.mlp_levels].reshape(BLOCKS, -1)
            index = solve_all(blocks, joint, budgets_of(self.space, np.array([kept])))[0]  # type: ignore[arg-type]
            found.append(np.stack(np.divmod(index, blocks.mlp_levels), axis=1).reshape(-1))
        return np.array(found)

    def evaluation(self, candidate: Candidate) -> Evaluation:
        """What an evaluator would measure of it on the search windows, with margins if the candidate asks for them."""
        levels = np.array(candidate.levels)
        window_kl = [float(self._kl(levels[None], offset)[0]) for offset in self._windows]
        kl, group = float(np.mean(window_kl)), candidate.margin_group
        kl_there = float(self._kl(levels[None], self._groups[group])[0]) if group >= 0 else math.nan
        change = self._margins(levels, group) if group >= 0 else np.empty(0)
        return Evaluation(
            eval_id=candidate.eval_id,
            levels=candidate.levels,
            origin=candidate.origin,
            params=int(self.space.total(levels)),
            kept=float(self.space.kept(levels)),
            kl=kl,
            kl_reverse=kl,
            perplexity=math.exp(min(kl, 50.0)),
            domains=("made-up",),
            domain_kl=(kl,),
            tokens=2048,
            cost=2048.0 * candidate.cost,
            seconds=0.0,
            dtype="float32",
            device="cpu",
            threads=1,
            seed=self._seed,
            preparation="p" * 64,
            windows="w" * 64,
            window_kl=tuple(window_kl),
            predicted_log_kl=candidate.predicted_log_kl,
            predicted_sigma=candidate.predicted_sigma,
            policy_version=candidate.policy_version,
            margin_group=group,
            margins_kl=kl_there,
            margins=tuple(change.flatten()),
            finished=float(candidate.eval_id),
        )

    def _terms(self, damage: np.ndarray, kept: np.ndarray, offset: np.ndarray) -> np.ndarray:
        """w(kept) Dᵖ: ``damage`` is ``num_sites x anything``; returns ``len(kept) x num_sites x anything``."""
        phase = 2 * np.pi * kept[:, None] / PERIOD
        drift = self._drift[0] * np.cos(phase) + self._drift[1] * np.sin(phase)
        log_weight = self._weight + drift + offset
        return np.exp(log_weight)[:, :, None] * damage[None] ** self._exponent[None, :, None]

    def _sum(self, levels: np.ndarray, offset: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Σ over blocks of both sites' damages and their interaction (``n``), and the damages (``n x num_sites``)."""
        sites = np.arange(self.space.num_sites)
        damage = np.stack(
            [
                self._terms(self.table[sites, row][:, None], np.array([kept]), offset)[0, :, 0]
                for row, kept in zip(levels, self.space.kept(levels), strict=True)
            ]
        )
        return damage.sum(1) + (np.sqrt(damage[:, 0::2] * damage[:, 1::2]) * self._pair).sum(1), damage

    def _kl(self, levels: np.ndarray, offset: np.ndarray) -> np.ndarray:
        return np.maximum(self._sum(levels, offset)[0], 0.0) ** WHOLE

    def _margins(self, levels: np.ndarray, group: int) -> np.ndarray:
        """First-order changes of KL to every level of every site (``num_sites x max_levels``), with their errors.

        A site's error is an orthogonal projection: pruning more adds what is orthogonal to it and has no first order
        but through the other site of its block; giving back undoes twice what that part costs.
        """
        kept = self.space.kept(levels[None])
        total, own = self._sum(levels[None], self._groups[group])
        there = self._terms(self.table, kept, self._groups[group])[0]
        own = own[0][:, None]
        partner = np.sqrt(own.reshape(BLOCKS, 2)[:, ::-1].reshape(-1, 1)) * np.repeat(self._pair, 2)[:, None]
        change = np.where(there < own, 2 * (there - own), 0.0) + partner * (np.sqrt(there) - np.sqrt(own))
        rng = np.random.default_rng([self._seed, group, *levels])
        kinds = np.tile(rng.normal(0, MARGIN_BASE, 2), BLOCKS)
        error = self._margin_site + kinds + rng.normal(0, MARGIN_OWN, len(levels))
        return WHOLE * max(float(total[0]), 1e-12) ** (WHOLE - 1) * np.exp(error)[:, None] * change


class _Blocks:
    """Both sites of a block as one site with every pair of levels, as far as ``solve_all`` looks at a search space."""

    def __init__(self, space: SearchSpace) -> None:
        self.attention_levels, self.mlp_levels = int(space.num_levels[0]), int(space.num_levels[1])
        params = space.tables["params"]
        pairs = params[0::2, : self.attention_levels, None] + params[1::2, None, : self.mlp_levels]
        self.num_sites = BLOCKS
        self.num_levels = np.full(BLOCKS, self.attention_levels * self.mlp_levels)
        self.smallest = self.num_levels - 1
        self.tables = {"params": pairs.reshape(BLOCKS, -1)}
        self.fixed = space.fixed

    def total(self, index: np.ndarray) -> np.ndarray:
        return self.tables["params"][np.arange(self.num_sites), index].sum(axis=-1) + self.fixed["params"]


def _smooth(space: SearchSpace, rng: np.random.Generator) -> np.ndarray:
    """Standard normal per site, alike in neighbouring blocks, each kind of site for itself (``num_sites``)."""
    place = np.arange(BLOCKS)
    alike = np.exp(-(((place[:, None] - place[None]) / REACH) ** 2) / 2) + 1e-6 * np.eye(BLOCKS)
    return np.stack([np.linalg.cholesky(alike) @ rng.standard_normal(BLOCKS) for _ in range(2)], axis=1).reshape(-1)
