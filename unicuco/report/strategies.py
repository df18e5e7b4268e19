"""The second picture: what the policy leaves of every block, one row per size."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from unicuco.report.run import HeldOut, Run
from unicuco.report.style import VERMILLION, Picture, new_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_MAX_NUMBERED_BLOCKS = 40
"""Beyond this many blocks a number per cell would not be legible."""


def draw_strategies(run: Run) -> Picture:
    """Two heat maps: attention groups kept and MLP neurons kept, per block (columns) and size (rows)."""
    name, title = "strategies", "Strategies per block"
    if run.space is None:
        return Picture(name, title, "The run has saved no policy yet, so its strategies are not known.")
    rows = [(point, run.shape(point.levels)) for point in run.heldout]
    known = [(point, shape) for point, shape in rows if shape is not None]
    if not known:
        return Picture(name, title, "No answer of the policy has been measured on held-out windows yet.")
    points = [point for point, _ in known]
    if run.space.is_sparse:
        left = 1 - np.array([shape.sparsity for _, shape in known])  # sizes x blocks x (attention, mlp)
        return _draw_sparsities(points, left, run.space.config.pruner, name, title)
    groups = np.array([shape.groups for _, shape in known])
    neurons = np.array([shape.neurons for _, shape in known])
    blocks = run.space.geometry.blocks
    height = 0.36 * len(points) + 1.35
    figure = new_figure(min(5.5 + 0.25 * len(blocks), 16.0), 2 * height)
    top, bottom = figure.subplots(2, 1)
    group_limit, neuron_limit = [b.groups for b in blocks], [b.neurons for b in blocks]
    _heat_map(figure, top, groups, np.array(group_limit), points, "attention: KV groups kept", numbers=True)
    _heat_map(figure, bottom, neurons, np.array(neuron_limit), points, "MLP: neurons kept", numbers=False)
    bottom.set_xlabel("block, first to last")
    caption = (
        "Dark is pruned, light is kept; a red cross marks a sublayer that is dropped whole. Read a row to see one "
        "strategy, a column to see which blocks the model cannot do without. kept is the share of the blocks' "
        "parameters."
    )
    return Picture(name, title, caption, _alt(points, groups, neurons), figure)


def _draw_sparsities(points: list[HeldOut], left: np.ndarray, pruner: str, name: str, title: str) -> Picture:
    """The same where weights become zero. ``left``: share of the weights kept, ``sizes x blocks x 2``."""
    count = left.shape[1]
    figure = new_figure(min(5.5 + 0.25 * count, 16.0), 2 * (0.36 * len(points) + 1.35))
    top, bottom = figure.subplots(2, 1)
    for axes, values, what in ((top, left[..., 0], "attention"), (bottom, left[..., 1], "MLP")):
        _heat_map(figure, axes, values, np.ones(count), points, f"{what}: share of the weights kept", numbers=False)
    bottom.set_xlabel("block, first to last")
    caption = (
        f"Dark is pruned, light is kept: the share of the weights that {pruner} does not set to zero. Read a row to "
        "see one strategy, a column to see which blocks the model cannot do without. kept is the share of the blocks' "
        "parameters; shapes stay dense, so zeros make nothing smaller or faster by themselves."
    )
    lines = [
        f"kept {point.kept:.2f}: attentions keep {own[:, 0].min():.2f} to {own[:, 0].max():.2f} of their weights, "
        f"MLPs {own[:, 1].min():.2f} to {own[:, 1].max():.2f}"
        for point, own in zip(points, left, strict=True)
    ]
    return Picture(name, title, caption, f"Heat maps over {count} blocks. " + "; ".join(lines) + ".", figure)


def _heat_map(
    figure: Figure, axes: Axes, kept: np.ndarray, dense: np.ndarray, points: list[HeldOut], title: str, numbers: bool
) -> None:
    """One panel. ``kept``: ``sizes x blocks`` units left; ``dense``: ``blocks`` units of the base model."""
    from matplotlib.ticker import MaxNLocator

    alike = bool((dense == dense[0]).all())
    # Blocks of one width share an axis in units; blocks of different widths only compare as shares.
    values, limit = (kept, float(dense[0])) if alike else (kept / dense, 1.0)
    image = axes.imshow(values, cmap="cividis", vmin=0, vmax=limit, aspect="auto", interpolation="nearest")
    axes.set_title(title if alike else f"{title} (share)", loc="left", fontsize=11)
    axes.set_yticks(range(len(points)), [f"{point.kept:.2f}" for point in points])
    axes.set_ylabel("kept")
    axes.xaxis.set_major_locator(MaxNLocator(nbins=16, integer=True))
    axes.set_xticks(np.arange(kept.shape[1] + 1) - 0.5, minor=True)
    axes.set_yticks(np.arange(len(points) + 1) - 0.5, minor=True)
    axes.grid(which="minor", color="white", linewidth=0.8)
    axes.tick_params(which="minor", length=0)
    axes.spines[:].set_visible(False)
    dropped_rows, dropped_blocks = np.nonzero(kept == 0)
    axes.scatter(dropped_blocks, dropped_rows, marker="x", color=VERMILLION, s=36, linewidths=1.8)
    if numbers and kept.shape[1] <= _MAX_NUMBERED_BLOCKS:
        for (row, block), value in np.ndenumerate(kept):
            if value:
                colour = "black" if values[row, block] > 0.55 * limit else "white"
                axes.text(block, row, f"{value}", ha="center", va="center", fontsize=8, color=colour)
    bar = figure.colorbar(image, ax=axes, pad=0.01, fraction=0.03)
    bar.outline.set_visible(False)
    if alike and limit <= 8:
        bar.set_ticks(list(range(int(limit) + 1)))


def _alt(points: list[HeldOut], groups: np.ndarray, neurons: np.ndarray) -> str:
    lines = [
        f"kept {point.kept:.2f}: {int(g.sum())} KV groups in {int((g > 0).sum())} attentions, "
        f"{int(n.sum()):,} neurons in {int((n > 0).sum())} MLPs"
        for point, g, n in zip(points, groups, neurons, strict=True)
    ]
    return f"Heat maps over {groups.shape[1]} blocks. " + "; ".join(lines) + "."
