"""Checkpoints of SmolLM2 at kept 0.7: do they load, agree and generate, and is the pruned one faster?

    python -m benchmarks.checkpoints [--only export] --json FILE

- ``export_...``: what an export takes, beside ``save_file`` of the same tensors: see ``benchmarks.exports``;
- ``logits_max_diff``: largest difference of hetero and padded logits, in a fresh process, float32;
- ``generates_equal``: greedy generation with cache gives the same tokens from both;
- ``prefill_speedup``: prefill of 512 tokens with ``logits_to_keep=1``, dense ÷ hetero, the smaller of the two dtypes
  (goal 1.25; what the blocks' multiply-adds alone would give stands beside it).

With ``--only export`` nothing else is measured, on the uniform strategy, so that no policy is needed. Dense and hetero
run in turns, in alternating order; each figure is a median over ``--rounds`` pairs.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.exports import export
from benchmarks.harness import MODEL, demo_policy, finish, parser, surroundings
from unicuco.baselines.uniform import uniform
from unicuco.checkpoint import CheckpointCard, write_checkpoint
from unicuco.evaluator import EvaluatorConfig
from unicuco.models.load import load_base_model, load_tokenizer
from unicuco.models.source import find_model
from unicuco.policy import Policy
from unicuco.preparation import Preparation, PreparationConfig, prepare
from unicuco.prune import find_preparation
from unicuco.pruners.build import build_pruner
from unicuco.request import Request

KEPT, SEED = 0.7, 0
EXPORT_GOAL = 1.5
PREFILL_TOKENS, NEW_TOKENS = 512, 32
GOAL = 1.25
PROMPT = "The capital of France is"

FRESH = """
import json, sys, time, torch
from transformers import AutoModelForCausalLM, AutoTokenizer
hetero, padded, prompt, tokens = sys.argv[1], sys.argv[2], sys.argv[3], int(sys.argv[4])
began = time.perf_counter()
a = AutoModelForCausalLM.from_pretrained(hetero, trust_remote_code=True, dtype=torch.float32)
seconds = time.perf_counter() - began
b = AutoModelForCausalLM.from_pretrained(padded, dtype=torch.float32)
tokenizer = AutoTokenizer.from_pretrained(padded)
ids = torch.randint(0, a.config.vocab_size, (2, 128), generator=torch.Generator().manual_seed(0))
with torch.no_grad():
    difference = (a(ids).logits - b(ids).logits).abs().max().item()
inputs = tokenizer(prompt, return_tensors="pt")
options = {"max_new_tokens": tokens, "min_new_tokens": tokens, "do_sample": False}
one, two = a.generate(**inputs, **options), b.generate(**inputs, **options)
uncached = a.generate(**inputs, **options, use_cache=False)
print(json.dumps({
    "load_seconds": seconds, "logits_max_diff": difference, "generates_equal": torch.equal(one, two),
    "cache_equals_no_cache": torch.equal(one, uncached), "text": tokenizer.decode(one[0]),
    "imported_unicuco": "unicuco" in sys.modules,
}))
"""


def run(rounds: int, only_export: bool) -> dict[str, Any]:
    """All figures, by name."""
    source = find_model(MODEL)
    base, tokenizer = load_base_model(source, "bfloat16"), load_tokenizer(source)
    if only_export:
        preparation = prepare(base, tokenizer, PreparationConfig())
        index = uniform(preparation.space, KEPT, mlp_only=False)
    else:
        policy = Policy.load(demo_policy())
        policy.check_model(source.digest, source.spec)
        preparation = find_preparation(policy, source, EvaluatorConfig())
        index = np.array(policy.answer([Request(kept=KEPT)])[0].levels)
    shape = preparation.space.shape(index)
    pruner = build_pruner(base, preparation)
    size = preparation.space.size(index)
    found: dict[str, Any] = {"kept": size.kept, "ratio": size.ratio}
    about = surroundings(
        model=MODEL,
        seed=SEED,
        prefill_tokens=PREFILL_TOKENS,
        rounds=rounds,
        dtype="float32 and bfloat16",
        threads=torch.get_num_threads(),
    )
    found |= export(source, base, tokenizer, pruner, preparation, shape, max(rounds, 7))
    if only_export:
        return found | {"surroundings": about}
    card = CheckpointCard(
        request={"kept": KEPT},
        strategy=tuple(preparation.space.sparsities(index).tolist()),
        preparation=preparation.digest,
        command="python -m benchmarks.checkpoints",
    )
    found["limit_by_block_macs"] = _block_macs(preparation, np.zeros_like(index)) / _block_macs(preparation, index)
    with tempfile.TemporaryDirectory(prefix="unicuco-bench-") as temporary:
        hetero, padded = Path(temporary) / "hetero", Path(temporary) / "padded"
        for folder, layout in ((hetero, "hetero"), (padded, "padded")):
            report = write_checkpoint(base, tokenizer, pruner, shape, folder, layout, card)  # type: ignore[arg-type]
            assert report.verification is not None
            found[f"{layout}_write_seconds"] = report.seconds
            found[f"{layout}_bytes"] = sum(file["bytes"] for file in report.files.values())
            found[f"{layout}_reload_max_diff"] = report.verification.max_abs_diff
        found |= fresh_process(hetero, padded)
        speedups = []
        for dtype in (torch.float32, torch.bfloat16):
            name = str(dtype).removeprefix("torch.")
            found |= {f"{key}_{name}": value for key, value in prefill(source.folder, hetero, dtype, rounds).items()}
            speedups.append(found[f"prefill_speedup_{name}"])
    found["prefill_speedup"] = min(speedups)
    return found | {"surroundings": about}


def _block_macs(preparation: Preparation, index: np.ndarray) -> int:
    """Multiply-adds per token of the blocks alone: with ``logits_to_keep=1`` the head hardly counts."""
    return int(preparation.space.total(index, "macs")) - preparation.geometry.fixed_macs


def fresh_process(hetero: Path, padded: Path) -> dict[str, Any]:
    """What a process that knows nothing of us finds on loading both."""
    command = [sys.executable, "-P", "-c", FRESH, str(hetero), str(padded), PROMPT, str(NEW_TOKENS)]
    ran = subprocess.run(command, capture_output=True, text=True)
    if ran.returncode:
        raise RuntimeError(f"the checkpoints do not work in a fresh process: {ran.stderr[-2000:]}")
    return dict(json.loads(ran.stdout.splitlines()[-1]))


@torch.inference_mode()
def prefill(dense_folder: Path, hetero_folder: Path, dtype: torch.dtype, rounds: int) -> dict[str, float]:
    """Medians of ``rounds`` prefills in turns: dense, hetero as it loads, hetero on torch's attention.

    The checkpoint brings a faster attention for bfloat16 on CPUs; the third says what pruning alone is worth.
    """
    from transformers import AutoModelForCausalLM

    ways: dict[str, tuple[Path, dict[str, Any]]] = {
        "dense": (dense_folder, {}),
        "hetero": (hetero_folder, {"trust_remote_code": True}),
        "hetero_sdpa": (hetero_folder, {"trust_remote_code": True, "attn_implementation": "sdpa"}),
    }
    models = {
        name: AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, **options).eval()
        for name, (folder, options) in ways.items()
    }
    vocabulary = models["dense"].config.vocab_size
    tokens = torch.randint(0, vocabulary, (1, PREFILL_TOKENS), generator=torch.Generator().manual_seed(SEED))
    seconds: dict[str, list[float]] = {name: [] for name in models}
    for turn in range(-2, rounds):  # two turns to warm up
        for name in sorted(models, reverse=bool(turn % 2)):
            began = time.perf_counter()
            models[name](tokens, logits_to_keep=1)
            if turn >= 0:
                seconds[name].append(time.perf_counter() - began)
    dense, hetero, same = (statistics.median(seconds[name]) for name in models)
    paired = statistics.median(d / h for d, h in zip(seconds["dense"], seconds["hetero"], strict=True))
    return {
        "prefill_ms_dense": 1000 * dense,
        "prefill_ms_hetero": 1000 * hetero,
        "prefill_ms_hetero_sdpa": 1000 * same,
        "prefill_speedup": dense / hetero,
        "prefill_speedup_same_attention": dense / same,
        "prefill_speedup_paired": paired,
    }


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--rounds", type=int, default=11, help="paired measurements per dtype (default 11)")
    options.add_argument("--only", choices=["export"], help="measure this alone")
    given = options.parse_args()
    found = run(given.rounds, given.only == "export")
    goals = {"logits_max_diff": "1e-3", "generates_equal": "True", "cache_equals_no_cache": "True"}
    goals["export_ratio"] = f"at most {EXPORT_GOAL}"
    if "limit_by_block_macs" in found:
        goals["prefill_speedup"] = f"at least {GOAL} (by multiply-adds {found['limit_by_block_macs']:.2f})"
    rows = [
        (name, f"{value:.4g}" if isinstance(value, float) else str(value), goals.get(name, ""))
        for name, value in found.items()
        if name != "surroundings"
    ]
    finish(
        f"Checkpoints of {MODEL}, {'the uniform strategy' if given.only else 'the demo policy'} at kept {KEPT}",
        rows,
        found,
        given.json,
    )


if __name__ == "__main__":
    main()
