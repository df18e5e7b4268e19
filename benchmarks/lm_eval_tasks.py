"""The five zero-shot tasks through lm-eval, offline: definitions in ``benchmarks/tasks``, data in a local folder."""

from __future__ import annotations

import logging
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

TASKS = ("piqa", "arc_easy", "arc_challenge", "winogrande", "hellaswag")
HEADLINE = {"piqa": "acc", "arc_easy": "acc", "arc_challenge": "acc_norm", "winogrande": "acc", "hellaswag": "acc_norm"}
"""The metric of each task that tables in the literature print."""
DEFINITIONS = Path(__file__).parent / "tasks"
BATCH = 16


@dataclass(frozen=True)
class Score:
    """One metric of one task.

    Attributes:
        mean, error: share of the examples that are right, and its standard error.
        right: 1 or 0 for every example, in the order of the data: models are compared example by example.
    """

    mean: float
    error: float
    right: list[int]


Scores = dict[str, dict[str, Score]]
"""Task -> metric (``acc``, ``acc_norm``) -> score."""


def score(model: Any, tokenizer: Any, data: Path, limit: int) -> Scores:
    """Scores a loaded transformers model on the first ``limit`` examples of every task.

    Args:
        data: holds ``TASK.jsonl`` for each task.

    Raises:
        SystemExit: lm-eval is not installed, or a file is missing.
    """
    try:
        import yaml
        from lm_eval import simple_evaluate
        from lm_eval.models.huggingface import HFLM
        from lm_eval.tasks import TaskManager
    except ImportError as error:
        raise SystemExit(f"lm-eval is not installed ({error}); install it with: pip install -e '.[bench]'") from error
    missing = [name for name in TASKS if not (data / f"{name}.jsonl").is_file()]
    if missing:
        raise SystemExit(f"{data} lacks {', '.join(f'{name}.jsonl' for name in missing)}.")
    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    tasks = [yaml.safe_load((DEFINITIONS / f"{name}.yaml").read_text(encoding="utf-8")) for name in TASKS]
    for task in tasks:
        files = task["dataset_kwargs"]["data_files"]
        files["validation"] = str((data / files["validation"]).resolve())
    device = str(next(model.parameters()).device)
    wrapped = HFLM(pretrained=model, tokenizer=tokenizer, batch_size=BATCH, device=device)
    manager = TaskManager(include_defaults=False)
    found = simple_evaluate(wrapped, tasks=tasks, limit=limit, task_manager=manager, bootstrap_iters=0)
    return {name: _scores(found, name) for name in TASKS}


def _scores(found: Any, task: str) -> dict[str, Score]:
    samples = sorted(found["samples"][task], key=lambda sample: sample["doc_id"])
    scores = {}
    for metric in ("acc", "acc_norm"):
        if f"{metric},none" not in found["results"][task]:
            continue
        right = [int(sample[metric]) for sample in samples]
        mean = float(found["results"][task][f"{metric},none"])
        assert abs(mean - np.mean(right)) < 1e-9, f"{task}: lm-eval's {metric} is not the mean over its examples"
        scores[metric] = Score(mean, float(np.std(right, ddof=1) / np.sqrt(len(right))), right)
    return scores


def average(scores: Scores) -> tuple[float, float]:
    """Mean of the tasks' headline metrics, and its standard error."""
    parts = [scores[task][metric] for task, metric in HEADLINE.items()]
    return float(np.mean([p.mean for p in parts])), float(np.sqrt(np.sum([p.error**2 for p in parts])) / len(parts))


def average_change(scores: Scores, other: Scores) -> tuple[float, float]:
    """By how much ``scores``' average is above ``other``'s on the same examples, and the standard error of that."""
    changes = [
        np.array(scores[task][metric].right) - np.array(other[task][metric].right) for task, metric in HEADLINE.items()
    ]
    errors = [np.std(change, ddof=1) / np.sqrt(len(change)) for change in changes]
    return float(np.mean([change.mean() for change in changes])), float(
        np.sqrt(np.sum(np.square(errors))) / len(errors)
    )


def to_json(scores: Scores) -> dict[str, Any]:
    return {task: {metric: asdict(value) for metric, value in found.items()} for task, found in scores.items()}


def from_json(found: dict[str, Any]) -> Scores:
    return {task: {metric: Score(**value) for metric, value in scores.items()} for task, scores in found.items()}
