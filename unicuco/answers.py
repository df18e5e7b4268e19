"""From a chosen strategy to the answer that a user gets, with a sentence where a bound cannot hold."""

from __future__ import annotations

from unicuco.prospects import Prospect
from unicuco.request import Answer, Promise, Request
from unicuco.wishes import Wish


def compose(
    request: Request,
    wish: Wish,
    prospect: Prospect,
    origin: str,
    preference: list[float],
    budget: float,
    floor: int,
    trained_to: float,
) -> Answer:
    """The answer to ``request`` by the strategy of ``prospect``.

    Args:
        preference: ``num_objectives``, at which StratNet was asked.
        budget: what the request allows, floor: what no strategy goes below, in parameters.
        trained_to: the smallest kept share that training looked at.
    """
    feasible, note = _judge(wish, prospect, budget, floor, trained_to)
    own = {"feasible": feasible, "note": note, "preference": tuple(preference), "origin": origin}
    said = prospect.answer
    lists = {name: getattr(said, name).copy() for name in ("levels", "strategy", "groups", "neurons", "domains")}
    return said.model_copy(update={"id": request.id, "request": request, **own, **lists})


def _judge(wish: Wish, prospect: Prospect, budget: float, floor: int, trained_to: float) -> tuple[bool, str]:
    """Whether the bounds hold, and a sentence where they do not, or where what is promised is a guess."""
    if budget < floor:
        return False, (
            f"Impossible: in the smallest strategy {floor:,} parameters are left, over the bound of "
            f"{int(budget):,}; this is the nearest."
        )
    if wish.bounds_quality and (broken := broken_bound(wish, prospect.mean, prospect.domains)):
        return False, broken
    if prospect.size.kept < trained_to - 0.02:
        return True, f"Smaller than what was trained on (kept {trained_to:g}): the predicted KL is a guess."
    return True, ""


def broken_bound(wish: Wish, mean: Promise, domains: dict[str, Promise]) -> str:
    """The first bound on quality that is not expected to hold, as a sentence; "" where all are."""
    bounds = [("KL", wish.max_kl, mean)]
    bounds += [
        (f"KL on {name}", bound, promise)
        for (name, promise), bound in zip(domains.items(), wish.max_domain_kl, strict=bool(domains))
    ]
    for what, bound, promise in bounds:
        if promise.kl_high > bound:
            return (
                f"No strategy this small is expected to stay within {what} {bound:g}; the nearest has "
                f"{promise.kl:.3g} ({promise.kl_low:.3g} to {promise.kl_high:.3g})."
            )
    return ""
