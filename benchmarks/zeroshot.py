"""Zero-shot accuracy of pruned models on PIQA, ARC-e, ARC-c, WinoGrande and HellaSwag, through lm-eval.

    python -m benchmarks.zeroshot --data FOLDER [--kept 0.8] [--levels FILE ...] [--only NAME ...] [--json FILE]

Models at one size: the dense model, the demo policy's answer (``ours``; another policy with ``--policy``), the better
uniform form, and from each ``--levels`` file (a result of ``benchmarks.search``, as ``results/evolution.json``) the
largest strategy within the size. Every strategy is written as a hetero checkpoint and loaded with plain transformers:
what is measured is what users load. ``--data`` holds ``piqa.jsonl``, ``arc_easy.jsonl``, ``arc_challenge.jsonl``,
``winogrande.jsonl`` and ``hellaswag.jsonl``; ``--limit`` examples of each count. Needs ``pip install -e '.[bench]'``.

- per model and task: ``acc``, ``acc_norm``, standard errors beside; ``average`` of the tasks' headline metrics;
- ``change``: of the average from the dense model's, and its standard error on the same examples, which is smaller.

Models that were scored before are read from ``--runs``. Accuracies are for reporting only: nothing is chosen by them.
"""

from __future__ import annotations

import json
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.harness import MODEL, console, demo_policy, finish, parser, surroundings
from benchmarks.search import open_evaluator
from unicuco.baselines.uniform import uniform
from unicuco.checkpoint import CheckpointCard, write_checkpoint
from unicuco.evaluator import Evaluator
from unicuco.heldout import WINDOWS, measure, open_heldout
from unicuco.models.load import DTYPES, load_model, load_tokenizer
from unicuco.policy import Policy
from unicuco.request import Request
from unicuco.storage import content_hash, file_digest, write_json
from unicuco.tasks import OFFLINE, check_lm_eval, find_tasks, run_tasks
from unicuco.tasks.scores import Scores, average, average_change, from_json, to_json

DTYPE = "bfloat16"
RECORD = 2
"""Goes up when what lies in ``--runs`` has another form."""
FAR = 0.05
"""A strategy of a ``--levels`` file that is smaller than the size by more than this is not the one that was meant."""


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--data", type=Path, required=True, help="folder with one TASK.jsonl per task")
    options.add_argument("--kept", type=float, default=0.8)
    options.add_argument("--limit", type=int, default=250, help="examples per task (default 250)")
    options.add_argument("--levels", type=Path, nargs="+", default=[], help="results of benchmarks.search")
    options.add_argument("--policy", type=Path, help="a policy or run folder instead of the demo's")
    options.add_argument("--only", nargs="+", help="score these models only")
    options.add_argument("--seed", type=int, default=0, help="of the preparation that strategies belong to (default 0)")
    options.add_argument("--runs", type=Path, default=Path("runs/zeroshot"))
    given = options.parse_args()
    find_tasks(OFFLINE, given.data)
    check_lm_eval()
    evaluator = open_evaluator("mixed", given.seed)
    heldout = open_heldout(evaluator, WINDOWS)
    wanted = contestants(given, evaluator, heldout)
    tokens_heldout = heldout.num_tokens
    kl = {name: measure(heldout, levels).kl if levels.any() else 0.0 for name, levels in wanted.items()}
    del heldout  # its log-probabilities are gigabytes
    found: dict[str, Scores] = {}
    models: dict[str, Any] = {}
    for name, levels in wanted.items():
        record = scored(evaluator, levels, given)
        found[name] = from_json(record["scores"])
        mean, error = average(found[name])
        models[name] = record | {"kl_heldout": kl[name], "average": mean, "average_error": error}
        if name != "dense" and "dense" in found:
            models[name]["change"], models[name]["change_error"] = average_change(found[name], found["dense"])
        console.print(f"{name}: average {mean:.3f} ± {error:.3f}, {record['seconds']:.0f} s")
    about = surroundings(
        model=MODEL,
        kept=given.kept,
        limit=given.limit,
        shots=0,
        seed=given.seed,
        dtype=DTYPE,
        tokens_heldout=tokens_heldout,
        threads=torch.get_num_threads(),
    )
    figures = {"models": models, "surroundings": about}
    finish(f"Zero-shot accuracy at kept {given.kept}", table(found, models), figures, given.json)


def contestants(given: Any, evaluator: Evaluator, heldout: Evaluator) -> dict[str, np.ndarray]:
    """Level indices (``num_sites``) of every model asked for, by name; the dense model's are zeros.

    Raises:
        SystemExit: a policy or a file of levels that does not fit the preparation or the size.
    """
    space = evaluator.space

    def asked(name: str) -> bool:
        return not given.only or name in given.only

    wanted: dict[str, np.ndarray] = {}
    if asked("dense"):
        wanted["dense"] = np.zeros(space.num_sites, dtype=np.int64)
    if asked("ours"):
        policy = Policy.load(given.policy or demo_policy())
        prepared = {evaluation.preparation for evaluation in policy.parts.evaluations}
        if prepared != {evaluator.preparation.digest}:
            raise SystemExit(f"The policy belongs to another preparation than seed {given.seed}'s; give its --seed.")
        answer = policy.answer([Request(kept=given.kept)])[0]
        console.print(f"ours: kept {answer.kept:.4f}, from {answer.origin}, predicted KL {answer.kl:.3f}")
        wanted["ours"] = np.array(answer.levels)
    if asked("uniform"):
        forms = [uniform(space, given.kept, mlp_only) for mlp_only in (True, False)]
        wanted["uniform"] = min(forms, key=lambda levels: measure(heldout, levels).kl)
    for path in given.levels:
        rows = np.array(json.loads(path.read_text(encoding="utf-8"))["levels"])
        rows = rows[(rows >= 0).all(axis=1)]  # sizes that a contestant was not asked for are -1
        sizes = space.kept(space.check_levels(rows))
        fits = np.flatnonzero((sizes <= given.kept + 1e-9) & (sizes > given.kept - FAR))
        if not len(fits):
            raise SystemExit(f"{path} has no strategy for kept {given.kept}, only {np.round(sizes, 3).tolist()}.")
        if asked(path.stem):
            wanted[path.stem if path.stem not in wanted else f"{path.stem}-file"] = rows[fits[sizes[fits].argmax()]]
    return wanted


def scored(evaluator: Evaluator, levels: np.ndarray, given: Any) -> dict[str, Any]:
    """What one model scores: from disk where it was scored before, else measured and put there."""
    digest = evaluator.preparation.digest
    dense = not levels.any()
    what = [RECORD, levels.tolist(), "" if dense else digest, evaluator.base.source.digest, DTYPE, given.limit]
    what.append([file_digest(given.data / f"{task}.jsonl") for task in OFFLINE])
    path = given.runs / f"{content_hash(what)[:24]}.json"
    if path.is_file():
        return dict(json.loads(path.read_text(encoding="utf-8")))
    size = evaluator.space.size(levels)
    record: dict[str, Any] = {"levels": levels.tolist(), "kept": size.kept, "ratio": size.ratio}
    tokenizer = load_tokenizer(evaluator.base.source)
    began = time.perf_counter()
    if dense:
        model = load_model(evaluator.base.source, DTYPE, "cpu")
        scores = run_tasks(model, tokenizer, find_tasks(OFFLINE, given.data), given.limit)
    else:
        with tempfile.TemporaryDirectory(prefix="unicuco-zeroshot-") as temporary:
            folder = Path(temporary) / f"checkpoint-{content_hash(what)[:8]}"
            model = as_users_load_it(evaluator, tokenizer, levels, folder)
            scores = run_tasks(model, tokenizer, find_tasks(OFFLINE, given.data), given.limit)
    record |= {"scores": to_json(scores), "seconds": time.perf_counter() - began}
    write_json(path, record)
    return record


def as_users_load_it(evaluator: Evaluator, tokenizer: Any, levels: np.ndarray, folder: Path) -> Any:
    """The model that transformers makes of a hetero checkpoint of one strategy (``num_sites`` level indices)."""
    from transformers import AutoModelForCausalLM

    card = CheckpointCard(
        strategy=tuple(evaluator.space.sparsities(levels).tolist()),
        preparation=evaluator.preparation.digest,
        command="python -m benchmarks.zeroshot",
    )
    shape = evaluator.space.shape(levels)
    write_checkpoint(evaluator.base, tokenizer, evaluator.pruner, shape, folder, "hetero", card, verify=False)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=DTYPES[DTYPE], trust_remote_code=True)
    return model.eval()


def table(found: dict[str, Scores], models: dict[str, Any]) -> list[tuple[str, str, str]]:
    """Rows for ``finish``; there are no goals, so the last column holds the average's change from dense."""
    rows = []
    for name, scores in found.items():
        about = models[name]
        for task, result in scores.items():
            shown = ", ".join(f"{metric} {s.mean:.3f} ± {s.error:.3f}" for metric, s in result.metrics.items())
            rows.append((f"{name}, {task}", shown, ""))
        change = f"{about['change']:+.3f} ± {about['change_error']:.3f} from dense" if "change" in about else ""
        shown = f"{about['average']:.3f} ± {about['average_error']:.3f}"
        rows.append((f"{name}, average (KL held out {about['kl_heldout']:.3f})", shown, change))
    return rows


if __name__ == "__main__":
    main()
