"""How the work on a network is cut into tiles, slices and chunks, and by that the order of its sums.

Nothing here depends on how many particles there are: a particle alone has the same bits as among others. What was
measured to be best on a card stands in ``tiles.csv`` (``python -m bench.gpu_tune`` writes it), by the card's compute
capability, the precision and the batch; other cards have tiles as large as registers allow.
"""

from __future__ import annotations

import csv
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from fastsmc.kernels.sizes import next_power_of_2

TABLE = Path(__file__).with_name("tiles.csv")


@dataclass(frozen=True)
class Tiles:
    """How the work is cut; ``scratch`` decides the order of sums only if no chunk of a particle fits.

    Parameters
    ----------
    samples, units, depth
        The largest tile of a layer: samples by units, summed over ``depth`` inputs at a time.
    warps, stages
        Of the kernel that goes through the network.
    slice
        Samples whose weight gradients are summed in one go, in dense layers.
    columns
        Inputs whose weight gradients a program of a dense layer has at a time, at most.
    pixels, image_slices
        The same in convolutions: so many pooled pixels, or more if there would be too many slices.
    fused
        Samples of a batch, at most, whose weight gradients are used for a step where they are summed: a step takes
        small tiles, which read more of a large batch than is saved.
    packed
        Samples of a batch, at least, for which dense layers' weights are split once, and not where they are read.
    first
        How the first layer is cut where it then goes by itself; without it as the others.
    chunk
        Samples that are in scratch at a time, at most; a multiple of ``slice``.
    scratch
        Bytes, unless one particle and one tile need more.
    """

    samples: int = 64
    units: int = 128
    depth: int = 32
    warps: int = 4
    stages: int = 3
    slice: int = 4096
    columns: int = 128
    pixels: int = 1024
    image_slices: int = 128
    fused: int = 256
    packed: int = 256
    first: Tiles | None = None
    chunk: int = 65536
    scratch: int = 1 << 30


@dataclass(frozen=True)
class Measured:
    """A line of the table: where it holds, and the tiles that were the fastest there."""

    capability: str
    precision: int
    batch: int
    samples: int
    depth: int
    stages: int


_CUTS = {
    "8": ((64, 32, 2, 1024, 64), (64, 32, 2, 2048, 128), (64, 64, 2, 4096, 128)),
    "9": ((64, 32, 3, 1024, 64), (64, 32, 3, 2048, 128), (128, 64, 3, 4096, 256)),
}
"""Units, depth, stages, slice and columns of each precision, by the generation of tensor cores; later ones are cut as
Hopper's.

Slices are as short as exact sums in float32 need, since each costs a pass over the weights.
"""
_FIRST = {"8": (None,) * 3, "9": (None, Tiles(128, 128, 32, warps=4), Tiles(128, 128, 64, warps=4))}
"""Of each precision: tiles this large fill the registers of four warps with sums, which leaves room for two blocks."""


def choose_tiles(precision: int, batch: int, capability: str = "") -> Tiles:
    """The tiles for a precision and a batch on a card of this compute capability, or on one that nobody measured."""
    generation = capability.partition(".")[0]
    units, depth, stages, summed, columns = _CUTS.get(generation, _CUTS["9"])[precision]
    first = _FIRST.get(generation, _FIRST["9"])[precision]
    samples = 128
    if batch < Tiles.packed:  # weights are split where they are read, which takes registers
        samples, depth = 64, 32
    if best := measured(capability, precision, batch):
        samples, depth, stages = best.samples, best.depth, best.stages
    samples = min(samples, power_of_two(batch))
    return Tiles(samples, units, depth, warps_of(samples), stages, slice=summed, columns=columns, first=first)


def warps_of(samples: int) -> int:
    """Of a tile: each has 16 of its rows, since Triton 3.6 reads beyond its memory where there are fewer."""
    return 8 if samples > 64 else 4


def measured(capability: str, precision: int, batch: int) -> Measured | None:
    """The line of the smallest batch that is not smaller, or None where there is none."""
    lines = [line for line in _table() if (line.capability, line.precision) == (capability, precision)]
    return min((line for line in lines if line.batch >= batch), key=lambda line: line.batch, default=None)


@cache
def _table() -> tuple[Measured, ...]:
    with TABLE.open(newline="") as file:
        lines = list(csv.DictReader(file))
    numbers = ("precision", "batch", "samples", "depth", "stages")
    return tuple(Measured(line["capability"], *(int(line[name]) for name in numbers)) for line in lines)


def power_of_two(size: int, most: int = 1 << 30) -> int:
    """That covers a size: at least 16, as tensor cores need, and at most ``most``."""
    return max(16, min(next_power_of_2(size), most))
