"""A real base model: do both layouts compute what the masked original does, and are they equally perplexed?

    python -m benchmarks.real_checkpoints [MODEL] [--strategies 5] [--text FILE] [--tokens 2048] [--window 512]

``MODEL`` is the built-in ``smollm2``, a folder, a GGUF file or a hub id. Per strategy (the first attention, the first
MLP or the first block dropped, one at kept 0.7 that drops nothing, the others random), units cut by place and nothing
compensated, float32, both layouts loaded by plain transformers, ``hetero`` with the code that it carries:

- logits of ``hetero`` and ``padded`` on the text, against each other, and on its first window against the untouched
  model with masks: at most 1e-4 apart;
- greedy generation with a cache: token-identical in both layouts;
- save -> load -> save of ``hetero``: byte-identical files;
- perplexity of both on the same tokens, the first of the text: a ratio within 0.1 %.

``real_failed`` counts the strategies in which anything of this is not so (goal 0); the exit code says it too. Windows
begin as the tokenizer begins a text; where that is with a token of its own, the dense perplexity without it is measured
as well.
"""

from __future__ import annotations

import sys
import tempfile
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy
from transformers import AutoModelForCausalLM
from transformers.utils import logging

from benchmarks.harness import MODEL, console, finish, parser, surroundings
from benchmarks.tiny_families import PrefixPruner, logits_of, masked_model
from unicuco.calibration import CHARS_PER_TOKEN, Domain, first_windows, read_text, window_start
from unicuco.checkpoint import write_checkpoint
from unicuco.checkpoint.card import file_digests
from unicuco.models.geometry import Geometry
from unicuco.models.load import BaseModel, load_base_model, load_tokenizer
from unicuco.space import Shape

LOGITS, PERPLEXITY, KEPT, SEED = 1e-4, 1e-3, 0.7, 0
PROMPTS = ("The people of this country have", "In the beginning there was")
NEW_TOKENS = 24
AT_ONCE = 128
"""Rows of logits that a loss is computed from at once: a large vocabulary in float32 is wide."""


@dataclass
class Found:
    """What one strategy's checks showed.

    Attributes:
        layouts: largest difference of logits between ``hetero`` and ``padded``; ``masked``: of either from the masked
            original; ``largest``: the largest logit, for scale.
        perplexity: of ``hetero``; ``ratio``: to that of ``padded``.
        failed: every check that failed, in words.
    """

    strategy: str
    kept: float
    layouts: float = 0.0
    masked: float = 0.0
    largest: float = 0.0
    perplexity: float = 0.0
    ratio: float = 0.0
    failed: list[str] = field(default_factory=list)
    seconds: float = 0.0


def strategies(geometry: Geometry, count: int, seed: int = SEED) -> dict[str, Shape]:
    """Name -> shape: three that drop something of the first block, one at ``KEPT``, the others random."""
    generator = torch.Generator().manual_seed(seed)
    full = [(block.groups, block.neurons) for block in geometry.blocks]

    def random(drop: float) -> tuple[list[int], list[int]]:
        """Every sublayer is dropped with chance ``drop``, or keeps half of its units or more."""
        chance = torch.rand(4, len(full), generator=generator).tolist()
        widths: tuple[list[int], list[int]] = ([], [])
        for b, sizes in enumerate(full):
            for i, units in enumerate(sizes):
                dropped = chance[i][b] < drop
                widths[i].append(0 if dropped else max(1, round(units * (0.5 + 0.5 * chance[2 + i][b]))))
        widths[0][-1] = max(widths[0][-1], 1)  # hetero stores what follows an attention
        return widths

    found: dict[str, Shape] = {}
    for name, attention, mlp in (("no first attention", 0, 1), ("no first MLP", 1, 0), ("no first block", 0, 0)):
        groups, neurons = random(0.1)
        first = max(groups[0], 1) * attention, max(neurons[0], 1) * mlp
        found[name] = Shape((first[0], *groups[1:]), (first[1], *neurons[1:]))
    found[f"kept {KEPT}, nothing dropped"] = _of_size(geometry)
    while len(found) < count:
        groups, neurons = random(0.2)
        found[f"random {len(found) - 3}"] = Shape(tuple(groups), tuple(neurons))
    return dict(list(found.items())[:count])


def _of_size(geometry: Geometry) -> Shape:
    """All groups, and in every MLP the same share of neurons: as many as ``KEPT`` allows, but one at least."""
    groups = tuple(block.groups for block in geometry.blocks)
    mlps = sum(block.mlp_params(block.neurons) for block in geometry.blocks)
    share = 1 - (1 - KEPT) * geometry.block_params / mlps
    return Shape(groups, tuple(max(1, int(share * block.neurons)) for block in geometry.blocks))


def kept(geometry: Geometry, shape: Shape) -> float:
    """Share of the blocks' parameters."""
    parts = zip(geometry.blocks, shape.groups, shape.neurons, strict=True)
    return sum(block.attention_params(g) + block.mlp_params(n) for block, g, n in parts) / geometry.block_params


def check_strategy(base: BaseModel, name: str, shape: Shape, tokens: Tensor, prompts: list[Tensor]) -> Found:
    """All checks of one strategy on ``tokens`` (``windows x length``) and ``prompts`` (``1 x length`` each)."""
    began, found = time.monotonic(), Found(name, kept(base.geometry, shape))
    masked = masked_model(base, shape)
    expected = logits_of(masked, tokens[:1])
    del masked
    with tempfile.TemporaryDirectory(prefix="unicuco-real-") as scratch:
        folders = {layout: Path(scratch) / layout for layout in ("hetero", "padded")}
        models: dict[str, Any] = {}
        for layout, folder in folders.items():
            write_checkpoint(base, None, PrefixPruner(base), shape, folder, layout, verify=False)  # type: ignore[arg-type]
            own_code = layout == "hetero"
            models[layout] = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=own_code).eval()
        again = Path(scratch) / "again"
        models["hetero"].save_pretrained(again)
        known, saved = file_digests(folders["hetero"]), file_digests(again)
        if {file: known.get(file) for file in saved} != saved or "model.safetensors" not in saved:
            found.failed.append("saved again, its files differ")
        _compare_logits(found, models["hetero"], models["padded"], tokens, expected)
        options = {"max_new_tokens": NEW_TOKENS, "min_new_tokens": NEW_TOKENS, "do_sample": False, "use_cache": True}
        for prompt in prompts:
            written = [m.generate(prompt, attention_mask=torch.ones_like(prompt), **options) for m in models.values()]
            if not torch.equal(*written):
                found.failed.append("the layouts generate different tokens")
    found.seconds = time.monotonic() - began
    return found


def _compare_logits(found: Found, hetero: Any, padded: Any, tokens: Tensor, expected: Tensor) -> None:
    losses: dict[str, list[Tensor]] = {"hetero": [], "padded": []}
    for i, window in enumerate(tokens):
        one, two = logits_of(hetero, window[None]), logits_of(padded, window[None])
        found.layouts = worse(found.layouts, one, two)
        found.largest = max(found.largest, float(one.abs().max()))
        if not i:
            found.masked = worse(worse(0.0, one, expected), two, expected)
        losses["hetero"].append(_losses(one[0], window))
        losses["padded"].append(_losses(two[0], window))
    perplexities = {layout: float(torch.cat(parts).mean().exp()) for layout, parts in losses.items()}
    found.perplexity = perplexities["hetero"]
    found.ratio = perplexities["hetero"] / perplexities["padded"]
    for what, difference in (("each other", found.layouts), ("the masked original", found.masked)):
        if not difference <= LOGITS:  # also for NaN
            found.failed.append(f"logits differ from {what} by {difference:.3g}")
    if not abs(found.ratio - 1) <= PERPLEXITY:
        found.failed.append(f"perplexities have the ratio {found.ratio:.6f}")


def worse(before: float, one: Tensor, two: Tensor) -> float:
    """The larger of ``before`` and the largest difference; NaN once there was any."""
    pairs = zip(one.split(AT_ONCE, 1), two.split(AT_ONCE, 1), strict=True)
    return float(torch.stack([torch.tensor(before), *((a - b).abs().max() for a, b in pairs)]).max())


def _losses(logits: Tensor, window: Tensor) -> Tensor:
    """Next-token losses (``length - 1``), in nats."""
    pairs = zip(logits[:-1].split(AT_ONCE), window[1:].split(AT_ONCE), strict=True)
    return torch.cat([cross_entropy(rows.float(), targets, reduction="none") for rows, targets in pairs])


def dense_perplexity(model: Any, tokens: Tensor) -> float:
    """Of the untouched model, window by window."""
    return float(torch.cat([_losses(logits_of(model, row[None])[0], row) for row in tokens]).mean().exp())


def main() -> None:
    options = parser(__doc__)
    options.add_argument("model", nargs="?", default=MODEL, help=f"base model (default {MODEL})")
    options.add_argument("--strategies", type=int, default=5, help="how many (default 5)")
    options.add_argument("--text", default="sotu", help="text that perplexity is measured on (default sotu)")
    options.add_argument("--tokens", type=int, default=2048, help="the text's first so many (default 2048)")
    options.add_argument("--window", type=int, default=512, help="tokens per window (default 512)")
    given = options.parse_args()
    logging.disable_progress_bar()
    base = load_base_model(given.model, dtype="float32")
    tokenizer = load_tokenizer(base.source)
    start, text = window_start(tokenizer), read_text(Domain.parse(given.text))
    text = text[: CHARS_PER_TOKEN * given.tokens]  # reading all of a long one into tokens takes a minute
    tokens = torch.from_numpy(first_windows(text, tokenizer, given.tokens, given.window).tokens).long()
    prompts = [tokenizer(prompt, return_tensors="pt")["input_ids"] for prompt in PROMPTS]
    dense = {"as the tokenizer begins": dense_perplexity(base.model, tokens)}
    if start:
        bare = first_windows(text, tokenizer, given.tokens, given.window, start=())
        dense["without its first token"] = dense_perplexity(base.model, torch.from_numpy(bare.tokens).long())
    for how, value in dense.items():
        console.print(f"dense perplexity, windows {how}: {value:.2f}")
    found = []
    for name, shape in strategies(base.geometry, given.strategies).items():
        found.append(check_strategy(base, name, shape, tokens, prompts))
        console.print(found[-1])
    failed = sum(bool(one.failed) for one in found)
    rows = [
        (
            f"{one.strategy} (kept {one.kept:.2f})",
            f"logits {one.layouts:.1e}, from masked {one.masked:.1e}; perplexity ÷ padded's {one.ratio:.6f}",
            "; ".join(one.failed) or "ok",
        )
        for one in found
    ]
    rows.append(("real_failed", str(failed), "0"))
    figures = {
        "real_failed": failed,
        "dense_perplexity": dense,
        "strategies": [asdict(one) for one in found],
        "surroundings": surroundings(
            model=given.model, digest=base.source.digest[:12], dtype="float32", text=given.text, tokens=tokens.numel(),
            window=given.window, starts_with=list(start), seed=SEED, threads=torch.get_num_threads(),
        ),
    }  # fmt: skip
    finish(f"{base.geometry.family}, {len(found)} strategies", rows, figures, given.json)
    sys.exit(int(failed > 0))


if __name__ == "__main__":
    main()
