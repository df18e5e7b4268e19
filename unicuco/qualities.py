"""Quality objectives: the mean KL alone (the paper), or the KL of every calibration domain, each with its surrogate.

Surrogates of domains learn from evaluations only. Margins are gradients of the mean KL and cannot say whose it is, so
with one objective per domain the learner asks for none and spends all of its budget on evaluations.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from unicuco.allocation import allocate
from unicuco.evaluations import Evaluation
from unicuco.space import SearchSpace, budgets_of
from unicuco.surrogate import NOISE_FLOOR, Surrogate, SurrogateConfig

Form = Literal["auto", "mean", "domains"]
MEAN = "mean"
"""Name of the quality where there is one for all domains."""
MOST_DOMAINS = 4
"""``auto`` gives no more domains than this an objective each: the front grows a dimension with every one."""
ROUNDS = 2
"""Allocations under several tables: the weights are relative to what each domain loses, which is known afterwards."""


def objective_domains(form: Form, domains: Sequence[str]) -> tuple[str, ...]:
    """The domains that are objectives of their own; () where the mean KL over all of them is the one quality."""
    several = len(domains) > 1 and (form == "domains" or (form == "auto" and len(domains) <= MOST_DOMAINS))
    return tuple(domains) if several else ()


@dataclass(frozen=True)
class Qualities:
    """One fitted surrogate per quality objective.

    Attributes:
        names: the domains, or ``MEAN`` alone.
    """

    names: tuple[str, ...]
    surrogates: tuple[Surrogate, ...]

    @classmethod
    def of_mean(cls, surrogate: Surrogate) -> Qualities:
        """The two-objective form."""
        return cls((MEAN,), (surrogate,))

    @classmethod
    def of_domains(
        cls,
        space: SearchSpace,
        damage: np.ndarray | None,
        config: SurrogateConfig,
        names: tuple[str, ...],
        levels: np.ndarray,
        domain_kl: np.ndarray,
    ) -> Qualities:
        """Fits one surrogate per domain.

        Args:
            levels: ``n x num_sites``; domain_kl: ``n x num_domains``, nats per token.
        """
        columns = domain_kl.T
        return cls(names, tuple(Surrogate(space, damage, config).fit(levels, column) for column in columns))

    def __len__(self) -> int:
        return len(self.names)

    @property
    def space(self) -> SearchSpace:
        return self.surrogates[0].space

    @property
    def has_tables(self) -> bool:
        """Whether allocations can be made; not in the plain form."""
        return all(surrogate.damage_model is not None for surrogate in self.surrogates)

    def predict(self, x: Tensor, on_search_windows: bool = False) -> tuple[Tensor, Tensor]:
        """Mean and deviation of every log KL (``n x num_qualities`` each), differentiable in ``x``."""
        found = [surrogate.predict(x, on_search_windows) for surrogate in self.surrogates]
        return torch.stack([mean for mean, _ in found], dim=-1), torch.stack(
            [deviation for _, deviation in found], dim=-1
        )

    def measured(self, evaluations: Sequence[Evaluation]) -> np.ndarray:
        """Measured log KLs (``n x num_qualities``); nan where an evaluation lacks these domains."""
        if self.names == (MEAN,):
            kl = np.array([[e.kl] for e in evaluations])
        else:
            kl = np.array([e.domain_kl if e.domains == self.names else [np.nan] * len(self) for e in evaluations])
        return np.log(kl.reshape(-1, len(self)) + NOISE_FLOOR)

    def allocate(
        self,
        kept: np.ndarray,
        shares: np.ndarray,
        ranges: np.ndarray,
        generator: torch.Generator | None = None,
        prices: np.ndarray | None = None,
    ) -> np.ndarray:
        """Strategies of sizes ``kept`` (``n``) that lose least of Σ_d share_d log KL_d / range_d.

        To first order a step in log KL_d is a step in domain d's additive damage over its sum, so each round allocates
        under the tables' sum with these weights, and takes the sums from what the round before it allocated.

        Args:
            shares: ``n x num_qualities``; ranges: ``num_qualities``, what a unit of each quality is in log KL.
            generator: draw the tables from their posteriors (Thompson sampling) instead of taking the means.
            prices: what levels cost where it is not their parameters alone (``Costs.prices``); ``kept`` is of that.

        Returns:
            ``n x num_sites`` level indices.
        """
        budgets, size = budgets_of(self.space, kept), kept
        if prices is not None:  # damages are those at a size: it is the one that a first allocation has
            first = np.mean([surrogate.tables(kept) for surrogate in self.surrogates], axis=0)
            size = self.space.kept(allocate(self.space, first, budgets, prices=prices))
        if generator is None:
            tables = [surrogate.tables(size) for surrogate in self.surrogates]
        else:
            tables = [surrogate.sample_tables(size, generator) for surrogate in self.surrogates]
        if len(tables) == 1:
            return allocate(self.space, tables[0], budgets, prices=prices)
        stacked = np.stack(tables)  # num_qualities x n x num_sites x max_levels
        weights = np.ones(shares.T.shape)
        for _ in range(ROUNDS):
            levels = allocate(self.space, np.einsum("dn,dnsl->nsl", weights, stacked), budgets, prices=prices)
            chosen = np.take_along_axis(stacked, levels[None, :, :, None], axis=3)[..., 0]
            # A table that weighs nothing at all would leave its sites' levels to chance.
            weights = np.maximum(shares.T, 1e-3) / ranges[:, None] / np.maximum(chosen.sum(axis=2), 1e-9)
        return allocate(self.space, np.einsum("dn,dnsl->nsl", weights, stacked), budgets, prices=prices)

    def state(self) -> dict[str, Tensor]:
        """Everything that ``predict`` needs, as tensors for safetensors."""
        states = [surrogate.state() for surrogate in self.surrogates]
        return {f"{d}.{key}": tensor for d, state in enumerate(states) for key, tensor in state.items()}

    @classmethod
    def from_state(
        cls,
        space: SearchSpace,
        damage: np.ndarray | None,
        config: SurrogateConfig,
        names: tuple[str, ...],
        state: dict[str, Tensor],
    ) -> Qualities:
        """Rebuilds what ``state`` returned."""
        found = []
        for d in range(len(names)):
            own = {key.removeprefix(f"{d}."): tensor for key, tensor in state.items() if key.startswith(f"{d}.")}
            found.append(Surrogate.from_state(space, damage, config, own))
        return cls(names, tuple(found))
