"""A whole resampling step: log weights to ancestors in place, offspring and log weights, where the ESS is too small.

The effective sample size of a row is compared on the device. A row that is kept gives every particle one child, and all
that follows is the same for both: offspring are the differences of cumulative counts (`fastsmc.kernels.resample`), and
ancestors in place follow from offspring alone (`fastsmc.kernels.offspring`), so that sorted ancestors are never made.

Up to `Cut.alone` particles one program does all of it: a read of the log weights, and more of them from a cache, a
write of each result, and what it must search in scratch memory. Longer rows take the launches of the ops that this one
is made of, but for `_settle`, which decides.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from fastsmc.kernels.build import ROOMY
from fastsmc.kernels.exponential import exp64
from fastsmc.kernels.offspring import fill_tile, permute_by_counts
from fastsmc.kernels.resample import SCHEMES, builds, check_comb, cumulate_row, cumulative_counts
from fastsmc.kernels.rows import DEFAULT_CUT, Cut, new_status, options_of, tile_index
from fastsmc.kernels.scan import vacancies_of
from fastsmc.kernels.sizes import next_power_of_2
from fastsmc.kernels.weights import LOWEST, finish, load_log_weights, sums_of_parts, sums_of_row


def adaptive_resample(
    scheme: str,
    threshold: float,
    log_weights: torch.Tensor,
    u: torch.Tensor,
    ancestors: torch.Tensor,
    offspring: torch.Tensor,
    normalized: torch.Tensor,
    log_sum: torch.Tensor,
    ess: torch.Tensor,
    cut: Cut = DEFAULT_CUT,
) -> torch.Tensor:
    """Ancestors in place, offspring and log weights [..., P] of rows that are resampled or kept; returns the status."""
    n = log_weights.shape[-1]
    rows, status, code = log_weights.numel() // n, new_status(log_weights), SCHEMES.index(scheme)
    least = log_weights.new_full((1,), threshold * n, dtype=torch.float64)  # as a number it would be float32
    results = ancestors, offspring, normalized, log_sum, ess
    if n <= cut.alone:
        sums = log_weights.new_empty((rows, n), dtype=torch.int64)
        counts = log_weights.new_empty((rows, n), dtype=torch.int32)
        block = next_power_of_2(n)
        _adapt_row[(rows,)](
            *(log_weights, u, least, *results, sums, counts, status, n),
            BLOCK=block, TILE=min(cut.tile, block), SCHEME=code, **options_of(block), **ROOMY,
        )  # fmt: skip
        return status
    parts = sums_of_parts(log_weights, status, cut)
    counts = cumulative_counts(scheme, True, log_weights, u, n, status, cut)
    _settle[cut.grid(rows, n)](
        *(log_weights, u, least, *parts, counts, *results[1:], status, n, cut.tiles(n)),
        SCHEME=code, BLOCK=cut.tile, PARTS=cut.parts, **options_of(cut.tile),
    )  # fmt: skip
    permute_by_counts(offspring, ancestors, cut)
    return status


@triton.jit
def _too_small(total, squares, least, ess):
    """Whether a row is resampled: by its effective sample size as it is returned."""
    return (total * total / squares).to(ess.dtype.element_ty).to(tl.float64) < tl.load(least)


@triton.jit
def _store_settled(counts, offspring, normalized, x, largest, total, resampled, row, index, n):
    """Offspring by cumulative counts, which are returned, and log weights; of a row that is kept, one child each."""
    below = tl.load(counts + row * n + index, index < n, other=1)
    before = tl.load(counts + row * n + index - 1, (index > 0) & (index < n), other=0)
    children = tl.where(resampled, below - before, 1)
    equal = -tl.log(tl.cast(n, tl.float64))
    tl.store(offspring + row * n + index, children.to(tl.int64), index < n)
    tl.store(normalized + row * n + index, tl.where(resampled, equal, (x - largest) - tl.log(total)), index < n)
    return children


@triton.jit
def _adapt_row(
    log_weights, u, least, ancestors, offspring, normalized, log_sum, ess, sums, counts, status, n,
    BLOCK: tl.constexpr, TILE: tl.constexpr, SCHEME: tl.constexpr,
):  # fmt: skip
    row, index = tl.program_id(0).to(tl.int64), tl.arange(0, BLOCK)
    x = load_log_weights(log_weights, row * n, index, n, status)
    largest = tl.max(x, axis=0)
    e = exp64(x - tl.maximum(largest, LOWEST))
    total, squares = tl.sum(e, axis=0), tl.sum(e * e, axis=0)
    finish(log_sum, ess, status, row, n, largest, total, squares)
    cumulate_row(log_weights, u, sums, counts, status, row, n, n, TILE, SCHEME, True)
    check_comb(u, status, row, index, n, SCHEME)
    x = load_log_weights(log_weights, row * n, index, n, status)  # a second read is cheaper than registers till here
    resampled = _too_small(total, squares, least, ess)
    children = _store_settled(counts, offspring, normalized, x, largest, total, resampled, row, index, n)
    tl.store(sums + row * n + index, tl.cumsum(vacancies_of(children), axis=0), index < n)
    tl.debug_barrier()
    fill_tile(offspring, sums, ancestors, row, index, n)


@triton.jit
def _settle(
    log_weights, u, least, largest, total, squares, counts, offspring, normalized, log_sum, ess, status, n, tiles,
    SCHEME: tl.constexpr, BLOCK: tl.constexpr, PARTS: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    top, sum_e, sum_e2 = sums_of_row(largest, total, squares, row, tl.num_programs(1), PARTS)
    resampled = _too_small(sum_e, sum_e2, least, ess)
    for tile in range(tiles):
        index = tile_index(tile, tiles, BLOCK)
        check_comb(u, status, row, index, n, SCHEME)
        x = tl.load(log_weights + row * n + index, index < n, other=0).to(tl.float64)
        _store_settled(counts, offspring, normalized, x, top, sum_e, resampled, row, index, n)
    if tl.program_id(1) == 0:
        finish(log_sum, ess, status, row, n, top, sum_e, sum_e2)


BUILDS = (
    *builds(_adapt_row, 128, 1024, ROOMY, BLOCK=(4096,), TILE=(2048,), SCHEME=(0, 1, 2, 3)),
    *builds(_settle, 128, 512, {}, SCHEME=(0, 1, 2, 3), BLOCK=(2048,), PARTS=(1024,)),
)
