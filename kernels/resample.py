"""Ancestors from weights and uniform numbers, and what is done with ancestors.

All schemes are one pipeline: masses of the weights (`fastsmc.kernels.fixed_scan`), how many samples have an ancestor of
at most i, and from these cumulative counts the ancestors, for which every slot searches. A comb's cumulative counts are
a function of the prefix sums of masses. Independent draws search the prefix sums, unsorted, and are counted by integer
atomics, whose order does not matter; residual resampling counts its copies first and draws by the remainders.

Up to `Cut.alone` particles and samples one program does all of it, tile by tile: it reads the weights four times, all
but the first from a cache, and has what it must search in scratch memory. Longer rows take a launch for each step: the
largest weight, sums of masses at the safe scale and at the refined one, cumulative counts, ancestors, which is four
reads of the weights, a write and a read of int32 counts, and a write of the ancestors. Draws add a launch for
themselves and two for the prefix sums of their counts; the remainders' prefix sums take two more.
"""

from __future__ import annotations

from inspect import signature
from itertools import product
from typing import Any

import torch
import triton
import triton.language as tl

from fastsmc.kernels.build import CAPABILITIES, ROOMY, Build
from fastsmc.kernels.exponential import exp64
from fastsmc.kernels.fixed_scan import (
    bit_length,
    divide,
    offset,
    quantise,
    refined_scale,
    refinements,
    safe_scale,
    too_fine,
)
from fastsmc.kernels.rows import (
    DEFAULT_CUT,
    Cut,
    load_parts,
    new_status,
    options_of,
    report,
    report_row,
    sum_before,
    tile_index,
)
from fastsmc.kernels.scan import COUNTS, REMAINDERS, scan_parts, search, sum_parts
from fastsmc.kernels.sizes import next_power_of_2

SCHEMES = ("systematic", "stratified", "multinomial", "residual")
DRAWN = ("multinomial", "residual")
"""Those with independent draws."""
_SYSTEMATIC, _STRATIFIED, _MULTINOMIAL, _RESIDUAL = (tl.constexpr(code) for code in range(4))


def schemes() -> list[str]:
    """The schemes that `resample` knows."""
    return list(SCHEMES)


def resample(
    scheme: str, log: bool, weights: torch.Tensor, u: torch.Tensor, ancestors: torch.Tensor, cut: Cut = DEFAULT_CUT
) -> torch.Tensor:
    """Ancestors [..., M] of weights [..., P], or of their logarithms, by uniform numbers; returns the status."""
    n, m = weights.shape[-1], ancestors.shape[-1]
    rows, status, code = weights.numel() // n, new_status(weights), SCHEMES.index(scheme)
    if max(n, m) <= cut.alone:
        sums = weights.new_empty((rows, n if scheme in DRAWN else 1), dtype=torch.int64)
        counts = weights.new_empty((rows, n), dtype=torch.int32)
        tile = min(cut.tile, next_power_of_2(max(n, m)))
        _resample_row[(rows,)](
            *(weights, u, ancestors, sums, counts, status, n, m),
            BLOCK=tile, SCHEME=code, LOG=log, **options_of(2 * tile), **ROOMY,
        )  # fmt: skip
        return status
    counts = cumulative_counts(scheme, log, weights, u, m, status, cut)
    shape = {"BLOCK": cut.tile, "PARTS": cut.parts, **options_of(cut.tile)}
    _place[cut.grid(rows, m)](u, counts, ancestors, status, n, m, cut.tiles(m), SCHEME=code, **shape)
    return status


def cumulative_counts(
    scheme: str, log: bool, weights: torch.Tensor, u: torch.Tensor, m: int, status: torch.Tensor, cut: Cut
) -> torch.Tensor:
    """How many of m samples have an ancestor of at most i: int32 [rows, n], by parts of rows."""
    n = weights.shape[-1]
    rows, code, drawn = weights.numel() // n, SCHEMES.index(scheme), scheme in DRAWN
    sums = weights.new_empty((rows, n if drawn else 1), dtype=torch.int64)
    counts = weights.new_empty((rows, n), dtype=torch.int32)
    grid, tiles = cut.grid(rows, n), cut.tiles(n)
    slot_grid, slot_tiles = cut.grid(rows, m), cut.tiles(m)
    shape = {"BLOCK": cut.tile, "PARTS": cut.parts, **options_of(cut.tile)}
    passes = refinements(n) + 1
    largest = weights.new_empty((rows, cut.parts), dtype=torch.float64)
    scales = weights.new_empty((passes, rows), dtype=torch.int64)
    fine, coarse = weights.new_empty((2, passes, rows, cut.parts), dtype=torch.int64)
    part_sums, copies = weights.new_empty((2, rows, cut.parts), dtype=torch.int64)

    _find_largest[grid](weights, largest, status, n, tiles, LOG=log, **shape)
    for k in range(passes):
        _sum_masses[grid](
            *(weights, largest, scales[k - 1], fine[k - 1], scales[k], fine[k], coarse[k], status, n, tiles),
            FIRST=k == 0, LOG=log, **shape,
        )  # fmt: skip
    _cumulate[grid](
        *(weights, u, largest, scales[-1], fine[-1], coarse[-1], sums, counts, copies, n, m, tiles),
        SCHEME=code, LOG=log, **shape, **ROOMY,
    )  # fmt: skip
    if scheme == "residual":
        sum_parts[grid](sums, copies, part_sums, n, m, tiles, WHAT=REMAINDERS.value, **shape)
        scan_parts[grid](sums, copies, part_sums, sums, n, m, tiles, WHAT=REMAINDERS.value, **shape, **ROOMY)
    if drawn:
        _draw[slot_grid](u, sums, counts, copies, status, n, m, slot_tiles, grid[1], SCHEME=code, **shape)
        sum_parts[grid](counts, copies, part_sums, n, m, tiles, WHAT=COUNTS.value, **shape)
        scan_parts[grid](counts, copies, part_sums, counts, n, m, tiles, WHAT=COUNTS.value, **shape, **ROOMY)
    return counts


@triton.jit
def _load(values, start, index, n, LOG: tl.constexpr):
    none: tl.constexpr = float("-inf") if LOG else 0.0
    return tl.load(values + start + index, index < n, other=none).to(tl.float64)


@triton.jit
def _largest_of(x, start, index, status, LOG: tl.constexpr):
    """The largest of those that are weights, or log weights."""
    none: tl.constexpr = float("-inf") if LOG else 0.0
    code: tl.constexpr = 3 if LOG else 1
    bad = ~(x < float("inf"))
    if not LOG:
        bad |= x < 0
    report(status, bad, code, start, index)
    return tl.max(tl.where(bad, none, x), axis=0)


@triton.jit
def _report_empty(status, largest, position, LOG: tl.constexpr):
    none: tl.constexpr = float("-inf") if LOG else 0.0
    code: tl.constexpr = 4 if LOG else 2
    report_row(status, largest == none, code, position)


@triton.jit
def _weights(x, largest, LOG: tl.constexpr):
    """Weights from +0; what is none has weight zero."""
    if LOG:
        x = exp64(x - largest)
    return tl.where(x > 0, x, 0.0)


@triton.jit
def _first_scale(largest, n, LOG: tl.constexpr):
    if LOG:
        largest = tl.full((), 1.0, tl.float64)  # of the exponentials
    return safe_scale(largest, n)


@triton.jit
def _uniforms(u, start, index, n, status):
    """Uniform numbers in float64, after a check of them."""
    x = tl.load(u + start + index, index < n, other=0.0).to(tl.float64)
    report(status, ~((x >= 0) & (x < 1)), 5, start, index)
    return x


@triton.jit
def check_comb(u, status, row, slot, m, SCHEME: tl.constexpr):
    """Check the numbers of slots, where the scheme makes a comb of them."""
    if SCHEME == _SYSTEMATIC:
        _uniforms(u, row, slot, 1, status)
    if SCHEME == _STRATIFIED:
        _uniforms(u, row * m, slot, m, status)


@triton.jit
def _comb_below(c, total, u, row, m, SCHEME: tl.constexpr):
    """How many positions of a comb lie below each prefix sum."""
    quotient, remainder = divide(c, total, m)
    if SCHEME == _SYSTEMATIC:
        shift = offset(tl.load(u + row).to(tl.float64), total)
    else:
        inside = (remainder > 0) & (quotient >= 0) & (quotient < m)
        shift = offset(tl.load(u + row * m + quotient, inside, other=0.0).to(tl.float64), total)
    return quotient + (shift < remainder).to(tl.int64)


@triton.jit
def _draw_tile(u, sums, counts, status, row, slot, drawn, total, n, m):
    """Count the ancestors of the first `drawn` independent positions."""
    position = offset(_uniforms(u, row * m, slot, m, status), total)
    ancestor = search(sums + row * n, n, position)
    tl.atomic_add(counts + row * n + ancestor, 1, (slot < drawn) & (ancestor < n), sem="relaxed")


@triton.jit
def _place_tile(u, below, ancestors, status, row, slot, n, m, SCHEME: tl.constexpr):
    """Ancestors of the slots."""
    check_comb(u, status, row, slot, m, SCHEME)
    tl.store(ancestors + row * m + slot, search(below + row * n, n, slot), slot < m)


@triton.jit
def _masses(values, row, index, n, largest, scale, LOG: tl.constexpr):
    return quantise(_weights(_load(values, row * n, index, n, LOG), largest, LOG), scale)


@triton.jit
def _cumulate_tile(masses, before, copied, total, u, sums, counts, row, index, n, m, SCHEME: tl.constexpr):
    """What a scheme makes of a tile; returns the masses and the copies up to its end.

    Combs: counts [n] become cumulative counts. Multinomial: sums [n] become the prefix sums, counts zero. Residual:
    counts become the numbers of copies, sums the remainders.
    """
    at = row * n + index
    if SCHEME == _RESIDUAL:
        quotient, remainder = divide(masses, total, m)
        tl.store(sums + at, remainder, index < n)
        tl.store(counts + at, quotient.to(tl.int32), index < n)
        copied += tl.sum(quotient, axis=0)
    else:
        c = before + tl.cumsum(masses, axis=0)
        before += tl.sum(masses, axis=0)
        if SCHEME == _MULTINOMIAL:
            tl.store(counts + at, tl.zeros_like(index).to(tl.int32), index < n)
            tl.store(sums + at, c, index < n)
        else:
            tl.store(counts + at, _comb_below(c, total, u, row, m, SCHEME).to(tl.int32), index < n)
    return before, copied


@triton.jit
def _sum_row(values, row, n, largest, scale, BLOCK: tl.constexpr, LOG: tl.constexpr):
    """Of masses at a scale, and at the next coarser one."""
    fine, coarse = tl.zeros((), tl.int64), tl.zeros((), tl.int64)
    for start in range(0, n, BLOCK):
        masses = _masses(values, row, start + tl.arange(0, BLOCK), n, largest, scale, LOG)
        fine += tl.sum(masses, axis=0)
        coarse += tl.sum(masses >> 1, axis=0)
    return fine, coarse


@triton.jit
def _scan_row(entries, n, shift, BLOCK: tl.constexpr):
    """Entries [n], shifted, become their prefix sums; returns the sum of all."""
    before = tl.zeros((), tl.int64)
    for start in range(0, n, BLOCK):
        index = start + tl.arange(0, BLOCK)
        x = tl.load(entries + index, index < n, other=0).to(tl.int64) >> shift
        tl.store(entries + index, (before + tl.cumsum(x, axis=0)).to(entries.dtype.element_ty), index < n)
        before += tl.sum(x, axis=0)
    return before


@triton.jit
def cumulate_row(
    values, u, sums, counts, status, row, n, m, BLOCK: tl.constexpr, SCHEME: tl.constexpr, LOG: tl.constexpr
):
    """How many of m samples have an ancestor of at most i, into counts [rows, n], tile by tile."""
    largest = tl.full((), float("-inf") if LOG else 0.0, tl.float64)
    for start in range(0, n, BLOCK):
        index = start + tl.arange(0, BLOCK)
        x = _load(values, row * n, index, n, LOG)
        largest = tl.maximum(largest, _largest_of(x, row * n, index, status, LOG))
    _report_empty(status, largest, row * n, LOG)
    scale = _first_scale(largest, n, LOG)
    fine, coarse = _sum_row(values, row, n, largest, scale, BLOCK, LOG)
    scale = refined_scale(fine, scale, n)
    fine, coarse = _sum_row(values, row, n, largest, scale, BLOCK, LOG)
    halved = too_fine(fine)
    total = tl.where(halved, coarse, fine)
    scale -= halved.to(tl.int64)
    before, copied = tl.zeros((), tl.int64), tl.zeros((), tl.int64)
    for start in range(0, n, BLOCK):
        index = start + tl.arange(0, BLOCK)
        masses = _masses(values, row, index, n, largest, scale, LOG)
        before, copied = _cumulate_tile(masses, before, copied, total, u, sums, counts, row, index, n, m, SCHEME)
    tl.debug_barrier()
    if (SCHEME == _MULTINOMIAL) | (SCHEME == _RESIDUAL):
        drawn = m - copied
        if SCHEME == _RESIDUAL:
            total = _scan_row(sums + row * n, n, bit_length(drawn), BLOCK)
            tl.debug_barrier()
        for start in range(0, m, BLOCK):
            _draw_tile(u, sums, counts, status, row, start + tl.arange(0, BLOCK), drawn, total, n, m)
        tl.debug_barrier()
        _scan_row(counts + row * n, n, 0, BLOCK)
        tl.debug_barrier()


@triton.jit
def _resample_row(
    values, u, ancestors, sums, counts, status, n, m,
    BLOCK: tl.constexpr, SCHEME: tl.constexpr, LOG: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    cumulate_row(values, u, sums, counts, status, row, n, m, BLOCK, SCHEME, LOG)
    for start in range(0, m, BLOCK):
        _place_tile(u, counts, ancestors, status, row, start + tl.arange(0, BLOCK), n, m, SCHEME)


@triton.jit
def _find_largest(values, largest, status, n, tiles, LOG: tl.constexpr, BLOCK: tl.constexpr, PARTS: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    top = tl.full((), float("-inf") if LOG else 0.0, tl.float64)
    for tile in range(tiles):
        index = tile_index(tile, tiles, BLOCK)
        x = _load(values, row * n, index, n, LOG)
        top = tl.maximum(top, _largest_of(x, row * n, index, status, LOG))
    tl.store(largest + row * PARTS + tl.program_id(1), top)


@triton.jit
def _sum_masses(
    values, largest, scale_before, sums_before, scale_now, fine, coarse, status, n, tiles,
    FIRST: tl.constexpr, LOG: tl.constexpr, BLOCK: tl.constexpr, PARTS: tl.constexpr,
):  # fmt: skip
    """Sums of masses at the safe scale, or the one that the sums before this launch tell, and at the next coarser."""
    row, parts = tl.program_id(0).to(tl.int64), tl.num_programs(1)
    top = tl.max(load_parts(largest, row, parts, PARTS, float("-inf")), axis=0)
    if FIRST:
        scale = _first_scale(top, n, LOG)
        _report_empty(status, top, row * n, LOG)
    else:
        scale = refined_scale(
            tl.sum(load_parts(sums_before, row, parts, PARTS, 0), axis=0), tl.load(scale_before + row), n
        )
    sum_fine, sum_coarse = tl.zeros((), tl.int64), tl.zeros((), tl.int64)
    for tile in range(tiles):
        index = tile_index(tile, tiles, BLOCK)
        masses = _masses(values, row, index, n, top, scale, LOG)
        sum_fine += tl.sum(masses, axis=0)
        sum_coarse += tl.sum(masses >> 1, axis=0)
    tl.store(fine + row * PARTS + tl.program_id(1), sum_fine)
    tl.store(coarse + row * PARTS + tl.program_id(1), sum_coarse)
    tl.store(scale_now + row, scale, tl.program_id(1) == 0)


@triton.jit
def _cumulate(
    values, u, largest, scales, fine, coarse, sums, counts, copies, n, m, tiles,
    SCHEME: tl.constexpr, LOG: tl.constexpr, BLOCK: tl.constexpr, PARTS: tl.constexpr,
):  # fmt: skip
    """What a scheme makes of the masses of a part; `copies` of it are counted."""
    row, parts = tl.program_id(0).to(tl.int64), tl.num_programs(1)
    top = tl.max(load_parts(largest, row, parts, PARTS, float("-inf")), axis=0)
    part_masses = load_parts(fine, row, parts, PARTS, 0)
    halved = too_fine(tl.sum(part_masses, axis=0))
    part_masses = tl.where(halved, load_parts(coarse, row, parts, PARTS, 0), part_masses)
    scale = tl.load(scales + row) - halved.to(tl.int64)
    total = tl.sum(part_masses, axis=0)
    before = sum_before(part_masses, PARTS)
    copied = tl.zeros((), tl.int64)
    for tile in range(tiles):
        index = tile_index(tile, tiles, BLOCK)
        masses = _masses(values, row, index, n, top, scale, LOG)
        before, copied = _cumulate_tile(masses, before, copied, total, u, sums, counts, row, index, n, m, SCHEME)
    if SCHEME == _RESIDUAL:
        tl.store(copies + row * PARTS + tl.program_id(1), copied)


@triton.jit
def _draw(
    u, sums, counts, copies, status, n, m, tiles, parts,
    SCHEME: tl.constexpr, BLOCK: tl.constexpr, PARTS: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    total = tl.load(sums + row * n + n - 1)
    drawn = tl.cast(m, tl.int64)
    if SCHEME == _RESIDUAL:
        drawn -= tl.sum(load_parts(copies, row, parts, PARTS, 0), axis=0)
    for tile in range(tiles):
        slot = tile_index(tile, tiles, BLOCK)
        _draw_tile(u, sums, counts, status, row, slot, drawn, total, n, m)


@triton.jit
def _place(u, below, ancestors, status, n, m, tiles, SCHEME: tl.constexpr, BLOCK: tl.constexpr, PARTS: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    for tile in range(tiles):
        slot = tile_index(tile, tiles, BLOCK)
        _place_tile(u, below, ancestors, status, row, slot, n, m, SCHEME)


TYPES = {
    **dict.fromkeys(("ancestors", "offspring", "sums", "fine", "coarse", "copies"), "*i64"),
    **dict.fromkeys(("scales", "scale_before", "scale_now", "sums_before", "status"), "*i64"),
    **dict.fromkeys(("counts", "below"), "*i32"),
    **dict.fromkeys(("n", "m", "tiles", "parts"), "i32"),
    **dict.fromkeys(("BLOCK", "TILE", "PARTS", "SCHEME", "LOG", "FIRST"), "constexpr"),
    **dict.fromkeys(("largest", "total", "squares", "least", "u"), "*fp64"),
}


def builds(kernel: Any, registers: int, shared: int, more: dict[str, Any], **choices: tuple[int, ...]) -> list[Build]:
    """A kernel in all combinations of choices, for weights of both types where it reads them.

    Of the narrower type on one card alone: it takes no more of anything.
    """
    names = signature(kernel.fn).parameters
    floats = ("fp32", "fp64") if {"values", "log_weights"} & {*names} else ("",)
    return [
        Build(
            " ".join([kernel.__name__, *filter(None, [values]), *(f"{k}={v}" for k, v in constexprs.items())]),
            kernel,
            {name: TYPES.get(name, f"*{values}") for name in names},
            constexprs,
            registers=registers,
            shared=shared,
            options=options_of(constexprs["BLOCK"]) | more,
            capabilities=CAPABILITIES[-1:] if values == "fp32" else CAPABILITIES,
        )
        for values in floats
        for constexprs in (dict(zip(choices, chosen, strict=True)) for chosen in product(*choices.values()))
    ]


_PART = {"BLOCK": (2048,), "PARTS": (1024,)}
BUILDS = (
    *builds(_resample_row, 128, 1024, options_of(4096) | ROOMY, BLOCK=(2048,), SCHEME=(0, 1, 2, 3), LOG=(0, 1)),
    *builds(_find_largest, 56, 64, {}, LOG=(0, 1), **_PART),
    *builds(_sum_masses, 80, 128, {}, FIRST=(0, 1), LOG=(0, 1), **_PART),
    *builds(_cumulate, 128, 512, ROOMY, SCHEME=(0, 1, 2, 3), LOG=(0, 1), **_PART),
    *builds(_draw, 72, 64, {}, SCHEME=(2, 3), **_PART),
    *builds(_place, 80, 64, {}, SCHEME=(0, 1, 2, 3), **_PART),
)
