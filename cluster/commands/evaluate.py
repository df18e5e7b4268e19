"""``unicuco evaluate``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from cluster.commands.options import Device, Dtype, Threads


def evaluate(
    models: Annotated[list[str], typer.Argument(help="Checkpoints, or any base models.")],
    base: Annotated[str | None, typer.Option(help="Compare with this model; a checkpoint names its own.")] = None,
    text: Annotated[
        list[str] | None,
        typer.Option(help="[NAME=]'sotu', a .txt/.jsonl/.parquet file, or a dataset; several times. Or as calibrated."),
    ] = None,
    tokens: Annotated[int, typer.Option(min=16, help="How many tokens of every text.")] = 20480,
    window_length: Annotated[int, typer.Option(min=8, help="Tokens per window.")] = 2048,
    seed: Annotated[
        int | None, typer.Option(min=0, help="Draw windows by this seed; not given: the first. Of tasks: lm-eval's.")
    ] = None,
    tasks: Annotated[
        str | None, typer.Option(help="Score these through lm-eval: piqa,arc_easy, or .yaml definitions.")
    ] = None,
    task_data: Annotated[
        Path | None, typer.Option(help="Folder with TASK.jsonl or TASK.yaml; not given: lm-eval fetches them.")
    ] = None,
    limit: Annotated[int | None, typer.Option(min=2, help="The first so many examples of every task.")] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Examples of a task at once.")] = 16,
    dtype: Dtype = "bfloat16",
    device: Device = "cpu",
    threads: Threads = None,
    trust_remote_code: Annotated[bool, typer.Option(help="Run the models' own code.")] = False,
    picture: Annotated[Path | None, typer.Option(help="Draw it as PNG into this file.")] = None,
    json_file: Annotated[Path | None, typer.Option("--json", help="Write the figures here too.")] = None,
) -> None:
    """Measures models as their users get them, beside the base model: perplexity, KL, accuracy on tasks.

    Example: unicuco evaluate checkpoints/small --text sotu --text wiki=wiki.txt

    Example: unicuco evaluate checkpoints/small --tasks piqa,arc_easy --task-data data/ --limit 250 --picture tasks.png
    """
    from cluster.evaluating import EvaluateOptions, run_evaluate

    run_evaluate(
        EvaluateOptions(
            tuple(models), base, tuple(text or ()), tokens, window_length, seed, dtype, device, threads,
            trust_remote_code, tasks, task_data, limit, batch_size, picture, json_file,
        )
    )  # fmt: skip
