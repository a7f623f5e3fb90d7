"""Sizes as the host computes them: Triton's own functions, which kernels call, go through wrappers there."""


def cdiv(size: int, part: int) -> int:
    """How many parts cover a size."""
    return -(-size // part)


def next_power_of_2(size: int) -> int:
    """The smallest that is not smaller than a positive size."""
    return 1 << (size - 1).bit_length()


def padded(width: int) -> int:
    """To a multiple of 16."""
    return (width + 15) // 16 * 16
