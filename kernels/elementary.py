"""Elementary functions in float32, by the same series as csrc/cpu/vector_math.h.

Triton's own ``exp`` loses relative accuracy far from zero, and its ``tanh`` is not to be had everywhere; these keep
within a few units in the last place: log 1, exp and softplus 2, tanh and sigmoid 3; sine and cosine 1e-7 absolute.
NaN stays NaN.
"""

import triton
import triton.language as tl

_MAGIC = tl.constexpr(12582912.0)  # 1.5 * 2^23: adding it rounds to an integer


@triton.jit
def _expm1_reduced(r):
    """exp(r) - 1 for |r| <= ln(2) / 2."""
    p = tl.fma(r, 1 / 5040, 1 / 720)
    p = tl.fma(p, r, 1 / 120)
    p = tl.fma(p, r, 1 / 24)
    p = tl.fma(p, r, 1 / 6)
    p = tl.fma(p, r, 0.5)
    return tl.fma(p * r, r, r)


@triton.jit
def _reduce_exponent(x):
    """Whole n and r with x = n ln 2 + r and |r| <= ln(2) / 2; ln 2 in two parts, for n times the first to be exact."""
    n = (x * 1.44269504 + _MAGIC) - _MAGIC
    r = tl.fma(n, -0.693359375, x)
    return n.to(tl.int32), tl.fma(n, 2.12194440e-4, r)


@triton.jit
def _power_of_two(n):
    return ((n + 127) << 23).to(tl.float32, bitcast=True)


@triton.jit
def exp(x):
    """Results below the smallest normal number are zero."""
    bounded = tl.where(x < -87.33, -87.33, tl.where(x > 88.72, 88.72, x))
    n, r = _reduce_exponent(bounded)
    half = n >> 1  # in two steps, since 2^128 is not a float
    y = (_expm1_reduced(r) + 1) * _power_of_two(half) * _power_of_two(n - half)
    y = tl.where(x < -87.33, 0.0, y)
    y = tl.where(x > 88.72, float("inf"), y)
    return tl.where(x != x, x, y)


@triton.jit
def log(x):
    """For positive normal x: x = 2^e m with m in [sqrt(1/2), sqrt(2)), log m = 2 artanh((m - 1) / (m + 1))."""
    offset = x.to(tl.int32, bitcast=True) - 0x3F3504F3  # sqrt(1/2)
    e = (offset >> 23).to(tl.float32)
    f = ((offset & 0x007FFFFF) + 0x3F3504F3).to(tl.float32, bitcast=True) - 1
    s = f / (f + 2)
    s2 = s * s
    p = tl.fma(s2, 2 / 9, 2 / 7)
    p = tl.fma(p, s2, 2 / 5)
    p = tl.fma(p, s2, 2 / 3)
    half_square = f * f * 0.5
    tail = s * tl.fma(p, s2, half_square)  # log1p(f) = f - f^2/2 + s (f^2/2 + p s^2)
    y = tl.fma(e, 0.693359375, f - (half_square - tl.fma(e, -2.12194440e-4, tail)))
    return tl.where(x != x, x, y)


@triton.jit
def tanh(x):
    """From exp(2 x) - 1, which does not cancel near zero."""
    n, r = _reduce_exponent(2 * tl.where(x < -9.5, -9.5, tl.where(x > 9.5, 9.5, x)))
    scale = _power_of_two(n)
    em1 = tl.fma(_expm1_reduced(r), scale, scale - 1)
    return tl.where(x != x, x, em1 / (em1 + 2))


@triton.jit
def sigmoid(x):
    """1 / (1 + exp(-x))."""
    return 1 / (1 + exp(-x))


@triton.jit
def softplus(x):
    """log(1 + exp(x)) = max(x, 0) + log(1 + exp(-|x|))."""
    e = exp(tl.where(x > 0, -x, x))
    one_plus = 1 + e
    lost = e - (one_plus - 1)  # by the rounding of 1 + e
    return tl.where(x > 0, x, 0.0) + log(one_plus) + lost / one_plus


@triton.jit
def normal_density_and_cdf(z):
    """Of the standard normal distribution.

    Phi(-|z|) = exp(-z^2/2) h(t), with a polynomial h in t = 1 / (1 + 0.32 |z|), relative error 3.3e-8.
    """
    t = 1 / tl.fma(tl.abs(z), 0.32, 1.0)
    h = tl.fma(t, -0.02115197293460369, 0.09575628489255905)
    h = tl.fma(h, t, -0.1474010944366455)
    h = tl.fma(h, t, 0.06607995182275772)
    h = tl.fma(h, t, -0.009860294871032238)
    h = tl.fma(h, t, 0.05884035304188728)
    h = tl.fma(h, t, 0.08778712898492813)
    h = tl.fma(h, t, 0.1146274209022522)
    h = tl.fma(h, t, 0.12766067683696747)
    h = tl.fma(h, t, 0.12766152620315552)
    gauss = exp(z * z * -0.5)
    tail = gauss * h * t
    return gauss * 0.39894228, tl.where(z < 0, tail, 1 - tail)


@triton.jit
def sincos_turns(turns):
    """Sine and cosine of 2 pi turns, for turns in [-1/2, 1/2]: Taylor about the nearest quarter turn."""
    quarter = (turns * 4 + _MAGIC) - _MAGIC
    a = tl.fma(quarter, -0.25, turns) * 6.28318531
    a2 = a * a
    s = tl.fma(a2, 1 / 362880, -1 / 5040)
    s = tl.fma(s, a2, 1 / 120)
    s = tl.fma(s, a2, -1 / 6)
    s = tl.fma(s * a2, a, a)
    c = tl.fma(a2, -1 / 3628800, 1 / 40320)
    c = tl.fma(c, a2, -1 / 720)
    c = tl.fma(c, a2, 1 / 24)
    c = tl.fma(c, a2, -0.5)
    c = tl.fma(c, a2, 1.0)
    q = quarter.to(tl.int32)
    swap = (q & 1) != 0
    sine, cosine = tl.where(swap, c, s), tl.where(swap, s, c)
    return tl.where((q & 2) != 0, -sine, sine), tl.where(((q + 1) & 2) != 0, -cosine, cosine)
