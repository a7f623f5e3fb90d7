"""Triton's interpreter without what it does over and over.

It prepares the language for itself at every call of a function, works out the type and shape of every value anew, and
looks for overflow of integers by a dozen operations of its own: here that is done once, once, and by NumPy, with the
same outcome.
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


def _blocks_made_once(make):
    known = {}

    def init(self, element_ty, shape):
        key = element_ty.name, *language.core._unwrap_shape(shape)
        if key not in known:
            make(self, element_ty, shape)
            known[key] = self.__dict__
        self.__dict__ = known[key]

    return init


def _shapes_made_once(make):
    known = {}

    def init(self, handle, type):
        key = (*type.shape.values,) if type.is_block() else ()
        if key not in known:
            make(self, handle, type)
            known[key] = self.shape, self.numel
        self.handle, self.type, self.dtype = handle, type, type.scalar
        self.shape, self.numel = known[key]

    return init


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
    language.core.block_type.__init__ = _blocks_made_once(language.core.block_type.__init__)
    language.core.tensor.__init__ = _shapes_made_once(language.core.tensor.__init__)
    TritonSemantic.binary_op_sanitize_overflow_impl = _refuse_overflow
