"""A tiny real base model, a text and the options that train a policy on them within seconds."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from tests.unicuco.checkpoint_models import VOCAB, tiny_tokenizer


def make_model(folder: Path, seed: int = 0) -> Path:
    """A random Llama of 3 blocks with its tokenizer, saved in ``folder``."""
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=VOCAB, hidden_size=64, intermediate_size=256, num_hidden_layers=3, num_attention_heads=4,
        num_key_value_heads=2, head_dim=16, max_position_embeddings=128, tie_word_embeddings=True,
    )  # fmt: skip
    model = LlamaForCausalLM(config)
    for parameter in model.parameters():
        if parameter.dim() == 2:
            parameter.data.normal_(0, 0.1)
    model.save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return folder


def make_text(path: Path) -> Path:
    words = np.random.default_rng(0).integers(4, VOCAB, 20_000)
    path.write_text(" ".join(f"w{word}" for word in words))
    return path


def options(model: Path, text: Path, run: Path, evaluations: int) -> list[str]:
    """The command line; a file beside the text asks for short trainings, and for no margins.

    Each margin costs as much as several evaluations, and how many there are depends on how fast trainings come: runs
    would not end at a count.
    """
    brief = text.with_name("brief.json")
    brief.write_text('{"learner": {"margins": 0, "stratnet": {"steps": 20}}}')
    return [
        str(model), "--run", str(run), "--evaluations", str(evaluations), "--calibration", f"words={text}",
        "--window-length", "32", "--calibration-windows", "8", "--search-windows", "64", "--dtype", "float32",
        "--config", str(brief),
    ]  # fmt: skip
