"""The pretended devices themselves: they are as strict as real ones, and compute what a CPU computes."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor, nn

from tests.unicuco.pretend import MixedDevicesError, PretendTensor, pretended_devices


@pytest.fixture(autouse=True)
def devices() -> Iterator[None]:
    with pretended_devices():
        yield


def test_a_tensor_is_where_it_was_put_and_so_are_results() -> None:
    here, there = torch.ones(3, device="cpu:0"), torch.ones(3).to("cpu:1")
    assert (str(here.device), str(there.device)) == ("cpu:0", "cpu:1")
    for made in (there + 1, there.view(3, 1), torch.zeros_like(there), there.new_zeros(2), there.sum(), there.long()):
        assert made.device == there.device and type(made) is PretendTensor
    assert here.add_(1) is here and here.cpu().tolist() == [2, 2, 2]
    assert type(here.cpu()) is Tensor and here.cpu().device == torch.device("cpu")
    assert type(torch.ones(3)) is Tensor


@pytest.mark.parametrize("quiet", [torch.no_grad, torch.inference_mode, torch.enable_grad])
def test_tensors_of_two_devices_do_not_meet(quiet: Callable) -> None:
    here, there, host = torch.ones(3, 3, device="cpu:0"), torch.ones(3, 3, device="cpu:1"), torch.ones(3, 3)
    with quiet():
        for other in (there, host):
            for operation in (torch.add, torch.matmul, nn.functional.linear, torch.Tensor.add_, torch.mul):
                with pytest.raises(MixedDevicesError):
                    operation(here, other)
            with pytest.raises(MixedDevicesError):
                torch.cat([here, other])
            assert torch.equal((here + other.to("cpu:0")).cpu(), host + host)
        with pytest.raises(MixedDevicesError):
            nn.functional.embedding(torch.zeros(2, dtype=torch.long), here)
        assert torch.equal((here * torch.tensor(2.0)).cpu(), host * 2), "a number goes with every device"
        here[0].copy_(there[0] * 5)
        assert here.sum().item() == 21


def test_gradients_come_back_over_devices() -> None:
    weight = nn.Parameter(torch.randn(3, 3, generator=torch.Generator().manual_seed(0)).to("cpu:1"))
    inputs = torch.ones(2, 3, device="cpu:0").requires_grad_()

    def loss(x: Tensor, w: Tensor, back: str) -> Tensor:
        return nn.functional.linear(x.to(w.device), w).softmax(-1).to(back).square().sum()

    found = torch.autograd.grad(loss(inputs, weight, "cpu:0"), [inputs, weight])
    assert [str(gradient.device) for gradient in found] == ["cpu:0", "cpu:1"]
    plain = [t.detach().cpu().requires_grad_() for t in (inputs, weight)]
    for gradient, expected in zip(found, torch.autograd.grad(loss(plain[0], plain[1], "cpu"), plain), strict=True):
        torch.testing.assert_close(gradient.cpu(), expected)
