"""The first picture: quality against size, every evaluation of the run, and what the policy makes of them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from unicuco.evaluations import Evaluation
from unicuco.report.run import Run, pareto_front
from unicuco.report.style import (
    BLACK,
    BLUE,
    GREEN,
    GREY,
    KEPT_LABEL,
    KL_LABEL,
    ORANGE,
    PURPLE,
    SKY,
    VERMILLION,
    Picture,
    finish,
    log_axis,
    log_range,
    new_figure,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes

UNIFORM = "uniform"
_KNOWN = {
    UNIFORM: (BLACK, "s"),
    "stratnet": (VERMILLION, "^"),
    "swap": (BLUE, "o"),
    "random": (GREY, "x"),
    "prior": (GREEN, "D"),
    "thompson": (PURPLE, "P"),
    "allocation": (ORANGE, "*"),
    "disturbed": (SKY, "v"),
}
_OTHERS = [(ORANGE, "X"), (SKY, "h"), (GREEN, "h"), (PURPLE, "<")]


def draw_front(run: Run) -> Picture:
    """Kept against KL of every evaluation, by origin; the measured front; the policy's predictions; held-out points."""
    name, title = "front", "Quality against size"
    if not run.evaluations:
        return Picture(name, title, "No evaluation is on disk yet, so there is no front to draw.")
    figure = new_figure(9.5, 6.0)
    axes = figure.add_subplot()
    _evaluations(axes, run.evaluations)
    _front(axes, run.front, "measured front", BLACK, "-")
    uniform = [e for e in run.evaluations if e.origin.startswith(UNIFORM)]
    if len(uniform) > 1:
        _front(axes, pareto_front(uniform), "better uniform form", BLACK, ":")
    _predictions(axes, run)
    values = [e.kl for e in run.evaluations if e.kept < 0.999]
    values += [v for p in run.heldout for v in (p.kl_low, p.kl_high, p.kl_heldout, p.kl_uniform_heldout) if v]
    values += [p.kl for p in run.predicted if p.kept < 0.999]
    log_axis(axes, "y", *log_range(values))
    smallest = min(e.kept for e in run.evaluations)
    axes.set_xlim(smallest - 0.02 * (1 - smallest) - 0.002, 1 + 0.02 * (1 - smallest) + 0.002)
    axes.set_xlabel(KEPT_LABEL)
    axes.set_ylabel(KL_LABEL)
    finish(axes)
    axes.legend(loc="upper left", bbox_to_anchor=(1.01, 1.0), frameon=False, fontsize=9, borderaxespad=0)
    return Picture(name, title, _caption(run), _alt(run), figure)


def origin_styles(origins: Sequence[str]) -> dict[str, tuple[str, str]]:
    """Colour and marker of each origin; the same origin looks the same in every run that has the same ones."""
    styles, spare = {}, iter(_OTHERS)
    for origin in sorted(set(origins)):
        styles[origin] = _KNOWN.get(origin) or next(spare, (GREY, "."))
    return styles


def _evaluations(axes: Axes, evaluations: list[Evaluation]) -> None:
    counts = Counter(e.origin for e in evaluations)
    styles = origin_styles(list(counts))
    for origin, count in counts.most_common():
        colour, marker = styles[origin]
        points = [e for e in evaluations if e.origin == origin]
        label = f"{origin} ({count})"
        axes.scatter(
            [e.kept for e in points], [e.kl for e in points], s=24, color=colour, marker=marker, alpha=0.6, label=label,
            linewidths=1.0 if marker == "x" else 0,
        )  # fmt: skip


def _front(axes: Axes, front: list[Evaluation], label: str, colour: str, line: str) -> None:
    kept, kl = [e.kept for e in front], [e.kl for e in front]
    # A step, not a slope: between two points the best known strategy for a bound is the smaller one.
    axes.step([*kept, 1.0], [*kl, kl[-1]], where="post", color=colour, linestyle=line, linewidth=1.4, label=label)


def _predictions(axes: Axes, run: Run) -> None:
    kept = _column(run, "kept")
    promised = np.array(run.predicted, dtype=float).reshape(-1, 4)
    if not len(promised):  # a policy that this version cannot read; what it promised for the held-out sizes is known
        promised = np.column_stack([kept, *(_column(run, name) for name in ("kl_predicted", "kl_low", "kl_high"))])
    if np.isfinite(promised[:, 1]).any():
        axes.plot(promised[:, 0], promised[:, 1], "--", color=VERMILLION, label="policy's prediction", zorder=3)
        label = "its 90 % interval"
        axes.fill_between(*promised[:, [0, 2, 3]].T, color=VERMILLION, alpha=0.18, linewidth=0, label=label)
    if run.heldout:
        answers: dict[str, Any] = {
            "marker": "o",
            "s": 80,
            "color": VERMILLION,
            "edgecolors": "white",
            "linewidths": 1.2,
        }
        axes.scatter(kept, _column(run, "kl_heldout"), **answers, label="policy, held out", zorder=5)
    uniform = _column(run, "kl_uniform_heldout")
    if np.isfinite(uniform).any():
        squares: dict[str, Any] = {"marker": "s", "s": 64, "color": "white", "edgecolors": BLACK, "linewidths": 1.4}
        axes.scatter(kept, uniform, **squares, label="uniform, held out", zorder=4)


def _column(run: Run, name: str) -> np.ndarray:
    """One figure of every held-out point (``n``); nan where it was not measured."""
    return np.array([getattr(point, name) for point in run.heldout], dtype=float)


def _caption(run: Run) -> str:
    parts = [
        "Each mark is one measured strategy; lower is better, further left is smaller. The solid step is the best "
        "measured at each size or below, the dotted one the best of the uniform strategies. Held-out marks were "
        "measured on fresh windows of the corpus, everything else on the search windows. The dense model (KL 0) "
        "lies below the log axis."
    ]
    if not run.heldout:
        parts.append("The policy's answers have not been measured on held-out windows yet.")
    return " ".join(parts)


def _alt(run: Run) -> str:
    low, high = run.front[0], run.front[-1]
    return (
        f"Scatter plot of {len(run.evaluations)} evaluations, kept against KL on a log scale. The measured front of "
        f"{len(run.front)} points runs from KL {low.kl:.3g} at kept {low.kept:.2f} "
        f"to KL {high.kl:.3g} at kept {high.kept:.2f}. "
        "The figures are in the tables of this page."
    )
