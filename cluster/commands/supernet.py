"""``unicuco supernet``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from cluster.commands.options import Dtype, Threads


def supernet(
    model: Annotated[str, typer.Argument(help="Base model: a hub id, a folder, a .gguf file, a URI, or 'smollm2'.")],
    output: Annotated[Path, typer.Option(help="Folder for the super-network.")],
    corpus: Annotated[str, typer.Option(help="'sotu', a .txt/.jsonl/.parquet file, or a dataset.")] = "sotu",
    minutes: Annotated[
        float | None, typer.Option(help="How long to train, about; 30 where no --steps are given.")
    ] = None,
    steps: Annotated[int | None, typer.Option(help="How long to train, exactly.")] = None,
    kept_low: Annotated[
        float | None, typer.Option(help="Share of the blocks' parameters in the smallest sub-networks; 0.5.")
    ] = None,
    subnetworks: Annotated[int | None, typer.Option(help="Sub-networks that each step trains; 2.")] = None,
    rank: Annotated[int | None, typer.Option(help="Of the updates; 32.")] = None,
    learning_rate: Annotated[float | None, typer.Option("--lr", help="Highest learning rate; 0.001.")] = None,
    batch: Annotated[int | None, typer.Option(help="Windows per step; 1.")] = None,
    window_length: Annotated[int | None, typer.Option(help="Tokens per window; 512.")] = None,
    windows: Annotated[int | None, typer.Option(help="Calibration windows, which order units; 64.")] = None,
    text_weight: Annotated[
        float | None, typer.Option(help="Share of the text's next token in the target, 0 to 1; 0.")
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Of updates, sub-networks and later orders of windows.")] = 0,
    dtype: Dtype = "bfloat16",
    device: Annotated[str, typer.Option(help="'cpu', 'cuda' or 'cuda:N'.")] = "cpu",
    threads: Threads = None,
    gradient_checkpointing: Annotated[bool, typer.Option(help="Less memory, a third more time.")] = False,
    replace: Annotated[bool, typer.Option(help="Replace a checkpoint that is there.")] = False,
    trust_remote_code: Annotated[bool, typer.Option(help="Run the model's own code.")] = False,
) -> None:
    """Trains a base model so that its slices of all sizes work; search the result with unicuco train.

    The same command goes on where a killed one was.

    Example: unicuco supernet smollm2 --output models/smollm2-super

    Example: unicuco supernet smollm2 --corpus mine.jsonl --steps 500 --output models/mine
    """
    from cluster.supernetting import SupernetOptions, run_supernet

    settings = {
        "corpus": corpus, "minutes": minutes, "steps": steps, "kept_low": kept_low, "subnetworks": subnetworks,
        "rank": rank, "learning_rate": learning_rate, "batch": batch, "window_length": window_length,
        "calibration_windows": windows, "text_weight": text_weight, "seed": seed, "dtype": dtype, "device": device,
        "gradient_checkpointing": gradient_checkpointing, "trust_remote_code": trust_remote_code,
    }  # fmt: skip
    run_supernet(SupernetOptions(model, output, threads, replace, settings))
