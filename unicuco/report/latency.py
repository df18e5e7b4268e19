"""The picture of a latency table: milliseconds by what is left of a sublayer."""

from __future__ import annotations

from unicuco.latency import LatencyTable
from unicuco.report.style import BLUE, GREY, ORANGE, Picture, finish, new_figure


def draw_latency(table: LatencyTable) -> Picture:
    """Milliseconds of attention and MLP against the share of their width that is left; grey: were it proportional."""
    figure = new_figure(7.0, 4.2)
    axes = figure.add_subplot()
    for index, times in enumerate(table.blocks):
        for kind, own, colour in (("attention", times.attention, BLUE), ("MLP", times.mlp, ORANGE)):
            shares = [width / own.widths[-1] for width in own.widths]
            label = f"{kind} ({table.times_of.count(index)} blocks)"
            axes.plot([0, 1], [0, own.ms[-1]], color=GREY, linewidth=0.8, linestyle=":")
            axes.plot(shares, own.ms, color=colour, marker="o", markersize=3.5, label=label)
            axes.plot([0], [0], color=colour, marker="o", markersize=3.5)  # dropped
    axes.set_xlabel("what is left of the sublayer: share of its width")
    axes.set_ylabel("milliseconds per sublayer")
    axes.set_title(table.config.describe(), fontsize=10)
    finish(axes)
    axes.legend(frameon=False, fontsize=9)
    caption = "Milliseconds of one sublayer by what is left of it. Dotted: were it proportional to the width."
    return Picture("latency", "Latency", caption, caption, figure)
