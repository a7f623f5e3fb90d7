"""Resampling in 64-bit fixed point on the device: csrc/common/fixed_scan.h says what is computed, and why it is exact.

All integers here are below 2^63, so they are signed ones, but for products of which 64 bits are taken.

How often the scale must be refined
-----------------------------------
Let W be the exact sum of n <= 2^L weights and S(s) that of their masses at scale s: W 2^s - n < S(s) <= W 2^s.

* At the safe scale s the largest weight alone has a mass of at least 2^(60 - L), and S(s) < 2^61.
* With b = bit_length(S(s) + n), the refined scale is t = s + 62 - b. W 2^(t - 1) < 2^61: at t - 1 the limit is not
  reached, and at t nothing wraps.
* S(t + 1) > W 2^(t + 1) - n >= (2^(b - 1) - n) 2^(63 - b) - n = 2^62 - n 2^(63 - b) - n. For L <= 28, b >= 61 - L makes
  this at least 2^62 - 2^(2 + 2 L) - 2^L > 3 2^60: the limit is reached at t + 1. So f is t or t - 1, whichever the sums
  at t say.
* For L <= 31, S(t) >= 2^57 whatever b was, and a second refinement, with b >= 58, proves f likewise.

So `refinements` depends on n alone: no launch waits for what a device found.
"""

import triton
import triton.language as tl

_LIMIT = tl.constexpr(3 << 60)  # of the sum of all masses
_SAFE_BITS = tl.constexpr(61)  # sums of so many bits are below it
_LIFT = tl.constexpr(200)  # weights are multiplied by 2^lift where subnormal ones can have a mass
_IMPLICIT = tl.constexpr(1 << 52)


def refinements(n: int) -> int:
    """How many times the scale for n weights is refined from the safe one."""
    return 1 if n <= 2**28 else 2


@triton.jit
def bit_length(x):
    """Of an int64 >= 0."""
    bits = tl.zeros_like(x)
    for k in tl.static_range(6):
        shifted = x >> (32 >> k)
        bits += tl.where(shifted > 0, 32 >> k, 0)
        x = tl.where(shifted > 0, shifted, x)
    return bits + x


@triton.jit
def safe_scale(largest, n):
    """The scale at which n weights of at most `largest` cannot sum to the limit."""
    bits = largest.to(tl.int64, bitcast=True)
    field = bits >> 52
    top = tl.where(field > 0, field - 1022, bit_length(bits) - 1074)  # largest < 2^top
    return _SAFE_BITS - bit_length(tl.cast(n - 1, tl.int64)) - top


@triton.jit
def refined_scale(total, scale, n):
    """A better scale, from the sum of all masses at this one."""
    return scale + 1 + _SAFE_BITS - bit_length(total + n)


@triton.jit
def too_fine(total):
    """Whether the scale is f + 1, not f."""
    return total >= _LIMIT


@triton.jit
def quantise(weights, scale):
    """floor(w 2^scale) from the bits of w >= +0, in float64."""
    lift = tl.where(scale > 1022, _LIFT, 0)
    bits = (weights * tl.where(scale > 1022, 2.0**_LIFT, 1.0)).to(tl.int64, bitcast=True)
    mantissa = (bits & (_IMPLICIT - 1)) | _IMPLICIT  # of a subnormal this is wrong, and shifted out
    distance = (1084 - scale + lift).to(tl.int32) - (bits >> 52).to(tl.int32)  # in half the registers
    return (mantissa << 9) >> tl.minimum(tl.maximum(distance, 0), 63).to(tl.int64)


@triton.jit
def offset(u, total):
    """floor(U T / 2^53) for U = floor(u 2^53) and float64 u."""
    bits, total = (u * 2.0**53).to(tl.int64).to(tl.uint64), total.to(tl.uint64)
    return ((tl.umulhi(bits, total) << 11) | ((bits * total) >> 53)).to(tl.int64)


@triton.jit
def divide(c, total, samples):
    """Quotient and remainder of c M by T, for c <= T.

    Float64 gives the quotient to within one; the remainder, known to be small, is exact in wrapping products.
    """
    t = total.to(tl.float64)
    inverse = (1 / total.to(tl.float32)).to(tl.float64)
    for _ in tl.static_range(2):  # Newton's method: a float64 division would be a call, which spills registers
        inverse += inverse * (1 - t * inverse)
    quotient = (c.to(tl.float64) * (samples * inverse)).to(tl.int64)
    remainder = c * samples - quotient * total
    under, over = remainder < 0, remainder >= total
    quotient += over.to(tl.int64) - under.to(tl.int64)
    return quotient, remainder + tl.where(under, total, 0) - tl.where(over, total, 0)
