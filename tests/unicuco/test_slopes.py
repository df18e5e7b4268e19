"""Which measured slopes the surrogate sees."""

from __future__ import annotations

import dataclasses

import numpy as np
import torch

from tests.unicuco.synthetic import KnownDamage, make_space
from unicuco.damage import DamageModel
from unicuco.evaluations import Candidate, Evaluation
from unicuco.slopes import ALIKE, SITE_ERROR, Slopes, average_slopes, read_slopes

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
    size = (model.kept(slopes.x_base) / ALIKE).round()
    keys = {(float(s), int(i)) for s, i in zip(size, slopes.site, strict=True)}
    assert len(data.kept) == len(keys) < len(slopes)
    single = [average_slopes(Slopes(*(v[i : i + 1] for v in vars(slopes).values())), model) for i in range(len(slopes))]
    key = (float(size[0]), int(slopes.site[0]))
    members = [one for one, s, i in zip(single, size, slopes.site, strict=True) if (float(s), int(i)) == key]
    steps = torch.cat([one.steps for one in members]).mean(0)
    row = int((data.steps - steps).abs().sum(-1).argmin())
    torch.testing.assert_close(data.steps[row], steps)
    torch.testing.assert_close(data.gap[row], torch.cat([one.gap for one in members]).mean())
    assert len(members) > 1 and data.error[row, row] < torch.stack([one.error[0, 0] for one in members]).mean()


def test_their_errors_are_a_covariance_and_never_vanish() -> None:
    """However many bases agree: what a site is always off by stays."""
    model = DamageModel(SPACE, torch.as_tensor(MODEL.table))
    done = run(40)
    few, many = (average_slopes(read_slopes(SPACE, part), model) for part in (done, done * 50))
    torch.linalg.cholesky(many.error)
    torch.testing.assert_close(few.steps, many.steps)
    assert (many.error.diagonal() < few.error.diagonal()).all()
    slopes = read_slopes(SPACE, done[:1])
    promised = model.log_kl(slopes.x_up) - model.log_kl(slopes.x_down)
    many_of_one = average_slopes(read_slopes(SPACE, done[:1] * 5000), model)
    assert (many_of_one.error.diagonal().min() > 0.9 * (SITE_ERROR * promised.min()) ** 2).all()


def test_broken_bases_are_left_out() -> None:
    done = run(20)
    whole = len(read_slopes(SPACE, done))
    done[18] = dataclasses.replace(done[18], margins_kl=float("nan"))
    assert 0 < len(read_slopes(SPACE, done)) < whole
