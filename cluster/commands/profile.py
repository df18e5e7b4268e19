"""``unicuco profile``: what each width of every sublayer costs on this device, as a table for answers."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from unicuco.errors import RequestError

if TYPE_CHECKING:
    from rich.table import Table

    from unicuco.latency import LatencyTable


def profile(
    model: Annotated[str, typer.Argument(help="A base model; or a run or policy folder, for its base model.")],
    device: Annotated[str, typer.Option(help="'cpu', 'cuda' or 'cuda:N'.")] = "cpu",
    dtype: Annotated[str, typer.Option(help="'bfloat16' or 'float32'.")] = "bfloat16",
    threads: Annotated[int | None, typer.Option(min=1, help="Torch threads on a CPU.")] = None,
    mode: Annotated[str, typer.Option(help="'decode' (one more token) or 'prefill' (a text at once).")] = "decode",
    batch: Annotated[int, typer.Option(min=1, help="Sequences at once.")] = 1,
    tokens: Annotated[int, typer.Option(min=1, help="Tokens read before or at once, per sequence.")] = 512,
    clock: Annotated[
        str, typer.Option(help="'wall'; 'processor' on a busy machine, with --threads 1 on a CPU.")
    ] = "wall",
    name: Annotated[str | None, typer.Option(help="Keep it in the run as latency/NAME.json.")] = None,
    output: Annotated[Path | None, typer.Option(help="Write the table here, and its picture beside it.")] = None,
    trust_remote_code: Annotated[bool, typer.Option(help="Run the base model's own code.")] = False,
) -> None:
    """Measures the latency of every choice on this device: for bounds in milliseconds, and to train on.

    Example: unicuco profile smollm2 --mode decode --threads 2 --output latency.json

    Example: unicuco profile runs/first --mode prefill --tokens 512 --name box
    """
    from pydantic import ValidationError
    from rich.console import Console
    from transformers.utils import logging as transformers_logging

    from cluster.progress import stages
    from unicuco.latency import LatencyConfig
    from unicuco.models.load import load_base_model
    from unicuco.profiling import profile as measure
    from unicuco.report.latency import draw_latency
    from unicuco.request import explain_validation

    spec, multiple, folder, own = _base_of(model)
    target = _target(folder, name, output, own)
    try:
        config = LatencyConfig.model_validate(
            {"device": device, "dtype": dtype, "threads": threads, "mode": mode, "batch": batch, "clock": clock}
            | {"tokens" if mode == "prefill" else "context": tokens}
        )
    except ValidationError as error:
        raise RequestError(f"{explain_validation(error)}.") from error
    transformers_logging.disable_progress_bar()
    console = Console()
    base = load_base_model(spec, dtype, device, trust_remote_code)
    began = time.perf_counter()
    with stages(console) as report:
        table = measure(base, config, multiple, report)
    seconds = time.perf_counter() - began
    console.print(_table(table))
    about = f"{table.config.describe()}: {table.surroundings['device']}, torch {table.surroundings['torch']}"
    lines = [f"{about}, load {table.surroundings['load']}; {seconds:.0f} s"]
    if table.checks:
        lines.append(
            f"Error on {len(table.checks)} whole models: median {table.median_error:.1%}, largest {table.error:.1%}."
        )
    if target is not None:
        table.save(target)
        draw_latency(table).save(target.with_suffix(".png"))
        lines.append(f"Table: {target}, picture: {target.with_suffix('.png')}")
    for line in lines:
        console.print(line, highlight=False, soft_wrap=True)


def _base_of(model: str) -> tuple[str, int, Path | None, str | None]:
    """The base model, the step of its MLP widths; where ``model`` is a folder that keeps tables, that, and the name of
    the table that its policy was trained on, if any."""
    from unicuco.policy_parts import load_parts

    folder = Path(model)
    if not any((folder / part / "policy.json").is_file() for part in ("", "policy")):
        return model, 64, None, None
    parts = load_parts(folder)
    spec = str(parts.provenance.get("model", {}).get("spec", ""))
    if not spec:
        raise RequestError(f"The policy at {folder} does not say its base model: profile that, and give --output.")
    own = None if parts.latency is None else parts.latency.name
    return spec, parts.space.config.neuron_multiple, folder, own


def _target(folder: Path | None, name: str | None, output: Path | None, own: str | None) -> Path | None:
    import re

    from unicuco.latency import FOLDER
    from unicuco.request import TABLE_NAME

    if name is None:
        if output is not None and output.suffix != ".json":
            raise RequestError(f"{output} should end in .json: the picture goes beside it.")
        return output
    if folder is None or output is not None:
        raise RequestError("--name keeps the table in a run or policy folder: give one, and no --output.")
    if not re.fullmatch(TABLE_NAME, name):
        raise RequestError(f"'{name}' is no name of a table: lower-case letters, digits, '.', '_' and '-'.")
    if name == own:
        raise RequestError(f"The policy at {folder} was trained on another table '{name}': choose another name.")
    return folder / FOLDER / f"{name}.json"


def _table(table: LatencyTable) -> Table:
    """Milliseconds by width; one row per kind of block and sublayer, some widths of each."""
    from rich.table import Table

    shown = Table(box=None, header_style="bold")
    for column in ("blocks", "sublayer", "milliseconds (what is left: ms)", "share of dense"):
        shown.add_column(column)
    dense = table.fixed_ms + sum(
        table.blocks[index].attention.ms[-1] + table.blocks[index].mlp.ms[-1] for index in table.times_of
    )
    for index, times in enumerate(table.blocks):
        count = table.times_of.count(index)
        for kind in ("attention", "mlp"):
            own = getattr(times, kind)
            step = max(1, len(own.widths) // 6)
            picked = sorted({*range(len(own.widths) - 1, -1, -step), 0})
            text = "  ".join(f"{own.widths[i]}: {own.ms[i]:.3g}" for i in picked)
            shown.add_row(str(count), kind, text, f"{count * own.ms[-1] / dense:.0%}")
    shown.add_row("", "the rest", f"{table.fixed_ms:.3g}", f"{table.fixed_ms / dense:.0%}")
    shown.add_row("", "dense", f"{dense:.4g}", "")
    return shown
