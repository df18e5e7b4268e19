"""What the tests of checkpoints share: writing and loading tiny models, a tokenizer, a fresh process."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

from benchmarks.tiny_families import (
    CONFIGS,
    VOCAB,
    PrefixPruner,
    logits_of,
    masked_model,
    random_shapes,
    some_tokens,
    tiny_model,
)
from unicuco.checkpoint import write_checkpoint
from unicuco.models.load import BaseModel
from unicuco.space import Shape

__all__ = ["CONFIGS", "PrefixPruner", "logits_of", "masked_model", "random_shapes", "some_tokens", "tiny_model"]


def tiny_tokenizer() -> PreTrainedTokenizerFast:
    """A word-level tokenizer over ``VOCAB`` words."""
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import Whitespace

    words = {word: i for i, word in enumerate(["<pad>", "<s>", "</s>", "<unk>", *(f"w{i}" for i in range(4, VOCAB))])}
    tokenizer = Tokenizer(WordLevel(words, unk_token="<unk>"))
    tokenizer.pre_tokenizer = Whitespace()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", bos_token="<s>", eos_token="</s>", unk_token="<unk>"
    )


def write(base: BaseModel, shape: Shape, target: Path, layout: str, **options: object) -> Path:
    options = {"verify": False, "tokenizer": None} | options
    return write_checkpoint(base, options.pop("tokenizer"), PrefixPruner(base), shape, target, layout, **options).folder


def load(folder: Path, **options: object):
    return AutoModelForCausalLM.from_pretrained(folder, dtype="auto", **options).eval()


def fresh_process(code: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """Runs ``code`` where nothing of ours can be imported."""
    return subprocess.run(
        [sys.executable, "-P", "-c", code],
        capture_output=True, text=True, cwd=folder,
        env={"HF_HUB_OFFLINE": "1", "HF_HOME": str(folder / "hf"), "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
