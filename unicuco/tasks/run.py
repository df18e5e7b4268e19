"""Running tasks on a loaded model: lm-eval's own evaluation, with nothing of it changed."""

from __future__ import annotations

import importlib.util
import logging
from collections.abc import Sequence
from typing import Any

import numpy as np

from unicuco.errors import TaskError
from unicuco.tasks.definitions import Task
from unicuco.tasks.scores import Score, Scores, TaskScore, headline_of

BATCH = 16
INSTALL = "lm-eval is not installed, and tasks run through it; install it with: pip install 'lm_eval>=0.4.13,<0.5'"


def check_lm_eval(tasks: Sequence[Task] = ()) -> None:
    """Says before any work that lm-eval is missing, or that it does not know one of ``tasks``.

    Raises:
        TaskError: with the command that installs it, or the name that it does not know.
    """
    if importlib.util.find_spec("lm_eval") is None:
        raise TaskError(INSTALL)
    names = [task for task in tasks if isinstance(task, str)]
    if names:
        from lm_eval.tasks import TaskManager

        known = TaskManager().task_index
        unknown = [name for name in names if name not in known]
        if unknown:
            raise TaskError(f"lm-eval knows no task {', '.join(unknown)}; 'lm-eval ls tasks' lists what it knows.")


def run_tasks(
    model: Any,
    tokenizer: Any,
    tasks: Sequence[Task],
    limit: int | None = None,
    seed: int | None = None,
    batch_size: int = BATCH,
) -> Scores:
    """Scores a loaded transformers model.

    Args:
        limit: the first so many examples of every task; ``None``: all.
        seed: of Python, numpy, torch and the choice of examples in few-shot prompts; ``None``: lm-eval's own seeds.
        batch_size: in bfloat16 it moves log-likelihoods in their last digits, as in lm-eval itself.

    Raises:
        TaskError: lm-eval is not installed, or a task's data cannot be read.
    """
    check_lm_eval()
    from lm_eval import simple_evaluate
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    manager = TaskManager(include_defaults=any(isinstance(task, str) for task in tasks))
    seeds = ("random_seed", "numpy_random_seed", "torch_random_seed", "fewshot_random_seed")
    given = {} if seed is None else dict.fromkeys(seeds, seed)
    device = str(next(model.parameters()).device)
    wrapped = HFLM(pretrained=model, tokenizer=tokenizer, batch_size=batch_size, device=device)
    try:
        loaded = manager.load(list(tasks))
    except Exception as error:  # lm-eval and datasets raise many unrelated types for "not there" and "no network"
        raise TaskError(f"lm-eval cannot load these tasks: {type(error).__name__}: {error}") from error
    found = simple_evaluate(wrapped, tasks=list(loaded["tasks"].values()), limit=limit, task_manager=manager, **given)
    return {name: _task_score(found, name) for name in loaded["tasks"]}


def _task_score(found: Any, task: str) -> TaskScore:
    samples = sorted(found["samples"][task], key=lambda sample: sample["doc_id"])
    metrics: dict[str, Score] = {}
    for key, value in found["results"][task].items():
        metric, comma, kind = key.partition(",")
        if not comma or metric.endswith("_stderr") or not isinstance(value, int | float):
            continue
        error = found["results"][task].get(f"{metric}_stderr,{kind}")
        name = metric if kind == "none" else f"{metric},{kind}"
        of_kind = [sample for sample in samples if sample.get("filter", "none") == kind]
        each = [sample.get(metric) for sample in of_kind]
        plain = [float(v) for v in each if isinstance(v, int | float | np.number)]
        # A corpus-wide metric (perplexity, F1) is no mean of its examples and cannot be paired by them.
        paired = len(plain) == len(each) and len(plain) > 0 and abs(float(np.mean(plain)) - value) < 1e-9
        metrics[name] = Score(
            mean=float(value),
            error=float(error) if isinstance(error, int | float) else None,
            each=plain if paired else [],
        )
    if not metrics:
        raise TaskError(f"lm-eval measured nothing on {task}.")
    chance = None
    if found["configs"][task].get("output_type") == "multiple_choice":
        chance = float(np.mean([1 / len(sample["resps"]) for sample in samples]))
    examples = len({sample["doc_id"] for sample in samples})
    return TaskScore(metrics, headline_of(task, list(metrics)), chance, examples)
