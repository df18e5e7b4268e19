"""Tiny checkpoints that lost something, and quick settings to get it back."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.unicuco import tiny
from unicuco.checkpoint import CheckpointCard, write_checkpoint
from unicuco.evaluator import Evaluator
from unicuco.recovery import RecoveryConfig


@pytest.fixture(scope="session")
def recovery_text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.write_text(tmp_path_factory.mktemp("recovery") / "words.txt", words=30_000)


@pytest.fixture(scope="module")
def pruned(llama: Evaluator, text_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The tiny llama without one attention, one MLP, and parts of others, in a layout."""
    root = tmp_path_factory.mktemp("pruned")
    levels = np.minimum([1, 2, 99, 3, 1, 99], llama.space.num_levels - 1)
    card = CheckpointCard(
        measured={"kl_heldout": 9.0, "kl_reverse_heldout": 9.0},
        calibration=tiny.calibration(text_file).model_dump(mode="json"),
    )

    def folder(layout: str) -> Path:
        if not (root / layout).is_dir():
            shape = llama.space.shape(levels)
            write_checkpoint(
                llama.base, tiny.tokenizer(), llama.pruner, shape, root / layout, layout, card, verify=False
            )  # type: ignore[arg-type]
        return root / layout

    return folder


@pytest.fixture
def quick(recovery_text: Path) -> Callable[..., RecoveryConfig]:
    def config(**changes: Any) -> RecoveryConfig:
        settings: dict[str, Any] = {
            "corpus": str(recovery_text), "steps": 40, "rank": 16, "learning_rate": 1e-2, "batch": 4,
            "window_length": 32, "heldout_windows": 16, "dtype": "float32", "text_weight": 0.0,
        }  # fmt: skip
        return RecoveryConfig(**settings | changes)

    return config
