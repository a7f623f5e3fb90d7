"""Counts of ancestors, and ancestors in an order in which particles can be gathered in place.

Counts are integer atomics, whose order does not matter. The permutation gives every survivor its own slot, and the k-th
vacant slot the k-th further copy: one prefix sum counts both (`fastsmc.kernels.scan`), and vacant slots search it. Up
to `Cut.alone` particles that is one launch, else four.
"""

from __future__ import annotations

from inspect import signature

import torch
import triton
import triton.language as tl

from fastsmc.kernels.build import ROOMY, Build
from fastsmc.kernels.rows import DEFAULT_CUT, Cut, new_status, options_of, report, tile_index
from fastsmc.kernels.scan import VACANCIES, scan_parts, search, sum_parts, vacancies_of
from fastsmc.kernels.sizes import next_power_of_2


def offspring(ancestors: torch.Tensor, counts: torch.Tensor, cut: Cut = DEFAULT_CUT) -> torch.Tensor:
    """Count ancestors [..., M] into [..., P]; returns the status."""
    m, n = ancestors.shape[-1], counts.shape[-1]
    rows, status = ancestors.numel() // m, new_status(ancestors)
    counts.zero_()
    _count[cut.grid(rows, m)](ancestors, counts, status, n, m, cut.tiles(m), BLOCK=cut.tile, **options_of(cut.tile))
    return status


def permute_ancestors(ancestors: torch.Tensor, permuted: torch.Tensor, cut: Cut = DEFAULT_CUT) -> torch.Tensor:
    """Survivors to their own slots, further copies to the others, both in ascending order; returns the status."""
    n = ancestors.shape[-1]
    rows, status = ancestors.numel() // n, new_status(ancestors)
    if n <= cut.alone:
        counts, vacancies = torch.empty_like(ancestors, dtype=torch.int32), torch.empty_like(ancestors)
        block = next_power_of_2(n)
        _permute_row[(rows,)](ancestors, permuted, counts, vacancies, status, n, BLOCK=block, **options_of(block))
        return status
    counts = torch.zeros_like(ancestors, dtype=torch.int32)
    _count[cut.grid(rows, n)](ancestors, counts, status, n, n, cut.tiles(n), BLOCK=cut.tile, **options_of(cut.tile))
    permute_by_counts(counts, permuted, cut)
    return status


def permute_by_counts(counts: torch.Tensor, permuted: torch.Tensor, cut: Cut) -> None:
    """Ancestors in place from the counts [..., P] of offspring, by parts of rows."""
    n = counts.shape[-1]
    rows = counts.numel() // n
    grid, tiles, block = cut.grid(rows, n), cut.tiles(n), {"BLOCK": cut.tile, **options_of(cut.tile)}
    sums, vacancies = permuted.new_empty((rows, cut.parts)), torch.empty_like(permuted)
    what = {"WHAT": VACANCIES.value, "PARTS": cut.parts}
    sum_parts[grid](counts, None, sums, n, n, tiles, **what, **block)
    scan_parts[grid](counts, None, sums, vacancies, n, n, tiles, **what, **block, **ROOMY)
    _fill_vacancies[grid](counts, vacancies, permuted, n, tiles, **block)


@triton.jit
def _count_tile(ancestors, counts, status, row, slot, n, m):
    a = tl.load(ancestors + row * m + slot, slot < m, other=0)
    bad = (a < 0) | (a >= n)
    report(status, bad, 6, row * m, slot)
    tl.atomic_add(counts + row * n + a, 1, (slot < m) & ~bad, sem="relaxed")


@triton.jit
def fill_tile(counts, vacancies, permuted, row, slot, n):
    """Survivors to their own slots, the vacant ones by the prefix sums of vacancies."""
    vacant = tl.load(counts + row * n + slot, slot < n, other=1) == 0
    rank = tl.load(vacancies + row * n + slot, slot < n, other=0) & 0xFFFFFFFF  # from 1 at a vacant slot
    parent = search(vacancies + row * n, n, (rank << 32) - 1)
    tl.store(permuted + row * n + slot, tl.where(vacant, parent, slot), slot < n)


@triton.jit
def _count(ancestors, counts, status, n, m, tiles, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    for tile in range(tiles):
        _count_tile(ancestors, counts, status, row, tile_index(tile, tiles, BLOCK), n, m)


@triton.jit
def _fill_vacancies(counts, vacancies, permuted, n, tiles, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    for tile in range(tiles):
        fill_tile(counts, vacancies, permuted, row, tile_index(tile, tiles, BLOCK), n)


@triton.jit
def _permute_row(ancestors, permuted, counts, vacancies, status, n, BLOCK: tl.constexpr):
    row, slot = tl.program_id(0).to(tl.int64), tl.arange(0, BLOCK)
    tl.store(counts + row * n + slot, tl.zeros_like(slot), slot < n)
    tl.debug_barrier()
    _count_tile(ancestors, counts, status, row, slot, n, n)
    tl.debug_barrier()
    entries = vacancies_of(tl.load(counts + row * n + slot, slot < n, other=1))
    tl.store(vacancies + row * n + slot, tl.cumsum(entries, axis=0), slot < n)
    tl.debug_barrier()
    fill_tile(counts, vacancies, permuted, row, slot, n)


_TYPES = {
    **dict.fromkeys(("ancestors", "permuted", "vacancies", "status"), "*i64"),
    **dict.fromkeys(("n", "m", "tiles"), "i32"),
    "counts": "*i32",
    "BLOCK": "constexpr",
}

BUILDS = tuple(
    Build(
        kernel.__name__,
        kernel,
        {name: _TYPES[name] for name in signature(kernel.fn).parameters},
        {"BLOCK": block},
        registers=registers,
        shared=shared,
        options=options_of(block),
    )
    for kernel, block, registers, shared in (
        (_count, 2048, 64, 64),
        (_fill_vacancies, 2048, 96, 0),
        (_permute_row, 4096, 104, 1024),
    )
)
