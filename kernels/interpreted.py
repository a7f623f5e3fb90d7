"""What Triton's interpreter, whose tensors hold NumPy arrays, cannot compute by itself."""

from __future__ import annotations

import numpy as np
import triton.language as tl
from triton.runtime.interpreter import TensorHandle


def rounded(a: tl.tensor) -> tl.tensor:
    """A tile of float32 or bfloat16 to the nearest bfloat16, ties to even, as float32; what is not a number stays."""
    if a.dtype == tl.bfloat16:
        values = (a.handle.data.astype(np.uint32) << 16).view(np.float32)
    else:
        bits = a.handle.data.view(np.uint32)
        nearest = (bits + (0x7FFF + ((bits >> 16) & 1))) & np.uint32(0xFFFF0000)
        values = np.where(np.isnan(a.handle.data), a.handle.data, nearest.view(np.float32))
    return tl.tensor(TensorHandle(values, tl.float32), tl.block_type(tl.float32, a.shape))
