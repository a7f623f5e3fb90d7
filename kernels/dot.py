"""Products of tiles on tensor cores in three precisions, summed in float32.

=======  =======  ===========================================================  =======================
code     name     operands                                                     products
=======  =======  ===========================================================  =======================
0        highest  float32 as the sum of two tf32 numbers                       3, without small * small
1        high     float32 as the sum of two bfloat16 numbers                   3, without small * small
2        medium   bfloat16                                                     1
=======  =======  ===========================================================  =======================

Triton's interpreter cannot compute with bfloat16: it gets the same numbers as float32 operands, by ``UPCAST``.
"""

import triton
import triton.language as tl

HIGHEST = tl.constexpr(0)
HIGH = tl.constexpr(1)
MEDIUM = tl.constexpr(2)


@triton.jit
def rounded(a, UPCAST: tl.constexpr):
    """To the nearest bfloat16, ties to even; as float32 if UPCAST."""
    if not UPCAST:
        a = a.to(tl.bfloat16)
    elif a.dtype == tl.bfloat16:
        a = a.to(tl.float32)
    else:
        bits = a.to(tl.uint32, bitcast=True)
        nearest = (bits + 0x7FFF + ((bits >> 16) & 1)) & 0xFFFF0000
        a = tl.where(a == a, nearest.to(tl.float32, bitcast=True), a)
    return a


@triton.jit
def product(a, b, acc, PRECISION: tl.constexpr, UPCAST: tl.constexpr):
    """The sum acc + a b, for float32 tiles or what `rounded` made of them."""
    if PRECISION == HIGHEST:
        acc = tl.dot(a, b, acc, input_precision="tf32x3")
    elif PRECISION == HIGH:
        a_high, b_high = rounded(a, UPCAST), rounded(b, UPCAST)
        a_low = rounded(a - a_high.to(tl.float32), UPCAST)
        b_low = rounded(b - b_high.to(tl.float32), UPCAST)
        acc = tl.dot(a_low, b_high, acc)
        acc = tl.dot(a_high, b_low, acc)
        acc = tl.dot(a_high, b_high, acc)
    else:
        acc = tl.dot(rounded(a, UPCAST), rounded(b, UPCAST), acc)
    return acc


@triton.jit
def store(pointers, values, mask, UPCAST: tl.constexpr):
    """Rounded where bfloat16 is stored."""
    if pointers.dtype.element_ty == tl.bfloat16:
        values = rounded(values, UPCAST)
    tl.store(pointers, values, mask=mask)
