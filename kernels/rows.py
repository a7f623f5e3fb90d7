"""How the work on rows of particles is divided, and how an op says what it found wrong.

A row of up to `Cut.alone` particles is the work of one program and one launch. A longer row is cut into at most
`Cut.parts` parts of whole tiles, one program each, on the grid (rows, parts). What a part needs to know of all others
(the largest weight, sums) it reduces itself, in one vector, from what an earlier launch left behind: no launch is spent
on that, and no sum depends on who came first.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import triton
import triton.language as tl

from fastsmc.backends import FINE
from fastsmc.kernels.build import EXACT
from fastsmc.kernels.sizes import cdiv

_NONE = tl.constexpr(2**31 - 1)  # beyond any index


@dataclass(frozen=True)
class Cut:
    """The largest row for one program, the entries of a tile, and the most parts of a row: powers of two."""

    alone: int = 4096
    tile: int = 2048
    parts: int = 1024

    def tiles(self, n: int) -> int:
        """Tiles of each part of a row of n."""
        return cdiv(n, self.tile * self.parts)

    def grid(self, rows: int, n: int) -> tuple[int, int]:
        """Rows and their parts."""
        return rows, cdiv(n, self.tile * self.tiles(n))


DEFAULT_CUT = Cut()


def options_of(entries: int) -> dict[str, Any]:
    """How a block is compiled: eight entries for each thread, as far as 1 to 16 warps allow."""
    return {"num_warps": min(16, max(1, entries // 256)), **EXACT}


def new_status(like: torch.Tensor) -> torch.Tensor:
    """A status on the device of a tensor, which says that all is well."""
    return torch.full((1,), FINE, dtype=torch.int64, device=like.device)


@triton.jit
def report(status, bad, CODE: tl.constexpr, start, index):
    """Tell the status the first of the positions start + index that is bad: the least (code, position) stays there."""
    first = tl.min(tl.where(bad, index, _NONE), axis=0)
    tl.atomic_min(status, (CODE << 48) | (start + first), mask=first < _NONE, sem="relaxed")


@triton.jit
def report_row(status, bad, CODE: tl.constexpr, position):
    """The same of a row, by the position of its first entry."""
    tl.atomic_min(status, (CODE << 48) | position, mask=bad, sem="relaxed")


@triton.jit
def tile_index(tile, tiles, BLOCK: tl.constexpr):
    """Where in the row this program's tile lies."""
    return (tl.program_id(1).to(tl.int64) * tiles + tile) * BLOCK + tl.arange(0, BLOCK)


@triton.jit
def load_parts(left, row, parts, PARTS: tl.constexpr, other):
    """What all parts of a row left behind."""
    part = tl.arange(0, PARTS)
    return tl.load(left + row * PARTS + part, part < parts, other=other)


@triton.jit
def sum_before(values, PARTS: tl.constexpr):
    """The sum of what the parts before this one left behind."""
    return tl.sum(tl.where(tl.arange(0, PARTS) < tl.program_id(1), values, 0), axis=0)
