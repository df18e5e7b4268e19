"""Which measured slopes the surrogate sees."""

from __future__ import annotations

import dataclasses

import numpy as np

from tests.unicuco.synthetic import KnownDamage, make_space
from unicuco.evaluations import Candidate, Evaluation
from unicuco.slopes import choose_bases, read_slopes

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
    assert choose_bases(SPACE, done) == done[::2]
    inside = sum(((e.levels_array() > 0) & (e.levels_array() < SPACE.num_levels - 1)).sum() for e in done[::2])
    assert len(read_slopes(SPACE, done)) == inside > 0


def test_of_many_the_newest_of_every_size_are_used() -> None:
    done, most = run(200), 20 * SPACE.num_sites
    chosen = choose_bases(SPACE, done, most)
    assert len(chosen) == 20 and len(read_slopes(SPACE, done, most)) <= most
    ids = [e.eval_id for e in chosen]
    assert ids == sorted(ids) and np.median([int(i) for i in ids]) > 150, "oldest first, and mostly new"
    large = sum(e.kept > 0.65 for e in chosen)
    assert 4 <= large <= 16, "one size alone"


def test_bases_come_whole_and_broken_ones_never() -> None:
    done = run(20)
    assert len(choose_bases(SPACE, done, 1)) == 1
    done[18] = dataclasses.replace(done[18], margins_kl=float("nan"))
    assert done[18] not in choose_bases(SPACE, done)
