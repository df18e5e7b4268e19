"""Checkpoints of every family: what is written computes what was pruned, wherever and however it is loaded."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from transformers import AutoModel, AutoTokenizer

import unicuco.models.hetero  # noqa: F401  (registers the Auto classes)
from tests.unicuco.checkpoint_models import (
    CONFIGS,
    PrefixPruner,
    fresh_process,
    load,
    logits_of,
    masked_model,
    random_shapes,
    some_tokens,
    tiny_model,
    tiny_tokenizer,
    write,
)
from unicuco.checkpoint import CheckpointCard, write_checkpoint
from unicuco.checkpoint.card import file_digests
from unicuco.errors import CheckpointError
from unicuco.space import SearchSpace, Shape

torch.set_num_threads(1)


@pytest.mark.parametrize("family", CONFIGS)
def test_both_layouts_compute_what_the_masked_original_does(family: str, tmp_path: Path) -> None:
    base, tokens = tiny_model(family), some_tokens()
    dense = logits_of(base.model, tokens)
    for i, shape in enumerate(random_shapes(base, seed=1, count=10)):
        hetero = load(write(base, shape, tmp_path / f"h{i}", "hetero"))
        padded = load(write(base, shape, tmp_path / f"p{i}", "padded"))
        expected = logits_of(masked_model(base, shape), tokens)
        assert (expected - dense).abs().max() > 0.05, shape  # the strategy is visible in the logits at all
        torch.testing.assert_close(
            logits_of(hetero, tokens), expected, atol=1e-4, rtol=0, msg=lambda m, s=shape: f"{s}: {m}"
        )
        torch.testing.assert_close(
            logits_of(padded, tokens), expected, atol=1e-4, rtol=0, msg=lambda m, s=shape: f"{s}: {m}"
        )
        options = {"max_new_tokens": 12, "min_new_tokens": 12, "do_sample": False}
        mask = torch.ones_like(tokens)
        mask[0, :3] = 0  # left padding
        assert torch.equal(
            hetero.generate(tokens, attention_mask=mask, **options),
            padded.generate(tokens, attention_mask=mask, **options),
        ), shape


@pytest.mark.parametrize("family", CONFIGS)
def test_cached_generation_equals_recomputing_everything(family: str, tmp_path: Path) -> None:
    base = tiny_model(family)
    hetero = load(write(base, Shape((0, 1, 2, 1), (32, 0, 96, 16)), tmp_path / "h", "hetero"))
    options = {"max_new_tokens": 12, "min_new_tokens": 12, "do_sample": False}
    cached = hetero.generate(some_tokens(), **options)
    assert torch.equal(cached, hetero.generate(some_tokens(), use_cache=False, **options))
    assert torch.equal(cached, hetero.generate(some_tokens(), cache_implementation="static", **options))


@pytest.mark.parametrize("family", CONFIGS)
def test_saving_a_loaded_checkpoint_changes_no_byte(family: str, tmp_path: Path) -> None:
    first = write(tiny_model(family), Shape((0, 1, 2, 0), (32, 0, 96, 48)), tmp_path / "first", "hetero")
    load(first).save_pretrained(tmp_path / "second")
    names = sorted(p.name for p in first.iterdir() if p.name not in ("README.md", "unicuco.json"))
    assert sorted(p.name for p in (tmp_path / "second").iterdir()) == names
    for name in names:
        assert (tmp_path / "second" / name).read_bytes() == (first / name).read_bytes(), name


def test_weights_are_cut_into_files_of_the_size_asked_for(tmp_path: Path) -> None:
    base, shape = tiny_model("llama"), Shape((0, 1, 2, 0), (32, 0, 96, 48))
    whole = write(base, shape, tmp_path / "whole", "hetero")
    cut = write(base, shape, tmp_path / "cut", "hetero", max_shard_size="100KB")
    sizes = [path.stat().st_size for path in cut.glob("model-*.safetensors")]
    assert len(sizes) > 2 and max(sizes) < 110_000
    assert abs(sum(sizes) - (whole / "model.safetensors").stat().st_size) < 10_000  # headers; no tensor twice
    assert torch.equal(logits_of(load(cut), some_tokens()), logits_of(load(whole), some_tokens()))


@pytest.mark.parametrize("family", CONFIGS)
def test_size_is_exactly_what_the_search_space_says(family: str, tmp_path: Path) -> None:
    base = tiny_model(family)
    space = SearchSpace(base.geometry)
    generator = torch.Generator().manual_seed(3)
    for i in range(3):
        index = space.snap(torch.rand(space.num_sites, generator=generator).numpy())[0]
        shape = space.shape(index)
        if not any(shape.groups):
            continue
        report = write_checkpoint(base, None, PrefixPruner(base), shape, tmp_path / str(i), verify=False)
        model = load(report.folder)
        in_files = sum(p.numel() for p in {id(p): p for p in model.parameters()}.values())
        assert report.size.params == report.size.params_stored == in_files == space.size(index).params
        assert report.size.bytes == 4 * in_files


def test_loads_in_a_fresh_process_with_the_code_it_carries(tmp_path: Path) -> None:
    expected = {}
    for family in CONFIGS:
        base = tiny_model(family)
        shape = random_shapes(base, seed=5, count=6)[-1]
        folder = write(base, shape, tmp_path / family, "hetero", tokenizer=tiny_tokenizer())
        generated = load(folder).generate(some_tokens(), max_new_tokens=6, min_new_tokens=6, do_sample=False)
        expected[str(folder)] = generated.tolist()
    code = f"""
import json, sys, torch
from transformers import AutoModel, AutoModelForCausalLM, AutoTokenizer
found = {{}}
for folder in {list(expected)!r}:
    model = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True)
    out = model.generate(torch.tensor({some_tokens().tolist()!r}), max_new_tokens=6, min_new_tokens=6, do_sample=False)
    found[folder] = out.tolist()
    assert AutoTokenizer.from_pretrained(folder, trust_remote_code=True)("w7 w9").input_ids == [7, 9]
    inner = AutoModel.from_pretrained(folder, trust_remote_code=True)
    states = inner(torch.tensor([[5, 6]]), output_hidden_states=True).hidden_states
    assert len(states) == model.config.num_hidden_layers + 1
    model.save_pretrained(folder + "-again")
    again = AutoModelForCausalLM.from_pretrained(folder + "-again", trust_remote_code=True)
    assert torch.equal(again(torch.tensor([[5, 6]])).logits, model(torch.tensor([[5, 6]])).logits)
assert "unicuco" not in sys.modules
print(json.dumps(found))
"""
    ran = fresh_process(code, tmp_path)
    assert ran.returncode == 0, ran.stderr[-2000:]
    assert json.loads(ran.stdout.splitlines()[-1]) == expected


def test_reload_and_compare_passes_and_is_recorded(tmp_path: Path) -> None:
    base = tiny_model("gemma3_text", dtype=torch.bfloat16)
    card = CheckpointCard(
        request={"kept": 0.7},
        strategy=(0.0, 0.25),
        measured={"kl_heldout": 0.3125},
        calibration={"seed": 3, "tokens": 64},
    )
    for layout in ("hetero", "padded"):
        report = write_checkpoint(
            base,
            tiny_tokenizer(),
            PrefixPruner(base),
            Shape((0, 1, 2, 1), (32, 0, 96, 16)),
            tmp_path / layout,
            layout,
            card,
        )
        assert report.verification is not None and report.verification.passed
        assert report.verification.max_abs_diff < 1e-4  # in float32, though the weights are stored in bfloat16
        record = json.loads((report.folder / "unicuco.json").read_text())
        assert record["verification"]["max_abs_diff"] == report.verification.max_abs_diff
        assert record["files"] == report.files == file_digests(report.folder)
        assert record["request"] == {"kept": 0.7} and record["shape"]["neurons"] == [32, 0, 96, 16]
        assert record["size"]["params"] < base.geometry.params
        text = (report.folder / "README.md").read_text()
        assert "0.3125" in text and "| 1 | 1 of 2 | 2 of 4 | 0 of 96 |" in text and '{"kept": 0.7}' in text
        assert AutoTokenizer.from_pretrained(report.folder)("w7").input_ids == [7]
        assert load(report.folder).dtype == torch.bfloat16


def test_padded_needs_neither_our_classes_nor_code(tmp_path: Path) -> None:
    base = tiny_model("llama")
    folder = write(base, Shape((0, 0, 0, 0), (32, 0, 96, 16)), tmp_path / "p", "padded")
    assert not list(folder.glob("*.py"))
    assert type(load(folder)).__module__ == type(base.model).__module__
    assert type(AutoModel.from_pretrained(folder)).__name__ == "LlamaModel"


def test_equal_strategies_give_equal_folders(tmp_path: Path) -> None:
    base, shape = tiny_model("llama"), Shape((1, 1, 2, 0), (32, 0, 96, 16))
    one, two = (write(base, shape, tmp_path / name, "hetero") for name in ("one", "two"))
    assert file_digests(one) == file_digests(two)
    assert (one / "unicuco.json").read_bytes() == (two / "unicuco.json").read_bytes()


def test_every_file_has_the_permissions_that_new_files_have(tmp_path: Path) -> None:
    (tmp_path / "new").touch()
    folder = write(tiny_model("llama"), Shape((1,) * 4, (32,) * 4), tmp_path / "h", "hetero")
    assert {path.stat().st_mode for path in folder.iterdir()} == {(tmp_path / "new").stat().st_mode}


def test_tied_weights_are_stored_once(tmp_path: Path) -> None:
    from safetensors import safe_open

    folder = write(tiny_model("llama"), Shape((1,) * 4, (32,) * 4), tmp_path / "h", "hetero")
    with safe_open(folder / "model.safetensors", "pt") as file:
        assert "model.embed_tokens.weight" in file.keys() and "lm_head.weight" not in file.keys()  # noqa: SIM118


def test_biases_of_output_projections_go_with_their_sublayer(tmp_path: Path) -> None:
    base, shape, tokens = (
        tiny_model("llama", attention_bias=True, mlp_bias=True),
        Shape((0, 1, 2, 1), (32, 0, 96, 0)),
        some_tokens(),
    )
    expected = logits_of(masked_model(base, shape), tokens)
    for layout in ("hetero", "padded"):
        got = logits_of(load(write(base, shape, tmp_path / layout, layout)), tokens)
        torch.testing.assert_close(got, expected, atol=1e-4, rtol=0)


def test_attention_implementation_reaches_every_layer(tmp_path: Path) -> None:
    hetero = load(write(tiny_model("gemma3_text"), Shape((0, 1, 2, 1), (32, 0, 96, 16)), tmp_path / "h", "hetero"))
    before = logits_of(hetero, some_tokens())
    hetero.set_attn_implementation("eager")
    with torch.no_grad():
        out = hetero(some_tokens(), output_attentions=True)
    assert [a.shape[1] for a in out.attentions] == [2, 4, 2]  # query heads of the three attentions left
    torch.testing.assert_close(out.logits, before, atol=1e-5, rtol=0)


def test_base_model_is_left_as_it_was(tmp_path: Path) -> None:
    base, tokens = tiny_model("qwen3"), some_tokens()
    before, config = logits_of(base.model, tokens), base.model.config.to_dict()
    write_checkpoint(base, None, PrefixPruner(base), Shape((0, 1, 2, 1), (32, 0, 96, 16)), tmp_path / "out")
    assert torch.equal(logits_of(base.model, tokens), before)
    assert base.model.config.to_dict() == config


def test_a_generation_config_that_transformers_will_not_save_is_mended(tmp_path: Path) -> None:
    base = tiny_model("llama")
    base.model.generation_config.temperature = 0.6
    folder = write(base, Shape((1,) * 4, (32,) * 4), tmp_path / "h", "hetero")
    assert json.loads((folder / "generation_config.json").read_text())["temperature"] == 0.6
    assert base.model.generation_config.do_sample is not True


@pytest.mark.parametrize(
    ("shape", "options", "says"),
    [
        (Shape((0,) * 4, (32,) * 4), {}, "drops every attention"),
        (Shape((1,) * 4, (32,) * 4), {"layout": "gguf"}, "no layout; use hetero, uniform or padded"),
    ],
)
def test_refusals(shape: Shape, options: dict, says: str, tmp_path: Path) -> None:
    base = tiny_model("llama")
    with pytest.raises(CheckpointError, match=says):
        write_checkpoint(base, None, PrefixPruner(base), shape, tmp_path / "out", **options)
    assert not list(tmp_path.iterdir())


def test_replaces_only_when_told_and_only_its_own(tmp_path: Path) -> None:
    base, shape, other = tiny_model("llama"), Shape((1,) * 4, (32,) * 4), Shape((2,) * 4, (32,) * 4)
    folder = write(base, shape, tmp_path / "out", "hetero")
    with pytest.raises(CheckpointError, match="exists already"):
        write(base, other, folder, "hetero")
    write(base, other, folder, "hetero", replace=True)
    assert json.loads((folder / "unicuco.json").read_text())["shape"]["groups"] == [2] * 4
    assert list(tmp_path.iterdir()) == [folder]
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter.tex").write_text("years of work")
    with pytest.raises(CheckpointError, match="no checkpoint of ours"):
        write(base, other, tmp_path / "thesis", "hetero", replace=True)
    assert (tmp_path / "thesis" / "chapter.tex").exists()
