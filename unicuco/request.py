"""What a user sends and gets: requests and answers."""

from __future__ import annotations

import json
import math
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from unicuco.errors import RequestError


class Request(BaseModel):
    """A preference, or bounds, or both.

    With bounds only, the answer is the best predicted quality within every size bound; with ``max_kl`` only, the
    smallest model within it; with both, the smallest that meets the quality bound, and infeasible when that is
    over a size bound.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    id: str = Field(default="", max_length=200)
    preference: tuple[float, float] | None = None
    """Weights of (size, quality loss); non-negative, scaled to sum to 1."""
    kept: float | None = Field(default=None, gt=0, le=1)
    """Largest share of the blocks' parameters."""
    ratio: float | None = Field(default=None, gt=0, le=1)
    """Largest share of all parameters."""
    params: int | None = Field(default=None, gt=0)
    """Largest number of parameters."""
    bytes: int | None = Field(default=None, gt=0)
    """Largest size of the weights as stored, in bytes."""
    max_kl: float | None = Field(default=None, gt=0)
    """Largest KL(dense || pruned), nats per token."""

    @model_validator(mode="after")
    def _asks_for_something(self) -> Request:
        if self.preference is not None:
            if any(not math.isfinite(w) or w < 0 for w in self.preference) or sum(self.preference) <= 0:
                raise ValueError("a preference is two non-negative weights, not both zero")
            if self.max_kl is not None:
                raise ValueError("give a preference or max_kl, not both")
        elif all(v is None for v in (self.kept, self.ratio, self.params, self.bytes, self.max_kl)):
            raise ValueError("give at least one of preference, kept, ratio, params, bytes, max_kl")
        return self


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
    preference: tuple[float, float]
    """The preference at which StratNet was asked."""
    origin: str
    """Where the strategy came from: ``stratnet`` or ``measured`` (a front point of the run that was better)."""


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


def explain_validation(error: ValidationError) -> str:
    """A pydantic error as one line: each wrong field with what is allowed."""
    parts = []
    for item in error.errors():
        field = ".".join(str(part) for part in item["loc"])
        message = item["msg"].removeprefix("Value error, ")
        parts.append(f"{field}: {message}" if field else message)
    return "; ".join(parts)
