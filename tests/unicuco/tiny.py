"""Tiny random base models of many families on disk, a tokenizer and a text that need no network."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import (
    AutoModelForCausalLM,
    Gemma2Config,
    Gemma3TextConfig,
    GPT2Config,
    GraniteConfig,
    LlamaConfig,
    Olmo2Config,
    OPTConfig,
    Phi3Config,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen3Config,
    SmolLM3Config,
)

from unicuco.calibration import CalibrationConfig, Domain
from unicuco.evaluator import Evaluator, EvaluatorConfig, Measurement
from unicuco.preparation import PreparationConfig
from unicuco.space import SearchSpace, SpaceConfig

VOCAB = 300
_SIZES: dict[str, Any] = {
    "vocab_size": VOCAB, "hidden_size": 64, "intermediate_size": 256, "num_hidden_layers": 3, "head_dim": 16,
    "max_position_embeddings": 256, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
CONFIGS: dict[str, Any] = {
    "llama": lambda: LlamaConfig(**_SIZES, num_attention_heads=8, num_key_value_heads=4, tie_word_embeddings=True),
    "qwen2": lambda: Qwen2Config(
        **_SIZES | {"head_dim": 16}, num_attention_heads=4, num_key_value_heads=2, tie_word_embeddings=False
    ),
    "qwen3": lambda: Qwen3Config(**_SIZES, num_attention_heads=4, num_key_value_heads=4, tie_word_embeddings=True),
    "gemma3": lambda: Gemma3TextConfig(
        **_SIZES,
        num_attention_heads=4,
        num_key_value_heads=2,
        query_pre_attn_scalar=16,
        sliding_window=8,
        layer_types=["sliding_attention", "full_attention", "sliding_attention"],
    ),
}
FAMILIES = tuple(CONFIGS)
"""What most tests run on; the others have a few tests of their own."""
_GROUPED: dict[str, Any] = _SIZES | {"num_attention_heads": 4, "num_key_value_heads": 2}
CONFIGS |= {
    "gemma2": lambda: Gemma2Config(**_GROUPED, query_pre_attn_scalar=16, sliding_window=8),
    "phi3": lambda: Phi3Config(**_GROUPED),
    "olmo2": lambda: Olmo2Config(**_GROUPED),
    "smollm3": lambda: SmolLM3Config(**_GROUPED, no_rope_layers=[1, 0, 1]),
    "granite": lambda: GraniteConfig(**_GROUPED, logits_scaling=0.5, residual_multiplier=0.7, embedding_multiplier=2.0),
    "gpt2": lambda: GPT2Config(
        vocab_size=VOCAB, n_embd=64, n_layer=3, n_head=4, n_inner=256, n_positions=256, bos_token_id=1, eos_token_id=2
    ),
    "opt": lambda: OPTConfig(
        vocab_size=VOCAB, hidden_size=64, ffn_dim=256, num_hidden_layers=3, num_attention_heads=4, pad_token_id=0
    ),
}
OTHERS = tuple(family for family in CONFIGS if family not in FAMILIES)
FLOAT32 = EvaluatorConfig(dtype="float32")


def random_model(family: str, seed: int = 0, **changes: Any) -> Any:
    """A float32 model whose every part moves its logits: norms and biases are random too."""
    config = CONFIGS[family]()
    for name, value in changes.items():
        setattr(config, name, value)
    model = AutoModelForCausalLM.from_config(config)
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        noise = torch.randn(parameter.shape, generator=generator)
        is_gain = ("norm" in name or "ln_" in name) and not name.endswith("bias")
        centre = 1.0 if is_gain and not family.startswith("gemma") else 0.0
        # Inputs have unit size after a norm; 1/sqrt(fan-in) keeps it so, times a little more for louder sublayers.
        scale = 0.2 if parameter.dim() == 1 else 1.3 * parameter.shape[1] ** -0.5
        parameter.data = centre + scale * noise
    model.tie_weights()
    return model.eval().requires_grad_(False)


def save_model(folder: Path, family: str, seed: int = 0, **changes: Any) -> Path:
    """A random model and its tokenizer in ``folder``."""
    random_model(family, seed, **changes).save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    return folder


def tokenizer(bos: bool = False) -> PreTrainedTokenizerFast:
    """Word level: ``<pad> <s> </s> <unk> w4 ... w299``, no special tokens added but ``<s>`` with ``bos``."""
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import Whitespace
    from tokenizers.processors import TemplateProcessing

    words = ["<pad>", "<s>", "</s>", "<unk>", *(f"w{i}" for i in range(4, VOCAB))]
    found = Tokenizer(WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>"))
    found.pre_tokenizer = Whitespace()
    if bos:
        found.post_processor = TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return PreTrainedTokenizerFast(
        tokenizer_object=found, pad_token="<pad>", bos_token="<s>", eos_token="</s>", unk_token="<unk>"
    )


def text(words: int = 12_000, seed: int = 0) -> str:
    """Words of very different frequency, each mostly followed by a few favourites."""
    rng = np.random.default_rng(seed)
    follow = rng.integers(4, VOCAB, (VOCAB, 4))
    common = 4 + (np.minimum(rng.zipf(1.3, words), VOCAB - 4) - 1)
    choice, favourite = rng.random(words) < 0.6, rng.integers(0, 4, words)
    current, found = 4, []
    for i in range(words):
        current = int(follow[current, favourite[i]] if choice[i] else common[i])
        found.append(f"w{current}")
    return " ".join(found)


def write_text(path: Path, words: int = 12_000, seed: int = 0) -> Path:
    path.write_text(text(words, seed), encoding="utf-8")
    return path


def calibration(*files: Path, **changes: Any) -> CalibrationConfig:
    """Short windows from one domain per file, named by its stem."""
    domains = tuple(Domain(name=file.stem, source=str(file)) for file in files)
    settings = {"window_length": 32, "calibration_windows": 24, "search_windows": 4} | changes
    return CalibrationConfig(domains=domains, **settings)


def preparation_config(*files: Path, space: SpaceConfig | None = None, **changes: Any) -> PreparationConfig:
    return PreparationConfig(calibration=calibration(*files, **changes), space=space or SpaceConfig(neuron_multiple=32))


def some_strategies(space: SearchSpace, count: int, seed: int = 0) -> list[np.ndarray]:
    """Corners (one sublayer dropped, every attention, every MLP, all but one site, all) and random strategies."""
    last, kinds = space.num_levels - 1, np.array([site.kind for site in space.sites])
    ones = np.eye(space.num_sites, dtype=int)
    corners = [ones[0] * last, ones[1] * last, last * (kinds == "attention"), last * (kinds == "mlp")]
    corners += [last * (1 - ones[-1]), last]
    rng = np.random.default_rng(seed)
    return corners + [rng.integers(0, last + 1) for _ in range(count)]


def measured(evaluator: Evaluator, levels: np.ndarray) -> Measurement:
    return evaluator.measure(evaluator.space.shape(levels))
