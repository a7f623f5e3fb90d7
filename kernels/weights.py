"""Log weights to weights, log-sum and effective sample size, in float64 whatever their type.

Up to `Cut.alone` particles one program holds the row in registers: a read and a write. A longer row takes two launches
and two reads: every part leaves its largest entry and the sums of its exponentials and of their squares, relative to
that entry; then every part brings the sums of all to one reference and writes its own weights.
"""

from __future__ import annotations

from inspect import signature

import torch
import triton
import triton.language as tl

from fastsmc.kernels.build import ROOMY, Build
from fastsmc.kernels.exponential import exp64
from fastsmc.kernels.rows import DEFAULT_CUT, Cut, load_parts, new_status, options_of, report, report_row, tile_index
from fastsmc.kernels.sizes import next_power_of_2

LOWEST = tl.constexpr(-1.7976931348623157e308)  # a reference for entries that are all -inf


def normalize_log_weights(
    log_weights: torch.Tensor, weights: torch.Tensor, log_sum: torch.Tensor, ess: torch.Tensor, cut: Cut = DEFAULT_CUT
) -> torch.Tensor:
    """Weights, log-sum and effective sample size of log weights [..., P]; returns the status."""
    n = log_weights.shape[-1]
    rows = log_weights.numel() // n
    status = new_status(log_weights)
    if n <= cut.alone:
        block = next_power_of_2(n)
        _normalize_row[(rows,)](log_weights, weights, log_sum, ess, status, n, BLOCK=block, **options_of(block))
        return status
    grid, tiles = cut.grid(rows, n), cut.tiles(n)
    shape = {"BLOCK": cut.tile, "PARTS": cut.parts, **options_of(cut.tile)}
    sums = sums_of_parts(log_weights, status, cut)
    _scale_parts[grid](log_weights, *sums, weights, log_sum, ess, status, n, tiles, **shape, **ROOMY)
    return status


def sums_of_parts(log_weights: torch.Tensor, status: torch.Tensor, cut: Cut) -> torch.Tensor:
    """Of every part the largest entry, and the sums of exponentials relative to it and of their squares: [3, ..]."""
    n = log_weights.shape[-1]
    rows = log_weights.numel() // n
    sums = log_weights.new_empty((3, rows, cut.parts), dtype=torch.float64)
    shape = {"BLOCK": cut.tile, "PARTS": cut.parts, **options_of(cut.tile)}
    _sum_parts[cut.grid(rows, n)](log_weights, *sums, status, n, cut.tiles(n), **shape)
    return sums


@triton.jit
def load_log_weights(log_weights, start, index, n, status):
    """Entries as float64, those that are no log weights as -inf."""
    x = tl.load(log_weights + start + index, index < n, other=float("-inf")).to(tl.float64)
    bad = ~(x < float("inf"))
    report(status, bad, 3, start, index)
    return tl.where(bad, float("-inf"), x)


@triton.jit
def _store_weights(weights, at, w, mask):
    """What would be subnormal becomes zero."""
    smallest: tl.constexpr = 2.0**-126 if weights.dtype.element_ty == tl.float32 else 2.0**-1022
    tl.store(weights + at, tl.where(w < smallest, 0.0, w), mask)


@triton.jit
def finish(log_sum, ess, status, row, n, largest, total, squares):
    """The results of a row."""
    report_row(status, largest == float("-inf"), 4, row * n)
    tl.store(log_sum + row, largest + tl.log(total))
    tl.store(ess + row, total * total / squares)


@triton.jit
def sums_of_row(largest, total, squares, row, parts, PARTS: tl.constexpr):
    """The largest entry of a row that is cut, and both sums relative to it."""
    references = load_parts(largest, row, parts, PARTS, float("-inf"))
    top = tl.max(references, axis=0)
    factor = exp64(references - tl.maximum(top, LOWEST))
    sum_e = tl.sum(factor * load_parts(total, row, parts, PARTS, 0.0), axis=0)
    return top, sum_e, tl.sum(factor * factor * load_parts(squares, row, parts, PARTS, 0.0), axis=0)


@triton.jit
def _normalize_row(log_weights, weights, log_sum, ess, status, n, BLOCK: tl.constexpr):
    row, index = tl.program_id(0).to(tl.int64), tl.arange(0, BLOCK)
    x = load_log_weights(log_weights, row * n, index, n, status)
    largest = tl.max(x, axis=0)
    e = exp64(x - tl.maximum(largest, LOWEST))
    total = tl.sum(e, axis=0)
    _store_weights(weights, row * n + index, e * (1 / total), index < n)
    finish(log_sum, ess, status, row, n, largest, total, tl.sum(e * e, axis=0))


@triton.jit
def _sum_parts(log_weights, largest, total, squares, status, n, tiles, BLOCK: tl.constexpr, PARTS: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    top, sum_e, sum_e2 = (
        tl.full((1,), float("-inf"), tl.float64),
        tl.zeros((1,), tl.float64),
        tl.zeros((1,), tl.float64),
    )
    for tile in range(tiles):
        index = tile_index(tile, tiles, BLOCK)
        x = load_log_weights(log_weights, row * n, index, n, status)
        before, top = top, tl.maximum(top, tl.max(x, axis=0, keep_dims=True))
        reference = tl.maximum(top, LOWEST)
        e, factor = exp64(x - reference), exp64(before - reference)
        sum_e = factor * sum_e + tl.sum(e, axis=0, keep_dims=True)
        sum_e2 = factor * factor * sum_e2 + tl.sum(e * e, axis=0, keep_dims=True)
    at = row * PARTS + tl.program_id(1) + tl.arange(0, 1)
    tl.store(largest + at, top)
    tl.store(total + at, sum_e)
    tl.store(squares + at, sum_e2)


@triton.jit
def _scale_parts(
    log_weights,
    largest,
    total,
    squares,
    weights,
    log_sum,
    ess,
    status,
    n,
    tiles,
    BLOCK: tl.constexpr,
    PARTS: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    top, sum_e, sum_e2 = sums_of_row(largest, total, squares, row, tl.num_programs(1), PARTS)
    reference = tl.maximum(top, LOWEST)
    for tile in range(tiles):
        index = tile_index(tile, tiles, BLOCK)
        x = tl.load(log_weights + row * n + index, index < n, other=float("-inf")).to(tl.float64)
        _store_weights(weights, row * n + index, exp64(x - reference) * (1 / sum_e), index < n)
    if tl.program_id(1) == 0:
        finish(log_sum, ess, status, row, n, top, sum_e, sum_e2)


_TYPES = {
    **dict.fromkeys(("largest", "total", "squares"), "*fp64"),
    **dict.fromkeys(("n", "tiles"), "i32"),
    **dict.fromkeys(("BLOCK", "PARTS"), "constexpr"),
    "status": "*i64",
}

BUILDS = tuple(
    Build(
        f"{kernel.__name__} of {float_type}",
        kernel,
        {name: _TYPES.get(name, f"*{float_type}") for name in signature(kernel.fn).parameters},
        constexprs,
        registers=registers,
        shared=shared,
        options=options_of(constexprs["BLOCK"]) | more,
    )
    for float_type in ("fp32", "fp64")
    for kernel, constexprs, registers, shared, more in (
        (_normalize_row, {"BLOCK": 4096}, 64, 128, {}),
        (_sum_parts, {"BLOCK": 2048, "PARTS": 1024}, 72, 128, {}),
        (_scale_parts, {"BLOCK": 2048, "PARTS": 1024}, 128, 128, ROOMY),
    )
)
