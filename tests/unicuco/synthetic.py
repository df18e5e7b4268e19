"""A base model that is only numbers: a geometry and a known law of damage, so that searches run without an LLM."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np

from unicuco.evaluations import Candidate, Evaluation, EvaluationLog
from unicuco.latency import NamedTable
from unicuco.learner import Learner, LearnerConfig
from unicuco.models.geometry import BlockGeometry, Geometry
from unicuco.space import SearchSpace, SpaceConfig
from unicuco.stratnet import StratNetConfig

FAST_NET = StratNetConfig(width=64, steps=150)


def geometry(blocks: int = 6, groups: int = 3, neurons: int = 256, hidden: int = 64) -> Geometry:
    """Blocks as of a Llama with three query heads of 16 per group: groups and neurons cost incommensurate sums."""
    per_group = 2 * 3 * 16 * hidden + 2 * 16 * hidden  # q and o of three heads, k and v of one
    block = BlockGeometry(
        groups=groups, heads_per_group=3, head_dim=16, neurons=neurons, attention_fixed=hidden,
        params_per_group=per_group, macs_per_group=per_group, mlp_fixed=hidden, params_per_neuron=3 * hidden,
        macs_per_neuron=3 * hidden,
    )  # fmt: skip
    return Geometry(
        family="llama", hidden_size=hidden, vocab_size=300, blocks=(block,) * blocks, fixed_params=300 * hidden,
        fixed_macs=300 * hidden,
    )  # fmt: skip


class KnownDamage:
    """KL = Σᵢ wᵢ Dᵢ(levelᵢ): the table D is what a preparation would predict, the weights w are what a search learns.

    Attributes:
        table: D, ``num_sites x max_levels``; 0 at dense, growing with the level.
        truth: w D, likewise, on all text.
        luck: how far log weights on one draw of windows are from those on all text.
    """

    def __init__(self, space: SearchSpace, seed: int = 0, spread: float = 0.8, luck: float = 0.0) -> None:
        self.space, self.seed, self.luck = space, seed, luck
        rng = np.random.default_rng(seed)
        sparsity = np.where(np.isinf(space.levels), 1.0, space.levels)
        size = np.exp(rng.normal(-2.5, 0.7, space.num_sites))
        bend = rng.uniform(2.0, 4.0, space.num_sites)
        self.table = size[:, None] * np.expm1(bend[:, None] * sparsity) / np.expm1(bend)[:, None]
        self.truth = self.table * np.exp(rng.normal(0, spread, space.num_sites))[:, None]

    def on_draw(self, draw: int) -> np.ndarray:
        """The truth on one draw of windows (``num_sites x max_levels``): -1 the search windows, else a margin group."""
        luck = np.random.default_rng([self.seed, 1 + draw]).normal(0, self.luck, self.space.num_sites)
        return self.truth * np.exp(luck)[:, None]

    def kl(self, levels: np.ndarray, truth: np.ndarray | None = None) -> np.ndarray:
        """Of level indices ``n x num_sites``, on all text or where ``truth`` holds."""
        truth = self.truth if truth is None else truth
        return truth[np.arange(self.space.num_sites), np.atleast_2d(levels)].sum(axis=1)

    def margins(self, levels: np.ndarray, truth: np.ndarray) -> np.ndarray:
        """First-order changes as they are where each site's error is an orthogonal projection (``num_sites x levels``).

        Pruning more adds an error orthogonal to the one that is there: no first order. Giving back undoes a part of it:
        twice what that part costs, of which the second order takes one back.
        """
        own = truth[np.arange(self.space.num_sites), levels][:, None]
        return np.where(truth < own, -2 * (own - truth), 0.0)

    def evaluation(self, candidate: Candidate) -> Evaluation:
        """What an evaluator of this model would measure, on four windows that differ by a few percent."""
        levels = np.array(candidate.levels)
        kl = float(self.kl(levels, self.on_draw(-1))[0])
        there = self.on_draw(candidate.margin_group)
        return Evaluation(
            eval_id=candidate.eval_id, levels=candidate.levels, origin=candidate.origin,
            params=int(self.space.total(levels)), kept=float(self.space.kept(levels)), kl=kl, kl_reverse=1.1 * kl,
            perplexity=float(20 * np.exp(kl)), domains=("made-up",), domain_kl=(kl,), tokens=128,
            cost=128.0 * candidate.cost,
            seconds=0.01, dtype="float32", device="cpu", threads=1, seed=0, preparation="p" * 64, windows="w" * 64,
            window_kl=tuple(kl * factor for factor in (0.95, 0.98, 1.02, 1.05)),
            predicted_log_kl=candidate.predicted_log_kl, predicted_sigma=candidate.predicted_sigma,
            policy_version=candidate.policy_version, margin_group=candidate.margin_group,
            margins_kl=float(self.kl(levels, there)[0]) if candidate.margin_group >= 0 else np.nan,
            margins=tuple(self.margins(levels, there).flatten()) if candidate.margin_group >= 0 else (),
            finished=float(candidate.eval_id) if candidate.eval_id.isdigit() else 0.0,
        )  # fmt: skip


class KnownDomains(KnownDamage):
    """A law of damage per domain: each needs other sites, and the table knows only their mean."""

    def __init__(self, space: SearchSpace, names: tuple[str, ...] = ("code", "prose"), seed: int = 0) -> None:
        super().__init__(space, seed)
        self.names = names
        rng = np.random.default_rng([seed, 1])
        needs = np.exp(rng.normal(0, 1.2, (len(names), space.num_sites)))
        self.truths = self.truth[None] * (needs / needs.mean(axis=0))[:, :, None]

    def domain_kl(self, levels: np.ndarray) -> np.ndarray:
        """Of level indices ``n x num_sites`` (``n x num_domains``)."""
        sites = np.arange(self.space.num_sites)
        return np.stack([truth[sites, np.atleast_2d(levels)].sum(axis=1) for truth in self.truths], axis=1)

    def evaluation(self, candidate: Candidate) -> Evaluation:
        kls = self.domain_kl(np.array(candidate.levels))[0]
        windows = tuple(float(kl * factor) for kl in kls for factor in (0.95, 0.98, 1.02, 1.05))
        measured = super().evaluation(candidate)
        return replace(
            measured, domains=self.names, domain_kl=tuple(kls.tolist()), kl=float(kls.mean()), window_kl=windows
        )


def make_space(blocks: int = 6, **config: object) -> SearchSpace:
    return SearchSpace(geometry(blocks), SpaceConfig.model_validate({"neuron_multiple": 32} | config))


def make_learner(
    folder: Path, model: KnownDamage, margin_groups: int = 0, latency: NamedTable | None = None, **config: object
) -> Learner:
    settings = {"evaluations": 40, "batch": 8, "stratnet": FAST_NET} | config
    return Learner(
        model.space,
        model.table,
        LearnerConfig.model_validate(settings),
        EvaluationLog(folder),
        margin_groups=margin_groups,
        domains=getattr(model, "names", ()),
        latency=latency,
    )


def search(learner: Learner, model: KnownDamage) -> Learner:
    """Runs ``learner`` to its end, one candidate after another."""
    while not learner.finished():
        if learner.needs_training():
            learner.train()
            continue
        candidates = learner.ask(1)
        assert candidates, "nothing to train on, nothing to evaluate, and not finished"
        for candidate in candidates:
            assert learner.tell(model.evaluation(candidate))
    return learner
