"""What a policy promises for strategies: the same however it is asked, and what the surrogate and the space say."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

from tests.unicuco.synthetic import KnownDamage, make_learner, make_space, search
from unicuco import prospects
from unicuco.policy import Policy
from unicuco.prospects import Prospect, Prospects
from unicuco.request import Answer, Request
from unicuco.surrogate import NOISE_FLOOR

SPACE = make_space(5)
MODEL = KnownDamage(SPACE, seed=4)


@pytest.fixture(scope="module")
def policy(tmp_path_factory: pytest.TempPathFactory) -> Policy:
    return search(make_learner(tmp_path_factory.mktemp("log"), MODEL, evaluations=24), MODEL).policy()


def drawn(count: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, SPACE.num_levels, (count, SPACE.num_sites))


def alike(one: Prospect, other: Prospect) -> bool:
    """Equal, but for the rounding of predictions that were made in other company."""
    same = one.answer.levels == other.answer.levels and one.size == other.size
    return (
        same and one.mean.kl == pytest.approx(other.mean.kl) and one.mean.kl_high == pytest.approx(other.mean.kl_high)
    )


def test_they_are_what_surrogate_and_space_say(policy: Policy) -> None:
    levels = drawn(20)
    with torch.no_grad():
        log_kl, _ = policy.parts.surrogate.predict(torch.as_tensor(SPACE.sparsities(levels)))
    for row, found, mean in zip(levels, Prospects(policy.parts)(levels, 2), log_kl.numpy(), strict=True):
        shape = SPACE.shape(row)
        assert found.answer.levels == row.tolist() and found.size == SPACE.size(row)
        assert found.answer.strategy == SPACE.sparsities(row).tolist() and found.answer.params == found.size.params
        assert (tuple(found.answer.groups), tuple(found.answer.neurons)) == (shape.groups, shape.neurons)
        assert found.objectives[0] == pytest.approx(
            (found.size.kept - policy.scale.kept_low) / (1 - policy.scale.kept_low)
        )
        # No windows and no margins here: fresh text is like the search windows.
        assert found.mean.kl == pytest.approx(np.exp(mean) - NOISE_FLOOR)
        assert found.mean.kl_low < found.mean.kl < found.mean.kl_high


def test_together_alone_and_from_memory_they_are_the_same(policy: Policy) -> None:
    levels, known = drawn(12), Prospects(policy.parts)
    together = known(levels, 2)
    assert known(levels[::-1], 2) == together[::-1]
    alone = [Prospects(policy.parts)(row[None], 2)[0] for row in levels]
    assert all(alike(one, other) for one, other in zip(together, alone, strict=True))
    mixed = known(np.vstack([drawn(3, seed=1), levels[:2], levels[:1]]), 2)  # some known, one twice
    assert mixed[3:] == [*together[:2], together[0]]


def test_what_is_promised_does_not_depend_on_the_company(policy: Policy) -> None:
    levels, company = drawn(60), drawn(500, seed=1)
    alone = Prospects(policy.parts)
    own = [alone(row[None], 2)[0].answer for row in levels]
    beside = Prospects(policy.parts)(np.vstack([company, levels]), 2)[len(company) :]
    assert own == [prospect.answer for prospect in beside]


def test_bytes_are_those_asked_for(policy: Policy) -> None:
    levels = drawn(3)
    for bytes_per_param in (2, 4, 2):
        for row, found in zip(levels, policy.prospects(levels, bytes_per_param), strict=True):
            assert found.size == SPACE.size(row, bytes_per_param)


def test_the_oldest_are_forgotten_and_worked_out_again(policy: Policy, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prospects, "REMEMBERED", 16)
    known = Prospects(policy.parts)
    first = known(drawn(10), 2)
    for seed in range(1, 6):
        known(drawn(10, seed), 2)
        assert len(known._known) <= 26
    assert all(alike(one, other) for one, other in zip(first, known(drawn(10), 2), strict=True))


def test_answers_of_all_sizes_are_few_strategies(policy: Policy) -> None:
    sizes = np.random.default_rng(0).uniform(0.45, 0.99, 2000)
    answers = policy.answer([Request(kept=float(kept)) for kept in sizes])
    assert len({tuple(answer.levels) for answer in answers}) < 200


def test_an_answer_is_whole_and_its_own(policy: Policy) -> None:
    """Made from what is remembered, but as valid as one that was checked field by field."""
    requests = [
        Request(kept=0.7, id="a"),
        Request(kept=0.7, id="b"),
        Request(preference=(0.3, 0.7)),
        Request(max_kl=0.3),
    ]
    answers = policy.answer(requests)
    for request, found in zip(requests, answers, strict=True):
        assert found == Answer.model_validate_json(found.model_dump_json()) and found.request is request
    assert [found.id for found in answers[:2]] == ["a", "b"]


def test_the_whole_network_is_exact_only_where_it_is_what_quality_is_measured_from(policy: Policy) -> None:
    whole = np.zeros((1, SPACE.num_sites), dtype=np.int64)
    (exact,) = Prospects(policy.parts)(whole, 2)
    assert (exact.mean.kl, exact.mean.kl_high) == (0, 0)
    trained = dataclasses.replace(policy.parts, provenance={"model": {"teacher": {"spec": "m", "digest": "f"}}})
    (promised,) = Prospects(trained)(whole, 2)
    assert 0 < promised.mean.kl < promised.mean.kl_high


def test_who_changes_an_answer_changes_no_other(policy: Policy) -> None:
    (before,) = policy.answer([Request(kept=0.7)])
    levels = list(before.levels)
    for mine in (before.levels, before.groups, before.neurons, before.strategy):
        mine.clear()
    assert policy.answer([Request(kept=0.7)])[0].levels == levels
