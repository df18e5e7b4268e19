"""``unicuco evaluate``: a checkpoint beside its base model, in one table."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

from rich.console import Console
from rich.table import Table

from cluster.runs import versions
from unicuco.storage import write_json


def run_evaluate(
    model: str,
    base: str | None,
    text: str,
    tokens: int,
    window_length: int,
    seed: int | None,
    dtype: str,
    device: str,
    threads: int | None,
    trust_remote_code: bool,
    json_file: Path | None,
) -> None:
    """Prints (and writes) perplexity and KL.

    Raises:
        UniCuCoError: a model or text that cannot be found or read.
    """
    import torch
    from transformers.utils import logging as transformers_logging

    from unicuco.assess import assess
    from unicuco.errors import ModelError
    from unicuco.models.load import DTYPES

    if dtype not in DTYPES:
        raise ModelError(f"'{dtype}' is no dtype here; use {' or '.join(DTYPES)}.")
    transformers_logging.disable_progress_bar()
    if threads:
        torch.set_num_threads(threads)
    results = assess(model, base, text, tokens, window_length, seed, dtype, device, trust_remote_code)
    table = Table(box=None, header_style="bold")
    for name in ("model", "parameters", "ratio", "perplexity", "KL", "KL reverse", "seconds"):
        table.add_column(name, justify="left" if name == "model" else "right", overflow="fold")
    for row in results:
        table.add_row(
            row.model,
            f"{row.parameters:,}",
            f"{row.parameters / results[0].parameters:.3f}",
            f"{row.perplexity:.2f}",
            "" if row.kl is None else f"{row.kl:.4f}",
            "" if row.kl_reverse is None else f"{row.kl_reverse:.4f}",
            f"{row.seconds:.1f}",
        )
    console = Console()
    console.print(table)
    how = "the first" if seed is None else f"drawn with seed {seed},"
    console.print(
        f"{text}: {how} {results[0].tokens:,} tokens in windows of {window_length}; {dtype} on {device}, "
        f"{torch.get_num_threads()} threads. KL: nats per token from {results[0].model}.",
        highlight=False,
        soft_wrap=True,
    )
    if json_file:
        settings = {"text": text, "window_length": window_length, "seed": seed, "dtype": dtype, "device": device}
        rows = [asdict(row) for row in results]
        write_json(json_file, {**settings, "results": rows, "threads": torch.get_num_threads(), "versions": versions()})
        console.print(f"Figures: {json_file}", highlight=False, soft_wrap=True)
