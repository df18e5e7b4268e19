"""Tiny random models of every family, a plain pruner, and a slow reference, for the tests of checkpoints."""

from __future__ import annotations

import copy
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast
from transformers.models.gemma3 import Gemma3TextConfig
from transformers.models.llama import LlamaConfig
from transformers.models.mistral import MistralConfig
from transformers.models.qwen2 import Qwen2Config
from transformers.models.qwen3 import Qwen3Config

from unicuco.checkpoint import write_checkpoint
from unicuco.models.load import BaseModel
from unicuco.models.sites import find_blocks, read_geometry
from unicuco.models.source import ModelSource
from unicuco.pruners.base import PrunedBlock
from unicuco.space import Shape

VOCAB = 128
_SIZES: dict[str, Any] = {
    "vocab_size": VOCAB, "hidden_size": 96, "intermediate_size": 96, "num_hidden_layers": 4, "num_attention_heads": 6,
    "num_key_value_heads": 3, "max_position_embeddings": 128, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
_SLIDING = {"use_sliding_window": True, "sliding_window": 8, "max_window_layers": 2}
CONFIGS: dict[str, Any] = {
    "llama": lambda: LlamaConfig(**_SIZES, head_dim=16, tie_word_embeddings=True),
    "mistral": lambda: MistralConfig(**_SIZES, head_dim=16, sliding_window=8),
    "qwen2": lambda: Qwen2Config(**(_SIZES | {"num_attention_heads": 4, "num_key_value_heads": 2}), **_SLIDING),
    "qwen3": lambda: Qwen3Config(**_SIZES, head_dim=16, **_SLIDING, tie_word_embeddings=True),
    "gemma3_text": lambda: Gemma3TextConfig(
        **(_SIZES | {"num_attention_heads": 4, "num_key_value_heads": 2}),
        head_dim=16,
        query_pre_attn_scalar=16,
        sliding_window=8,
        layer_types=["sliding_attention", "full_attention", "sliding_attention", "full_attention"],
    ),
}


def tiny_model(family: str, dtype: torch.dtype = torch.float32, **changes: Any) -> BaseModel:
    """A random model with weights large enough for every part of it to matter."""
    config = CONFIGS[family]()
    for name, value in changes.items():
        setattr(config, name, value)
    model = AutoModelForCausalLM.from_config(config, attn_implementation="sdpa")
    generator = torch.Generator().manual_seed(sum(map(ord, family)))
    for name, parameter in model.named_parameters():
        noise = torch.randn(parameter.shape, generator=generator)
        is_norm = "norm" in name
        parameter.data = (0.0 if family == "gemma3_text" else 1.0) + 0.2 * noise if is_norm else 0.12 * noise
    model.tie_weights()
    if dtype != torch.float32:  # through the disk: model.to(dtype) would round the rotary frequencies too
        with tempfile.TemporaryDirectory() as folder:
            model.save_pretrained(folder)
            model = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype)
    model = model.eval().requires_grad_(False)
    return BaseModel(ModelSource(f"tiny/{family}", Path("nowhere"), "0" * 64), model, read_geometry(model))


class PrefixPruner:
    """Keeps the first groups and neurons, compensating nothing."""

    name = "prefix"

    def __init__(self, base: BaseModel) -> None:
        self.geometry, self.blocks = base.geometry, find_blocks(base.model)

    def pruned_block(self, block: int, groups: int, neurons: int) -> PrunedBlock:
        shape, modules = self.geometry.blocks[block], self.blocks[block]
        key = groups * shape.head_dim
        query = key * shape.heads_per_group
        attention = _first(modules.attention.state_dict(), {"q_proj": query, "k_proj": key, "v_proj": key}, query)
        mlp = _first(modules.mlp.state_dict(), {"gate_proj": neurons, "up_proj": neurons}, neurons)
        return PrunedBlock(groups, neurons, attention if groups else {}, mlp if neurons else {})


def _first(state: dict[str, Tensor], rows: dict[str, int], columns: int) -> dict[str, Tensor]:
    kept = {}
    for name, tensor in state.items():
        part = name.split(".")[0]
        if part in rows:
            tensor = tensor[: rows[part]]
        elif name in ("o_proj.weight", "down_proj.weight"):
            tensor = tensor[:, :columns]
        kept[name] = tensor
    return kept


def masked_model(base: BaseModel, shape: Shape) -> Any:
    """A copy of the untouched base model that zeroes removed units' activations and dropped sublayers' outputs."""
    model = copy.deepcopy(base.model)
    for block, geometry, groups, neurons in zip(
        find_blocks(model), base.geometry.blocks, shape.groups, shape.neurons, strict=True
    ):
        for projection, kept in (
            (block.attention.o_proj, groups * geometry.heads_per_group * geometry.head_dim),
            (block.mlp.down_proj, neurons),
        ):
            mask = (torch.arange(projection.in_features) < kept).to(base.model.dtype)
            projection.register_forward_pre_hook(lambda _, args, mask=mask: (args[0] * mask,))
            if not kept:  # its bias, if it has one, goes too
                projection.register_forward_hook(lambda _, args, output: torch.zeros_like(output))
    return model


def random_shapes(base: BaseModel, seed: int, count: int) -> list[Shape]:
    """Hand-picked corners and random strategies, ``count`` in all, each with an attention left."""
    generator = torch.Generator().manual_seed(seed)
    block = base.geometry.blocks[0]
    n, g, m = len(base.geometry.blocks), block.groups, block.neurons
    shapes = [
        Shape((0,) + (g,) * (n - 1), (m,) * n),  # the first attention
        Shape((g,) * n, (0,) + (m,) * (n - 1)),  # the first MLP
        Shape((0,) + (1,) * (n - 1), (0,) + (32,) * (n - 1)),  # the first block
        Shape((0, 0, 1, 0), (16, 32, 0, 48)),  # one attention left, MLPs around it
        Shape((1,) * n, (0,) * n),  # no MLP at all
    ]
    while len(shapes) < count:
        groups = torch.randint(0, g + 1, (n,), generator=generator).tolist()
        neurons = [min(m, 16 * v) for v in torch.randint(0, 7, (n,), generator=generator).tolist()]
        if any(groups):
            shapes.append(Shape(tuple(groups), tuple(neurons)))
    return shapes


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


def some_tokens(length: int = 12, seed: int = 0) -> Tensor:
    """Two rows of token ids, no special ones."""
    return torch.randint(4, VOCAB, (2, length), generator=torch.Generator().manual_seed(seed))


def write(base: BaseModel, shape: Shape, target: Path, layout: str, **options: object) -> Path:
    options = {"verify": False, "tokenizer": None} | options
    return write_checkpoint(base, options.pop("tokenizer"), PrefixPruner(base), shape, target, layout, **options).folder


def load(folder: Path, **options: object):
    return AutoModelForCausalLM.from_pretrained(folder, dtype="auto", **options).eval()


def logits_of(model, tokens):
    with torch.no_grad():
        return model(input_ids=tokens).logits


def fresh_process(code: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """Runs ``code`` where nothing of ours can be imported."""
    return subprocess.run(
        [sys.executable, "-P", "-c", code],
        capture_output=True, text=True, cwd=folder,
        env={"HF_HUB_OFFLINE": "1", "HF_HOME": str(folder / "hf"), "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
