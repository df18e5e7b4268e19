"""Spreading a model: ranges as even as they can be, every part where it belongs, and what does not fit is told."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch

from tests.unicuco import tiny
from tests.unicuco.pretend import MixedDevicesError, pretended_devices
from unicuco.errors import ModelError
from unicuco.models.sites import decoder
from unicuco.models.spread import (
    GIB,
    check_room,
    device_names,
    devices_for,
    moved,
    parse_devices,
    place,
    spread_blocks,
)

TWO = [torch.device("cpu:0"), torch.device("cpu:1")]


def largest(chosen: list[int], blocks: list[int], first: int, last: int, devices: int) -> int:
    loads = [sum(size for size, d in zip(blocks, chosen, strict=True) if d == i) for i in range(devices)]
    loads[0] += first
    loads[-1] += last
    return max(loads)


def test_no_other_ranges_have_a_smaller_largest_load() -> None:
    rng = np.random.default_rng(0)
    for _ in range(40):
        count = int(rng.integers(1, 9))
        devices = int(rng.integers(1, count + 1))
        blocks = rng.integers(1, 50, count).tolist()
        first, last = rng.integers(0, 80, 2).tolist()
        chosen = spread_blocks(blocks, first, last, devices)
        assert chosen == sorted(chosen) and set(chosen) == set(range(devices))
        cuts = itertools.combinations(range(1, count), devices - 1)
        others = [np.searchsorted(cut, np.arange(count), side="right").tolist() for cut in cuts]
        best = min(largest(other, blocks, first, last, devices) for other in others)
        assert largest(chosen, blocks, first, last, devices) == best


def test_equal_blocks_make_room_for_the_embeddings() -> None:
    assert spread_blocks([10] * 8, 0, 0, 2) == [0] * 4 + [1] * 4
    assert spread_blocks([10] * 8, 20, 0, 2) == [0] * 3 + [1] * 5
    assert spread_blocks([10] * 7, 5, 25, 3) == [0] * 3 + [1] * 3 + [2]
    with pytest.raises(ModelError, match="2 blocks cannot be spread over 3 devices; use fewer GPUs"):
        spread_blocks([1, 1], 0, 0, 3)


def test_what_a_device_may_be() -> None:
    assert parse_devices("cpu") == [torch.device("cpu")] and parse_devices("cpu:0, cpu:1") == TWO
    assert devices_for("cuda", 1) == devices_for("cuda", 0.5) == "cuda" and devices_for("cpu", 2) == "cpu"
    assert devices_for("cuda", 3) == "cuda:0,cuda:1,cuda:2"
    for wrong, said in (("gpu", "is no device"), ("cpu,", "is no device"), ("cpu,meta", "different types")):
        with pytest.raises(ModelError, match=said):
            parse_devices(wrong)


def test_a_gpu_that_is_not_there_is_told() -> None:
    count = torch.cuda.device_count()
    with pytest.raises(ModelError, match=f"No cuda:{count} here" if count else "No CUDA device here"):
        parse_devices(f"cuda:0,cuda:{count}" if count else "cuda:0,cuda:1")


def test_weights_that_are_known_not_to_fit_are_refused() -> None:
    free = {TWO[0]: 5 * GIB, TWO[1]: 3 * GIB}
    check_room({TWO[0]: 5 * GIB, TWO[1]: 3 * GIB}, free.get, "m")
    check_room({TWO[0]: 50 * GIB}, lambda device: None, "m")
    with pytest.raises(ModelError, match=r"m does not fit: 4.0 GiB of weights for cpu:1, which has 3.0 GiB left"):
        check_room({TWO[0]: GIB, TWO[1]: 4 * GIB}, free.get, "m")


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_every_part_is_where_it_belongs(family: str) -> None:
    expected = dict(tiny.random_model(family).named_parameters(remove_duplicate=False))
    buffers = dict(tiny.random_model(family).named_buffers())
    tied = expected["lm_head.weight"] is expected["model.embed_tokens.weight"]
    with pretended_devices():
        model = tiny.random_model(family)
        place(model, TWO)
        found = dict(model.named_parameters(remove_duplicate=False))
        for name, parameter in found.items():
            assert torch.equal(parameter.cpu(), expected[name]) and not parameter.requires_grad
        for name, buffer in model.named_buffers():
            assert torch.equal(buffer.cpu(), buffers[name])
        layers = [{str(t.device) for t in layer.parameters()} for layer in decoder(model).layers]
        assert all(len(places) == 1 for places in layers) and layers[0] == {"cpu:0"} and layers[-1] == {"cpu:1"}
        assert str(found["model.embed_tokens.weight"].device) == "cpu:0"
        assert str(found["model.norm.weight"].device) == "cpu:1"
        assert (found["lm_head.weight"] is found["model.embed_tokens.weight"]) == tied
        assert str(found["lm_head.weight"].device) == ("cpu:0" if tied else "cpu:1")
        assert device_names(model) == "cpu:0,cpu:1"


@pytest.mark.parametrize("family", [*tiny.FAMILIES, "gpt2", "opt"])
def test_padding_masks_and_growing_caches_travel_too(family: str) -> None:
    ids = torch.randint(3, tiny.VOCAB, (2, 20), generator=torch.Generator().manual_seed(0))
    mask = torch.ones_like(ids)
    mask[0, :5] = 0
    with torch.no_grad(), pretended_devices():
        logits = []
        for devices in ([TWO[0], TWO[0]], TWO):
            model = tiny.random_model(family)
            place(model, devices)
            given = {"input_ids": ids.to("cpu:0"), "attention_mask": mask.to("cpu:0")}
            whole = model(**given).logits.cpu()
            start = model(**{name: tensor[:, :19] for name, tensor in given.items()}, use_cache=True)
            step = {"input_ids": given["input_ids"][:, 19:], "attention_mask": given["attention_mask"]}
            rest = model(**step, past_key_values=start.past_key_values).logits.cpu()
            torch.testing.assert_close(rest, whole[:, 19:], rtol=1e-3, atol=1e-4)
            logits.append(torch.cat([whole, rest], dim=1))
    assert torch.equal(logits[0], logits[1])


def test_a_part_that_does_not_take_its_inputs_along_is_found() -> None:
    """Proof that the other tests here and in test_evaluator_devices.py could fail."""
    ids = torch.arange(3, 13)[None]
    with torch.no_grad(), pretended_devices():
        model = tiny.random_model("llama")
        place(model, TWO)
        model(input_ids=ids.to("cpu:0"))
        elsewhere = [layer for layer in decoder(model).layers if layer.mlp.up_proj.weight.device == TWO[1]]
        assert len(elsewhere) > 1
        for part in [*elsewhere, model.lm_head]:  # the head is tied, so it lies on the first device
            hooks = dict(part._forward_pre_hooks)
            part._forward_pre_hooks.clear()
            with pytest.raises(MixedDevicesError):
                model(input_ids=ids.to("cpu:0"))
            part._forward_pre_hooks.update(hooks)
        model(input_ids=ids.to("cpu:0"))


def test_what_is_moved() -> None:
    with pretended_devices():
        value = {"a": (torch.ones(2, device="cpu:0"), None, [torch.ones(1)]), "b": 3}
        found = moved(value, TWO[1])
        assert found["a"][0].device == found["a"][2][0].device == TWO[1]
        assert found["a"][1] is None and found["b"] == 3 and type(found["a"]) is tuple
        assert moved(found["a"][0], TWO[1]) is found["a"][0], "nothing is copied in its own place"


def test_one_device_hooks_nothing() -> None:
    model = tiny.random_model("llama")
    place(model, [torch.device("cpu")])
    assert not any(module._forward_pre_hooks for module in model.modules())
