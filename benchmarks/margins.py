"""What margins are worth: slopes against finite differences, and how far they differ between draws of windows.

    python -m benchmarks.margins [--kept 0.6] [--sites 8] [--groups 4] [--seed 0] [--pruner wanda]
                                 [--json FILE]

Around the preparation's allocation at ``--kept``:

- ``slope_ratio`` per kind of site: slope of KL by margins (second-order terms added, as the surrogate has them) ÷ the
  difference of two measured KLs on the same windows, median and range over ``--sites`` sites of the kind;
- ``damage_ratio``: the same for what the preparation's damages promise;
- ``window_spread``: relative deviation of a site's slope between ``--groups`` draws of windows, the median over sites:
  as far off is whatever is learned of a site on one draw;
- ``damage_spread``: deviation of log (slope, mean over draws ÷ promised): what there is to learn.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from benchmarks.harness import MODEL, finish, parser, surroundings
from benchmarks.search import open_evaluator
from unicuco.allocation import allocate
from unicuco.evaluator import Evaluator
from unicuco.levels import SPARSITY_PRUNERS, SpaceConfig
from unicuco.slopes import steps
from unicuco.space import budgets_of

KINDS = ("mlp", "attention")


def measure(evaluator: Evaluator, given: Any) -> dict[str, Any]:
    """All figures, per kind of site."""
    space, damage = evaluator.space, evaluator.preparation.damage
    base = allocate(space, damage, budgets_of(space, np.array([given.kept])))[0]
    ends = steps(space, base)
    groups = min(given.groups, evaluator.preparation.margin_groups)
    margins = [evaluator.margins(base, group) for group in range(groups)]
    here = evaluator.on(evaluator.preparation.margin_windows(0))
    rng = np.random.default_rng(given.seed)
    figures: dict[str, Any] = {"kl": [m.kl for m in margins]}
    for kind in KINDS:
        sites = [i for i in ends if space.sites[i].kind == kind]
        promised = np.array([damage[i, ends[i][1]] - damage[i, ends[i][0]] for i in sites])
        # Second-order terms of both sides (unicuco/margins.py): damages up less damages down.
        bend = np.array([damage[i, ends[i][1]] + damage[i, ends[i][0]] - 2 * damage[i, base[i]] for i in sites])
        slopes = np.array([[m.change[i, ends[i][1]] - m.change[i, ends[i][0]] for i in sites] for m in margins]) + bend
        relative = slopes / np.array([[m.kl] for m in margins])
        off = np.log(np.maximum(relative.mean(0), 1e-6) / (promised / np.mean(figures["kl"])))
        chosen = rng.permutation(len(sites))[: given.sites]
        true = np.array([_difference(here, base, sites[j], ends[sites[j]]) for j in chosen])
        figures[kind] = {
            "sites": len(sites),
            "slope_ratio": _three(slopes[0][chosen] / true),
            "damage_ratio": _three(promised[chosen] / true),
            "window_spread": float(np.median(relative.std(0, ddof=1) / np.abs(relative.mean(0)))),
            "damage_spread": float(off[relative.mean(0) > 0].std()),
        }
    return figures


def _difference(evaluator: Evaluator, base: np.ndarray, site: int, ends: tuple[int, int]) -> float:
    """KL with one site pruned more less KL with it pruned less, both measured."""
    found = []
    for level in ends:
        levels = base.copy()
        levels[site] = level
        found.append(evaluator.measure(evaluator.space.shape(levels)).kl)
    return found[1] - found[0]


def _three(ratios: np.ndarray) -> list[float]:
    return [float(v) for v in (np.median(ratios), ratios.min(), ratios.max())]


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--kept", type=float, default=0.6)
    options.add_argument("--sites", type=int, default=8, help="sites of each kind that are measured by differences")
    options.add_argument("--groups", type=int, default=4, help="draws of windows")
    options.add_argument("--seed", type=int, default=0)
    options.add_argument("--pruner", choices=SPARSITY_PRUNERS, help="its space, in the place of 'mixed'")
    given = options.parse_args()
    evaluator = open_evaluator(SpaceConfig(pruner=given.pruner) if given.pruner else "mixed", given.seed)
    figures = measure(evaluator, given)
    rows = []
    for kind in KINDS:
        for name in ("slope_ratio", "damage_ratio"):
            median, low, high = figures[kind][name]
            rows.append((f"{name}, {kind}", f"{median:.2f} ({low:.2f} to {high:.2f})", ""))
        rows += [(f"{name}, {kind}", f"{figures[kind][name]:.2f}", "") for name in ("window_spread", "damage_spread")]
    figures["surroundings"] = surroundings(
        model=MODEL,
        space=given.pruner or "mixed",
        seed=given.seed,
        kept=given.kept,
        tokens=evaluator.num_tokens,
        dtype=evaluator.config.dtype,
    )
    finish("Margins: slopes of KL, site by site", rows, figures, given.json)


if __name__ == "__main__":
    main()
