"""The fast attention that checkpoints carry for bfloat16 on CPUs: as exact, and wherever they are loaded."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

import unicuco.models.hetero  # noqa: F401  (registers the Auto classes)
from tests.unicuco.checkpoint_models import (
    CONFIGS,
    fresh_process,
    load,
    logits_of,
    some_tokens,
    tiny_model,
    write,
)
from unicuco.models.hetero import attention_unicuco
from unicuco.space import Shape

torch.set_num_threads(1)
FAMILIES = [family for family in CONFIGS if family != "gemma2"]  # whose soft-capped scores torch's kernel cannot do
# How many of the three layers see whole sequences of more tokens than the sliding window.
UNLIMITED = {"mistral": 0, "phi3": 0, "qwen2": 1, "qwen3": 1, "smollm3": 1, "gemma3_text": 2}


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("length", [7, 100])  # within a sliding window, and beyond it and a block of queries
def test_bfloat16_is_as_exact_with_the_fast_attention(
    family: str, length: int, tmp_path: Path, fast: list[int]
) -> None:
    base, tokens = tiny_model(family, dtype=torch.bfloat16), some_tokens(length)
    folder = write(base, Shape((0, 1, 2, 1), (32, 0, 96, 16)), tmp_path / "h", "hetero")
    found = logits_of(load(folder), tokens)
    expected = UNLIMITED.get(family, 3) if length > 8 else 3
    assert fast == [length] * expected
    plain = logits_of(load(folder, attn_implementation="sdpa"), tokens)
    exact = logits_of(load(folder, attn_implementation="eager").float(), tokens)
    assert len(fast) == expected
    noise = (plain - exact).square().mean().sqrt()
    assert (found - exact).square().mean().sqrt() <= 1.25 * noise


@pytest.mark.parametrize("family", FAMILIES)
def test_bfloat16_generates_with_the_fast_attention(family: str, tmp_path: Path, fast: list[int]) -> None:
    """Near ties of bfloat16 fall either way, so a token is right when its exact logit is the largest up to noise."""
    base, tokens = tiny_model(family, dtype=torch.bfloat16), some_tokens(7)
    folder = write(base, Shape((0, 1, 2, 1), (32, 0, 96, 16)), tmp_path / "h", "hetero")
    quick, plain = load(folder), load(folder, attn_implementation="sdpa")
    exact = load(folder, attn_implementation="eager").float()
    options = {"max_new_tokens": 12, "min_new_tokens": 12, "do_sample": False}
    for how in ({}, {"use_cache": False}, {"cache_implementation": "static"}):
        fast.clear()
        found = quick.generate(tokens, **how, **options)
        assert fast[:3] == (
            [] if "cache_implementation" in how else [7, 7, 7]
        )  # a static cache is longer than its tokens
        logits = logits_of(exact, found)
        noise = (logits_of(plain, found) - logits).abs().max()
        logits[..., 2] = -torch.inf  # the end is not allowed that early
        chosen = logits[:, 6:-1].gather(-1, found[:, 7:, None])[..., 0]
        assert (logits[:, 6:-1].amax(-1) - chosen).max() <= 4 * noise, how
    fast.clear()
    mask = torch.ones_like(tokens)
    mask[0, :3] = 0  # left padding
    padded = [model.generate(tokens, attention_mask=mask, **options) for model in (quick, plain)]
    assert torch.equal(*padded) and not fast


def test_the_code_it_carries_brings_the_fast_attention_along(tmp_path: Path, fast: list[int]) -> None:
    base = tiny_model("llama", dtype=torch.bfloat16)
    folder = write(base, Shape((0, 1, 2, 1), (32, 0, 96, 16)), tmp_path / "h", "hetero")
    expected = logits_of(load(folder), some_tokens())
    assert fast == [12, 12, 12]
    code = f"""
import json, sys, torch
from transformers import AutoModelForCausalLM
model = AutoModelForCausalLM.from_pretrained({str(folder)!r}, dtype="auto", trust_remote_code=True)
(carried,) = [module for name, module in sys.modules.items() if name.endswith(".attention_unicuco")]
decide, fast = carried._plain_causal, []
carried._plain_causal = lambda *given: fast.append(decide(*given)) or fast[-1]
with torch.no_grad():
    logits = model(torch.tensor({some_tokens().tolist()!r})).logits
assert fast == [True] * 3, fast
model.save_pretrained({str(folder)!r} + "-again")
assert "unicuco" not in sys.modules
print(json.dumps(logits.float().tolist()))
"""
    ran = fresh_process(code, tmp_path)
    assert ran.returncode == 0, ran.stderr[-2000:]
    assert torch.equal(torch.tensor(json.loads(ran.stdout.splitlines()[-1])), expected.float())
    again, first = (tmp_path / name / "attention_unicuco.py" for name in ("h-again", "h"))
    assert again.read_bytes() == first.read_bytes() == Path(attention_unicuco.__file__).read_bytes()
