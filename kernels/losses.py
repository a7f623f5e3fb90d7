"""Log-likelihoods of outputs and their gradients, one tile of samples at a time.

The outputs [samples, K] lie in memory in float32 and are read in tiles of columns, so that K has no limit; categorical
reads them twice, first for the maximum and the sum of exponentials. The codes are those of `fastsmc.likelihoods`.
Gradients are multiplied by the weights of the samples; the normalising constant of gaussian and the log factorials of
poisson are added by the caller, in float64.
"""

import triton
import triton.language as tl

from fastsmc import backends
from fastsmc.kernels.dot import aligned, store_parts
from fastsmc.kernels.elementary import exp, log, sigmoid, softplus
from fastsmc.kernels.sums import sum_in_any_order

CATEGORICAL = tl.constexpr(0)
BERNOULLI = tl.constexpr(1)
GAUSSIAN = tl.constexpr(2)
POISSON = tl.constexpr(3)

FINE = tl.constexpr(backends.FINE)
BAD_LABEL = tl.constexpr(10 << 48)  # plus the sample


@triton.jit
def bad_labels(y, sample, first_sample, inside, OUTPUTS: tl.constexpr):
    """The status of a tile of labels, of which ``first_sample`` come before y."""
    label = tl.load(y + sample, mask=inside, other=0)
    bad = (label < 0) | (label >= OUTPUTS)
    return tl.min(tl.where(bad, BAD_LABEL + (first_sample + sample), FINE), axis=0)


@triton.jit
def _tile(outputs, row, inside, column, OUTPUTS: tl.constexpr, STRIDE: tl.constexpr):
    mask = inside[:, None] & (column < OUTPUTS)[None, :]
    return tl.load(outputs + row[:, None] * STRIDE + column[None, :], mask=mask, other=0), mask


@triton.jit
def _store_padded(rows, grad, inside, column, OUTPUTS: tl.constexpr, PLANE: tl.constexpr, PRECISION: tl.constexpr):
    grad = tl.where((column < OUTPUTS)[None, :], grad, 0.0)
    mask = inside[:, None] & (column < aligned(OUTPUTS))[None, :]
    store_parts(rows + column[None, :], grad, mask, PLANE, PRECISION)


@triton.jit
def loss(
    outputs,
    delta,
    y,
    sample,
    row,
    inside,
    weight,
    noise_precision,
    LIKELIHOOD: tl.constexpr,
    OUTPUTS: tl.constexpr,
    OUTPUT_STRIDE: tl.constexpr,
    DELTA_STRIDE: tl.constexpr,
    DELTA_PLANE: tl.constexpr,
    COLUMNS: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Log-likelihood of each sample, float32 [rows] and zero outside.

    The gradient goes to ``delta`` in parts, if that is given, with zeros up to a multiple of 16. ``sample`` finds
    targets, ``row`` outputs and deltas; ``weight`` is the factor of each sample.
    """
    value = tl.zeros(row.shape, tl.float32)
    if LIKELIHOOD == CATEGORICAL:
        label = tl.load(y + sample, mask=inside, other=0)
        top = tl.full(row.shape, -3e38, tl.float32)
        total = tl.zeros(row.shape, tl.float32)
        chosen = tl.zeros(row.shape, tl.float32)
        for begin in range(0, OUTPUTS, COLUMNS):
            column = begin + tl.arange(0, COLUMNS)
            z, mask = _tile(outputs, row, inside, column, OUTPUTS, OUTPUT_STRIDE)
            largest = tl.max(tl.where(mask, z, -3e38), axis=1)
            raised = tl.where(largest > top, largest, top)
            e = tl.where(mask, exp(z - raised[:, None]), 0.0)
            total = total * exp(top - raised) + sum_in_any_order(e, 1).to(tl.float32)
            chosen += tl.sum(tl.where(column[None, :] == label[:, None], z, 0.0), axis=1)
            top = raised
        value = chosen - top - log(total)
        if delta is not None:
            for begin in range(0, OUTPUTS, COLUMNS):
                column = begin + tl.arange(0, COLUMNS)
                z, mask = _tile(outputs, row, inside, column, OUTPUTS, OUTPUT_STRIDE)
                hit = tl.where(column[None, :] == label[:, None], 1.0, 0.0)
                grad = hit - exp(z - top[:, None]) / total[:, None]
                at = delta + row[:, None] * DELTA_STRIDE
                _store_padded(at, weight[:, None] * grad, inside, column, OUTPUTS, DELTA_PLANE, PRECISION)
    else:
        for begin in range(0, OUTPUTS, COLUMNS):
            column = begin + tl.arange(0, COLUMNS)
            z, mask = _tile(outputs, row, inside, column, OUTPUTS, OUTPUT_STRIDE)
            target = tl.load(y + sample[:, None] * OUTPUTS + column[None, :], mask=mask, other=0)
            if LIKELIHOOD == BERNOULLI:
                term = tl.fma(target, z, -softplus(z))
                grad = target - sigmoid(z)
            elif LIKELIHOOD == POISSON:
                rate = exp(z)
                term = tl.fma(target, z, -rate)
                grad = target - rate
            else:
                grad = (target - z) * noise_precision
                term = -0.5 * (target - z) * grad
            value += sum_in_any_order(tl.where(mask, term, 0.0), 1).to(tl.float32)
            if delta is not None:
                at = delta + row[:, None] * DELTA_STRIDE
                _store_padded(at, weight[:, None] * grad, inside, column, OUTPUTS, DELTA_PLANE, PRECISION)
    return tl.where(inside, weight * value, 0.0)
