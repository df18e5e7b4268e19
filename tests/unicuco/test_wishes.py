"""What requests come to: shares of the domains, the weight of size, bounds, and one sentence for a wrong name."""

from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from unicuco.errors import RequestError
from unicuco.qualities import MEAN
from unicuco.request import Request
from unicuco.wishes import Wish, read_wish

DOMAINS = ("code", "prose", "maths")
WEIGHTS = st.floats(0, 1e6).map(lambda weight: 0.0 if weight < 1e-6 else weight)


def wish(**request: Any) -> Wish:
    return read_wish(Request(**request), DOMAINS, DOMAINS)


@given(st.dictionaries(st.sampled_from(["size", *DOMAINS]), WEIGHTS, min_size=1).filter(lambda w: sum(w.values()) > 0))
def test_any_weights_become_a_point_on_the_simplex(weights: dict[str, float]) -> None:
    found = wish(preference=weights, kept=0.7)
    assert sum(found.shares) == pytest.approx(1) and min(found.shares) >= 0
    assert (found.cost_weight is None) == ("size" not in weights)
    named = sum(weights.get(name, 0.0) for name in DOMAINS)
    if named > 0:
        assert not found.free
        assert found.shares == pytest.approx([weights.get(name, 0.0) / named for name in DOMAINS])
    if found.cost_weight is not None:
        assert 0 <= found.cost_weight <= 1
        assert found.cost_weight == pytest.approx(weights["size"] / sum(weights.values()))


def test_what_nobody_asks_for_counts_alike() -> None:
    for found in (wish(kept=0.5), wish(preference=(1, 3)), wish(preference={"size": 1.0}), wish(max_kl=0.2)):
        assert found.shares == pytest.approx([1 / 3] * 3) and found.free
    assert wish(preference=(1, 3)).cost_weight == 0.25 and wish(kept=0.5).cost_weight is None
    assert wish(max_kl=0.2).max_kl == 0.2 and not wish(kept=0.5).bounds_quality


def test_bounds_by_domain_go_to_their_domain() -> None:
    found = wish(max_kl={"prose": 0.3})
    assert found.max_domain_kl == (math.inf, 0.3, math.inf) and found.max_kl == math.inf and found.bounds_quality


def test_with_one_quality_a_domain_is_the_mean() -> None:
    found = read_wish(Request(preference={"size": 1, "sotu": 3}), (MEAN,), ("sotu",))
    assert (found.cost_weight, found.shares) == (0.25, (1.0,))
    assert read_wish(Request(max_kl={"sotu": 0.2}), (MEAN,), ("sotu",)).max_kl == 0.2
    assert read_wish(Request(preference={"size": 1, "mean": 3}), (MEAN,), ("a", "b")).cost_weight == 0.25


def test_latency_is_weighed_beside_size_where_there_is_a_table() -> None:
    asked = Request(preference={"size": 1, "latency": 3, "code": 4})
    found = read_wish(asked, DOMAINS, DOMAINS, timed=True)
    assert (found.cost_weight, found.of_costs, found.shares) == (0.5, (0.25, 0.75), (1.0, 0.0, 0.0))
    alone = read_wish(Request(preference={"latency": 1, "mean": 3}), (MEAN,), ("sotu",), timed=True)
    assert (alone.cost_weight, alone.of_costs) == (0.25, (0.0, 1.0)), "'mean' is known whatever the one domain's name"
    assert wish(preference=(1, 3)).of_costs == (1.0, 0.0)
    with pytest.raises(RequestError, match="'latency'; this policy knows size, code, prose, maths"):
        read_wish(asked, DOMAINS, DOMAINS)


@pytest.mark.parametrize(
    ("request_", "names", "message"),
    [
        ({"preference": {"poems": 1.0}, "kept": 0.5}, DOMAINS, "'poems'.*knows size, code, prose, maths"),
        ({"max_kl": {"size": 0.1}}, DOMAINS, "'size'.*knows code, prose, maths"),
        ({"max_kl": {"code": 0.1}}, (MEAN,), "'code'.*trained on the mean over its domains.*knows mean"),
        ({"id": "r7", "preference": {"size": 1, "x": 2}}, DOMAINS, "Request 'r7' names 'x'"),
    ],
)
def test_a_wrong_name_is_one_sentence_with_the_allowed_ones(request_: Any, names: Any, message: str) -> None:
    with pytest.raises(RequestError, match=message) as caught:
        read_wish(Request(**request_), names, DOMAINS)
    assert "\n" not in str(caught.value)
