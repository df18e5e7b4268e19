"""The picture of several domains: what one keeps costs the other, and how preferences move along that trade."""

from __future__ import annotations

from itertools import combinations
from typing import TYPE_CHECKING

import numpy as np

from unicuco.report.run import Preferred, Run
from unicuco.report.style import BLACK, Picture, finish, log_axis, log_range, new_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.colors import Normalize

_PANELS = 3
"""Pairs of domains shown; more would be too small to read."""
_COLOURS = "viridis"


def draw_domains(run: Run) -> Picture | None:
    """KL on one domain against KL on another, coloured by size; ``None`` for a run with a single domain."""
    if len(run.domains) < 2:
        return None
    name, title = "domains", "One domain against another"
    pairs = list(combinations(run.domains, 2))[:_PANELS]
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import Normalize

    smallest = min(e.kept for e in run.evaluations)
    colours = Normalize(smallest, 1.0)
    figure = new_figure(1.6 + 6.0 * len(pairs), 6.2)
    panels = figure.subplots(1, len(pairs), squeeze=False)[0]
    for axes, (first, second) in zip(panels, pairs, strict=True):
        _panel(axes, run, first, second, colours)
    panels[0].legend(loc="upper left", frameon=True, framealpha=0.9, edgecolor="none", fontsize=9)
    scale = ScalarMappable(colours, cmap=_COLOURS)
    figure.colorbar(scale, ax=list(panels), pad=0.01, label="kept: share of the blocks' parameters")
    return Picture(name, title, _caption(run), _alt(run, *pairs[0]), figure)


def _panel(axes: Axes, run: Run, first: str, second: str, colours: Normalize) -> None:
    points = measured(run, first, second)
    axes.scatter(
        points[:, 1], points[:, 2], c=points[:, 0], cmap=_COLOURS, norm=colours, s=22, alpha=0.7, linewidths=0,
        label=f"measured strategies ({len(points)})",
    )  # fmt: skip
    own = [p for p in run.preferred if (p.first, p.second) == (first, second)]
    for number, bound in enumerate(sorted({p.bound for p in own}, reverse=True)):
        line = [p for p in own if p.bound == bound]
        x, y = [p.kl_first for p in line], [p.kl_second for p in line]
        label = "answers of the policy, from one domain alone to the other" if number == 0 else None
        axes.plot(x, y, color=BLACK, linewidth=1.0, zorder=3, label=label)
        kept = [p.kept for p in line]
        axes.scatter(
            x, y, c=kept, cmap=_COLOURS, norm=colours, s=64, marker="D", edgecolors=BLACK, linewidths=0.9, zorder=4
        )
        axes.annotate(f"{bound:g}", (x[-1], y[-1]), xytext=(6, 4), textcoords="offset points", fontsize=9)
    both = [*points[:, 1:].ravel().tolist(), *(v for p in own for v in (p.kl_first, p.kl_second))]
    low, high = log_range(both)
    for which in ("x", "y"):
        log_axis(axes, which, low, high)
    axes.plot([low, high], [low, high], ":", color=BLACK, linewidth=0.8)
    axes.set_aspect("equal")
    axes.set_xlabel(f"KL on {first}, nats per token")
    axes.set_ylabel(f"KL on {second}, nats per token")
    finish(axes)


def measured(run: Run, first: str, second: str) -> np.ndarray:
    """Rows of kept, KL on ``first``, KL on ``second`` for every evaluation that has both (``n x 3``)."""
    rows = [
        (e.kept, e.domain_kl[e.domains.index(first)], e.domain_kl[e.domains.index(second)])
        for e in run.evaluations
        if first in e.domains and second in e.domains
    ]
    return np.array(rows, dtype=float).reshape(-1, 3)


def _caption(run: Run) -> str:
    how = (
        "Each dot is one measured strategy on the search windows, its colour the size; further left keeps the domain "
        "below, further down the one at the side, and on the dotted line both lose alike."
    )
    if run.preferred:
        return (
            f"{how} Diamonds are the policy's predictions for fresh text, joined for one bound on kept (the number), "
            "from a preference for one domain alone to one for the other."
        )
    return f"{how} This run's policy has the mean over its domains as an objective, or has not been saved yet."


def _alt(run: Run, first: str, second: str) -> str:
    def ends(bound: float) -> str:
        line: list[Preferred] = sorted(
            (p for p in run.preferred if (p.first, p.second, p.bound) == (first, second, bound)), key=lambda p: p.share
        )
        low, high = line[0], line[-1]
        return (
            f"At kept {bound:g}, preferring {first} to {second} changes the predicted KL on {first} "
            f"from {low.kl_first:.3g} to {high.kl_first:.3g} "
            f"and on {second} from {low.kl_second:.3g} to {high.kl_second:.3g}."
        )

    facts = [ends(p) for p in sorted({p.bound for p in run.preferred if (p.first, p.second) == (first, second)})]
    return " ".join([f"Scatter plot of KL on {first} against KL on {second}, both on log scales.", *facts])
