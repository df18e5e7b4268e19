"""The model classes whose layers differ in width, on their own."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from huggingface_hub.errors import StrictDataclassClassValidationError
from transformers import AutoConfig, AutoModelForCausalLM, DynamicCache, LlamaConfig

from unicuco.checkpoint.layout import StoredLayer, regroup
from unicuco.errors import CheckpointError
from unicuco.models.hetero import FAMILIES, config_class, model_class
from unicuco.space import Shape

SIZES = {
    "vocab_size": 128, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 16, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
WIDTHS = {0: {"num_attention_heads": 2, "num_key_value_heads": 1, "skip": ["mlp"]}, 1: {"intermediate_size": 32}}
EXTRA = {"0": {"leading": [48], "trailing": [16, 64]}}


def test_regrouping_keeps_order_and_every_sublayer() -> None:
    layers = regroup(Shape((0, 0, 1, 1, 0, 0, 2), (8, 16, 0, 24, 32, 40, 0)))
    assert layers == [StoredLayer(2, None, (0, 1), ()), StoredLayer(3, 3, (), (4, 5)), StoredLayer(6, None, (), ())]
    # an attention takes the MLP that follows it, whichever block that came from
    assert regroup(Shape((1, 0), (0, 8))) == [StoredLayer(0, 1, (), ())]
    with pytest.raises(CheckpointError, match="use the layout 'padded'"):
        regroup(Shape((0, 0), (8, 8)))


def test_plain_transformers_would_refuse_or_misread_this_configuration() -> None:
    """The reason for our classes; when it fails, transformers has learnt to build such layers by itself."""
    with pytest.raises(Exception, match="per-layer attribute"):
        AutoModelForCausalLM.from_config(LlamaConfig(**SIZES, per_layer_config=WIDTHS))


@pytest.mark.parametrize("family", FAMILIES)
def test_built_to_the_widths_of_the_configuration(family: str) -> None:
    config = config_class(family)(**SIZES, per_layer_config=WIDTHS, extra_mlps=EXTRA)
    model = AutoModelForCausalLM.from_config(config)
    assert type(model) is model_class(family)
    first, second = model.model.layers
    assert first.self_attn.q_proj.out_features == 32 and first.self_attn.k_proj.out_features == 16
    assert not list(first.mlp.parameters())
    assert [m.mlp.down_proj.in_features for m in [*first.leading, *first.trailing]] == [48, 16, 64]
    assert not [
        name for name, _ in first.leading.named_parameters() if "self_attn" in name or "input_layernorm" in name
    ]
    assert second.mlp.down_proj.in_features == 32 and second.self_attn.q_proj.out_features == 64
    assert model.model.layers[1].self_attn.config is model.config is model.model.config


@pytest.mark.parametrize("family", FAMILIES)
def test_cache_and_hidden_states_count_stored_layers(family: str) -> None:
    config = config_class(family)(**SIZES, per_layer_config=WIDTHS, extra_mlps=EXTRA)
    model = AutoModelForCausalLM.from_config(config).eval()
    cache = DynamicCache(config=config)
    with torch.no_grad():
        out = model(torch.tensor([[5, 6, 7]]), past_key_values=cache, output_hidden_states=True)
    assert len(out.hidden_states) == 3 and len(cache.layers) == 2
    assert [layer.keys.shape[1] for layer in cache.layers] == [1, 2]


def test_trains_with_gradient_checkpointing() -> None:
    config = config_class("llama")(**SIZES, per_layer_config=WIDTHS, extra_mlps=EXTRA)
    model = AutoModelForCausalLM.from_config(config).train()
    tokens = torch.tensor([[5, 6, 7, 8]])
    gradients = []
    for switch in (model.activation_checkpointing_disable, model.activation_checkpointing_enable):
        switch()
        model.zero_grad()
        model(tokens, labels=tokens).loss.backward()
        gradients.append([p.grad.clone() for p in model.parameters()])
    for plain, checkpointed in zip(*gradients, strict=True):
        torch.testing.assert_close(checkpointed, plain)
    assert all(g.abs().sum() > 0 for g in gradients[0])


def test_configuration_survives_json() -> None:
    config = config_class("gemma3_text")(**SIZES, per_layer_config=WIDTHS, extra_mlps=EXTRA)
    again = AutoConfig.for_model("unicuco_gemma3_text").from_dict(config.to_dict())
    assert again.to_json_string() == config.to_json_string()
    assert [layer.intermediate_size for layer in again.per_layer_config] == [96, 32]


@pytest.mark.parametrize(
    "wrong",
    [
        {"extra_mlps": {"2": {"trailing": [8]}}},
        {"extra_mlps": {"0": {"middle": [8]}}},
        {"per_layer_config": {0: {"num_attention_heads": 3}}},
    ],
)
def test_configurations_that_make_no_sense_are_refused(wrong: dict) -> None:
    with pytest.raises(StrictDataclassClassValidationError):
        config_class("llama")(**SIZES, **wrong)


def test_using_one_family_imports_no_other() -> None:
    code = """
import importlib, sys, types
package = types.ModuleType("bundle")
package.__path__ = [sys.argv[1]]
sys.modules["bundle"] = package
importlib.import_module("bundle.modeling_unicuco").UniCuCoLlamaForCausalLM
assert not [name for name in sys.modules if name.startswith(("transformers.models.qwen3.", "unicuco"))]
"""
    from unicuco.models.hetero import modeling_unicuco

    folder = modeling_unicuco.__file__.rsplit("/", 1)[0]
    subprocess.run([sys.executable, "-c", code, folder], check=True)
