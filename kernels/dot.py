"""Products of tiles on tensor cores in three precisions, summed in float32.

=======  =======  ==================================  ==================================================
code     name     operands                            products
=======  =======  ==================================  ==================================================
0        highest  the sum of three bfloat16 numbers   6, without those below a float32's last bit
1        high     the sum of two bfloat16 numbers     3, without small * small
2        medium   bfloat16                            1
=======  =======  ==================================  ==================================================

Three bfloat16 numbers are a float32 to the last bit, and their six products take tensor cores as long as three of tf32,
which cannot read operands by columns. Parts of an array lie ``plane`` entries apart, each part of a row behind the one
before: an operand that many programs read is split once (`split`), and goes to the tensor cores as it comes.

A number that bfloat16 rounds to infinity, or that is infinite, makes NaN of its products but in ``medium``.

Triton's interpreter cannot compute with bfloat16: there `rounded` returns the same numbers as float32.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl

from fastsmc.backends import INTERPRETED
from fastsmc.kernels.build import EXACT, Build
from fastsmc.kernels.sizes import cdiv, padded

HIGHEST = tl.constexpr(0)
HIGH = tl.constexpr(1)
MEDIUM = tl.constexpr(2)


def parts_in(precision: int) -> int:
    """Bfloat16 numbers of an operand."""
    return 3 - precision


aligned = triton.constexpr_function(padded)


@triton.jit
def rounded(a):
    """To the nearest bfloat16, ties to even."""
    return a.to(tl.bfloat16)


if INTERPRETED:
    from fastsmc.kernels.interpreted import rounded


@triton.jit
def parts_of(a, PRECISION: tl.constexpr):
    """The bfloat16 numbers whose sum a float32 tile is, the largest first; three always, of which some are not used."""
    first = rounded(a)
    second, third = first, first
    if PRECISION != MEDIUM:
        rest = a - first.to(tl.float32)
        second = rounded(rest)
        if PRECISION == HIGHEST:
            third = rounded(rest - second.to(tl.float32))
    return first, second, third


@triton.jit
def load_parts(pointers, mask, PLANE: tl.constexpr, PRECISION: tl.constexpr):
    """The parts of a tile, as `store_parts` and `split` leave them; zero outside."""
    first = rounded(tl.load(pointers, mask=mask, other=0))
    second, third = first, first
    if PRECISION != MEDIUM:
        second = rounded(tl.load(pointers + PLANE, mask=mask, other=0))
        if PRECISION == HIGHEST:
            third = rounded(tl.load(pointers + 2 * PLANE, mask=mask, other=0))
    return first, second, third


@triton.jit
def store_parts(pointers, values, mask, PLANE: tl.constexpr, PRECISION: tl.constexpr):
    """Float32 values as their parts."""
    parts = parts_of(values, PRECISION)
    tl.store(pointers, parts[0], mask=mask)
    if PRECISION != MEDIUM:
        tl.store(pointers + PLANE, parts[1], mask=mask)
        if PRECISION == HIGHEST:
            tl.store(pointers + 2 * PLANE, parts[2], mask=mask)


@triton.jit
def product(a, b, acc, PRECISION: tl.constexpr):
    """The sum acc + a b of tiles in parts, the largest products last.

    Tensor cores cut off what they cannot add; where that would count, a tile's products are summed by themselves: the
    largest, which alone are a float32's first half, apart from what completes it.
    """
    if PRECISION == HIGHEST:
        rest = tl.dot(a[2], b[0])
        rest = tl.dot(a[1], b[1], rest)
        rest = tl.dot(a[0], b[2], rest)
        rest = tl.dot(a[1], b[0], rest)
        rest = tl.dot(a[0], b[1], rest)
        acc += tl.dot(a[0], b[0]) + rest  # in this order: Triton makes `rest + dot` one instruction
    elif PRECISION == HIGH:
        acc = tl.dot(a[1], b[0], acc)
        acc = tl.dot(a[0], b[1], acc)
        acc = tl.dot(a[0], b[0], acc)
    else:
        acc = tl.dot(a[0], b[0], acc)
    return acc


@triton.jit
def store(pointers, values, mask):
    """Rounded where bfloat16 is stored."""
    if pointers.dtype.element_ty == tl.bfloat16:
        values = rounded(values)
    tl.store(pointers, values, mask=mask)


@triton.jit
def _split_kernel(
    x,
    parts,
    rows,
    width,
    group,
    stride,
    parts_stride,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
    PLANE: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """A tile of rows and columns; behind the last column comes one of ones, then zeros."""
    row = (tl.program_id(0) * ROWS + tl.arange(0, ROWS))[:, None]
    column = (tl.program_id(1) * BLOCK + tl.arange(0, BLOCK))[None, :]
    begin = (row // group).to(tl.int64) * stride + row % group * width
    values = tl.load(x + begin + column, mask=(row < rows) & (column < width), other=0)
    values = tl.where(column == width, 1.0, values)
    begin = (row // group).to(tl.int64) * parts_stride + row % group * ((3 - PRECISION) * PLANE)
    store_parts(parts + begin + column, values, (row < rows) & (column < PLANE), PLANE, PRECISION)


_ROWS, _BLOCK = 16, 64


class Parts(NamedTuple):
    """Rows in parts, bfloat16 [.., parts * plane]: of each the first part, then what there is of the others."""

    rows: torch.Tensor
    plane: int


def split(x: torch.Tensor, precision: int) -> Parts:
    """The parts of the rows of x, float32 [B, width]."""
    plane = padded(x.shape[1] + 1)
    parts = x.new_empty((len(x), parts_in(precision) * plane), dtype=torch.bfloat16)
    split_into(parts, x, precision, 1, x.shape[1])
    return Parts(parts, plane)


def split_into(parts: torch.Tensor, x: torch.Tensor, precision: int, group: int, width: int) -> None:
    """The parts of the first ``group`` rows of this ``width`` in each row of x, one behind the other in a row of parts.

    Each is followed by 1, which is what the weight of a bias is multiplied by.
    """
    rows, plane = len(x) * group, padded(width + 1)
    grid = cdiv(rows, _ROWS), cdiv(plane, _BLOCK)
    constants = {"ROWS": _ROWS, "BLOCK": _BLOCK, "PLANE": plane, "PRECISION": precision}
    strides = x.stride(0), parts.stride(0)
    _split_kernel[grid](x, parts, rows, width, group, *strides, **constants, num_warps=4, **EXACT)


BUILDS = tuple(
    Build(
        f"split rows, precision {precision}",
        _split_kernel,
        {"x": "*fp32", "parts": "*bf16"}
        | dict.fromkeys(("rows", "width", "group", "stride", "parts_stride"), "i32")
        | dict.fromkeys(("ROWS", "BLOCK", "PLANE", "PRECISION"), "constexpr"),
        {"ROWS": _ROWS, "BLOCK": _BLOCK, "PLANE": 800, "PRECISION": precision},
        registers=64,
        shared=8_192,
    )
    for precision in range(3)
)
