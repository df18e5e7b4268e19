"""``unicuco evaluate``: checkpoints beside their base model, on texts and on tasks, in one table and one picture."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table

from cluster.runs import versions
from unicuco.storage import atomic_file, write_json

if TYPE_CHECKING:
    from unicuco.assess import Judgement


@dataclass(frozen=True)
class EvaluateOptions:
    """What the command line gives; ``unicuco.assess.assess`` says what most of it means.

    Attributes:
        tasks: names with commas between.
        picture, json_file: files to write.
    """

    models: tuple[str, ...]
    base: str | None
    texts: tuple[str, ...]
    tokens: int
    window_length: int
    seed: int | None
    dtype: str
    device: str
    threads: int | None
    trust_remote_code: bool
    tasks: str | None
    task_data: Path | None
    limit: int | None
    batch_size: int
    picture: Path | None
    json_file: Path | None


def run_evaluate(given: EvaluateOptions) -> None:
    """Prints (and writes) perplexity, KL and accuracy.

    Raises:
        UniCuCoError: a model, text or task that cannot be found or read; before any model is loaded.
    """
    import torch
    from transformers.utils import logging as transformers_logging

    from unicuco.assess import assess
    from unicuco.errors import ModelError, TaskError
    from unicuco.models.load import DTYPES
    from unicuco.tasks import find_tasks

    if given.dtype not in DTYPES:
        raise ModelError(f"'{given.dtype}' is no dtype here; use {' or '.join(DTYPES)}.")
    if given.tasks is None and (given.task_data or given.limit):
        raise TaskError("--task-data and --limit belong to --tasks.")
    names = [name.strip() for name in given.tasks.split(",")] if given.tasks is not None else []
    tasks = find_tasks(names, given.task_data) if given.tasks is not None else []
    transformers_logging.disable_progress_bar()
    if given.threads:
        torch.set_num_threads(given.threads)
    results = assess(
        given.models,
        given.base,
        given.texts,
        given.tokens,
        given.window_length,
        given.seed,
        given.dtype,
        given.device,
        given.trust_remote_code,
        tasks,
        given.limit,
        given.batch_size,
    )
    console = Console()
    console.print(_texts_table(results))
    how = "the first" if given.seed is None else f"drawn with seed {given.seed},"
    tokens = {text.tokens for text in results[0].texts}
    console.print(
        f"Each text: {how} {' or '.join(f'{n:,}' for n in sorted(tokens))} tokens in windows of "
        f"{given.window_length}; {given.dtype} on {given.device}, {torch.get_num_threads()} threads. "
        f"KL: nats per token from {results[0].model}, reverse: to it. in: text that a checkpoint was calibrated on; "
        "out: other text.",
        highlight=False,
        soft_wrap=True,
    )
    if tasks:
        console.print()
        console.print(_tasks_table(results))
        examples = "all examples" if given.limit is None else f"the first {given.limit} examples of each task"
        console.print(
            f"lm-eval {lm_eval_version()}, {examples}, {given.dtype}, batches of {given.batch_size}. "
            f"±: standard error. Changes are from {results[0].model} on the same examples.",
            highlight=False,
            soft_wrap=True,
        )
    if given.picture:
        from unicuco.report.judgements import draw_judgements

        with atomic_file(given.picture) as scratch:
            draw_judgements(results).save(scratch)
        console.print(f"Picture: {given.picture}", highlight=False, soft_wrap=True)
    if given.json_file:
        settings = {name: str(v) if isinstance(v, Path) else v for name, v in asdict(given).items()}
        measured = [to_json(result, results[0]) for result in results]
        packages = versions() | ({"lm_eval": lm_eval_version()} if tasks else {})
        about = {"threads": torch.get_num_threads(), "versions": packages}
        write_json(given.json_file, {**settings, **about, "results": measured})
        console.print(f"Figures: {given.json_file}", highlight=False, soft_wrap=True)


def lm_eval_version() -> str:
    from importlib.metadata import version

    return version("lm_eval")


def to_json(result: Judgement, dense: Judgement) -> dict[str, Any]:
    """One model's figures, with averages over tasks and changes from the dense model where tasks were scored."""
    from unicuco.tasks import scores

    found: dict[str, Any] = asdict(result) | {"ratio": result.parameters / dense.parameters}
    if result.tasks:
        found["average"], found["average_error"] = scores.average(result.tasks)
        found["above_chance"] = scores.above_chance(result.tasks)
        if result is not dense:
            found["change"], found["change_error"] = scores.average_change(result.tasks, dense.tasks)
            for name, task in result.tasks.items():
                gap = scores.change(task.score, dense.tasks[name].score)
                found["tasks"][name]["change"], found["tasks"][name]["change_error"] = gap
    return found


def _texts_table(results: Sequence[Judgement]) -> Table:
    table = Table(box=None, header_style="bold", pad_edge=False, padding=(0, 1, 0, 0))
    left = ("model", "text")
    for name in ("model", "params", "ratio", "text", "perplexity", "÷ dense", "KL", "reverse", "seconds"):
        table.add_column(name, justify="left" if name in left else "right", overflow="fold", no_wrap=name != "model")
    for result in results:
        size = (
            Path(result.model).name,
            f"{result.parameters / 1e6:,.1f} M",
            f"{result.parameters / results[0].parameters:.3f}",
        )
        for text in result.texts:
            table.add_row(
                *size,
                f"{text.text} ({text.distribution})" if text.distribution else text.text,
                f"{text.perplexity:.2f}",
                f"{text.perplexity_ratio:.3f}",
                "" if text.kl is None else f"{text.kl:.4f}",
                "" if text.kl_reverse is None else f"{text.kl_reverse:.4f}",
                f"{text.seconds:.1f}",
            )
            size = ("", "", "")
    return table


def _tasks_table(results: Sequence[Judgement]) -> Table:
    from unicuco.tasks import scores

    dense = results[0]
    table = Table(box=None, header_style="bold")
    table.add_column("task")
    table.add_column("chance", justify="right")
    for result in results:
        table.add_column(Path(result.model).name, justify="right", overflow="fold")
        if result is not dense:
            table.add_column("change", justify="right")
    for name, task in dense.tasks.items():
        cells = [f"{name}, {task.headline}", "" if task.chance is None else f"{task.chance:.3f}"]
        for result in results:
            cells.append(_figure(result.tasks[name].score.mean, result.tasks[name].score.error))
            if result is not dense:
                gap = scores.change(result.tasks[name].score, dense.tasks[name].score)
                cells.append(_figure(*gap, sign="+"))
        table.add_row(*cells)
    cells, above = ["average", ""], ["average above chance", ""]
    reference = scores.above_chance(dense.tasks)
    for result in results:
        cells.append(_figure(*scores.average(result.tasks)))
        over = scores.above_chance(result.tasks)
        above.append("" if over is None else f"{over:.3f}")
        if result is not dense:
            cells.append(_figure(*scores.average_change(result.tasks, dense.tasks), sign="+"))
            above.append(f"× {over / reference:.2f}" if over is not None and reference else "")
    if len(dense.tasks) > 1:
        table.add_row(*cells)
    if reference is not None:
        table.add_row(*above)
    return table


def _figure(value: float, error: float | None, sign: str = "") -> str:
    return f"{value:{sign}.3f}" + ("" if error is None else f" ± {error:.3f}")
