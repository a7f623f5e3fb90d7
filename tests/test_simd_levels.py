"""Each instruction set that the processor has, in a process of its own."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from fastsmc import backends

cpu = pytest.importorskip("fastsmc._cpu")
TESTS = Path(__file__).parent
OP_TESTS = (
    "test_weights.py",
    "test_resampling.py",
    "test_mlp.py",
    "test_convolution.py",
    "test_precision.py",
    "test_random.py",
    "test_update.py",
    "test_trajectory.py",
    "test_vector_math.py",
)
SLOW = "million or tail"  # whose sizes add nothing to what a level does
LEVELS = ("none", "avx2", "avx512", "avx512bf16", "amx")


def run(level, *arguments):
    environment = {**os.environ, "FASTSMC_SIMD": level, "OMP_NUM_THREADS": "1"}
    return subprocess.run([sys.executable, *arguments], env=environment, capture_output=True, text=True)


@pytest.mark.parametrize("level", LEVELS)
def test_ops_on_every_level(level):
    if level not in cpu.simd_levels():
        pytest.skip(f"this processor runs {', '.join(cpu.simd_levels())}, not {level}")
    if level == cpu.simd_level():
        pytest.skip(f"{level} is in use: the op tests themselves run on it")
    files = [str(TESTS / name) for name in OP_TESTS]
    chosen = f"(cpu or number_of_threads) and not ({SLOW})"
    done = run(level, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-k", chosen, *files)
    assert done.returncode == 0, done.stdout
    assert f"instruction set {level} of" in done.stdout


def test_a_level_that_does_not_exist_is_refused_in_one_sentence():
    done = run("sse9", "-c", "import fastsmc as fs; fs.systematic([1.0], 0.5)")
    last = done.stderr.strip().splitlines()[-1]
    assert last == f"ValueError: FASTSMC_SIMD is 'sse9'; this processor runs {', '.join(cpu.simd_levels())}"


def test_it_is_refused_before_threads_start():
    done = run("sse9", "-c", "from fastsmc import _cpu; _cpu.multiply_adds(1)")
    assert "ValueError: FASTSMC_SIMD is 'sse9'; this processor runs" in done.stderr


def test_a_level_that_this_processor_lacks_is_refused_in_one_sentence():
    absent = [level for level in LEVELS if level not in cpu.simd_levels()]
    if not absent:
        pytest.skip("this processor has every level")
    done = run(absent[-1], "-c", "import fastsmc as fs; fs.systematic([1.0], 0.5)")
    assert f"ValueError: FASTSMC_SIMD is '{absent[-1]}'; this processor runs" in done.stderr


def test_the_report_names_the_level_in_use():
    states = {state.name: state for state in backends.report()}
    assert states["cpu"].ok
    assert states["cpu"].detail == f"instruction set {cpu.simd_level()} of {', '.join(cpu.simd_levels())}"
    assert not states["triton"].ok
    assert states["triton"].reason
