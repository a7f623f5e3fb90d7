"""Sums of partial results, in an order that depends on their number alone.

A kernel that cannot finish a sum leaves partials [S, n]; here they become [n]. Library reductions choose their order by
n as well, by which a particle's bits would depend on how many others there are.
"""

import torch
import triton
import triton.language as tl

from fastsmc.kernels.build import Build

_BLOCK = 256
_ROWS = 8


@triton.jit
def _add_slices_kernel(partials, out, slices, n, ROWS: tl.constexpr, BLOCK: tl.constexpr, ACCUMULATE: tl.constexpr):
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    total = tl.zeros((BLOCK,), out.dtype.element_ty)
    if ACCUMULATE:
        total += tl.load(out + at, mask=at < n, other=0)
    for begin in range(0, slices, ROWS):
        row = (begin + tl.arange(0, ROWS)).to(tl.int64)
        mask = (row < slices)[:, None] & (at < n)[None, :]
        total += tl.sum(tl.load(partials + row[:, None] * n + at[None, :], mask=mask, other=0), axis=0)
    tl.store(out + at, total, mask=at < n)


def add_slices(partials: torch.Tensor, out: torch.Tensor, accumulate: bool = False) -> None:
    """Sum partials [S, ...] into out [...], or onto what is there."""
    n = out.numel()
    grid = (triton.cdiv(n, _BLOCK),)
    _add_slices_kernel[grid](partials, out, len(partials), n, _ROWS, _BLOCK, accumulate)


BUILDS = tuple(
    Build(
        f"add_slices of {kind}" + ", onto" * accumulate,
        _add_slices_kernel,
        {"partials": f"*{kind}", "out": f"*{kind}", "slices": "i32", "n": "i32"},
        {"ROWS": _ROWS, "BLOCK": _BLOCK, "ACCUMULATE": accumulate},
        registers=64,
        shared=0,
    )
    for kind, accumulate in (("fp32", False), ("fp32", True), ("fp64", False))
)
