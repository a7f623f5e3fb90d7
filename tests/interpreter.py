"""Triton's interpreter without what it does over and over.

It prepares the language for itself at every call of a function, and looks for overflow of integers by a dozen
operations of its own: here that is done once, and by NumPy, with the same outcome.
"""

import numpy as np
from triton import language
from triton.language.semantic import TritonSemantic
from triton.runtime import interpreter


class _Prepared:
    """What preparing returns, in versions that undo it: nothing is compiled in a process that interprets."""

    def restore(self):
        pass


def _once_a_module(prepare):
    prepared = set()

    def once(function):
        if function.__module__ not in prepared:
            prepare(function)
            prepared.add(function.__module__)
        return _Prepared()

    return once


def _remembered(look_up):
    known = {}

    def found(kind):
        name = "pointer" if isinstance(kind.scalar, language.pointer_type) else kind.scalar.name
        if name not in known:
            known[name] = look_up(kind)
        return known[name]

    return found


def _refuse_overflow(self, a, b, operation):
    """As Triton's own, of integers of less than 64 bits: the sum, difference or product must be one of their type."""
    kind = a.type.scalar
    if kind.int_bitwidth >= 64 or not self.builder.options.sanitize_overflow:
        return
    assert kind == b.type.scalar and kind.is_int()
    function = {"add": np.add, "sub": np.subtract, "mul": np.multiply}[operation.__name__]
    exact = function(a.handle.data.astype(np.int64), b.handle.data.astype(np.int64))
    inside = kind.get_int_min_value() <= exact.min() and exact.max() <= kind.get_int_max_value()
    assert inside, f"int{kind.int_bitwidth} overflow detected for operation {operation.__name__}"


def quicken():
    """For the whole process."""
    interpreter._patch_lang = _once_a_module(interpreter._patch_lang)
    interpreter._get_np_dtype = _remembered(interpreter._get_np_dtype)
    TritonSemantic.binary_op_sanitize_overflow_impl = _refuse_overflow
