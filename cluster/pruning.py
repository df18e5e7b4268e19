"""``unicuco prune``: a request in, a checkpoint out."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import cast

from pydantic import ValidationError
from rich.console import Console

from cluster.answering import describe, interval, is_address, milliseconds, open_service, with_tables
from cluster.progress import stages
from unicuco.checkpoint import LAYOUTS, SHARD_SIZE, Layout
from unicuco.checkpoint.shards import check_shard_size
from unicuco.checkpoint.upload import check_place, upload
from unicuco.errors import CheckpointError, RequestError
from unicuco.remote import is_uri
from unicuco.remote.store import Store
from unicuco.request import Request, explain_validation, make_request


def run_prune(
    policy: str,
    asked: dict[str, object],
    output: str | Path,
    layout: str | None,
    model: str | None,
    dtype: str,
    device: str,
    threads: int | None,
    measure: bool,
    replace: bool,
    trust_remote_code: bool,
    verify: bool = True,
    shard_size: str = SHARD_SIZE,
    latency: str | None = None,
) -> None:
    """Writes the checkpoint and prints what was promised, measured and verified.

    Args:
        output: a folder, or a URI of one.
        layout: ``None``: the one that suits the policy.

    Raises:
        UniCuCoError: before any work where possible; nothing is left behind.
    """
    if layout is not None and layout not in LAYOUTS:
        raise CheckpointError(f"'{layout}' is no layout; use {', '.join(LAYOUTS[:-1])} or {LAYOUTS[-1]}.")
    check_shard_size(shard_size)
    store = Store(str(output)) if is_uri(output) else None
    if store is not None:
        check_place(store, replace)
    elif Path(output).exists() and not replace:
        raise CheckpointError(f"{output} exists already; choose another folder or say --replace.")
    (request,), tables = with_tables([make_request(asked)], latency, policy)
    if is_address(policy):
        if model or trust_remote_code or replace or not measure or not verify or shard_size != SHARD_SIZE:
            raise RequestError(
                "A service decides by itself on --model, --measure, --verify, --shard-size, --replace and "
                "--trust-remote-code."
            )
        if layout == "uniform":
            raise RequestError("A service builds the layouts hetero and padded.")
        if store is not None:
            raise RequestError("What a service builds is fetched to a folder; give --output FOLDER.")
        _fetch(policy, request, Path(output), layout or LAYOUTS[0])
        return
    from transformers.utils import logging as transformers_logging

    from unicuco.evaluator import EvaluatorConfig
    from unicuco.prune import Writing, prune
    from unicuco.remote.nodes import pruning_folder

    transformers_logging.disable_progress_bar()
    try:
        config = EvaluatorConfig(dtype=dtype, device=device, threads=threads, trust_remote_code=trust_remote_code)
    except ValidationError as error:
        raise RequestError(f"{explain_validation(error)}.") from error
    console = Console()
    command = shlex.join(["unicuco", *sys.argv[1:]])
    how = Writing(cast("Layout | None", layout), verify, replace, shard_size, command)
    with _written_at(output, store, replace) as folder, stages(console) as report:
        done = prune(pruning_folder(policy), request, folder, how, model, config, measure, report, tables)
    answer, size = done.answer, done.checkpoint.size
    left = f"{size.params:,} parameters, {size.bytes / 1e6:.0f} MB; kept {size.kept:.3f}, ratio {size.ratio:.3f}"
    if done.zeros is not None:
        left = (
            f"{done.zeros:,} weights are zero; kept {answer.kept:.3f}, ratio {answer.ratio:.3f}; {size.bytes / 1e6:.0f}"
            " MB in dense shapes: no smaller and no faster"
        )
    lines = [
        f"request     {describe(request)}",
        f"size        {left}",
        f"predicted   KL {answer.kl:.3f} ({answer.kl_low:.3f}-{answer.kl_high:.3f})",
    ]
    lines += [f"  {name:<10}KL {interval(promise)}" for name, promise in answer.domains.items()]
    if done.measured:
        m = done.measured
        lines.append(f"measured    KL {m.kl:.3f}, perplexity {m.perplexity:.2f} on {m.tokens:,} fresh tokens")
    if answer.latency_ms is not None:
        found = "not measured: another device or dtype than the table's, or --no-measure"
        if done.latency_ms is not None:
            found = f"measured {done.latency_ms:.4g} ms"
        lines.append(f"latency     {milliseconds(answer)} ms predicted (table '{answer.latency_table}'), {found}")
    if done.checkpoint.verification:
        lines.append(
            f"reloaded    in a fresh process, logits agree ({done.checkpoint.seconds:.0f} s to write and check)"
        )
    lines.append(f"checkpoint  {output} ({done.checkpoint.layout})")
    for line in lines:
        console.print(line, highlight=False, soft_wrap=True)


@contextmanager
def _written_at(output: str | Path, store: Store | None, replace: bool) -> Iterator[Path]:
    """A folder to write a checkpoint to: ``output`` itself, or one on this machine that goes there in the end."""
    if store is None:
        yield Path(output)
        return
    with TemporaryDirectory(prefix="unicuco-upload-") as temporary:
        folder = Path(temporary) / "checkpoint"
        yield folder
        upload(folder, store, replace)


def _fetch(address: str, request: Request, output: Path, layout: str) -> None:
    """Lets a service build the checkpoint, and fetches it."""
    from rich.progress import Progress

    console = Console()
    with open_service(address) as service:
        order = service.order(request, layout)
        answer = order.answer
        try:
            with console.status("queued") as status:
                made = service.wait(order.id, lambda event: status.update(event.stage or event.state))
        except KeyboardInterrupt:
            service.cancel(order.id)
            raise
        with Progress(console=console, transient=True) as bar:
            task = bar.add_task("fetching", total=made.result.bytes if made.result else None)
            service.download(order.id, output, lambda done, total: bar.update(task, completed=done))
    assert made.result is not None
    measured = made.result.measured
    lines = [
        f"request     {describe(request)}",
        f"size        {answer.params:,} parameters, {answer.bytes / 1e6:.0f} MB; kept {answer.kept:.3f}",
        f"predicted   KL {answer.kl:.3f} ({answer.kl_low:.3f}-{answer.kl_high:.3f})",
    ]
    if "kl_heldout" in measured:
        lines.append(f"measured    KL {measured['kl_heldout']:.3f} on {measured['tokens_heldout']:,} fresh tokens")
    if answer.latency_ms is not None:
        found = f", {measured['latency_ms']:.4g} ms measured" if "latency_ms" in measured else ""
        lines.append(f"latency     {milliseconds(answer)} ms predicted{found}")
    lines.append(f"checkpoint  {output} ({layout}, {order.id} of {service.url})")
    for line in lines:
        console.print(line, highlight=False, soft_wrap=True)
