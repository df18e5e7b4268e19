"""The third picture: what the surrogate promised against what was measured."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from unicuco.report.run import Run
from unicuco.report.style import BLACK, VERMILLION, Picture, finish, log_axis, log_range, new_figure

NINETY = 1.6449
"""A normal distribution keeps 90 % of its mass within this many standard deviations of its mean."""


@dataclass(frozen=True)
class Accuracy:
    """How good predictions were.

    Attributes:
        count: predictions compared.
        coverage: share of measurements within the 90 % interval; nan without intervals.
        factor: typical (root mean square) factor between predicted and measured KL, at least 1.
        bias: geometric mean of measured / predicted; above 1, the promises were too good.
    """

    count: int
    coverage: float
    factor: float
    bias: float

    def sentence(self) -> str:
        """The three figures for a reader."""
        inside = "" if math.isnan(self.coverage) else f"{self.coverage:.0%} lie within the 90 % interval, "
        return f"{inside}off by a factor of {self.factor:.2f} (root mean square), measured/predicted {self.bias:.2f}"


def accuracy(predicted: np.ndarray, low: np.ndarray, high: np.ndarray, measured: np.ndarray) -> Accuracy:
    """Compares ``n`` predictions with ``n`` measurements, all KL > 0; an interval of nan is no interval."""
    error = np.log(measured / predicted)
    bounded = np.isfinite(low) & np.isfinite(high)
    inside = (measured >= low) & (measured <= high)
    return Accuracy(
        count=len(error),
        coverage=float(inside[bounded].mean()) if bounded.any() else math.nan,
        factor=float(np.exp(np.sqrt(np.mean(error**2)))),
        bias=float(np.exp(error.mean())),
    )


def draw_accuracy(run: Run) -> Picture:
    """Predicted against measured KL: proposals when they were made, and the policy's answers on held-out windows."""
    name, title = "accuracy", "Promised and measured"
    from matplotlib.ticker import MaxNLocator

    proposals, versions = _proposals(run)
    answers = _answers(run)
    if not len(proposals) and not len(answers):
        return Picture(name, title, "The surrogate has predicted nothing yet: the run is still at its starting points.")
    figure = new_figure(7.6, 6.2)
    axes = figure.add_subplot()
    low, high = log_range([float(v) for v in np.concatenate([proposals[:, [0, 3]], answers[:, [0, 3]]]).ravel()])
    axes.plot([low, high], [low, high], color=BLACK, linewidth=1.0, label="predicted = measured")
    captions = []
    if len(proposals):
        shown = axes.scatter(
            proposals[:, 0], proposals[:, 3], c=versions, cmap="viridis", s=26, alpha=0.8, linewidths=0,
            label=f"proposals on search windows ({len(proposals)})",
        )  # fmt: skip
        if versions.max() > versions.min():
            label = "policy version that proposed it"
            figure.colorbar(shown, ax=axes, pad=0.01, label=label, ticks=MaxNLocator(integer=True))
        captions.append(f"Proposals: {accuracy(*proposals.T).sentence()}.")
    if len(answers):
        arms = np.abs(answers[:, 1:3].T - answers[:, 0])
        axes.errorbar(
            answers[:, 0], answers[:, 3], xerr=np.nan_to_num(arms), fmt="D", color=VERMILLION, markersize=7,
            markeredgecolor="white", capsize=3, linewidth=1.2, label=f"answers on held-out windows ({len(answers)})",
        )  # fmt: skip
        captions.append(f"Answers: {accuracy(*answers.T).sentence()}.")
    log_axis(axes, "x", low, high)
    log_axis(axes, "y", low, high)
    axes.set_aspect("equal")
    axes.set_xlabel("predicted KL, nats per token")
    axes.set_ylabel("measured KL, nats per token")
    finish(axes)
    axes.legend(loc="upper left", frameon=True, framealpha=0.9, edgecolor="none", fontsize=9)
    how = (
        "On the line, the promise was kept; above it, the model turned out worse than promised. "
        "Bars are the 90 % interval of an answer's prediction."
    )
    facts = " ".join(captions)
    return Picture(name, title, f"{how} {facts}", f"Scatter plot of predicted against measured KL. {facts}", figure)


def _proposals(run: Run) -> tuple[np.ndarray, np.ndarray]:
    """Rows of predicted, low, high, measured KL (``n x 4``) and the policy version of each (``n``)."""
    rows, versions = [], []
    for e in run.evaluations:
        if math.isfinite(e.predicted_log_kl) and e.kl > 0:
            arm = NINETY * e.predicted_sigma
            rows.append([math.exp(v) for v in (e.predicted_log_kl, e.predicted_log_kl - arm, e.predicted_log_kl + arm)])
            rows[-1].append(e.kl)
            versions.append(e.policy_version)
    return np.array(rows).reshape(-1, 4), np.array(versions)


def _answers(run: Run) -> np.ndarray:
    """Rows of predicted, low, high, held-out KL (``n x 4``); nan where an interval is missing."""
    rows = [
        (p.kl_predicted, p.kl_low, p.kl_high, p.kl_heldout)
        for p in run.heldout
        if p.kl_predicted is not None and p.kl_predicted > 0 and p.kl_heldout > 0
    ]
    return np.array(rows, dtype=float).reshape(-1, 4)  # None becomes nan
