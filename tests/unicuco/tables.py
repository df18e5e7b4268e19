"""Latency tables that nobody measured."""

from __future__ import annotations

import numpy as np

from unicuco.latency import BlockTimes, Check, LatencyConfig, LatencyTable, SublayerTimes
from unicuco.models.geometry import Geometry


def made_up_table(geometry: Geometry, attention: float = 1.0, mlp: float = 0.5, seed: int = 0) -> LatencyTable:
    """Milliseconds of the dense attention and MLP, falling with the width to a quarter of that; no two blocks alike."""
    rng = np.random.default_rng(seed)

    def times(widths: np.ndarray, dense: float) -> SublayerTimes:
        own = dense * rng.uniform(0.8, 1.2)
        ms = own * (0.25 + 0.75 * widths / widths[-1])
        return SublayerTimes(widths=tuple(widths.tolist()), ms=tuple(ms.tolist()))

    blocks = tuple(
        BlockTimes(
            attention=times(np.arange(1, block.groups + 1), attention),
            mlp=times(np.arange(32, block.neurons + 1, 32), mlp),
        )
        for block in geometry.blocks
    )
    return LatencyTable(
        config=LatencyConfig(threads=1),
        model={"spec": "made-up", "digest": "a" * 64},
        geometry=geometry,
        fixed_ms=0.7,
        blocks=blocks,
        times_of=tuple(range(len(blocks))),
        checks=(
            Check(kept=0.9, predicted_ms=9.8, measured_ms=10.0),
            Check(kept=0.6, predicted_ms=6.3, measured_ms=6.0),
        ),
        surroundings={"torch": "0"},
    )
