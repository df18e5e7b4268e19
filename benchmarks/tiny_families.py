"""Tiny random models of every family, a plain pruner and a slow reference: what checkpoints are checked against."""

from __future__ import annotations

import copy
import tempfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM
from transformers.models.gemma2 import Gemma2Config
from transformers.models.gemma3 import Gemma3TextConfig
from transformers.models.gpt2 import GPT2Config
from transformers.models.granite import GraniteConfig
from transformers.models.llama import LlamaConfig
from transformers.models.mistral import MistralConfig
from transformers.models.olmo2 import Olmo2Config
from transformers.models.opt import OPTConfig
from transformers.models.phi3 import Phi3Config
from transformers.models.qwen2 import Qwen2Config
from transformers.models.qwen3 import Qwen3Config
from transformers.models.smollm3 import SmolLM3Config

from unicuco.models.load import BaseModel
from unicuco.models.separate import separate
from unicuco.models.sites import decoder_layers, find_blocks, read_geometry
from unicuco.models.source import ModelSource
from unicuco.pruners.base import PrunedBlock
from unicuco.space import Shape

VOCAB = 128
_SIZES: dict[str, Any] = {
    "vocab_size": VOCAB, "hidden_size": 96, "intermediate_size": 96, "num_hidden_layers": 4, "num_attention_heads": 6,
    "num_key_value_heads": 3, "max_position_embeddings": 128, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
_HEADS4 = _SIZES | {"num_attention_heads": 4, "num_key_value_heads": 2}  # for heads whose width is 96 over their number
_ALTERNATING = ["sliding_attention", "full_attention", "sliding_attention", "full_attention"]
_SLIDING = {"use_sliding_window": True, "sliding_window": 8, "max_window_layers": 2}
CONFIGS: dict[str, Any] = {
    "llama": lambda: LlamaConfig(**_SIZES, head_dim=16, tie_word_embeddings=True),
    "mistral": lambda: MistralConfig(**_SIZES, head_dim=16, sliding_window=8),
    "qwen2": lambda: Qwen2Config(**_HEADS4, **_SLIDING),
    "qwen3": lambda: Qwen3Config(**_SIZES, head_dim=16, **_SLIDING, tie_word_embeddings=True),
    "gemma2": lambda: Gemma2Config(
        **_HEADS4, head_dim=16, query_pre_attn_scalar=16, sliding_window=8, attn_logit_softcapping=20.0
    ),
    "gemma3_text": lambda: Gemma3TextConfig(
        **_HEADS4, head_dim=16, query_pre_attn_scalar=16, sliding_window=8, layer_types=_ALTERNATING
    ),
    "phi3": lambda: Phi3Config(
        **_SIZES, sliding_window=8, rope_parameters={"rope_theta": 1e4, "partial_rotary_factor": 0.5}
    ),
    "olmo2": lambda: Olmo2Config(**_SIZES),
    "smollm3": lambda: SmolLM3Config(**_HEADS4, no_rope_layers=[1, 0, 1, 0], use_sliding_window=True, sliding_window=8),
    "granite": lambda: GraniteConfig(
        **_HEADS4, embedding_multiplier=3.0, logits_scaling=0.5, residual_multiplier=0.7, attention_multiplier=0.1
    ),
    "gpt2": lambda: GPT2Config(
        vocab_size=VOCAB, n_embd=96, n_layer=4, n_head=6, n_inner=96, n_positions=128, bos_token_id=1, eos_token_id=2
    ),
    "opt": lambda: OPTConfig(
        **{name: size for name, size in _SIZES.items() if name not in ("intermediate_size", "num_key_value_heads")},
        ffn_dim=96,
    ),
}


def tiny_model(family: str, dtype: torch.dtype = torch.float32, **changes: Any) -> BaseModel:
    """A random model with weights large enough for every part of it to matter."""
    config = CONFIGS[family]()
    for name, value in changes.items():
        setattr(config, name, value)
    model = AutoModelForCausalLM.from_config(config)
    generator = torch.Generator().manual_seed(sum(map(ord, family)))
    for name, parameter in model.named_parameters():
        noise = torch.randn(parameter.shape, generator=generator)
        is_gain = ("norm" in name or "ln_" in name) and not name.endswith("bias")
        parameter.data = (0.0 if family.startswith("gemma") else 1.0) + 0.2 * noise if is_gain else 0.12 * noise
    model.tie_weights()
    if dtype != torch.float32:  # through the disk: model.to(dtype) would round the rotary frequencies too
        with tempfile.TemporaryDirectory() as folder:
            model.save_pretrained(folder)
            model = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype)
    model = model.eval().requires_grad_(False)
    separate(model, decoder_layers(model))
    return BaseModel(ModelSource(f"tiny/{family}", Path("nowhere"), "0" * 64), model, read_geometry(model))


class PrefixPruner:
    """Keeps the first groups and neurons, compensating nothing."""

    name = "prefix"

    def __init__(self, base: BaseModel) -> None:
        self.geometry, self.blocks = base.geometry, find_blocks(base.model)

    def pruned_block(self, block: int, groups: int, neurons: int) -> PrunedBlock:
        shape, modules = self.geometry.blocks[block], self.blocks[block]
        rows = modules.rows(shape, groups, neurons)
        attention = _first(modules.attention.state_dict(), rows, rows["q_proj"])
        mlp = _first(modules.mlp.state_dict(), rows, neurons)
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
    """A copy of the untouched base model that zeroes removed units' activations and dropped sublayers' outputs.

    Where queries and keys are normed over all heads (OLMo 2), the norm of the heads that are left sees these alone.
    """
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
        if block.norms_span_heads and groups:
            for norm, heads in ((block.attention.q_norm, geometry.heads_per_group), (block.attention.k_norm, 1)):
                norm.register_forward_hook(_norm_of_first(groups * heads * geometry.head_dim))
    return model


def _norm_of_first(kept: int) -> Any:
    def hook(norm: Any, args: tuple[Tensor], output: Tensor) -> Tensor:
        mean = args[0][..., :kept].square().mean(-1, keepdim=True)
        return norm.weight * args[0] * torch.rsqrt(mean + norm.variance_epsilon)

    return hook


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


def some_tokens(length: int = 12, seed: int = 0) -> Tensor:
    """Two rows of token ids, no special ones."""
    return torch.randint(4, VOCAB, (2, length), generator=torch.Generator().manual_seed(seed))


def logits_of(model: Any, tokens: Tensor) -> Tensor:
    """Logits without a gradient."""
    with torch.no_grad():
        return model(input_ids=tokens, use_cache=False).logits
