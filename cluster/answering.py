"""``unicuco answer``: requests in, a table and JSON Lines out."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table

from unicuco.errors import RequestError
from unicuco.request import Answer, Promise, Request, make_request, read_requests
from unicuco.storage import atomic_file

if TYPE_CHECKING:
    from unicuco.client import Client
    from unicuco.latency import LatencyTable


def run_answer(
    policy: str,
    asked: dict[str, object],
    requests_file: Path | None,
    output: Path | None,
    latency: str | None = None,
) -> None:
    """Answers the request of the options, or every request of a file.

    Args:
        policy: a folder, the URI of a run, or the address of a service (``http://HOST:PORT``, with ``#NAME`` where it
            has several).
        latency: a latency table for requests that name none: its name, or its file.

    Raises:
        RequestError: neither or both, or a request that makes no sense. PolicyError: no policy there.
        ServiceCallError: what the service says.
    """
    if bool(asked) == bool(requests_file):
        raise RequestError(
            "Ask by options (--kept, --ratio, --params, --bytes, --max-kl, --max-latency-ms, --preference) or "
            "--requests."
        )
    requests = read_requests(requests_file) if requests_file else [make_request(asked)]
    requests, tables = with_tables(requests, latency, policy)
    if is_address(policy):
        answers, seconds, source = _ask_service(policy, requests)
    else:
        answers, seconds, source = _ask_folder(policy, requests, tables)
    if output:
        with atomic_file(output) as scratch:
            scratch.write_text("".join(answer.model_dump_json() + "\n" for answer in answers), encoding="utf-8")
    console = Console()
    console.print(_table(answers))
    for answer in answers:
        if answer.note:
            console.print(f"{describe(answer.request)}: {answer.note}", highlight=False, soft_wrap=True)
    tried = sum(1 for answer in answers if not answer.feasible)
    console.print(
        f"{len(answers)} answers in {seconds * 1000:.0f} ms"
        + (f", {tried} of them not feasible" if tried else "")
        + f"; {source}. KL: nats per token on fresh text like the calibration's, 90 %.",
        highlight=False,
        soft_wrap=True,
    )
    if output:
        console.print(f"Answers: {output}", highlight=False, soft_wrap=True)


def with_tables(
    requests: list[Request], latency: str | None, policy: str
) -> tuple[list[Request], dict[str, LatencyTable]]:
    """Requests that name ``latency`` where they name no table, and the table itself where it is a file.

    Raises:
        LatencyError: the file is no table. RequestError: a file for a service, or no name of a table.
    """
    if latency is None:
        return requests, {}
    name, tables = latency, {}
    if latency.endswith(".json"):
        from unicuco.latency import load_table, name_of

        if is_address(policy):
            raise RequestError("A service answers by its own latency tables: give --latency one of their names.")
        name = name_of(Path(latency))
        tables[name] = load_table(Path(latency))
    return [make_request({"latency": name} | request.model_dump(exclude_none=True)) for request in requests], tables


def is_address(policy: str) -> bool:
    """Whether a policy is named by the address of a service, and not by a folder."""
    return policy.startswith(("http://", "https://"))


def open_service(address: str) -> Client:
    """A client of ``http://HOST:PORT``, or of one of its policies: ``http://HOST:PORT#NAME``."""
    from unicuco.client import Client

    url, _, name = address.partition("#")
    return Client(url, policy=name or None)


def _ask_service(address: str, requests: list[Request]) -> tuple[list[Answer], float, str]:
    with open_service(address) as service:
        began = time.perf_counter()
        reply = service.reply(requests)
        seconds = time.perf_counter() - began
    return reply.answers, seconds, f"policy '{reply.policy}', version {reply.version}, of {service.url}"


def _ask_folder(
    folder: str, requests: list[Request], tables: dict[str, LatencyTable]
) -> tuple[list[Answer], float, str]:
    from unicuco.policy import Policy
    from unicuco.remote.fetch import policy_folder

    policy = Policy.load(policy_folder(folder))
    for name, table in tables.items():
        policy = policy.with_table(name, table)
    began = time.perf_counter()
    answers = policy.answer(requests)
    seconds = time.perf_counter() - began
    model = policy.parts.provenance.get("model", {}).get("spec", "its base model")
    source = f"policy version {policy.parts.version} of {model}, {len(policy.parts.evaluations)} evaluations"
    if policy.space.is_sparse:
        source += f"; sizes count weights that are not zero ({policy.space.config.pruner}), files stay dense"
    return answers, seconds, source


def _table(answers: list[Answer]) -> Table:
    table = Table(box=None, header_style="bold")
    table.add_column("request")
    for name in ("kept", "ratio", "MB", "KL", "90 %"):
        table.add_column(name, justify="right", no_wrap=True)
    domains = list(dict.fromkeys(name for answer in answers for name in answer.domains))
    for name in domains:
        table.add_column(f"KL {name}", justify="right")
    timed = any(answer.latency_ms is not None for answer in answers)
    if timed:
        table.add_column("ms", justify="right")
    table.add_column("from")
    for answer in answers:
        table.add_row(
            describe(answer.request),
            f"{answer.kept:.3f}",
            f"{answer.ratio:.3f}",
            f"{answer.bytes / 1e6:.0f}",
            f"{answer.kl:.3f}",
            f"{answer.kl_low:.3f}-{answer.kl_high:.3f}",
            *(interval(answer.domains[name]) for name in domains),
            *([milliseconds(answer)] if timed else []),
            answer.origin if answer.feasible else "nearest",
        )
    return table


def interval(promise: Promise) -> str:
    """A predicted KL with its 90 % interval."""
    return f"{promise.kl:.3f} ({promise.kl_low:.3f}-{promise.kl_high:.3f})"


def milliseconds(answer: Answer) -> str:
    """A predicted latency with its table's error."""
    if answer.latency_ms is None:
        return ""
    error = "" if answer.latency_error is None else f" ±{answer.latency_error:.0%}"
    return f"{answer.latency_ms:.4g}{error}"


def describe(request: Request) -> str:
    """A request in a few words."""
    names = ("kept", "ratio", "params", "bytes", "max_kl", "max_latency_ms")
    given = [(name, getattr(request, name)) for name in names if getattr(request, name) is not None]
    parts = [f"{name} {value:,}" if name in ("params", "bytes") else f"{name} {_short(value)}" for name, value in given]
    if request.preference is not None:
        parts.insert(0, f"preference {_short(request.preference)}")
    return ", ".join(parts)


def _short(value: float | tuple[float, ...] | dict[str, float]) -> str:
    if isinstance(value, dict):
        return ",".join(f"{name}={number:g}" for name, number in value.items())
    return ",".join(f"{number:g}" for number in (value if isinstance(value, tuple) else (value,)))
