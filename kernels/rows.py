"""How the work on rows of particles is divided, and how an op says what it found wrong.

A row of up to `Cut.alone` particles is the work of one program and one launch. A longer row is cut into at most
`Cut.parts` parts of whole tiles. What a part needs to know of all others (the largest weight, sums) it reduces itself,
in one vector, from what an earlier launch left behind: no launch is spent on it, and no sum depends on who came first.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl

FINE = 2**62  # the status of an op that found nothing wrong
_FINE = tl.constexpr(FINE)


@dataclass(frozen=True)
class Cut:
    """The largest row for one program, the entries of a tile, and the most parts of a row: powers of two."""

    alone: int = 4096
    tile: int = 2048
    parts: int = 1024

    def tiles(self, n: int) -> int:
        """Tiles of each part of a row of n."""
        return triton.cdiv(n, self.tile * self.parts)

    def grid(self, rows: int, n: int) -> tuple[int, int]:
        """Rows and their parts."""
        return rows, triton.cdiv(n, self.tile * self.tiles(n))


def warps_of(entries: int) -> int:
    """Warps for a block of so many entries: eight for each thread, in 1 to 16 warps."""
    return min(16, max(1, entries // 256))


def new_status(like: torch.Tensor) -> torch.Tensor:
    """A status on the device of a tensor that says all is well."""
    return torch.full((1,), FINE, dtype=torch.int64, device=like.device)


@triton.jit
def report(status, bad, CODE: tl.constexpr, position):
    """Tell the status of the first position that is bad: the least of (code, position) stays."""
    fault = tl.min(tl.where(bad, (CODE << 48) | position.to(tl.int64), _FINE), axis=0)
    tl.atomic_min(status, fault, mask=fault < _FINE, sem="relaxed")


@triton.jit
def report_one(status, bad, CODE: tl.constexpr, position):
    """The same of a single position."""
    tl.atomic_min(status, (CODE << 48) | position.to(tl.int64), mask=bad, sem="relaxed")


@triton.jit
def load_all(parts, row, PARTS: tl.constexpr, other):
    """What all parts of a row left behind."""
    part = tl.arange(0, PARTS)
    return tl.load(parts + row * PARTS + part, part < tl.num_programs(1), other=other)


@triton.jit
def sum_before(values, part, PARTS: tl.constexpr):
    """The sum of what the parts before this one left behind."""
    return tl.sum(tl.where(tl.arange(0, PARTS) < part, values, 0), axis=0)
