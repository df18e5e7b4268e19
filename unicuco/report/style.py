"""How every picture looks: colours that colour-blind readers can tell apart, plain numbers on log axes, no pyplot."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe and Ito's palette; yellow is left out because it vanishes on white.
BLACK, GREY, ORANGE, SKY, GREEN = "#000000", "#8a8a8a", "#e69f00", "#56b4e9", "#009e73"
BLUE, VERMILLION, PURPLE = "#0072b2", "#d55e00", "#cc79a7"

KL_LABEL = "KL(dense ‖ pruned), nats per token"
KEPT_LABEL = "kept: share of the blocks' parameters"


@dataclass(frozen=True)
class Picture:
    """One picture of the report.

    Attributes:
        name: file name without ``.png``.
        figure: ``None`` when the run has nothing to draw yet; ``caption`` then says what is missing.
        caption: how to read it, in one or two sentences.
        alt: what a reader who cannot see it needs to know.
    """

    name: str
    title: str
    caption: str
    alt: str = ""
    figure: Figure | None = None

    def save(self, path: Path) -> None:
        """Writes the figure as PNG."""
        if self.figure is not None:
            self.figure.savefig(path, format="png", dpi=160, metadata={"Software": None})


def new_figure(width: float, height: float) -> Figure:
    """An empty figure in inches that draws without a display and shares no state with other figures."""
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained", facecolor="white")


def finish(axes: Axes) -> None:
    """A light grid behind the data and no box."""
    axes.set_axisbelow(True)
    axes.grid(True, which="major", color="#dddddd", linewidth=0.8)
    axes.spines[["top", "right"]].set_visible(False)


def log_axis(axes: Axes, which: str, low: float, high: float) -> None:
    """Makes one axis logarithmic from ``low`` to ``high``, with numbers such as 0.02 instead of powers of ten."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter, NullLocator

    axis = axes.xaxis if which == "x" else axes.yaxis
    (axes.set_xscale if which == "x" else axes.set_yscale)("log")
    (axes.set_xlim if which == "x" else axes.set_ylim)(low, high)
    decades = math.log10(high / low)
    steps = (1.0, 2.0, 3.0, 5.0, 7.0) if decades < 1 else (1.0, 2.0, 5.0) if decades < 2.5 else (1.0, 3.0)
    axis.set_major_locator(LogLocator(subs=steps if decades < 4 else (1.0,), numticks=20))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_minor_locator(NullLocator())
    axis.set_minor_formatter(NullFormatter())


def log_range(values: list[float], floor: float = 1e-3) -> tuple[float, float]:
    """Limits that hold every value above ``floor`` with a little air."""
    shown = [value for value in values if math.isfinite(value) and value > floor]
    if not shown:
        return floor, 1.0
    low, high = min(shown), max(shown)
    return max(low / 1.25, floor), high * 1.25 if high > low else low * 2
