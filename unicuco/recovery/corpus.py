"""The text of a recovery: windows to train on, others to measure on, and what the dense model writes itself."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from unicuco.calibration import CalibrationConfig, Domain, Windows, count_spans, draw_windows
from unicuco.errors import CalibrationError, RecoveryError
from unicuco.models.head import Head
from unicuco.storage import atomic_file, cache_dir, content_hash

PROMPT = 16
"""Tokens of a prompt."""
AT_ONCE = 16
"""Sequences that are written side by side, and cached together."""
BOS = "bos"


@dataclass(frozen=True)
class Corpus:
    """Windows of one text (``num_windows x window_length``) that do not overlap."""

    train: np.ndarray
    heldout: Windows


def draw_corpus(domain: Domain, tokenizer: Any, length: int, train: int, heldout: int, seed: int) -> Corpus:
    """``heldout`` windows from the back of the shuffle with ``seed``, up to ``train`` from its front.

    The held-out windows are those that ``unicuco prune`` measures a checkpoint on, where seed and length are those of
    its calibration.

    Raises:
        CalibrationError: the text cannot be read, or is too short for one window to train on.
    """
    # Spans that are too short for a window (none in most texts) and the search windows take some of those that remain.
    for share in (1.0, 0.9, 0.7, 0.5, 0.25):
        spare = int(share * (count_spans(domain, length) - heldout - 1))
        count = min(train, spare)
        if count < 1:
            break
        config = CalibrationConfig(
            domains=(domain,),
            window_length=length,
            calibration_windows=count,
            search_windows=1,
            margin_windows=0,
            seed=seed,
        )
        try:
            return Corpus(
                draw_windows(config, tokenizer, "calibration").tokens,
                draw_windows(config, tokenizer, "heldout", heldout),
            )
        except CalibrationError:
            continue
    raise CalibrationError(
        f"The text '{domain.name}' is too short: {heldout} windows of {length} tokens are held out, and nothing is "
        "left to train on. Ask for shorter or fewer windows."
    )


def write_self_data(
    model: Any,
    digest: str,
    prompts: np.ndarray,
    length: int,
    seed: int,
    progress: Callable[[str, int, int], None] | None = None,
) -> np.ndarray:
    """Windows that the dense model writes (``num_prompts x length``): its own continuation of every prompt.

    Sampled from its whole distribution at temperature 1 (self-data distillation, Thangarasa et al. 2024, arXiv
    2410.09982, on plain text). Batches lie in the cache by content, so that a repetition or a longer run reads them.

    Args:
        digest: of the model's content.
        prompts: ``num_prompts x prompt_length``.
    """
    report = progress or (lambda stage, done, total: None)
    parts = []
    for start in range(0, len(prompts), AT_ONCE):
        rows = prompts[start : start + AT_ONCE]
        dtype = str(model.dtype).removeprefix("torch.")
        key = content_hash([1, digest, dtype, rows.tolist(), length, seed, start])
        path = cache_dir() / "selfdata" / f"{key[:32]}.safetensors"
        if not path.is_file():
            generator = torch.Generator().manual_seed(seed + start)
            written = _continue(model, torch.from_numpy(rows).long(), length, generator)
            path.parent.mkdir(parents=True, exist_ok=True)
            with atomic_file(path) as scratch:
                save_file({"tokens": written.to(torch.int32)}, scratch)
        parts.append(load_file(path)["tokens"].numpy())
        report("the dense model writes text", min(start + AT_ONCE, len(prompts)), len(prompts))
    return np.concatenate(parts)


@torch.inference_mode()
def _continue(model: Any, tokens: Tensor, length: int, generator: torch.Generator) -> Tensor:
    """``tokens`` (``batch x prompt``) continued to ``length``; an end of text is a token like any other."""
    from transformers import DynamicCache

    head, body, cache = Head(model), model.get_decoder(), DynamicCache(config=model.config)
    device = next(model.parameters()).device
    fresh = tokens
    while tokens.shape[1] < length:
        found = body(input_ids=fresh.to(device), past_key_values=cache, use_cache=True).last_hidden_state[:, -1]
        chances = head(found).float().softmax(-1).cpu()
        fresh = torch.multinomial(chances, 1, generator=generator)
        tokens = torch.cat([tokens, fresh], dim=1)
    return tokens


def bos_prompts(tokenizer: Any, count: int) -> np.ndarray:
    """``count x 1``: the token that a text begins with.

    Raises:
        RecoveryError: the tokenizer has none.
    """
    token = tokenizer.bos_token_id if tokenizer.bos_token_id is not None else tokenizer.eos_token_id
    if token is None:
        raise RecoveryError("The tokenizer has no token that begins a text; cut prompts from a text instead.")
    return np.full((count, 1), token, dtype=np.int32)
