"""The loss and its gradient against autograd over whole logits."""

from __future__ import annotations

import pytest
import torch
from torch.nn.functional import cross_entropy, kl_div

from tests.unicuco import tiny
from unicuco.models.head import Head
from unicuco.recovery.loss import distil


@pytest.mark.parametrize("text_weight", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("cap", [None, 3.0])
def test_as_autograd_says(text_weight: float, cap: float | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("unicuco.recovery.loss.LOGITS_AT_ONCE", 20)
    monkeypatch.setattr("unicuco.recovery.loss.POSITIONS_AT_ONCE", 7)
    model, dense_model = tiny.random_model("gemma3"), tiny.random_model("gemma3", seed=1)
    model.config.final_logit_softcapping = dense_model.config.final_logit_softcapping = cap
    head, dense_head = Head(model), Head(dense_model)
    generator = torch.Generator().manual_seed(0)
    dense = torch.randn(50, 64, generator=generator)
    targets = torch.randint(0, tiny.VOCAB, (50,), generator=generator)
    targets[[24, 49]] = -1
    hidden = torch.randn(50, 64, generator=generator).requires_grad_()
    loss, losses = distil(hidden, dense, targets, head, dense_head, text_weight)
    (2 * loss).backward()
    found, hidden.grad = hidden.grad, None

    log_q, log_p = head(hidden).log_softmax(-1), dense_head(dense).log_softmax(-1)
    kl = kl_div(log_q, log_p, log_target=True, reduction="none").sum(-1)
    known = targets >= 0
    text = torch.zeros(50)
    text[known] = cross_entropy(head(hidden)[known], targets[known], reduction="none")
    weight = text_weight * known
    expected = ((1 - weight) * kl + weight * text).mean()
    (2 * expected).backward()
    assert losses.total == pytest.approx(loss.item(), rel=1e-6)
    assert losses.total == pytest.approx(expected.item(), rel=1e-5)
    assert losses.kl == pytest.approx(kl.mean().item(), rel=1e-5)
    assert losses.text == pytest.approx(text[known].mean().item(), rel=1e-5)
    torch.testing.assert_close(found, hidden.grad, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("cap", [None, 3.0])
def test_the_text_alone_needs_no_dense_model(cap: float | None) -> None:
    model = tiny.random_model("gemma3")
    model.config.final_logit_softcapping = cap
    head, generator = Head(model), torch.Generator().manual_seed(0)
    targets = torch.randint(0, tiny.VOCAB, (50,), generator=generator)
    targets[[24, 49]] = -1
    hidden = torch.randn(50, 64, generator=generator).requires_grad_()
    loss, losses = distil(hidden, None, targets, head, head, 1.0)
    (2 * loss).backward()
    found, hidden.grad = hidden.grad, None
    expected = cross_entropy(head(hidden), targets, ignore_index=-1, reduction="sum") / 50
    (2 * expected).backward()
    assert losses.total == pytest.approx(expected.item(), rel=1e-5)
    assert losses.text == pytest.approx(expected.item() * 50 / 48, rel=1e-5)
    torch.testing.assert_close(found, hidden.grad, rtol=1e-4, atol=1e-6)
