"""The last step of a language model on its own: hidden states to logits, a few rows at a time."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


class Head:
    """A model's output embedding, divisor and soft cap; gradients flow unless the caller switches them off."""

    def __init__(self, model: Any) -> None:
        # Not the model itself: a head may outlive its model, and then keeps one matrix of it in memory.
        self._embedding = model.get_output_embeddings()
        self._divisor = getattr(model.config, "logits_scaling", None)  # Granite's
        self._cap = getattr(model.config, "final_logit_softcapping", None)

    @property
    def vocab_size(self) -> int:
        return int(self._embedding.weight.shape[0])

    @property
    def device(self) -> torch.device:
        """Where logits are computed; hidden states of a model on several devices may come from another."""
        return self._embedding.weight.device

    def __call__(self, hidden: Tensor) -> Tensor:
        """``... x hidden`` -> ``... x vocab_size``."""
        scores = self._embedding(hidden)
        scores = scores if self._divisor is None else scores / self._divisor
        return scores if self._cap is None else self._cap * torch.tanh(scores / self._cap)
