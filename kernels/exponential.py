"""The one exponential for weights on the device: equal to csrc/common/weight_exp.h, which says how, to the bit.

Kernels that use it are launched with ``**EXACT`` (`fastsmc.kernels.build`).
"""

import triton
import triton.language as tl

_LOWEST = tl.constexpr(-708.0)
_SIXTEENTHS_PER_E = tl.constexpr(float.fromhex("0x1.71547652b82fep+4"))  # 16 / ln 2
_HIGH = tl.constexpr(float.fromhex("0x1.62e42feep-5"))  # ln(2) / 16; n * high is exact
_LOW = tl.constexpr(float.fromhex("0x1.a39ef35793c76p-37"))
_MAGIC = tl.constexpr(float.fromhex("0x1.8p52"))  # adding it rounds to an integer

# The bits of 2^(j/16) less j 2^48.
# fmt: off
_TABLE = tl.constexpr((
    0x3FF0000000000000, 0x3FEFB5586CF9890F, 0x3FEF72B83C7D517B, 0x3FEF387A6E756238,
    0x3FEF06FE0A31B715, 0x3FEEDEA64C123422, 0x3FEEBFDAD5362A27, 0x3FEEAB07DD485429,
    0x3FEEA09E667F3BCD, 0x3FEEA11473EB0187, 0x3FEEACE5422AA0DB, 0x3FEEC49182A3F090,
    0x3FEEE89F995AD3AD, 0x3FEF199BDD85529C, 0x3FEF5818DCFBA487, 0x3FEFA4AFA2A490DA,
))
# fmt: on


@triton.jit
def _sixteenths():
    """The table as a tensor, of which every thread can gather any entry."""
    index = tl.arange(0, 16)
    table = tl.zeros((16,), tl.int64)
    for j in tl.static_range(16):
        table = tl.where(index == j, _TABLE[j], table)
    return table


@triton.jit
def exp64(x):
    """exp(x) of a float64 vector, for x <= 0: zero below -708, NaN for NaN."""
    shifted = x * _SIXTEENTHS_PER_E + _MAGIC
    n = shifted - _MAGIC
    r = (x - n * _HIGH) - n * _LOW
    r2 = r * r
    tail = ((1 / 2 + r * (1 / 6)) + r2 * (1 / 24 + r * (1 / 120))) + (r2 * r2) * (1 / 720 + r * (1 / 5040))
    bits = shifted.to(tl.int64, bitcast=True)
    power = (tl.gather(_sixteenths(), (bits & 15).to(tl.int32), 0) + (bits << 48)).to(tl.float64, bitcast=True)
    return tl.where(x < _LOWEST, 0.0, power + power * (r + r2 * tail))
