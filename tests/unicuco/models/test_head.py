"""The head on its own gives the model's own logits, soft cap included."""

from __future__ import annotations

import gc
import weakref
from typing import Any

import pytest
import torch

from tests.unicuco import tiny
from unicuco.models.head import Head

TOKENS = torch.arange(4, 24).view(2, 10)


@pytest.mark.parametrize(("family", "changes"), [("qwen2", {}), ("gemma3", {}), ("gemma3", {"cap": 2.0})])
def test_the_head_does_what_the_model_does(family: str, changes: dict[str, float]) -> None:
    model: Any = tiny.random_model(family, **({"final_logit_softcapping": changes["cap"]} if changes else {}))
    head = Head(model)
    with torch.no_grad():
        expected = model(input_ids=TOKENS, use_cache=False).logits
        found = head(model.get_decoder()(input_ids=TOKENS, use_cache=False).last_hidden_state)
    torch.testing.assert_close(found, expected)
    assert head.vocab_size == expected.shape[-1] == tiny.VOCAB
    assert not changes or found.abs().max() <= changes["cap"]


def test_gradients_flow_to_the_hidden_states() -> None:
    hidden = torch.randn(3, 64, generator=torch.Generator().manual_seed(0)).requires_grad_()
    Head(tiny.random_model("gemma3", final_logit_softcapping=2.0))(hidden).sum().backward()
    assert hidden.grad is not None and hidden.grad.abs().min() > 0


def test_a_head_does_not_keep_its_model_in_memory() -> None:
    model: Any = tiny.random_model("qwen2")
    decoder, head = weakref.ref(model.get_decoder()), Head(model)
    del model
    gc.collect()
    assert decoder() is None and head(torch.zeros(1, 64)).shape == (1, tiny.VOCAB)
