"""What a user sends and gets: requests and answers."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Discriminator, Field, Tag, ValidationError, model_validator

from unicuco.errors import RequestError

SIZE = "size"
LATENCY = "latency"
"""What size and latency are called among the objectives of a preference."""


_TAGS = ("<by name>", "<plain>")
_Either = Discriminator(lambda value: _TAGS[0] if isinstance(value, dict) else _TAGS[1])
"""Two forms of one field: an error speaks of the form that was given, not of both."""
_Kl = Annotated[float, Field(gt=0, allow_inf_nan=False)]
TABLE_NAME = r"[a-z0-9][a-z0-9._-]{0,63}"
_Count = Annotated[int, Field(gt=0, lt=1 << 63)]


class Request(BaseModel):
    """A preference, or bounds, or both.

    With bounds only, the answer is the best predicted quality within every size bound; with ``max_kl`` only, the
    smallest model within it; with both, the smallest that meets the quality bound, and infeasible when that is
    over a size bound. Domains that nobody prefers count alike.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    id: str = Field(default="", max_length=200)
    preference: Annotated[
        Annotated[dict[str, float], Tag(_TAGS[0])] | Annotated[tuple[float, float] | None, Tag(_TAGS[1])], _Either
    ] = None
    """Weights of (size, quality loss), or by name: of ``size``, ``latency`` and domains. Non-negative, scaled to sum
    to 1.

    Without ``size`` and ``latency`` it says what counts among the domains and leaves the size to the bounds.
    """
    kept: float | None = Field(default=None, gt=0, le=1)
    """Largest share of the blocks' parameters."""
    ratio: float | None = Field(default=None, gt=0, le=1)
    """Largest share of all parameters."""
    params: _Count | None = None
    """Largest number of parameters."""
    bytes: _Count | None = None
    """Largest size of the weights as stored, in bytes."""
    max_kl: Annotated[
        Annotated[dict[str, _Kl], Tag(_TAGS[0]), Field(min_length=1)] | Annotated[_Kl | None, Tag(_TAGS[1])], _Either
    ] = None
    """Largest KL(dense || pruned), nats per token: of the mean over the domains, or of domains by name."""
    max_latency_ms: float | None = Field(default=None, gt=0, allow_inf_nan=False)
    """Largest predicted latency, in milliseconds, by a latency table of the policy."""
    latency: str | None = Field(default=None, pattern=f"^{TABLE_NAME}$")
    """Which of the policy's latency tables is meant; may be left out where there is one only."""

    @model_validator(mode="after")
    def _asks_for_something(self) -> Request:
        if isinstance(self.preference, dict):
            if not _are_weights(list(self.preference.values())):
                raise ValueError("a preference by name is non-negative weights, not all zero")
            if self.weighs_costs and self.max_kl is not None:
                raise ValueError("give max_kl or a preference with a weight for 'size' or 'latency', not both")
            if not self.weighs_costs and not self.is_bounded:
                raise ValueError(
                    "a preference without a weight for 'size' or 'latency' needs a bound on size, or max_kl, or "
                    "max_latency_ms"
                )
        elif self.preference is not None:
            if not _are_weights(list(self.preference)):
                raise ValueError("a preference is two non-negative weights, not both zero")
            if self.max_kl is not None:
                raise ValueError("give a preference or max_kl, not both")
        elif not self.is_bounded:
            raise ValueError("give at least one of preference, kept, ratio, params, bytes, max_kl, max_latency_ms")
        return self

    @property
    def weighs_costs(self) -> bool:
        """Whether the preference says how much size or latency counts, and not only which domains."""
        named = self.preference if isinstance(self.preference, dict) else {}
        return self.weighs_latency or SIZE in named or isinstance(self.preference, tuple)

    @property
    def weighs_latency(self) -> bool:
        return isinstance(self.preference, dict) and LATENCY in self.preference

    @property
    def bounds_size(self) -> bool:
        return any(bound is not None for bound in (self.kept, self.ratio, self.params, self.bytes))

    @property
    def is_bounded(self) -> bool:
        """Whether any bound is given: on size, on quality or on latency."""
        return self.bounds_size or self.max_kl is not None or self.max_latency_ms is not None


class Promise(BaseModel):
    """Predicted KL(dense || pruned) on fresh text of one domain, with its 90 % interval; nats per token."""

    kl: float
    kl_low: float
    kl_high: float


class Answer(BaseModel):
    """A strategy that fits the request, its exact size, and the quality predicted for it."""

    id: str
    request: Request
    feasible: bool
    note: str
    """Empty, or one sentence: why the request cannot be met, and the nearest that can."""
    levels: list[int]
    """Level index per site."""
    strategy: list[float]
    """Sparsity per site."""
    groups: list[int]
    """KV groups left per block; 0: attention dropped."""
    neurons: list[int]
    """MLP neurons left per block; 0: MLP dropped."""
    params: int
    bytes: int
    kept: float
    ratio: float
    flops_per_token: int
    kv_bytes_per_token: int
    kl: float
    """Predicted KL(dense || pruned) on fresh text like the calibration text, nats per token."""
    kl_low: float
    """Lower end of the 90 % interval."""
    kl_high: float
    preference: tuple[float, ...]
    """The preference at which StratNet was asked: the weight of size, of latency where the policy was trained on it,
    then of quality or of each of ``domains``."""
    origin: str
    """Where the strategy came from: ``stratnet`` or ``measured`` (a front point of the run that was better); within a
    bound on latency, or by a table that the policy was not trained on, also ``allocation`` (a knapsack of the
    surrogate's damages) or ``repaired`` (levels exchanged)."""
    domains: dict[str, Promise] = {}
    """What is predicted for each domain, where every domain is an objective; ``kl`` is of the mean over them."""
    latency_ms: float | None = None
    """Predicted by a latency table, where one was asked for or the policy has one only."""
    latency_error: float | None = None
    """The table's largest relative error on whole models that it did not see."""
    latency_table: str | None = None
    """Its name."""


def read_requests(path: Path) -> list[Request]:
    """Requests from a JSON Lines file, one object a line.

    Raises:
        RequestError: names the file, the line and what is wrong with it.
    """
    try:
        lines = Path(path).read_text(encoding="utf-8").split("\n")  # JSON strings may hold other separators
    except (OSError, UnicodeDecodeError) as error:
        raise RequestError(f"Requests cannot be read from {path}: {error}.") from error
    requests = [parse_request(line, f"{path}, line {n}") for n, line in enumerate(lines, 1) if line.strip()]
    if not requests:
        raise RequestError(f"{path} holds no request.")
    return requests


def make_request(values: dict[str, object], where: str = "The request") -> Request:
    """A request from its fields.

    Raises:
        RequestError: an unknown field, a value out of range, or nothing asked for.
    """
    try:
        return Request.model_validate(values)
    except ValidationError as error:
        raise RequestError(f"{where}: {explain_validation(error)}.") from error


def parse_request(text: str, where: str = "The request") -> Request:
    """One request from JSON.

    Raises:
        RequestError: not JSON, an unknown field, or a value out of range.
    """
    try:
        values = json.loads(text)
    except json.JSONDecodeError as error:
        raise RequestError(f"{where}: not JSON ({error.msg} at column {error.colno}).") from error
    return make_request(values, where)


def _are_weights(weights: list[float]) -> bool:
    return all(w >= 0 for w in weights) and 0 < sum(weights) < math.inf


def explain_validation(error: ValidationError) -> str:
    """A pydantic error as one line: each wrong field with what is allowed."""
    parts = []
    for item in error.errors():
        field = ".".join(str(part) for part in item["loc"] if part not in _TAGS)
        message = item["msg"].removeprefix("Value error, ")
        parts.append(f"{field}: {message}" if field else message)
    return "; ".join(parts)
