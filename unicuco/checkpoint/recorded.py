"""``logits.json``: what the pruned model answers to a few fixed tokens, kept in the checkpoint to compare with later.

All logits of a vocabulary would be megabytes. Those of a few tokens, and the log of the sum over all, are enough: a
wrong number anywhere in the weights moves every one of them.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

LOGITS = "logits.json"
COLUMNS = 32
"""Tokens of the vocabulary whose logits are kept."""


def write_logits(folder: Path, tokens: Tensor, logits: Tensor) -> None:
    """Records ``logits`` (``tokens.shape x vocab``, float32) of the pruned model as computed in memory."""
    vocab = logits.shape[-1]
    columns = torch.randperm(vocab, generator=torch.Generator().manual_seed(1))[:COLUMNS].sort().values
    record = {
        "tokens": tokens.tolist(),
        "vocabulary": columns.tolist(),
        "logits": _rounded(logits[..., columns]),
        "logsumexp": _rounded(logits.logsumexp(-1)),
    }
    (folder / LOGITS).write_text(json.dumps(record) + "\n", encoding="utf-8")


def read_logits(folder: Path) -> dict[str, Tensor]:
    """What was recorded, as ``reload.py`` reads it.

    Raises:
        OSError, ValueError, KeyError, TypeError: there is nothing, or nothing readable.
    """
    record = json.loads((folder / LOGITS).read_text(encoding="utf-8"))
    return {
        "tokens": torch.tensor(record["tokens"], dtype=torch.long),
        "vocabulary": torch.tensor(record["vocabulary"], dtype=torch.long),
        "logits": torch.tensor(record["logits"], dtype=torch.float32),
        "logsumexp": torch.tensor(record["logsumexp"], dtype=torch.float32),
    }


def _rounded(values: Tensor) -> list[Any]:
    """Nested lists with seven digits, all that float32 has."""
    if values.dim() > 1:
        return [_rounded(row) for row in values]
    return [float(f"{value:.7g}") for value in values.tolist()]
