"""The evaluator: how fast against plain transformers, how well through Ray, how exact.

    python -m benchmarks.evaluator [--device cuda] --json FILE

On SmolLM2, the standard tokens; both sides of every ratio in this run, in turns, with the same tokens, dtype and
threads and the dense log-probabilities cached.

- ``dense_ratio``: evaluating the dense strategy ÷ (plain transformers forward + a straightforward full-vocabulary KL),
  both bfloat16 (goal 1.0). Ours measures KL both ways and the perplexity as well;
- ``half_ratio``: evaluating the uniform strategy at kept 0.5 ÷ the dense one (goal 0.7; by multiply-adds 0.605);
- ``ray_efficiency``: evaluations/s of 2 one-thread evaluator actors ÷ 2 plain one-thread processes (goal 0.9);
- ``kl_rel_error``: float32, largest relative error against a slow reference: an untouched model with masked weights,
  compensated by normal equations in float64 (goal 1e-3); ``kl_dense_abs``: |KL| of the dense strategy (goal 1e-5);
- ``kl_bf16_error``: largest |KL(bfloat16) − KL(float32)| over 20 strategies, in units of what the protocol allows,
  max(0.01, 1 %) (goal 1); ``kl_bf16_rank``: rank correlation of the two (goal 0.999).

On a GPU nothing goes through Ray, and the same is timed once more on 16 times as many tokens: the standard ones are
little work for it.
"""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.stats import spearmanr

from benchmarks.harness import MODEL, finish, median_ratio, paired, parser, surroundings
from unicuco.allocation import allocate
from unicuco.baselines.uniform import uniform
from unicuco.calibration import Windows
from unicuco.evaluator import Evaluator, EvaluatorConfig
from unicuco.models.load import load_base_model, load_tokenizer
from unicuco.models.sites import find_blocks
from unicuco.models.source import find_model
from unicuco.preparation import Preparation, PreparationConfig, prepare
from unicuco.pruners.slices import unit_columns
from unicuco.space import SearchSpace, Shape, budgets_of

ROUNDS, RAY_ROUNDS, RAY_EVALUATIONS, THREADS, SEED = 7, 7, 2, 2, 0
LARGE = 16

WORKER = """
import sys, torch
from benchmarks.evaluator import plain_process
plain_process(sys.argv[1])
"""


def ready(device: str) -> Preparation:
    """The demo's preparation, built where it is missing."""
    source, config = find_model(MODEL), PreparationConfig()
    return prepare(load_base_model(source, config.dtype, device), load_tokenizer(source), config)


def speed(preparation: Preparation, device: str, repeats: int = 1) -> dict[str, float]:
    """``dense_ratio``, ``half_ratio`` and seconds per dense evaluation; the search windows come ``repeats`` times."""
    windows = preparation.search_windows
    windows = Windows(np.tile(windows.tokens, (repeats, 1)), np.tile(windows.domain, repeats), windows.domains)
    config = EvaluatorConfig(threads=THREADS, device=device, reference_bytes=repeats << 30)
    evaluator = Evaluator(MODEL, preparation.folder, config, windows)
    space, model = evaluator.space, load_base_model(MODEL, "bfloat16", device).model
    batches = (
        torch.from_numpy(windows.tokens)
        .long()
        .to(device)
        .split(evaluator.config.batch_tokens // windows.tokens.shape[1])
    )
    with torch.inference_mode():
        references = [model(input_ids=ids, use_cache=False).logits.float().log_softmax(-1) for ids in batches]

    @torch.inference_mode()
    def plain() -> float:
        found = 0.0
        for ids, reference in zip(batches, references, strict=True):
            log_q = model(input_ids=ids, use_cache=False).logits.float().log_softmax(-1)
            found += (reference.exp() * (reference - log_q)).sum(-1).sum().item()
        return found / windows.tokens.size

    dense = space.shape(np.zeros(space.num_sites, dtype=np.int64))
    half = space.shape(uniform(space, 0.5, mlp_only=False))
    against_plain = paired(lambda: evaluator.measure(dense), plain, ROUNDS, time.perf_counter)
    against_dense = paired(lambda: evaluator.measure(half), lambda: evaluator.measure(dense), ROUNDS, time.perf_counter)
    seconds = float(np.median([ours for ours, _ in against_plain]))
    macs = space.total(uniform(space, 0.5, mlp_only=False), "macs") / space.total(
        np.zeros(space.num_sites, int), "macs"
    )
    return {
        "dense_ratio": median_ratio(against_plain),
        "half_ratio": median_ratio(against_dense),
        "half_macs": float(macs),
        "dense_seconds": seconds,
        "dense_gflops": 2
        * int(space.total(np.zeros(space.num_sites, int), "macs"))
        * windows.tokens.size
        / seconds
        / 1e9,
    }


def plain_process(folder: str) -> None:
    """A worker without Ray: one thread, pins the model, evaluates a batch for every line on standard input."""
    torch.set_num_threads(1)
    evaluator = Evaluator(MODEL, Path(folder), EvaluatorConfig(threads=1))
    shape = _ray_shape(evaluator.space)
    evaluator.measure(shape)
    print("ready", flush=True)
    for _ in sys.stdin:
        for _ in range(RAY_EVALUATIONS):
            evaluator.measure(shape)
        print("done", flush=True)


def _ray_levels(space: SearchSpace) -> np.ndarray:
    return uniform(space, 0.7, mlp_only=True)


def _ray_shape(space: SearchSpace) -> Shape:
    return space.shape(_ray_levels(space))


def ray_efficiency(preparation: Preparation) -> dict[str, float]:
    """Two actors against two processes, each ``RAY_EVALUATIONS`` evaluations a round, in turns."""
    import ray

    from actors.evaluator import create_evaluator
    from actors.factory import Factory
    from actors.runtime import RayConfig, start_or_attach
    from unicuco.evaluations import Candidate

    levels = tuple(int(level) for level in _ray_levels(preparation.space))
    arguments = [sys.executable, "-c", WORKER, str(preparation.folder)]
    workers = [subprocess.Popen(arguments, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    settings = {
        "model_spec": MODEL,
        "preparation_folder": preparation.folder,
        "config": EvaluatorConfig(threads=1),
    }
    try:
        with start_or_attach(RayConfig()):
            factory = Factory("unicuco.evaluator:Evaluator", settings)
            actors = [create_evaluator(factory, cpus=1, gpus=0, threads=1) for _ in range(2)]
            ray.get([actor.ready.remote() for actor in actors])
            for worker in workers:
                _expect(worker, "ready")

            def through_ray() -> None:
                candidate = Candidate("benchmark", levels, "uniform")
                ray.get([actor.evaluate.remote(candidate) for actor in actors for _ in range(RAY_EVALUATIONS)])

            def plainly() -> None:
                for worker in workers:
                    assert worker.stdin is not None
                    worker.stdin.write("go\n")
                    worker.stdin.flush()
                for worker in workers:
                    _expect(worker, "done")

            pairs = paired(plainly, through_ray, RAY_ROUNDS, time.perf_counter)
    finally:
        for worker in workers:
            worker.kill()
    per_second = 2 * RAY_EVALUATIONS / float(np.median([actors_time for _, actors_time in pairs]))
    return {"ray_efficiency": median_ratio(pairs), "ray_evaluations_per_second": per_second}


def _expect(worker: subprocess.Popen[str], word: str) -> None:
    assert worker.stdout is not None
    for line in worker.stdout:
        if line.strip() == word:
            return
    raise RuntimeError("A plain worker process died.")


def exactness(preparation: Preparation, device: str) -> dict[str, float]:
    """float32 against the slow reference and bfloat16 against float32."""
    space = preparation.space
    exact = Evaluator(MODEL, preparation.folder, EvaluatorConfig(dtype="float32", threads=THREADS, device=device))
    quick = Evaluator(MODEL, preparation.folder, EvaluatorConfig(dtype="bfloat16", threads=THREADS, device=device))
    rng = np.random.default_rng(SEED)
    kept = np.linspace(0.45, 0.98, 20)
    weights = np.exp(rng.standard_normal((20, space.num_sites, 1)))
    strategies = allocate(space, preparation.damage[None] * weights, budgets_of(space, kept))
    floats = np.array([exact.measure(space.shape(levels)).kl for levels in strategies])
    halves = np.array([quick.measure(space.shape(levels)).kl for levels in strategies])
    checked = (2, 9, 18)
    slow = slow_reference(preparation, [strategies[i] for i in checked])
    dense = exact.measure(space.shape(np.zeros(space.num_sites, dtype=np.int64)))
    allowed = np.maximum(0.01, 0.01 * floats)
    return {
        "kl_rel_error": float(np.max(np.abs(floats[list(checked)] / slow - 1))),
        "kl_dense_abs": abs(dense.kl),
        "kl_bf16_error": float(np.max(np.abs(halves - floats) / allowed)),
        "kl_bf16_abs": float(np.max(np.abs(halves - floats))),
        "kl_bf16_rank": float(spearmanr(halves, floats).statistic),
    }


@torch.inference_mode()
def slow_reference(preparation: Preparation, strategies: list[np.ndarray]) -> np.ndarray:
    """KL of each strategy by masking an untouched float32 model and comparing all its logits in float64."""
    model: Any = load_base_model(MODEL, "float32").model
    ids = torch.from_numpy(preparation.search_windows.tokens).long()
    dense = [model(input_ids=row[None], use_cache=False).logits[0].double().log_softmax(-1) for row in ids]
    blocks = find_blocks(model)
    originals = [(block.attention.o_proj.weight.clone(), block.mlp.down_proj.weight.clone()) for block in blocks]
    found = []
    for levels in strategies:
        shape = preparation.space.shape(levels)
        for b, block in enumerate(blocks):
            geometry = preparation.geometry.blocks[b]
            widths = (
                ("attention", geometry.heads_per_group * geometry.head_dim, shape.groups[b], block.attention.o_proj),
            )
            widths += (("mlp", 1, shape.neurons[b], block.mlp.down_proj),)
            for (kind, unit, units, linear), weight in zip(widths, originals[b], strict=True):
                columns = unit_columns(preparation.orders[f"{kind}.{b}"], unit)
                linear.weight.copy_(_masked(weight, preparation.factors[f"{kind}.{b}"], columns, units * unit))
        kl = []
        for row, log_p in zip(ids, dense, strict=True):
            log_q = model(input_ids=row[None], use_cache=False).logits[0].double().log_softmax(-1)
            kl.append((log_p.exp() * (log_p - log_q)).sum(-1).mean())
        found.append(float(torch.stack(kl).mean()))
    return np.array(found)


def _masked(weight: torch.Tensor, factor: torch.Tensor, columns: torch.Tensor, kept: int) -> torch.Tensor:
    """The projection in its original column order: removed columns zero, the others re-solved by normal equations."""
    gram = factor.double() @ factor.double().T
    ordered = weight.double()[:, columns]
    masked = torch.zeros_like(ordered)
    if kept:
        cross = ordered[:, kept:] @ gram[kept:, :kept]
        masked[:, :kept] = ordered[:, :kept] + torch.linalg.solve(gram[:kept, :kept], cross.T).T
    result = torch.zeros_like(masked)
    result[:, columns] = masked
    return result.to(weight.dtype)


def main() -> None:
    given = parser(__doc__, device=True).parse_args()
    torch.set_num_threads(THREADS)
    preparation = ready(given.device)
    figures: dict[str, Any] = {**speed(preparation, given.device), **exactness(preparation, given.device)}
    if given.device == "cpu":
        figures |= ray_efficiency(preparation)
    else:
        figures |= {f"large_{name}": value for name, value in speed(preparation, given.device, LARGE).items()}
    figures["surroundings"] = surroundings(
        model=MODEL,
        tokens=preparation.search_windows.tokens.size,
        window_length=preparation.search_windows.tokens.shape[1],
        corpus="sotu",
        seed=SEED,
        dtype="bfloat16 (speed), float32 (exactness)",
        device=given.device,
        threads=THREADS,
        rounds=ROUNDS,
    )
    goals = {
        "dense_ratio": "1.0",
        "half_ratio": f"0.7 (multiply-adds {figures['half_macs']:.3f})",
        "ray_efficiency": "0.9",
        "kl_rel_error": "1e-3",
        "kl_dense_abs": "1e-5",
        "kl_bf16_error": "1 x allowed",
        "kl_bf16_rank": "0.999",
    }
    above = ("ray_efficiency", "kl_bf16_rank")
    rows = [
        (n, f"{figures[n]:.4g}", ("at least " if n in above else "at most ") + g)
        for n, g in goals.items()
        if n in figures
    ]
    reported = {
        "dense_seconds": "seconds per dense evaluation",
        "dense_gflops": "GFLOP/s of it",
        "ray_evaluations_per_second": "evaluations/s through Ray, kept 0.7",
        "large_dense_ratio": f"dense_ratio, {LARGE} times as many tokens",
        "large_half_ratio": f"half_ratio, {LARGE} times as many tokens",
        "large_dense_seconds": f"seconds per dense evaluation, {LARGE} times as many tokens",
        "large_dense_gflops": "GFLOP/s of it",
    }
    rows += [(text, f"{figures[name]:.4g}", "") for name, text in reported.items() if name in figures]
    finish("Evaluator", rows, figures, given.json)


if __name__ == "__main__":
    main()
