"""The model classes whose layers differ in width, on their own."""

from __future__ import annotations

import subprocess
import sys
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from huggingface_hub.errors import StrictDataclassClassValidationError
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, DynamicCache, LlamaConfig

from unicuco.checkpoint.layout import StoredLayer, regroup
from unicuco.errors import CheckpointError
from unicuco.models.hetero import FAMILIES, NEURONS, attention_unicuco, config_class, model_class, modeling_unicuco
from unicuco.models.sites import NORMS, decoder_layers
from unicuco.space import Shape

SIZES = {
    "vocab_size": 128, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 16, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
WIDTHS = {0: {"num_attention_heads": 2, "num_key_value_heads": 1, "skip": ["mlp"]}, 1: {"intermediate_size": 32}}
EXTRA = {"0": {"leading": [48], "trailing": [16, 64]}}


def configuration(family: str) -> Any:
    """``WIDTHS`` in the words of ``family``; GPT-2 and OPT have no KV groups of several heads."""
    sizes, widths = dict(SIZES), {i: dict(widths) for i, widths in WIDTHS.items()}
    if family in NEURONS:
        widths[1] = {NEURONS[family]: widths[1]["intermediate_size"]}
        sizes[NEURONS[family]] = sizes.pop("intermediate_size")
        del sizes["num_key_value_heads"], widths[0]["num_key_value_heads"]
    return config_class(family)(**sizes, per_layer_config=widths, extra_mlps=EXTRA)


def input_rows(attention: Any) -> int:
    """Rows of the query, key and value projections together, however they are stored."""
    names = ("q_proj", "k_proj", "v_proj", "qkv_proj", "c_attn")
    weights = [(name, getattr(attention, name).weight) for name in names if hasattr(attention, name)]
    return sum(weight.shape[name == "c_attn"] for name, weight in weights)


def neurons(layer: Any) -> int:
    if hasattr(layer, "fc2"):
        return layer.fc2.in_features
    return layer.mlp.c_proj.weight.shape[0] if hasattr(layer.mlp, "c_proj") else layer.mlp.down_proj.in_features


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
    config = configuration(family)
    model = AutoModelForCausalLM.from_config(config)
    assert type(model) is model_class(family)
    first, second = decoder_layers(model)
    attentions = [layer.attn if hasattr(layer, "attn") else layer.self_attn for layer in (first, second)]
    several = 1 if family in NEURONS else 0.5  # KV heads per query head
    assert [input_rows(attention) for attention in attentions] == [(1 + 2 * several) * 32, (1 + 2 * several) * 64]
    assert all(attention.config._attn_implementation == model.config._attn_implementation for attention in attentions)
    assert not list((first.fc2 if hasattr(first, "fc2") else first.mlp).parameters())
    assert [neurons(m) for m in [*first.leading, *first.trailing, second]] == [48, 16, 64, 32]
    inside = [name for name, _ in first.leading.named_parameters()]
    assert inside and not [name for name in inside if "attn" in name or "input_layernorm" in name or "ln_1" in name]
    model.set_attn_implementation("eager")
    assert {attention.config._attn_implementation for attention in attentions} == {"eager"}


def test_norms_are_found_as_in_memory() -> None:
    assert modeling_unicuco.NORMS == NORMS


@pytest.mark.parametrize("family", FAMILIES)
def test_cache_and_hidden_states_count_stored_layers(family: str) -> None:
    config = configuration(family)
    model = AutoModelForCausalLM.from_config(config).eval()
    cache = DynamicCache(config=config)
    with torch.no_grad():
        out = model(torch.tensor([[5, 6, 7]]), past_key_values=cache, output_hidden_states=True)
    assert len(out.hidden_states) == 3 and len(cache.layers) == 2
    assert [layer.keys.shape[1] for layer in cache.layers] == ([2, 4] if family in NEURONS else [1, 2])


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


def attend(length: int, dtype: torch.dtype = torch.bfloat16, **options: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """``causal_blocks`` on 2 sequences, 6 heads in 2 groups, width 16, and plain causal attention in float64."""
    made = torch.Generator().manual_seed(length)
    query, key, value = (torch.randn(2, heads, length, 16, generator=made).to(dtype) for heads in (6, 2, 2))
    module = SimpleNamespace(num_key_value_groups=3, is_causal=True)
    with torch.no_grad():
        found = attention_unicuco.causal_blocks(module, query, key, value, options.pop("mask", None), **options)[0]
    wide = (t.double().repeat_interleave(6 // t.shape[1], dim=1) for t in (query, key, value))
    return found, nn.functional.scaled_dot_product_attention(*wide, is_causal=True).transpose(1, 2)


@pytest.mark.parametrize("length", [1, 63, 64, 65, 200])
def test_attention_by_blocks_is_causal_attention(length: int, fast: list[int]) -> None:
    found, expected = attend(length)
    assert fast == [length]
    torch.testing.assert_close(found.double(), expected, atol=0.02, rtol=0.02)
    torch.testing.assert_close(attend(length, scaling=0.25)[0], found)  # what 16 wide heads have anyway


@pytest.mark.parametrize(
    "options",
    [
        {"dtype": torch.float32},
        {"mask": torch.ones(2, 1, 70, 70, dtype=torch.bool).tril()},
        {"is_causal": False},
        {"position_bias": torch.zeros(1, 6, 70, 70, dtype=torch.bfloat16)},
    ],
)
def test_everything_else_goes_to_torchs_kernel(options: dict[str, Any], fast: list[int]) -> None:
    found, causal = attend(70, **options)
    assert not fast
    assert torch.allclose(found.double(), causal, atol=0.02) == ("is_causal" not in options)


def half_model(**options: Any) -> Any:
    config = config_class("llama")(**SIZES, per_layer_config=WIDTHS, extra_mlps=EXTRA)
    return AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16, **options).eval()


def test_the_fast_attention_serves_prefills_in_bfloat16_only(fast: list[int]) -> None:
    model, tokens = half_model(), torch.randint(3, 128, (2, 70), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        cache = model(tokens[:, :60], use_cache=True).past_key_values
        assert fast == [60, 60]  # one for each layer
        model(tokens[:, 60:], past_key_values=cache)  # on top of a cache
        model(tokens, attention_mask=(torch.arange(70) > 4).long().expand(2, 70))  # left padding
        assert fast == [60, 60]
        model(tokens, attention_mask=torch.ones(2, 70))
        assert fast == [60, 60, 70, 70]
        model.float()(tokens)
    model.bfloat16()(tokens)  # with gradients
    assert fast == [60, 60, 70, 70]


@pytest.mark.parametrize("asked", ["sdpa", "eager"])
def test_a_users_own_choice_of_attention_is_kept(asked: str, fast: list[int]) -> None:
    chosen_at_once, chosen_later = half_model(attn_implementation=asked), half_model()
    chosen_later.set_attn_implementation("eager")
    with torch.no_grad():
        for model in (chosen_at_once, chosen_later):
            model(torch.tensor([[5, 6, 7]]))
    assert not fast
    assert chosen_at_once.config._attn_implementation == asked
    assert chosen_later.config._attn_implementation == "eager"


def test_outside_a_forward_the_attention_goes_by_the_name_that_transformers_knows(fast: list[int]) -> None:
    model = half_model()

    def fail(*args: Any) -> None:
        assert model.config._attn_implementation == attention_unicuco.NAME
        raise RuntimeError("the forward broke")

    model.model.norm.register_forward_pre_hook(fail)
    with torch.no_grad(), pytest.raises(RuntimeError, match="the forward broke"):
        model(torch.tensor([[5, 6, 7]]))
    assert fast and model.config._attn_implementation == "sdpa"
