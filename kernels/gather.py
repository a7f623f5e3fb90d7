"""Particles copied to the slots of their children, whatever they are made of: rows are moved as words.

Two launches. The first looks at all ancestors, so that nothing moves where one of them is bad; the second reads the
verdict where it lies. There a program moves a tile of rows by words: many rows where they are short, a piece of one
where it is long. What it reads and writes is what moves, each once; in place, rows that stay are neither read nor
written.
"""

from __future__ import annotations

import math
from inspect import signature

import torch
import triton
import triton.language as tl

from fastsmc.backends import FINE
from fastsmc.kernels.build import Build
from fastsmc.kernels.rows import new_status, options_of, report
from fastsmc.kernels.sizes import cdiv, next_power_of_2

_TILE = 2048  # words
_WORDS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
_NOT_SQUARE, _OVERLAP = 8, 9
_FINE = tl.constexpr(FINE)


def gather_particles(particles: torch.Tensor, ancestors: torch.Tensor, out: torch.Tensor) -> torch.Tensor:
    """Rows of particles [P, ...] into out [M, ...], which may be the particles themselves; returns the status."""
    n, m, status = len(particles), len(ancestors), new_status(particles)
    in_place, fault = particles.data_ptr() == out.data_ptr() and particles.numel() > 0, 0
    if in_place and n != m:
        fault = _NOT_SQUARE
    elif not in_place and _overlap(particles, out):
        fault = _OVERLAP
    if fault:
        status.fill_(fault << 48)
    _check[(cdiv(m, _TILE),)](
        ancestors, status, n, m, IN_PLACE=in_place and not fault, BLOCK=_TILE, **options_of(_TILE)
    )
    row_bytes = particles[:1].numel() * particles.element_size()
    word = math.gcd(8, row_bytes, particles.data_ptr(), out.data_ptr()) if row_bytes else 1
    words = row_bytes // word
    wide = min(_TILE, next_power_of_2(max(words, 1)))
    tall = _TILE // wide
    _gather[(cdiv(m, tall), max(1, cdiv(words, wide)))](
        *(_as_words(particles, word), ancestors, _as_words(out, word), status, m, words),
        IN_PLACE=in_place, ROWS=tall, WORDS=wide, **options_of(_TILE),
    )  # fmt: skip
    return status


def _overlap(a: torch.Tensor, b: torch.Tensor) -> bool:
    (a_begin, a_end), (b_begin, b_end) = ((t.data_ptr(), t.data_ptr() + t.nbytes) for t in (a, b))
    return a_begin < b_end and b_begin < a_end


def _as_words(rows: torch.Tensor, word: int) -> torch.Tensor:
    return rows.flatten().view(torch.int8).view(_WORDS[word])


@triton.jit
def _check(ancestors, status, n, m, IN_PLACE: tl.constexpr, BLOCK: tl.constexpr):
    """Report ancestors that are none, and in place those whose own slot is overwritten."""
    slot = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    parent = tl.load(ancestors + slot, slot < m, other=0)
    good = (parent >= 0) & (parent < n)
    report(status, ~good, 6, 0, slot)
    if IN_PLACE:
        grandparent = tl.load(ancestors + parent, (slot < m) & good, other=0)
        report(status, good & (grandparent != parent), 7, 0, slot)


@triton.jit
def _gather(
    particles, ancestors, out, status, m, words, IN_PLACE: tl.constexpr, ROWS: tl.constexpr, WORDS: tl.constexpr
):
    slot = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    word = tl.program_id(1).to(tl.int64) * WORDS + tl.arange(0, WORDS)
    moved = slot < tl.where(tl.load(status) == _FINE, m, 0)
    parent = tl.load(ancestors + slot, moved, other=0)
    if IN_PLACE:
        moved &= parent != slot
    mask = moved[:, None] & (word < words)[None, :]
    values = tl.load(particles + parent[:, None] * words + word[None, :], mask)
    tl.store(out + slot[:, None] * words + word[None, :], values, mask)


_TYPES = {
    **dict.fromkeys(("ancestors", "status"), "*i64"),
    **dict.fromkeys(("n", "m", "words"), "i32"),
    **dict.fromkeys(("IN_PLACE", "ROWS", "WORDS", "BLOCK"), "constexpr"),
}

BUILDS = (
    *(
        Build(
            f"_check of ancestors{', in place' if in_place else ''}",
            _check,
            {name: _TYPES[name] for name in signature(_check.fn).parameters},
            {"IN_PLACE": in_place, "BLOCK": _TILE},
            registers=64,
            shared=64,
            options=options_of(_TILE),
        )
        for in_place in (False, True)
    ),
    *(
        Build(
            f"_gather of {type_} {'in place ' if in_place else ''}{rows} x {words}",
            _gather,
            {name: _TYPES.get(name, f"*{type_}") for name in signature(_gather.fn).parameters},
            {"IN_PLACE": in_place, "ROWS": rows, "WORDS": words},
            registers=72,
            shared=8192,
            options=options_of(_TILE),
        )
        for type_ in ("i8", "i64")
        for in_place in (False, True)
        for rows, words in ((2048, 1), (2, 1024), (1, 2048))
    ),
)
