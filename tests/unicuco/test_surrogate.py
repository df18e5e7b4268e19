"""The surrogate on a known law of damage: it recovers it, its gradients are right, it survives a round trip."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.unicuco.synthetic import KnownDamage, make_space
from unicuco.allocation import allocate
from unicuco.evaluations import Candidate, Evaluation
from unicuco.proposals import budgets_of, first_design
from unicuco.slopes import Slopes, read_slopes
from unicuco.surrogate import NOISE_FLOOR, Surrogate, SurrogateConfig

SPACE = make_space(4)
MODEL = KnownDamage(SPACE, seed=1)
PLAIN = SurrogateConfig(mean="plain")


def design(count: int, seed: int) -> np.ndarray:
    return np.array([p for p, _ in first_design(SPACE, MODEL.table, count, 0.4, np.random.default_rng(seed))])


def x_of(levels: np.ndarray) -> torch.Tensor:
    return torch.as_tensor(SPACE.sparsities(levels))


@pytest.fixture(scope="module")
def fitted() -> Surrogate:
    levels = design(32, 0)
    return Surrogate(SPACE, MODEL.table).fit(levels, MODEL.kl(levels))


@pytest.fixture(scope="module")
def plain() -> Surrogate:
    levels = design(32, 0)
    return Surrogate(SPACE, None, PLAIN).fit(levels, MODEL.kl(levels))


def error(surrogate: Surrogate, levels: np.ndarray) -> tuple[float, float]:
    """Root mean square error of log KL, and the share of truths within two deviations."""
    with torch.no_grad():
        mean, deviation = surrogate.predict(x_of(levels))
    gap = mean.numpy() - np.log(MODEL.kl(levels) + NOISE_FLOOR)
    return float(np.sqrt(np.mean(gap**2))), float(np.mean(np.abs(gap) <= 2 * deviation.numpy() + 1e-3))


def test_it_learns_an_additive_law_of_damage(fitted: Surrogate, plain: Surrogate) -> None:
    """32 evaluations of 8 sites: unseen strategies within a few percent, far better than the table alone."""
    unseen = design(150, 7)
    found, covered = error(fitted, unseen)
    before = MODEL.table[np.arange(SPACE.num_sites), unseen].sum(axis=1)
    naive = np.sqrt(np.mean((np.log(before) - np.log(MODEL.kl(unseen))) ** 2))
    assert found < 0.05 and found < naive / 4 and covered > 0.85
    assert error(plain, unseen)[0] > 2 * found


def test_it_learns_the_weight_of_every_site(fitted: Surrogate) -> None:
    model = fitted.damage_model
    assert model is not None
    true = np.log(MODEL.truth[:, 1] / MODEL.table[:, 1])
    assert np.corrcoef(model.log_weight.numpy(), true)[0, 1] > 0.95


def test_the_budget_is_shared_out_nearly_as_if_the_truth_were_known(fitted: Surrogate) -> None:
    model = fitted.damage_model
    assert model is not None
    budgets = budgets_of(SPACE, np.linspace(0.45, 0.9, 10))
    found = MODEL.kl(allocate(SPACE, fitted.tables(np.linspace(0.45, 0.9, 10)), budgets))
    best = MODEL.kl(allocate(SPACE, MODEL.truth, budgets))
    prior = MODEL.kl(allocate(SPACE, MODEL.table, budgets))
    assert found.sum() < 1.05 * best.sum() < prior.sum()


def test_the_plain_form_interpolates_what_it_saw(plain: Surrogate) -> None:
    assert plain.damage_model is None
    assert error(plain, design(32, 0))[0] < 0.2
    unseen = design(150, 7)
    spread = np.log(MODEL.kl(unseen)).std()
    assert error(plain, unseen)[0] < 0.7 * spread


@pytest.mark.parametrize("which", ["fitted", "plain"])
def test_gradients_agree_with_finite_differences(which: str, request: pytest.FixtureRequest) -> None:
    surrogate: Surrogate = request.getfixturevalue(which)
    generator = torch.Generator().manual_seed(0)
    # Away from the levels, where the interpolated damage has its kinks.
    x = (torch.rand(3, SPACE.num_sites, generator=generator, dtype=torch.float64) * 0.97 + 0.011).requires_grad_(True)
    mean, deviation = surrogate.predict(x)
    (of_mean,) = torch.autograd.grad(mean.sum(), x, retain_graph=True)
    (of_deviation,) = torch.autograd.grad(deviation.sum(), x)
    step = 1e-6
    for site in range(SPACE.num_sites):
        shift = torch.zeros_like(x)
        shift[:, site] = step
        with torch.no_grad():
            up, down = surrogate.predict(x + shift), surrogate.predict(x - shift)
        for k, gradient in enumerate((of_mean, of_deviation)):
            numeric = (up[k] - down[k]) / (2 * step)
            torch.testing.assert_close(gradient[:, site], numeric, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("which", ["fitted", "plain"])
def test_its_state_on_disk_predicts_the_same(which: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    surrogate: Surrogate = request.getfixturevalue(which)
    state = {name: tensor.clone().contiguous() for name, tensor in surrogate.state().items()}
    save_file(state, tmp_path / "state.safetensors")
    table = MODEL.table if which == "fitted" else None
    again = Surrogate.from_state(SPACE, table, surrogate.config, load_file(tmp_path / "state.safetensors"))
    x = x_of(design(50, 3))
    with torch.no_grad():
        for one, two in zip(surrogate.predict(x), again.predict(x), strict=True):
            torch.testing.assert_close(one, two, rtol=1e-9, atol=1e-9)
    assert again.noise_std == pytest.approx(surrogate.noise_std)


def test_the_informed_mean_grows_with_every_sparsity(fitted: Surrogate) -> None:
    model = fitted.damage_model
    assert model is not None
    rng = np.random.default_rng(0)
    sweep = torch.linspace(0, 1, 21, dtype=torch.float64)
    for _ in range(10):
        x = torch.as_tensor(rng.random(SPACE.num_sites)).repeat(21, 1)
        for site in range(SPACE.num_sites):
            varied = x.clone()
            varied[:, site] = sweep
            with torch.no_grad():
                assert (model.log_kl(varied).diff() > 0).all()
                assert (fitted.predict(varied)[0].diff() > -1e-3).all(), "the posterior turns down"


def test_sites_are_damaged_as_the_table_says_at_its_levels(fitted: Surrogate) -> None:
    model = fitted.damage_model
    assert model is not None
    levels = np.random.default_rng(0).integers(0, SPACE.num_levels, (20, SPACE.num_sites))
    expected = MODEL.table[np.arange(SPACE.num_sites), levels]
    np.testing.assert_allclose(model.site_damage(x_of(levels)).numpy(), expected, rtol=1e-9, atol=1e-12)


def test_less_is_known_far_from_the_evaluations(fitted: Surrogate) -> None:
    with torch.no_grad():
        _, seen = fitted.predict(x_of(design(32, 0)))
        _, one_site = fitted.predict(x_of(np.eye(SPACE.num_sites, dtype=int) * (SPACE.num_levels - 1)))
    assert one_site.mean() > 1.5 * seen.mean()


def test_drawn_weights_scatter_around_the_learned_ones(fitted: Surrogate) -> None:
    model = fitted.damage_model
    assert model is not None
    for kept in (0.5, 0.9):
        draws = fitted.sample_tables(np.full(400, kept), torch.Generator().manual_seed(0))
        assert draws.shape == (400, *SPACE.levels.shape)
        gap = np.log(draws[:, :, 1]) - np.log(fitted.tables(np.array([kept]))[0, :, 1])
        spread = gap.std(0)
        assert (spread > 1e-4).all() and (np.abs(gap.mean(0)) < 4 * spread / 20 + 1e-6).all()


def measured(levels: np.ndarray, margins: bool) -> list[Evaluation]:
    group = 0 if margins else -1
    candidates = [
        Candidate(str(i), tuple(int(v) for v in row), "made-up", margin_group=group) for i, row in enumerate(levels)
    ]
    return [MODEL.evaluation(candidate) for candidate in candidates]


def test_slopes_teach_the_weights_of_all_sites_from_few_evaluations() -> None:
    levels = allocate(SPACE, MODEL.table, budgets_of(SPACE, np.array([0.5, 0.6, 0.7, 0.8])))
    slopes = read_slopes(SPACE, measured(levels, margins=True))
    assert len(slopes) > 10
    inner = np.unique(slopes.site.numpy())
    true = np.log(MODEL.truth[:, 1] / MODEL.table[:, 1])[inner]

    def agreement(given: Slopes | None) -> float:
        fitted = Surrogate(SPACE, MODEL.table).fit(levels, MODEL.kl(levels), given)
        found = fitted.log_weights(torch.tensor([0.7], dtype=torch.float64))[0].numpy()[inner]
        return float(np.corrcoef(found, true)[0, 1])

    assert agreement(slopes) > 0.8 > agreement(None) + 0.2


def test_a_factor_common_to_all_slopes_of_a_base_changes_little() -> None:
    levels = design(24, 0)
    slopes = read_slopes(SPACE, measured(levels[-6:], margins=True))
    larger = replace(slopes, rise=1.3 * slopes.rise)
    x = x_of(design(40, 3))
    fits = [Surrogate(SPACE, MODEL.table).fit(levels, MODEL.kl(levels), given) for given in (slopes, larger)]
    with torch.no_grad():
        gap = fits[0].predict(x)[0] - fits[1].predict(x)[0]
    assert gap.abs().mean() < np.log(1.3) / 4


def test_refitting_gives_the_same(fitted: Surrogate) -> None:
    levels = design(32, 0)
    again = Surrogate(SPACE, MODEL.table).fit(levels, MODEL.kl(levels))
    x = x_of(design(20, 3))
    with torch.no_grad():
        assert torch.equal(fitted.predict(x)[0], again.predict(x)[0])


def test_noise_is_noticed() -> None:
    levels = design(60, 0)
    noisy = MODEL.kl(levels) * np.exp(np.random.default_rng(0).normal(0, 0.15, len(levels)))
    assert 0.08 < Surrogate(SPACE, MODEL.table).fit(levels, noisy).noise_std < 0.25


@pytest.mark.parametrize("config", [SurrogateConfig(), PLAIN], ids=["damage", "plain"])
def test_two_evaluations_are_enough_to_begin(config: SurrogateConfig) -> None:
    levels = design(2, 0)
    surrogate = Surrogate(SPACE, MODEL.table, config).fit(levels, MODEL.kl(levels))
    with torch.no_grad():
        mean, deviation = surrogate.predict(x_of(design(10, 3)))
    assert mean.isfinite().all() and (deviation > 0).all()


@pytest.mark.parametrize("with_slopes", [False, True])
def test_what_is_remembered_of_the_data_is_their_covariance(with_slopes: bool) -> None:
    """Against the kernel itself: 'predict' computes only what belongs to the strategies asked for."""
    levels = design(16, 0)
    slopes = read_slopes(SPACE, measured(levels[-4:], margins=True)) if with_slopes else None
    surrogate = Surrogate(SPACE, MODEL.table).fit(levels, MODEL.kl(levels), slopes)
    x = x_of(design(9, 5))
    assert surrogate.model is not None
    with torch.no_grad():
        assert surrogate.damage_model is not None
        found = surrogate._to_data(x, surrogate.damage_model.shares(x))
        direct = surrogate.model.covar_module(x, x_of(levels)).to_dense()
        torch.testing.assert_close(found[:, : len(levels)], direct)
        if slopes is not None:
            torch.testing.assert_close(found[:, len(levels) :], surrogate._to_slopes(x))
        each = torch.cat([surrogate.log_weights(torch.tensor([kept])) for kept in (0.5, 0.7)])
        torch.testing.assert_close(surrogate.log_weights(torch.tensor([0.5, 0.7])), each)


def test_hyperparameters_from_a_part_of_a_long_run_predict_as_well() -> None:
    """All evaluations still count: only the dozen hyper-parameters come from fewer."""
    levels, unseen = design(60, 0), design(100, 7)
    part = Surrogate(SPACE, MODEL.table, SurrogateConfig(fit_points=25)).fit(levels, MODEL.kl(levels))
    assert len(part.state()["train.x"]) == len(levels)
    assert error(part, unseen)[0] < 0.04
