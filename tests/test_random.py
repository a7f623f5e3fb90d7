import math
import shutil
import subprocess
from pathlib import Path
from statistics import NormalDist

import numpy as np
import pytest

from fastsmc import backends, random, reference

ONES, ONES64 = 2**32 - 1, 2**64 - 1
FALSE_ALARM = 1e-6
SIZES = [1, 2, 3, 4, 5, 31, 32, 33, 63, 64, 65, 127, 128, 129, 1000]  # around one block and one vector of blocks

# Random123's known answers (kat_vectors, philox4x32, 10 rounds): counter, key, result.
PI = (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344)
KNOWN = [
    ((0, 0, 0, 0), (0, 0), "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
    ((ONES,) * 4, (ONES, ONES), "408f276d 41c83b0e a20bc7c6 6d5451fd"),
    (PI, (0xA4093822, 0x299F31D0), "d16cfe09 94fdcceb 5001e420 24126ea1"),
]


def by_words(counter, key):
    """Philox 4x32-10 in Python's integers, to carry the known answers to counters that a row can reach."""
    (c0, c1, c2, c3), (low, high) = counter, key
    for _ in range(10):
        p0, p1 = c0 * 0xD2511F53, c2 * 0xCD9E8D57
        c0, c1, c2, c3 = (p1 >> 32) ^ c1 ^ low, p1 & ONES, (p0 >> 32) ^ c3 ^ high, p0 & ONES
        low, high = (low + 0x9E3779B9) & ONES, (high + 0xBB67AE85) & ONES
    return c0, c1, c2, c3


@pytest.mark.parametrize(("counter", "key", "answer"), KNOWN)
def test_known_answers_by_words(counter, key, answer):
    assert " ".join(f"{word:08x}" for word in by_words(counter, key)) == answer


def test_known_answers_of_the_common_header(tmp_path):
    if shutil.which("g++") is None:
        pytest.skip("no g++ to compile csrc/common/philox.h with")
    calls = "".join(
        f"show({{{{{', '.join(f'{word}u' for word in counter)}}}}}, {{{key[0]}u, {key[1]}u}});\n"
        for counter, key, _ in KNOWN
    )
    (tmp_path / "known.cpp").write_text(
        f"""#include <cstdio>
#include "common/philox.h"
using namespace fastsmc::philox;
void show(Counter c, Key k) {{
  c = philox4x32(c, k);
  std::printf("%08x %08x %08x %08x\\n", c.word[0], c.word[1], c.word[2], c.word[3]);
}}
int main() {{
{calls}}}
"""
    )
    root = Path(__file__).parents[1]
    subprocess.run(["g++", f"-I{root / 'csrc'}", tmp_path / "known.cpp", "-o", tmp_path / "known"], check=True)
    shown = subprocess.run([tmp_path / "known"], capture_output=True, text=True, check=True).stdout
    assert shown.splitlines() == [answer for _, _, answer in KNOWN]


@pytest.mark.parametrize("seed", [0, 1, 2**32, 0x299F31D0A4093822, ONES64])
@pytest.mark.parametrize("place", [(0, 0, 0), (PI[1], PI[2], PI[3]), (ONES, ONES, ONES)])
def test_integers_are_philox_at_the_counter_they_name(backend, seed, place):
    slot, iteration, stream = place
    rows = random.philox((3, 1026), seed=seed, first_slot=slot, iteration=iteration, stream=stream, backend=backend)
    assert rows.dtype == np.uint32
    for row, i in [(0, 0), (1, 5), (2, 510), (0, 1025), (2, 1023)]:
        counter = (i // 4, (slot + row) & ONES, iteration, stream)  # slots go round
        assert rows[row, i] == by_words(counter, (seed & ONES, seed >> 32))[i % 4]


@pytest.mark.parametrize("numbers", SIZES)
def test_engines_make_the_same_integers_and_uniforms(engine, numbers):
    names = {"seed": 0x299F31D0A4093822, "iteration": 7, "stream": 3, "first_slot": 5}
    for kind in (random.philox, random.uniform):
        ours, truth = (kind((7, numbers), **names, backend=b) for b in (engine, "reference"))
        assert ours.dtype == truth.dtype
        assert np.array_equal(ours, truth)


def test_uniforms_are_53_bits_of_two_words(backend):
    words = random.philox((4, 200), seed=9, backend=backend).astype(object)
    numbers = (words[:, ::2] * 2**21 + words[:, 1::2] // 2**11) / 2**53
    assert np.array_equal(random.uniform((4, 100), seed=9, backend=backend), numbers.astype(float))


@pytest.mark.parametrize("numbers", SIZES)
def test_normals_are_box_and_muller_to_float32(backend, numbers):
    slots = 2000 // numbers + 500
    truth = np.full((slots, numbers + numbers % 2), np.nan)
    reference.normal(truth, 4, 11, 3, 1)
    ours = random.normal((slots, numbers), seed=4, iteration=11, stream=3, first_slot=1, backend=backend)
    assert ours.dtype == np.float32
    # u has 24 bits, so a radius r is off by 2^-24 / r, and near u = 1 by no more than the smallest radius, 2^-12;
    # logarithm, root, angle of 2^-26 turns, sine and product are off by 2^-21 r together
    radius = np.repeat(np.hypot(truth[:, ::2], truth[:, 1::2]), 2, axis=1)
    allowed = 2.0**-24 / np.maximum(radius, 2.0**-12) + 2.0**-21 * radius
    assert np.all(np.abs(ours - truth[:, :numbers]) <= allowed[:, :numbers])


def test_no_normal_is_beyond_its_range(backend):
    numbers = random.normal((64, 4096), seed=2, backend=backend)
    assert np.isfinite(numbers).all()
    assert np.abs(numbers).max() <= math.sqrt(64 * math.log(2))


KINDS = (random.philox, random.uniform, random.normal)


@pytest.mark.parametrize("kind", KINDS)
def test_a_longer_row_begins_with_the_shorter(backend, kind):
    long = kind((3, 1000), seed=5, backend=backend)
    for numbers in SIZES:
        assert np.array_equal(kind((3, numbers), seed=5, backend=backend), long[:, :numbers])


@pytest.mark.parametrize("kind", KINDS)
def test_slots_may_be_filled_in_parts(backend, kind):
    whole = kind((10, 65), seed=5, backend=backend)
    for first in (0, 1, 7):
        assert np.array_equal(kind((3, 65), seed=5, first_slot=first, backend=backend), whole[first : first + 3])


@pytest.mark.parametrize("kind", KINDS)
def test_every_part_of_the_name_makes_other_numbers(backend, kind):
    names = {"seed": 0, "iteration": 0, "stream": 0, "first_slot": 0}
    # the low and the high half of the seed are different words of the key
    changes = [{}, *({name: 1} for name in names), {"seed": 2**32}]
    rows = [kind((1, 256), **{**names, **change}, backend=backend)[0] for change in changes]
    for i, row in enumerate(rows):
        for other in rows[:i]:
            assert np.count_nonzero(row == other) <= 1  # of 256 words of 32 bits


def test_streams_are_for_different_things():
    assert len(set(random.Stream)) == len(random.Stream.__members__)


def kolmogorov(sample, distribution):
    """Whether the largest distance passes, by the inequality of Dvoretzky, Kiefer, Wolfowitz and Massart."""
    n, heights = len(sample), distribution(np.sort(sample))
    steps = np.arange(n + 1) / n
    distance = max(np.max(steps[1:] - heights), np.max(heights - steps[:-1]))
    return distance < math.sqrt(math.log(2 / FALSE_ALARM) / (2 * n))


@pytest.mark.statistics
def test_uniforms_are_uniform(backend):
    assert kolmogorov(random.uniform((64, 2048), seed=6, backend=backend).ravel(), lambda u: u)


@pytest.mark.statistics
def test_normals_are_normal(backend):
    numbers = random.normal((64, 2048), seed=7, backend=backend).ravel().astype(float)
    assert kolmogorov(numbers, lambda z: 0.5 * np.vectorize(math.erfc)(-z / math.sqrt(2)))


@pytest.mark.statistics
def test_normals_have_the_moments_of_independent_ones(backend):
    """z of four moments and three correlations, Bonferroni over the seven: false alarm 1e-6."""
    z = random.normal((512, 1024), seed=8, backend=backend).astype(float)
    other = random.normal((512, 1024), seed=8, stream=1, backend=backend)
    checks = [
        (z, 0, 1), (z**2, 1, 2), (z**3, 0, 15), (z**4, 3, 96),
        (z[:, 1:] * z[:, :-1], 0, 1), (z[1:] * z[:-1], 0, 1), (z * other, 0, 1),
    ]  # fmt: skip
    bound = -NormalDist().inv_cdf(FALSE_ALARM / 2 / len(checks))
    for values, mean, variance in checks:
        assert abs(values.mean() - mean) < bound * math.sqrt(variance / values.size)


REFUSED = [
    ({"seed": -1}, "seed is -1; it must be a whole number from 0 to 2**64 - 1"),
    ({"seed": 2**64}, "seed is 18446744073709551616; it must be"),
    ({"seed": 1.5}, "seed is 1.5; it must be a whole number"),
    ({"seed": math.nan}, "seed is nan; it must be a whole number"),
    ({"iteration": 2**32}, "iteration is 4294967296; it must be a whole number from 0 to 2**32 - 1"),
    ({"stream": -1}, "stream is -1; it must be"),
    ({"first_slot": 2**32}, "first_slot is 4294967296; it must be"),
    ({"shape": (3,)}, "shape is (3,); it must be (slots, numbers)"),
    ({"shape": (1, 2, 3)}, "shape is (1, 2, 3); it must be (slots, numbers)"),
    ({"backend": "gpu"}, "backend is 'gpu'; it must be one of"),
]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("change", "sentence"), REFUSED)
def test_refused_in_one_sentence(kind, change, sentence):
    with pytest.raises(ValueError) as raised:
        kind(**{"shape": (2, 2), "seed": 0, **change})
    assert sentence in str(raised.value)


def test_the_extension_refuses_what_it_cannot_write():
    cpu = backends.choose("cpu").ops
    for out in (np.empty((2, 2)), np.empty((2, 4), np.float32)[:, ::2]):
        with pytest.raises(TypeError):
            cpu.normal(out, 0, 0, 0, 0)
