"""Checkpoints that stock transformers loads: ``write_checkpoint`` and what it returns."""

from unicuco.checkpoint.card import CheckpointCard, CheckpointSize
from unicuco.checkpoint.verify import Verification
from unicuco.checkpoint.write import LAYOUTS, SHARD_SIZE, CheckpointReport, Layout, write_checkpoint

__all__ = [
    "LAYOUTS",
    "SHARD_SIZE",
    "CheckpointCard",
    "CheckpointReport",
    "CheckpointSize",
    "Layout",
    "Verification",
    "write_checkpoint",
]
