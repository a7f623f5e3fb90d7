"""Counter-based random numbers, as csrc/common/philox.h defines them: Philox 4x32-10.

    key     = (seed low, seed high)
    counter = (index / 4, slot, iteration, stream)

A program makes a run of blocks of four words for one slot, and nothing but the results touches memory. The names
(seed, iteration, stream, first slot) are read from a small tensor on the device, so that a captured graph can be
replayed with others.
"""

import torch
import triton
import triton.language as tl

from fastsmc.kernels.build import EXACT, Build
from fastsmc.kernels.elementary import log, sincos_turns
from fastsmc.kernels.sizes import cdiv

_BLOCKS = 256  # of four words, to a program


@triton.jit
def words(key, slot, first_block, BLOCKS: tl.constexpr):
    """The four words of each block of a slot, uint32 [BLOCKS] each."""
    block = (first_block + tl.arange(0, BLOCKS)).to(tl.uint32)
    zero = tl.zeros((BLOCKS,), tl.uint32)
    counter1 = zero + (tl.load(key + 3) + slot).to(tl.uint32)  # slots go round
    counter2 = zero + tl.load(key + 1).to(tl.uint32)
    counter3 = zero + tl.load(key + 2).to(tl.uint32)
    return tl.philox(tl.load(key), block, counter1, counter2, counter3)


@triton.jit
def _box_muller(radius_bits, angle_bits):
    u = tl.fma((radius_bits >> 1).to(tl.int32).to(tl.float32), 2.0**-31, 2.0**-32)
    radius = tl.sqrt_rn(-2 * log(u))
    sine, cosine = sincos_turns(angle_bits.to(tl.int32, bitcast=True).to(tl.float32) * 2.0**-32)
    return radius * cosine, radius * sine


@triton.jit
def normals(key, slot, first_block, BLOCKS: tl.constexpr):
    """Standard normal numbers of a slot, float32 [4 * BLOCKS], by Box and Muller from two words each."""
    w0, w1, w2, w3 = words(key, slot, first_block, BLOCKS)
    n0, n1 = _box_muller(w0, w1)
    n2, n3 = _box_muller(w2, w3)
    return tl.interleave(tl.interleave(n0, n2), tl.interleave(n1, n3))


@triton.jit
def _uniform53(high, low):
    return ((high.to(tl.uint64) << 21) ^ (low >> 11).to(tl.uint64)).to(tl.float64) * 2.0**-53


PHILOX = tl.constexpr(0)
UNIFORM = tl.constexpr(1)
NORMAL = tl.constexpr(2)


@triton.jit
def _random_kernel(out, key, numbers, programs, KIND: tl.constexpr, BLOCKS: tl.constexpr):
    PER_BLOCK: tl.constexpr = 2 if KIND == UNIFORM else 4
    slot = (tl.program_id(0) // programs).to(tl.int64)
    first_block = (tl.program_id(0) % programs) * BLOCKS
    if KIND == NORMAL:
        made = normals(key, slot, first_block, BLOCKS)
    else:
        w0, w1, w2, w3 = words(key, slot, first_block, BLOCKS)
        if KIND == UNIFORM:
            made = tl.interleave(_uniform53(w0, w1), _uniform53(w2, w3))
        else:
            made = tl.interleave(tl.interleave(w0, w2), tl.interleave(w1, w3))
    at = first_block * PER_BLOCK + tl.arange(0, PER_BLOCK * BLOCKS)
    tl.store(out + slot * numbers + at, made, mask=at < numbers)


KEY = tl.constexpr(4)
"""Numbers of a key."""


@triton.jit
def write_key(key, seed, iteration, stream, first_slot):
    """The names of random numbers."""
    tl.store(key, seed.to(tl.int64))
    tl.store(key + 1, iteration.to(tl.int64))
    tl.store(key + 2, stream.to(tl.int64))
    tl.store(key + 3, first_slot.to(tl.int64))


@triton.jit(do_not_specialize=["seed", "iteration", "stream", "first_slot"])
def _key_kernel(key, seed, iteration, stream, first_slot):
    write_key(key, seed, iteration, stream, first_slot)


def signed(seed: int) -> int:
    """The integer of the same 64 bits that int64 holds."""
    return seed - (seed >> 63 << 64)


def key_tensor(seed: int, iteration: int, stream: int, first_slot: int, device: torch.device) -> torch.Tensor:
    """The names of random numbers on the device, int64 [4], without a copy from the host."""
    key = torch.empty(KEY.value, dtype=torch.int64, device=device)
    _key_kernel[(1,)](key, signed(seed), iteration, stream, first_slot)
    return key


def fill(out: torch.Tensor, key: torch.Tensor, kind: int) -> None:
    """Fill [slots, numbers] with PHILOX, UNIFORM or NORMAL numbers of a key on the device."""
    slots, numbers = out.shape
    programs = cdiv(numbers, _BLOCKS * (2 if kind == UNIFORM.value else 4))
    _random_kernel[(slots * programs,)](out, key, numbers, programs, kind, _BLOCKS, **EXACT)


def philox(out: torch.Tensor, seed: int, iteration: int, stream: int, first_slot: int) -> None:
    """The integers themselves, uint32 [slots, numbers]."""
    fill(out, key_tensor(seed, iteration, stream, first_slot, out.device), PHILOX.value)


def uniform(out: torch.Tensor, seed: int, iteration: int, stream: int, first_slot: int) -> None:
    """Uniform numbers in [0, 1), float64 [slots, numbers]: 53 bits, from two words each."""
    fill(out, key_tensor(seed, iteration, stream, first_slot, out.device), UNIFORM.value)


def normal(out: torch.Tensor, seed: int, iteration: int, stream: int, first_slot: int) -> None:
    """Standard normal numbers, float32 [slots, numbers]."""
    fill(out, key_tensor(seed, iteration, stream, first_slot, out.device), NORMAL.value)


BUILDS = (
    *(
        Build(
            f"random numbers, {name}",
            _random_kernel,
            {"out": pointer, "key": "*i64", "numbers": "i32", "programs": "i32"},
            {"KIND": kind.value, "BLOCKS": _BLOCKS},
            registers=40,
            shared=4096,
            options=EXACT,
        )
        for name, pointer, kind in (
            ("philox", "*u32", PHILOX),
            ("uniform", "*fp64", UNIFORM),
            ("normal", "*fp32", NORMAL),
        )
    ),
    Build(
        "the key of random numbers",
        _key_kernel,
        {"key": "*i64", "seed": "i64", "iteration": "i64", "stream": "i64", "first_slot": "i64"},
        {},
        registers=16,
        shared=0,
    ),
)
