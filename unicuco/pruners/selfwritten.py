"""Text that a model writes by itself, and what each pair of its MLP neurons adds to the output there: no data is read.

The only input is the token that begins a text; every further one is drawn from the model's own distribution.

For one block let y = D h be what its MLP adds at a token (D: down matrix, h: its input, a bias left aside). Without the
neurons T, D_T h_T is missing. The mean over tokens of ‖D_T h_T‖² ÷ ‖y‖² is 1_Tᵀ Q 1_T with Q = E[h hᵀ ÷ ‖y‖²] ⊙ DᵀD,
so one ``f x f`` matrix per block answers for every set of neurons. Each token counts alike, however large y is there.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from unicuco.models.sites import decoder, find_blocks


@torch.no_grad()
def write_texts(model: Any, texts: int, length: int, seed: int) -> Tensor:
    """Tokens (``texts x length``, on the CPU): what begins a text, and how ``model`` goes on at temperature 1."""
    generator = torch.Generator().manual_seed(seed)
    device = next(model.parameters()).device
    written = torch.full((texts, 1), first_token(model.config))
    cache = None
    while written.shape[1] < length:
        out = model(input_ids=written[:, -1:].to(device), past_key_values=cache, use_cache=True)
        cache = out.past_key_values
        chances = out.logits[:, -1].float().softmax(-1).cpu()
        written = torch.cat([written, torch.multinomial(chances, 1, generator=generator)], dim=1)
    return written


def first_token(config: Any) -> int:
    """The token that begins a text; where a model has none, the one that ends it; else 0."""
    for name in ("bos_token_id", "eos_token_id"):
        found = getattr(config, name, None)
        found = found[0] if isinstance(found, list) and found else found
        if isinstance(found, int):
            return found
    return 0


@torch.no_grad()
def losses_by_pairs(model: Any, tokens: Tensor, at_once: int = 4) -> list[Tensor]:
    """Q of every block (``f x f``, float32, on the CPU) over ``tokens`` (``texts x length``), some texts at a time.

    1ᵀ Q 1 is 1: without all neurons all of the output is lost.
    """
    blocks = find_blocks(model)
    moments: dict[int, Tensor] = {}

    def see(block: int, down: Any, inputs: tuple[Tensor, ...]) -> None:
        h = inputs[0].flatten(0, -2).float()
        h = h / (h @ down.weight.float().T).norm(dim=1, keepdim=True).clamp_min(1e-20)
        moments[block] = moments.get(block, 0) + h.T @ h

    hooks = [
        block.mlp.down_proj.register_forward_pre_hook(lambda down, inputs, b=b: see(b, down, inputs))
        for b, block in enumerate(blocks)
    ]
    try:
        for part in tokens.split(at_once):
            decoder(model)(input_ids=part.to(next(model.parameters()).device), use_cache=False)
    finally:
        for hook in hooks:
            hook.remove()
    found = []
    for b, block in enumerate(blocks):
        down = block.mlp.down_proj.weight.float()
        found.append((moments.pop(b) / tokens.numel() * (down.T @ down)).cpu())
    return found


def share_lost(pairs: Tensor, gone: Tensor) -> Tensor:
    """1_Tᵀ Q 1_T (``sets``), the share of the output that goes with the neurons T: ``gone``, 1 or 0 (``sets x f``)."""
    return ((gone @ pairs) * gone).sum(-1)
