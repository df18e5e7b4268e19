"""EvoPress: evolution of one strategy per size (Sieberling et al. 2024, "EvoPress", arXiv 2410.14649)."""

from __future__ import annotations

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from unicuco.baselines.measured import Measured, random_strategies, starts
from unicuco.baselines.oracle import BudgetSpentError, Oracle
from unicuco.space import SearchSpace, budgets_of


class EvolutionConfig(BaseModel):
    """How one generation is made; what is left open follows from the budget."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    offspring: int | None = Field(default=None, ge=1)
    """Children per generation; None: 8 to 32, more for larger budgets."""
    max_switches: int = Field(default=3, ge=1)
    """A mutation makes the smaller of two draws up to this many switches (the paper's 3)."""
    step_share: float = Field(default=0.3, ge=0, le=1)
    """A switch moves a site by the smaller of two draws up to this share of its levels, one level at least.

    The paper moves one level; its grids are coarse. Where an MLP has two dozen levels, hundreds of generations of
    single levels would be needed, which the paper has and a budget of a few hundred evaluations has not.
    """


def evolution(
    oracle: Oracle,
    kept: float,
    evaluations: float,
    rng: np.random.Generator,
    config: EvolutionConfig | None = None,
) -> np.ndarray:
    """The best strategy that a (1 + λ) evolution finds within ``kept``, from the better uniform start.

    Each generation measures λ children on a quarter of the windows, the best of them on half, the best of those on
    all; a child replaces the parent only if its KL on all windows is smaller.

    Args:
        evaluations: how much of the oracle's budget may be used.

    Returns:
        ``num_sites`` level indices, within ``kept`` and full.
    """
    config = config or EvolutionConfig()
    space, measured = oracle.space, Measured(oracle, evaluations)
    budget = float(budgets_of(space, np.array(kept)))
    stages = _stages(config.offspring or _offspring(evaluations), oracle.num_windows)
    parent, best = starts(space, kept)[0], np.inf
    try:
        for start in starts(space, kept):
            parent, best = _better(parent, best, start, measured.measure(start))
        if space.num_levels.max() == 2 and measured.left >= _cost(stages, oracle.num_windows):
            # There is no uniform depth pruning: the paper starts from the best of random drops instead.
            drops = random_strategies(space, np.full(stages[0][1], kept), rng)
            parent, best = _better(parent, best, *_select(measured, list(drops), stages))
        while measured.whole_left:
            if measured.left < _cost(stages, oracle.num_windows) - 1e-9:
                stages = [(oracle.num_windows, measured.whole_left)]  # too little for a generation: no stages
            children = _children(space, parent, budget, stages[0][1], measured, rng, config)
            if not children:
                break  # everything within reach was measured
            parent, best = _better(parent, best, *_select(measured, children, stages))
    except BudgetSpentError:
        pass
    return parent


def mutate(
    space: SearchSpace, levels: np.ndarray, budget: float, rng: np.random.Generator, config: EvolutionConfig
) -> np.ndarray:
    """A child of ``levels``: some sites get parameters back, random others pay for it (``num_sites`` level indices).

    Levels of different kinds of site differ in cost, so a switch cannot be one for one: after each gain, random other
    sites lose a step each until the child fits; at the end random sites get levels back until it is full.
    """
    cost, sites = space.tables["params"], np.arange(space.num_sites)
    child = levels.copy()

    def step(site: int) -> int:
        most = max(round(config.step_share * (space.num_levels[site] - 1)), 1)
        return _smaller_of_two(most, rng)

    for _ in range(_smaller_of_two(config.max_switches, rng)):
        prunable = np.flatnonzero(child > 0)
        if not len(prunable):
            break
        gains = rng.choice(prunable)
        child[gains] = max(child[gains] - step(gains), 0)
        while space.total(child) > budget:
            payers = np.flatnonzero((child < space.num_levels - 1) & (sites != gains))
            if not len(payers):  # the others are dropped already: the gain was too large
                child[gains] += 1
                continue
            pays = rng.choice(payers)
            over = space.total(child) - budget
            # No site pays more than is owed, or every switch of a cheap level would cost a dear one and much refilling.
            enough = (
                int(np.argmax(cost[pays, child[pays]] - cost[pays, child[pays] :] >= over)) or space.num_levels[pays]
            )
            child[pays] = min(child[pays] + min(step(pays), enough), space.num_levels[pays] - 1)
    while True:
        room = budget - space.total(child)
        back = np.flatnonzero((child > 0) & (cost[sites, np.maximum(child - 1, 0)] - cost[sites, child] <= room))
        if not len(back):
            return child
        child[rng.choice(back)] -= 1


def _smaller_of_two(most: int, rng: np.random.Generator) -> int:
    return int(rng.integers(1, most + 1, size=2).min())


def _offspring(evaluations: float) -> int:
    """λ such that there are several generations per child: 8 up to 500 evaluations (14 generations of 60, 74 of 300).

    The paper's 32 to 128 leave a budget of hundreds with too few generations; on made-up damages of 60 sites 8 was the
    best of 4, 8, 16, 32 for 60 as for 300 evaluations.
    """
    return int(np.clip(2 ** round(np.log2(max(evaluations, 1.0) ** 0.5 / 2)), 8, 32))


def _stages(offspring: int, num_windows: int) -> list[tuple[int, int]]:
    """(windows, children measured on them) of each stage, the last on all windows."""
    stages: list[tuple[int, int]] = []
    for windows, children in ((num_windows // 4, offspring), (num_windows // 2, offspring // 4)):
        if windows >= 1 and children >= 1:
            stages.append((windows, children))
    return [*stages, (num_windows, max(offspring // 8, 1) if stages else offspring)]


def _cost(stages: list[tuple[int, int]], num_windows: int) -> float:
    return sum(windows * children for windows, children in stages) / num_windows


def _children(
    space: SearchSpace,
    parent: np.ndarray,
    budget: float,
    count: int,
    measured: Measured,
    rng: np.random.Generator,
    config: EvolutionConfig,
) -> list[np.ndarray]:
    """Up to ``count`` distinct children of which none was measured on all windows before."""
    children: dict[bytes, np.ndarray] = {}
    for _ in range(10 * count):
        child = mutate(space, parent, budget, rng, config)
        if not measured.knows(child):
            children.setdefault(child.tobytes(), child)
        if len(children) == count:
            break
    return list(children.values())


def _select(measured: Measured, children: list[np.ndarray], stages: list[tuple[int, int]]) -> tuple[np.ndarray, float]:
    """The best child and its KL on all windows: fewer children from stage to stage, on more windows."""
    scores: list[float] = []
    for windows, count in stages:
        order = np.argsort(scores, kind="stable")[:count] if scores else range(min(count, len(children)))
        children = [children[i] for i in order]
        scores = [measured.measure(child, windows) for child in children]
    first = int(np.argmin(scores))
    return children[first], scores[first]


def _better(parent: np.ndarray, best: float, child: np.ndarray, kl: float) -> tuple[np.ndarray, float]:
    return (child, kl) if kl < best else (parent, best)
