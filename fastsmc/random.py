"""Counter-based random numbers: a pure function of seed, slot, iteration, stream and index.

Philox 4x32-10 (Salmon and others, 2011) with key = seed and counter = (index, particle slot, iteration, stream), so
that neither threads nor the order of evaluation matter, and every backend makes the same integers. They come as views
of the backend's memory (see ``fastsmc.arrays``), on ``device``.
"""

from __future__ import annotations

from enum import IntEnum

import numpy as np

from fastsmc import backends
from fastsmc.arrays import View


class Stream(IntEnum):
    """What the numbers are for: one stream each."""

    PRIOR = 0
    ORDER = 1
    RESAMPLING = 2
    MOMENTUM = 3
    ACCEPTANCE = 4
    PARTS = 5
    JITTER = 6


def philox(
    shape: tuple[int, int],
    *,
    seed: int,
    iteration: int = 0,
    stream: int = 0,
    first_slot: int = 0,
    backend: str | None = None,
    device: str = "cpu",
) -> View:
    """The integers themselves, uint32 [slots, numbers]: number i of a slot is word i % 4 of block i // 4."""
    return _fill("philox", np.uint32, shape, seed, iteration, stream, first_slot, backend, device)


def uniform(
    shape: tuple[int, int],
    *,
    seed: int,
    iteration: int = 0,
    stream: int = 0,
    first_slot: int = 0,
    backend: str | None = None,
    device: str = "cpu",
) -> View:
    """Uniform numbers in [0, 1), float64 [slots, numbers]: 53 bits, from two words each."""
    return _fill("uniform", np.float64, shape, seed, iteration, stream, first_slot, backend, device)


def normal(
    shape: tuple[int, int],
    *,
    seed: int,
    iteration: int = 0,
    stream: int = 0,
    first_slot: int = 0,
    backend: str | None = None,
    device: str = "cpu",
) -> View:
    """Standard normal numbers, float32 [slots, numbers], by Box and Muller from two words each; none beyond 6.7."""
    return _fill("normal", np.float32, shape, seed, iteration, stream, first_slot, backend, device)


def check_key(seed: int, iteration: int = 0, stream: int = 0, first_slot: int = 0) -> None:
    """Raise ValueError unless these are whole numbers that fit the key and the counter."""
    for argument, value, bits in (
        ("seed", seed, 64),
        ("iteration", iteration, 32),
        ("stream", stream, 32),
        ("first_slot", first_slot, 32),
    ):
        if not (hasattr(value, "__index__") and 0 <= value < 2**bits):
            raise ValueError(f"{argument} is {value!r}; it must be a whole number from 0 to 2**{bits} - 1")


def _fill(
    name: str,
    dtype: type,
    shape: tuple[int, int],
    seed: int,
    iteration: int,
    stream: int,
    first_slot: int,
    backend: str | None,
    device: str,
) -> View:
    check_key(seed, iteration, stream, first_slot)
    engine, memory = backends.choose(backend, device)
    out = memory.empty(shape, dtype)
    if out.ndim != 2:
        raise ValueError(f"shape is {shape}; it must be (slots, numbers)")
    getattr(engine, name)(out, int(seed), int(iteration), int(stream), int(first_slot))
    return out
