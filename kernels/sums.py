"""Sums in an order that depends on the number of their terms alone.

A kernel that cannot finish a sum leaves partials [S, n]; here they become [n]. Library reductions choose their order by
n as well, by which a particle's bits would depend on how many others there are. Within a kernel `tl.sum` adds in the
order in which the compiler laid a tile out, by which they would depend on what else is stored: see `sum_in_any_order`.
"""

import torch
import triton
import triton.language as tl

from fastsmc.kernels.build import Build
from fastsmc.kernels.sizes import cdiv

_BLOCK = 256
_ROWS = 8


@triton.jit
def sum_in_any_order(values, AXIS: tl.constexpr):
    """The sum of float32 values along an axis, in float64, of which no order changes a bit.

    Adding and taking away what is twice as large as a sum can be leaves multiples of one unit, whose sums are exact; it
    is 2^-52 of that number. After Demmel and Nguyen, "Fast reproducible floating-point summation" (2013).
    """
    values = values.to(tl.float64)
    largest = tl.max(tl.abs(values), axis=AXIS, keep_dims=True)
    above = tl.where(largest < float("inf"), 2 * values.shape[AXIS] * largest, 0)
    return tl.sum((values + above) - above, axis=AXIS)


@triton.jit
def _add_slices_kernel(
    partials,
    out,
    slices,
    width,
    blocks,
    slice_stride,
    row_stride,
    out_stride,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
    ACCUMULATE: tl.constexpr,
):
    """A block of one row."""
    row = (tl.program_id(0) // blocks).to(tl.int64)
    at = tl.program_id(0).to(tl.int64) % blocks * BLOCK + tl.arange(0, BLOCK)
    partials += row * row_stride
    out += row * out_stride
    total = tl.zeros((BLOCK,), out.dtype.element_ty)
    if ACCUMULATE:
        total += tl.load(out + at, mask=at < width, other=0)
    for begin in range(0, slices, ROWS):
        part = (begin + tl.arange(0, ROWS)).to(tl.int64)
        mask = (part < slices)[:, None] & (at < width)[None, :]
        total += tl.sum(tl.load(partials + part[:, None] * slice_stride + at[None, :], mask=mask, other=0), axis=0)
    tl.store(out + at, total, mask=at < width)


def add_slices(partials: torch.Tensor, out: torch.Tensor, accumulate: bool = False) -> None:
    """Sum partials [S, ...] into out [...], or onto what is there; both may be columns of longer rows [S, P, ..]."""
    if partials.is_contiguous() and out.is_contiguous():
        partials, out = partials.view(len(partials), 1, -1), out.view(1, -1)
    rows, width = out.shape
    blocks = cdiv(width, _BLOCK)
    _add_slices_kernel[(rows * blocks,)](
        partials,
        out,
        len(partials),
        width,
        blocks,
        partials.stride(0),
        partials.stride(1),
        out.stride(0),
        _ROWS,
        _BLOCK,
        accumulate,
    )


BUILDS = tuple(
    Build(
        f"add_slices of {kind}" + ", onto" * accumulate,
        _add_slices_kernel,
        {"partials": f"*{kind}", "out": f"*{kind}"}
        | dict.fromkeys(("slices", "width", "blocks", "slice_stride", "row_stride", "out_stride"), "i32"),
        {"ROWS": _ROWS, "BLOCK": _BLOCK, "ACCUMULATE": accumulate},
        registers=64,
        shared=2048,
    )
    for kind, accumulate in (("fp32", False), ("fp32", True), ("fp64", False))
)
