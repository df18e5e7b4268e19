"""Finding what can be pruned in a model, and refusing models where it cannot."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, GPT2Config, LlamaConfig, MixtralConfig, Phi3Config

from tests.unicuco import tiny
from unicuco.errors import ModelError
from unicuco.models.sites import find_blocks, read_geometry

_SMALL: dict[str, Any] = {
    "vocab_size": 64, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
    "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_geometry_explains_every_parameter(family: str) -> None:
    model = tiny.random_model(family)
    geometry = read_geometry(model)
    assert geometry.params == sum(p.numel() for p in model.parameters())
    assert geometry.block_params == sum(p.numel() for p in model.model.layers.parameters())
    assert geometry.vocab_size == tiny.VOCAB and geometry.hidden_size == 64
    tied = model.config.tie_word_embeddings
    assert geometry.fixed_params == tiny.VOCAB * 64 * (1 if tied else 2) + 64
    (block, *others) = geometry.blocks
    assert len(others) == 2 and block.head_dim == 16 and block.neurons == 256
    assert block.groups == model.config.num_key_value_heads
    assert block.heads_per_group == model.config.num_attention_heads // model.config.num_key_value_heads


def test_norms_belong_to_the_sublayer_they_serve() -> None:
    plain, gemma = find_blocks(tiny.random_model("llama"))[0], find_blocks(tiny.random_model("gemma3"))[0]
    assert len(plain.attention_norms) == len(plain.mlp_norms) == 1
    assert len(gemma.attention_norms) == len(gemma.mlp_norms) == 2
    geometry = read_geometry(tiny.random_model("gemma3")).blocks[0]
    assert geometry.attention_fixed == 2 * 64 + 2 * 16 and geometry.mlp_fixed == 2 * 64  # and q and k norms


def test_biases_are_counted_with_their_units() -> None:
    config = LlamaConfig(**_SMALL, num_key_value_heads=2, attention_bias=True, mlp_bias=True)
    model = AutoModelForCausalLM.from_config(config)
    block = read_geometry(model).blocks[0]
    assert block.params_per_neuron == 3 * 32 + 2 and block.mlp_fixed == 32 + 32
    assert block.params_per_group == 2 * (2 * 16 * 32 + 2 * 8 * 32) // 2 + 2 * 8 + 2 * 8
    assert block.macs_per_neuron == 3 * 32
    assert block.attention_fixed == 32 + 32


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (GPT2Config(n_embd=32, n_layer=2, n_head=2, vocab_size=64), "no list of decoder layers|cannot be pruned"),
        (Phi3Config(**_SMALL), "no linear q_proj"),
        (MixtralConfig(**_SMALL, num_local_experts=2), "its MLP has no linear"),
    ],
    ids=["gpt2", "fused", "experts"],
)
def test_models_without_separate_projections_are_refused(config: Any, message: str) -> None:
    model = AutoModelForCausalLM.from_config(config)
    with pytest.raises(ModelError, match=message):
        read_geometry(model)


def test_layers_with_unknown_parts_are_refused() -> None:
    model = tiny.random_model("llama")
    model.model.layers[1].extra = torch.nn.Linear(4, 4)
    with pytest.raises(ModelError, match="parts that UniCuCo does not know"):
        read_geometry(model)
