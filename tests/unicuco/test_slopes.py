"""Which measured slopes the surrogate sees."""

from __future__ import annotations

import dataclasses

import numpy as np
import torch

from tests.unicuco.synthetic import KnownDamage, make_space
from unicuco.damage import DamageModel
from unicuco.evaluations import Candidate, Evaluation
from unicuco.slopes import ALIKE, BROKEN_KL, MOST_PER_UNIT, SITE_ERROR, Slopes, average_slopes, read_slopes

SPACE = make_space(4)
MODEL = KnownDamage(SPACE)


def run(count: int, every: int = 2) -> list[Evaluation]:
    """``count`` evaluations, every second one with margins, at two sizes in turns of four, oldest first."""
    wish = np.random.default_rng(0).uniform(0.3, 0.9, (count, SPACE.num_sites))
    wish[np.arange(count) % 8 < 4] /= 3
    rows = SPACE.snap(wish)
    return [
        MODEL.evaluation(Candidate(f"{i:03d}", tuple(row.tolist()), "prior", margin_group=-1 if i % every else 0))
        for i, row in enumerate(rows)
    ]


def only(slopes: Slopes, rows: list[int]) -> Slopes:
    """Some of the slopes, with all bases."""
    return Slopes(slopes.bases, *(getattr(slopes, f.name)[rows] for f in dataclasses.fields(Slopes)[1:]))


def written_out(slopes: Slopes) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Whole strategies on both sides of every slope, and their bases (``n x num_sites`` sparsities each)."""
    base = slopes.bases[slopes.base]
    up, down = base.clone(), base.clone()
    each = torch.arange(len(slopes))
    levels = torch.as_tensor(SPACE.levels)
    up[each, slopes.site], down[each, slopes.site] = levels[slopes.site, slopes.up], levels[slopes.site, slopes.down]
    return up, down, base


def test_few_bases_are_all_used() -> None:
    done = run(20)
    inside = sum(((e.levels_array() > 0) & (e.levels_array() < SPACE.num_levels - 1)).sum() for e in done[::2])
    assert len(read_slopes(SPACE, done)) == inside > 0


def test_a_mean_of_slopes_is_the_mean_of_their_data() -> None:
    """One row per site and size, and the mean of what single slopes would say."""
    done = run(40)
    model = DamageModel(SPACE, torch.as_tensor(MODEL.table))
    slopes = read_slopes(SPACE, done)
    data = average_slopes(slopes, model)
    size = (model.kept(slopes.bases)[slopes.base] / ALIKE).round()
    keys = {(float(s), int(i)) for s, i in zip(size, slopes.site, strict=True)}
    assert len(data.kept) == len(keys) < len(slopes)
    single = [average_slopes(only(slopes, [i]), model) for i in range(len(slopes))]
    key = (float(size[0]), int(slopes.site[0]))
    members = [one for one, s, i in zip(single, size, slopes.site, strict=True) if (float(s), int(i)) == key]
    steps = torch.cat([one.steps for one in members]).mean(0)
    row = int((data.steps - steps).abs().sum(-1).argmin())
    torch.testing.assert_close(data.steps[row], steps)
    torch.testing.assert_close(data.gap[row], torch.cat([one.gap for one in members]).mean())
    assert len(members) > 1 and data.error[row, row] < torch.stack([one.error[0, 0] for one in members]).mean()


def test_single_slopes_are_those_of_whole_strategies() -> None:
    """What is computed from a base and one site is what the model says of the strategies on both sides."""
    model = DamageModel(SPACE, torch.as_tensor(MODEL.table))
    with torch.no_grad():
        model.log_weight.copy_(torch.linspace(-1, 1, SPACE.num_sites))
        model.exponent.copy_(torch.tensor([0.8, 1.2])[: len(model.exponent)])
        model.slope.fill_(0.9)
    slopes = read_slopes(SPACE, run(6))
    up, down, base = written_out(slopes)
    for i in range(len(slopes)):
        data = average_slopes(only(slopes, [i]), model)
        with torch.no_grad():
            pull = model.shares(up[i]) - model.shares(down[i])
            promised = model.log_kl(up[i]) - model.log_kl(down[i]) - pull @ model.log_weight
            total = [model.terms(x[i]).sum() for x in (up, down, base)]
            bend = model.slope * (total[0] + total[1] - 2 * total[2]) / (total[2] + model.log_floor.exp())
        torch.testing.assert_close(data.steps[0], pull)
        torch.testing.assert_close(data.gap, slopes.rise[i] + bend - promised)
        torch.testing.assert_close(data.kept[0], model.kept(base[i]))


def test_large_models_have_no_more_rows_than_bounded() -> None:
    """Means are taken over more alike strategies the more sites there are."""
    space = make_space(200)
    model = DamageModel(space, torch.as_tensor(KnownDamage(space).table))
    rng = np.random.default_rng(0)
    count = 40
    bases = torch.as_tensor(np.linspace(0.05, 0.55, count)[:, None] * np.ones(space.num_sites))
    site = torch.as_tensor(rng.permutation(np.tile(np.arange(space.num_sites), count)))
    base = torch.arange(count).repeat_interleave(space.num_sites)
    up, down = torch.full_like(site, 2), torch.zeros_like(site)
    data = average_slopes(Slopes(bases, base, site, up, down, torch.ones(len(site)).double()), model)
    assert len(data.kept) <= 0.6 * MOST_PER_UNIT + space.num_sites < space.num_sites * 0.5 / ALIKE


def test_their_errors_are_a_covariance_and_never_vanish() -> None:
    """However many bases agree: what a site is always off by stays."""
    model = DamageModel(SPACE, torch.as_tensor(MODEL.table))
    done = run(40)
    few, many = (average_slopes(read_slopes(SPACE, part), model) for part in (done, done * 50))
    torch.linalg.cholesky(many.error)
    torch.testing.assert_close(few.steps, many.steps)
    assert (many.error.diagonal() < few.error.diagonal()).all()
    slopes = read_slopes(SPACE, done[:1])
    up, down, _ = written_out(slopes)
    promised = model.log_kl(up) - model.log_kl(down)
    many_of_one = average_slopes(read_slopes(SPACE, done[:1] * 5000), model)
    assert (many_of_one.error.diagonal().min() > 0.9 * (SITE_ERROR * promised.min()) ** 2).all()


def test_broken_bases_are_left_out() -> None:
    done = run(20)
    whole = len(read_slopes(SPACE, done))
    done[18] = dataclasses.replace(done[18], margins_kl=float("nan"))
    assert 0 < len(read_slopes(SPACE, done)) < whole


def test_bases_at_which_the_model_says_nothing_are_left_out() -> None:
    done = run(8)
    whole = read_slopes(SPACE, done)
    lost = dataclasses.replace(done[0], margins_kl=BROKEN_KL)
    slopes = read_slopes(SPACE, [lost, *done[1:]])
    assert len(slopes.bases) == len(whole.bases) - 1
    assert torch.equal(slopes.bases, whole.bases[1:])
