"""Finding what can be pruned in a model, and refusing models where it cannot."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    GPT2Config,
    GPTNeoXConfig,
    LlamaConfig,
    MixtralConfig,
    OPTConfig,
    Qwen3MoeConfig,
)

from benchmarks.tiny_families import CONFIGS, PrefixPruner, logits_of, some_tokens, tiny_model
from tests.unicuco import tiny
from unicuco.checkpoint.layout import layers_prefix
from unicuco.errors import ModelError
from unicuco.models.load import load_base_model
from unicuco.models.separate import separate, stored_tensors
from unicuco.models.sites import FAMILIES, decoder_layers, find_blocks, read_geometry

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


@pytest.mark.parametrize("family", CONFIGS)
def test_every_parameter_of_every_family_is_explained(family: str) -> None:
    base = tiny_model(family)
    geometry = base.geometry
    assert geometry.family == family
    assert geometry.params == sum(p.numel() for p in base.model.parameters())
    assert geometry.block_params == sum(p.numel() for p in decoder_layers(base.model).parameters())
    (block, *others) = geometry.blocks
    assert all(other == block for other in others)
    first = find_blocks(base.model)[0]
    of_norms = sum(p.numel() for name in first.attention_norms for p in getattr(first.layer, name).parameters())
    for groups, neurons in ((1, 16), (block.groups, block.neurons)):
        left = PrefixPruner(base).pruned_block(0, groups, neurons)
        assert block.attention_params(groups) == of_norms + sum(t.numel() for t in left.attention.values())
    # Multiply-adds of a KV group and of a neuron are their entries in the matrices.
    hidden, width = geometry.hidden_size, block.head_dim
    assert block.macs_per_group == 2 * width * hidden * (1 + block.heads_per_group)
    assert block.macs_per_neuron == hidden * (2 if family in ("gpt2", "opt") else 3)


@pytest.mark.parametrize("family", ["phi3", "gpt2", "opt"])
def test_separated_projections_compute_what_the_familys_own_do(family: str) -> None:
    config = CONFIGS[family]()
    model = AutoModelForCausalLM.from_config(config).eval()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    tokens = some_tokens()
    expected = logits_of(model, tokens)
    separate(model, decoder_layers(model))
    blocks = find_blocks(model)
    assert torch.equal(logits_of(model, tokens), expected)
    assert torch.equal(logits_of(copy.deepcopy(model), tokens), expected)
    stored = {}
    for b, block in enumerate(blocks):
        for where, module in ((block.attention_name, block.attention), ("mlp", block.mlp)):
            named = stored_tensors(module, where, module.state_dict())
            stored |= {f"{layers_prefix(model)}{b}.{name}": tensor for name, tensor in named.items()}
    norms = {name for name in before if name.startswith(layers_prefix(model)) and ("norm" in name or "ln_" in name)}
    assert {name for name in before if name.startswith(layers_prefix(model))} == set(stored) | norms
    assert all(torch.equal(tensor, before[name]) for name, tensor in stored.items())


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (MixtralConfig(**_SMALL, num_local_experts=2), "'mixtral' is a mixture of experts"),
        (Qwen3MoeConfig(**_SMALL, num_experts=2), "'qwen3_moe' is a mixture of experts"),
        (OPTConfig(do_layer_norm_before=False), "norms the residual stream after"),
        (GPT2Config(add_cross_attention=True), "cross-attention"),
    ],
    ids=["mixtral", "qwen3_moe", "opt-350m", "cross-attention"],
)
def test_configurations_that_cannot_be_pruned_are_refused_before_weights_are_read(
    config: Any, message: str, tmp_path: Path
) -> None:
    config.save_pretrained(tmp_path)
    (tmp_path / "model.safetensors").touch()  # nothing that could be read
    with pytest.raises(ModelError, match=message):
        load_base_model(str(tmp_path))


def test_anything_else_is_refused_with_the_families_that_are_not() -> None:
    model = AutoModelForCausalLM.from_config(
        GPTNeoXConfig(vocab_size=64, hidden_size=32, intermediate_size=48, num_hidden_layers=1, num_attention_heads=4)
    )
    with pytest.raises(ModelError, match=f"cannot be pruned: its attention has no linear q_proj.*{FAMILIES}"):
        read_geometry(model)


def test_layers_with_unknown_parts_are_refused() -> None:
    model = tiny.random_model("llama")
    model.model.layers[1].extra = torch.nn.Linear(4, 4)
    with pytest.raises(ModelError, match="parts that UniCuCo does not know"):
        read_geometry(model)
