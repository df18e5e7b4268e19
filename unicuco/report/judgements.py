"""The picture of ``unicuco evaluate``: perplexity on every text and accuracy on every task, dense and pruned."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from unicuco.assess import Judgement
from unicuco.report.style import BLACK, BLUE, GREEN, GREY, ORANGE, PURPLE, VERMILLION, Picture, finish, new_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes

COLOURS = (GREY, BLUE, VERMILLION, GREEN, ORANGE, PURPLE)
WIDTH = 0.8
"""Of one group of bars; the next group begins 1 further on."""


def draw_judgements(results: Sequence[Judgement]) -> Picture:
    """One panel of perplexities as multiples of the first model's, one of accuracies with standard errors."""
    tasks = list(results[0].tasks)
    figure = new_figure(5.4 * (1 + bool(tasks)) + 1.0, 4.4)
    panels = figure.subplots(1, 1 + bool(tasks), squeeze=False)[0]
    _draw_texts(panels[0], results)
    if tasks:
        _draw_tasks(panels[1], results, tasks)
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", frameon=False, fontsize=9, ncols=min(len(results), 3))
    caption = (
        "Left: perplexity as a multiple of the first model's, on text like the calibration text (in) and on other text "
        "(out). Lines on bars are standard errors, dashes are what guessing scores."
    )
    return Picture("evaluation", "Dense and pruned", caption, caption, figure)


def _draw_texts(axes: Axes, results: Sequence[Judgement]) -> None:
    places = np.arange(len(results[0].texts))
    for m, result in enumerate(results):
        ratios = [text.perplexity_ratio for text in result.texts]
        x, width = _at(places, m, len(results))
        axes.bar(x, ratios, width, color=COLOURS[m % len(COLOURS)], label=Path(result.model).name)
        for centre, ratio, text in zip(x, ratios, result.texts, strict=True):
            axes.annotate(
                f"{text.perplexity:.1f}", (centre, ratio), xytext=(0, 2),
                textcoords="offset points", ha="center", fontsize=8,
            )  # fmt: skip
    named = [f"{t.text}\n({t.distribution})" if t.distribution else t.text for t in results[0].texts]
    axes.set_xticks(places, named)
    axes.set_ylim(0, 1.12 * max(text.perplexity_ratio for result in results for text in result.texts))
    axes.axhline(1.0, color=BLACK, linewidth=0.8)
    axes.set_ylabel(f"perplexity ÷ {Path(results[0].model).name}'s; perplexity on the bars")
    finish(axes)


def _draw_tasks(axes: Axes, results: Sequence[Judgement], tasks: list[str]) -> None:
    places = np.arange(len(tasks))
    for m, result in enumerate(results):
        x, width = _at(places, m, len(results))
        scores = [result.tasks[task].score for task in tasks]
        axes.bar(
            x, [s.mean for s in scores], width, yerr=[s.error or 0.0 for s in scores],
            color=COLOURS[m % len(COLOURS)], ecolor=BLACK, capsize=2, error_kw={"linewidth": 0.9},
        )  # fmt: skip
    for place, task in zip(places, tasks, strict=True):
        chance = results[0].tasks[task].chance
        if chance is not None:
            axes.hlines(chance, place - WIDTH / 2, place + WIDTH / 2, colors=BLACK, linestyles="dashed", linewidth=1)
    named = [f"{task}\n{results[0].tasks[task].headline}" for task in tasks]
    axes.set_xticks(places, named, fontsize=8, rotation=0 if len(tasks) < 6 else 60)
    axes.set_ylabel("score ± standard error; dashes: guessing")
    finish(axes)


def _at(places: np.ndarray, model: int, models: int) -> tuple[np.ndarray, float]:
    """Centres and width of one model's bars."""
    width = WIDTH / models
    return places - WIDTH / 2 + (model + 0.5) * width, width
