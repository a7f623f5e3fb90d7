"""Exact prefix sums of integers along rows, and the search in them.

Two launches: every part sums its entries; then every part adds up the sums of those before it and writes its own prefix
sums. Three reads and writes of an entry in all.
"""

from inspect import signature

import triton
import triton.language as tl

from fastsmc.kernels.build import ROOMY, Build
from fastsmc.kernels.fixed_scan import bit_length
from fastsmc.kernels.rows import load_parts, options_of, sum_before, tile_index

# What is summed along a row.
COUNTS, REMAINDERS, VACANCIES = (tl.constexpr(code) for code in range(3))


@triton.jit
def vacancies_of(counts):
    """Further copies of a particle in the upper half, its slot if vacant in the lower one: one sum counts both."""
    surplus, vacant = tl.maximum(counts - 1, 0).to(tl.int64), (counts == 0).to(tl.int64)
    return (surplus << 32) | vacant


@triton.jit
def _entries(values, copies, row, index, n, m, WHAT: tl.constexpr, PARTS: tl.constexpr):
    x = tl.load(values + row * n + index, index < n, other=1 if WHAT == VACANCIES else 0)
    if WHAT == REMAINDERS:  # they sum to R T for R draws: a shift by the bit length of R brings that below T
        x >>= bit_length(m - tl.sum(load_parts(copies, row, tl.num_programs(1), PARTS, 0), axis=0))
    if WHAT == VACANCIES:
        x = vacancies_of(x)
    return x.to(tl.int64)


@triton.jit
def sum_parts(values, copies, sums, n, m, tiles, WHAT: tl.constexpr, BLOCK: tl.constexpr, PARTS: tl.constexpr):
    """The sum of each part of rows of n; `copies` of each part and the m samples tell the shift of remainders."""
    row = tl.program_id(0).to(tl.int64)
    total = tl.zeros((), tl.int64)
    for tile in range(tiles):
        total += tl.sum(_entries(values, copies, row, tile_index(tile, tiles, BLOCK), n, m, WHAT, PARTS), axis=0)
    tl.store(sums + row * PARTS + tl.program_id(1), total)


@triton.jit
def scan_parts(values, copies, sums, out, n, m, tiles, WHAT: tl.constexpr, BLOCK: tl.constexpr, PARTS: tl.constexpr):
    """Inclusive prefix sums of rows, from the sums of parts; `out` may be the values."""
    row = tl.program_id(0).to(tl.int64)
    before = sum_before(load_parts(sums, row, tl.num_programs(1), PARTS, 0), PARTS)
    for tile in range(tiles):
        index = tile_index(tile, tiles, BLOCK)
        entries = _entries(values, copies, row, index, n, m, WHAT, PARTS)
        tl.store(out + row * n + index, before + tl.cumsum(entries, axis=0), index < n)
        before += tl.sum(entries, axis=0)


@triton.jit
def search(table, n, keys):
    """The first entry of an ascending table [n] that is larger than each key; n if there is none."""
    found = tl.zeros(keys.shape, tl.int32)
    step = (tl.cast(1, tl.int64) << (bit_length(tl.cast(n, tl.int64)) - 1)).to(tl.int32)
    while step > 0:
        inside = step <= n - found
        entry = tl.load(table + (step - 1) + found, inside, other=0)
        found = tl.where(inside & (entry <= keys), found + step, found)
        step >>= 1
    return found


_TYPES = {
    **dict.fromkeys(("copies", "sums"), "*i64"),
    **dict.fromkeys(("n", "m", "tiles"), "i32"),
    **dict.fromkeys(("WHAT", "BLOCK", "PARTS"), "constexpr"),
}

BUILDS = tuple(
    Build(
        f"{kernel.__name__} of {what}",
        kernel,
        {name: {"values": values, "out": out}.get(name) or _TYPES[name] for name in signature(kernel.fn).parameters},
        {"WHAT": code.value, "BLOCK": 2048, "PARTS": 1024},
        registers=registers,
        shared=shared,
        options=options_of(2048) | more,
    )
    for kernel, registers, shared, more in ((sum_parts, 40, 64, {}), (scan_parts, 112, 512, ROOMY))
    for what, code, values, out in (
        ("counts", COUNTS, "*i32", "*i32"),
        ("remainders", REMAINDERS, "*i64", "*i64"),
        ("vacancies", VACANCIES, "*i32", "*i64"),
    )
)
