"""What the pictures hold, read back from their figures; how they look is checked by eye."""

import dataclasses
import math
from pathlib import Path

import numpy as np
import pytest

from tests.unicuco.report.made_up import SIZES, MadeUpRun, geometry
from unicuco.evaluations import Evaluation
from unicuco.report.accuracy import NINETY, accuracy, draw_accuracy
from unicuco.report.front import draw_front, origin_styles
from unicuco.report.progress import draw_progress
from unicuco.report.run import Progress, Run, pareto_front, read_run
from unicuco.report.strategies import draw_strategies
from unicuco.report.style import log_range
from unicuco.space import SearchSpace, SpaceConfig


@pytest.fixture(scope="module")
def run(finished_run: Path) -> Run:
    return read_run(finished_run)


def test_front_shows_every_evaluation_once(run: Run) -> None:
    figure = draw_front(run).figure
    assert figure is not None
    axes = figure.axes[0]
    labels = [text.get_text() for text in axes.get_legend().get_texts()]
    assert "measured front" in labels and "uniform, held out" in labels and "its 90 % interval" in labels
    shown = sum(len(c.get_offsets()) for c in axes.collections if "(" in str(c.get_label()))
    assert shown == len(run.evaluations)
    assert axes.get_yscale() == "log" and axes.get_xlabel() and axes.get_ylabel()


def test_measured_front_is_the_undominated_set(run: Run) -> None:
    front = set(run.front)
    for e in run.evaluations:
        beaten = any(o.kept <= e.kept and o.kl <= e.kl and (o.kept, o.kl) != (e.kept, e.kl) for o in run.evaluations)
        assert (e in front) != beaten
    assert pareto_front([]) == []


def test_origins_keep_their_looks_and_differ() -> None:
    names = ["uniform", "stratnet", "swap", "random", "prior", "thompson", "evolution"]
    styles = origin_styles(names)
    assert len(set(styles.values())) == len(names)
    assert origin_styles(["swap", "uniform"]) == {"swap": styles["swap"], "uniform": styles["uniform"]}
    assert len(origin_styles([f"new-{n}" for n in range(20)])) == 20


def test_strategies_show_the_shapes_that_the_levels_mean(run: Run) -> None:
    figure = draw_strategies(run).figure
    assert figure is not None
    top, bottom = figure.axes[:2]
    shapes = [run.shape(point.levels) for point in run.heldout]
    assert [label.get_text() for label in top.get_yticklabels()] == [f"{kept:.2f}" for kept in SIZES]
    np.testing.assert_array_equal(top.images[0].get_array(), [shape.groups for shape in shapes if shape])
    np.testing.assert_array_equal(bottom.images[0].get_array(), [shape.neurons for shape in shapes if shape])
    crosses = sum(len(c.get_offsets()) for axes in (top, bottom) for c in axes.collections)
    assert crosses == sum((shape.groups + shape.neurons).count(0) for shape in shapes if shape)


def test_strategies_of_blocks_with_different_widths_are_shares(run: Run) -> None:
    uneven = geometry(4)
    wide = uneven.blocks[0].model_copy(update={"neurons": 3072, "groups": 4})
    space = SearchSpace(uneven.model_copy(update={"blocks": (wide, *uneven.blocks[1:])}), SpaceConfig())
    point = run.heldout[0].model_copy(update={"levels": (0,) * space.num_sites})
    figure = draw_strategies(dataclasses.replace(run, space=space, heldout=[point])).figure
    assert figure is not None
    for axes in figure.axes[:2]:
        np.testing.assert_array_equal(axes.images[0].get_array(), np.ones((1, 4)))


def test_levels_of_another_space_are_left_out(run: Run) -> None:
    stranger = run.heldout[0].model_copy(update={"levels": (0, 1, 2)})
    assert run.shape(stranger.levels) is None and run.size(stranger.levels) is None
    assert draw_strategies(dataclasses.replace(run, heldout=[stranger])).figure is None


def test_accuracy_of_known_predictions() -> None:
    predicted = np.array([1.0, 1.0, 1.0, 1.0])
    measured = np.array([2.0, 0.5, 1.0, 1.0])
    found = accuracy(predicted, predicted * 0.9, np.array([3.0, 3.0, 3.0, math.nan]), measured)
    assert found.count == 4
    assert found.coverage == pytest.approx(2 / 3)
    assert found.factor == pytest.approx(math.exp(math.log(2) / math.sqrt(2)))
    assert found.bias == pytest.approx(1.0)
    assert accuracy(predicted, predicted * 0.5, predicted * 1.5, predicted * 1.2).bias == pytest.approx(1.2)


def test_coverage_of_true_normal_errors_is_ninety_percent() -> None:
    error = np.random.default_rng(0).normal(0, 0.2, 20_000)
    arm = math.exp(NINETY * 0.2)
    ones = np.ones_like(error)
    assert accuracy(ones, ones / arm, ones * arm, np.exp(error)).coverage == pytest.approx(0.9, abs=0.01)


def test_accuracy_compares_only_what_was_predicted(run: Run) -> None:
    figure = draw_accuracy(run).figure
    assert figure is not None
    proposals = [e for e in run.evaluations if math.isfinite(e.predicted_log_kl)]
    points = figure.axes[0].collections[0].get_offsets()
    assert len(points) == len(proposals) < len(run.evaluations)
    np.testing.assert_allclose(points[0], [math.exp(proposals[0].predicted_log_kl), proposals[0].kl])


def test_progress_never_rises_and_ends_at_the_best(run: Run) -> None:
    figure = draw_progress(run).figure
    assert figure is not None
    curves = {line.get_label(): line for line in figure.axes[1].lines}
    assert set(curves) == {"0.9", "0.8", "0.7", "0.6", "0.5"}
    for label, line in curves.items():
        values = np.asarray(line.get_ydata(), dtype=float)
        assert (np.diff(values) <= 0).all()
        assert values[-1] == min(e.kl for e in run.evaluations if e.kept <= float(label) + 1e-9)
    assert len(figure.axes[0].lines[0].get_xdata()) == len(run.progress)


def test_time_axis_has_one_moment_per_count() -> None:
    from unicuco.report.progress import _minutes

    records = [Progress(done=d, elapsed=e) for d, e in [(2, 60), (2, 90), (4, 120), (4, 150), (8, 210)]]
    found = _minutes(records)
    assert found is not None
    done, minutes = found
    np.testing.assert_array_equal(done, [0, 2, 4, 8])
    np.testing.assert_allclose(minutes, [0, 1, 2, 3.5])
    assert _minutes(records[:2]) is None


def test_log_range_ignores_zero_and_survives_nothing() -> None:
    low, high = log_range([0.0, 1e-9, 0.1, 2.0, math.nan])
    assert 0.05 < low < 0.1 and 2.0 < high < 3.0
    assert log_range([]) == (1e-3, 1.0)
    low, high = log_range([0.5])
    assert low < 0.5 < high


def test_a_setting_is_found_at_any_depth(made_up: MadeUpRun) -> None:
    evaluations: list[Evaluation] = made_up.evaluations(0)
    run = Run(Path("x"), {"a": {"seed": 3}, "b": {"c": {"seed": 4}}, "seed": None}, evaluations)
    assert run.setting("seed") == 3
    assert run.setting("absent", "c") == {"seed": 4}
    assert run.setting("absent") is None
