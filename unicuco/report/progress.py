"""The fourth picture: what each further evaluation bought."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from unicuco.report.run import Progress, Run
from unicuco.report.style import (
    BLACK,
    BLUE,
    GREEN,
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

SIZES = (0.9, 0.8, 0.7, 0.6, 0.5)
_STYLES = ((BLUE, "-"), (SKY, "--"), (GREEN, "-."), (ORANGE, (0, (4, 1, 1, 1, 1, 1))), (VERMILLION, ":"), (PURPLE, "-"))


def draw_progress(run: Run) -> Picture:
    """Hypervolume, and the best KL measured within each of a few sizes, over the evaluations done."""
    name, title = "progress", "Progress"
    if not run.evaluations:
        return Picture(name, title, "No evaluation is on disk yet, so there is no progress to draw.")
    figure = new_figure(9.5, 6.4)
    top, bottom = figure.subplots(2, 1, sharex=True, height_ratios=(1, 1.4))
    records = [r for r in run.progress if math.isfinite(r.hypervolume)]
    if records:
        top.plot([r.done for r in records], [r.hypervolume for r in records], color=BLACK, linewidth=1.6)
    else:
        top.text(0.5, 0.5, "no progress record yet", transform=top.transAxes, ha="center", color="#555555")
    top.set_ylabel("hypervolume of (kept, log KL)")
    finish(top)
    last = _best_so_far(run, bottom)
    bottom.set_xlabel("evaluations done")
    bottom.set_ylabel("best " + KL_LABEL)
    bottom.set_xlim(0, max(len(run.evaluations), *(r.done for r in run.progress), 1))
    finish(bottom)
    if last:
        bottom.legend(loc="upper left", bbox_to_anchor=(1.01, 1.0), frameon=False, fontsize=9, title="kept at most")
    minutes = _minutes(run.progress)
    if minutes is not None:
        _time_axis(top, *minutes)
    caption = (
        "A curve that still moves at its right end says that more evaluations would help. Hypervolume is the area that "
        "the measured front dominates, in (kept, log KL), up to the reference point: dense size and the KL of uniform "
        "pruning at kept 0.5; more is better."
    )
    facts = "; ".join(f"kept at most {size:g}: {kl:.3g}" for size, kl in last)
    best = f"Best KL measured at the end: {facts}." if facts else ""
    return Picture(name, title, caption, f"Line plots over {len(run.evaluations)} evaluations. {best}".strip(), figure)


def _best_so_far(run: Run, axes: Axes) -> list[tuple[float, float]]:
    """Draws one curve per size; returns the sizes that have one, with the last value."""
    order = np.arange(1, len(run.evaluations) + 1)
    kept, kl = np.array([e.kept for e in run.evaluations]), np.array([e.kl for e in run.evaluations])
    last, values = [], []
    for size, (colour, line) in zip(SIZES, _STYLES, strict=False):
        best = np.minimum.accumulate(np.where(kept <= size + 1e-9, kl, np.inf))
        known = np.isfinite(best)
        if known.any():
            axes.step(order[known], best[known], where="post", color=colour, linestyle=line, label=f"{size:g}")
            last.append((size, float(best[-1])))
            values += [float(v) for v in best[known]]
    log_axis(axes, "y", *log_range(values))
    return last


def _minutes(progress: list[Progress]) -> tuple[np.ndarray, np.ndarray] | None:
    """Evaluations done and minutes of training (pauses before a resume left out), both ascending."""
    done, minutes = [0], [0.0]
    for record in progress:
        if record.done > done[-1]:
            done.append(record.done)
            minutes.append(max(record.elapsed / 60, minutes[-1]))
    return (np.array(done), np.array(minutes)) if len(done) > 2 else None


def _time_axis(axes: Axes, done: np.ndarray, minutes: np.ndarray) -> None:
    """A second axis on top: whole minutes (or hours) at the evaluation that was done by then."""
    from matplotlib.ticker import MaxNLocator

    in_hours = minutes[-1] > 180
    scale = 60.0 if in_hours else 1.0
    times = [
        t
        for t in MaxNLocator(nbins=8, steps=[1, 2, 5, 10]).tick_values(0, minutes[-1] / scale)
        if 0 <= t <= minutes[-1] / scale
    ]
    above = axes.secondary_xaxis("top")
    above.set_xticks(np.interp(np.array(times) * scale, minutes, done), [f"{t:g}" for t in times])
    above.set_xlabel("hours of running" if in_hours else "minutes of running")
    above.spines[:].set_visible(False)
