"""The import costs next to nothing: no torch, no engine that is not used, no output."""

import subprocess
import sys
from statistics import median

import pytest

HEAVY = ("torch", "triton", "rich", "matplotlib", "sklearn", "jax", "safetensors")


def run(code):
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return done.stdout, done.stderr


@pytest.mark.parametrize(
    "use",
    ["pass", "fs.systematic([0.5, 0.5], 0.5)", "fs.normalize_log_weights([0.0, 1.0])", "dir(fs)"],
    ids=["import", "systematic", "normalize_log_weights", "dir"],
)
def test_heavy_modules_stay_out(use):
    code = f"import fastsmc as fs; {use}; import sys; print([m for m in {HEAVY} if m in sys.modules])"
    assert run(code) == ("[]\n", "")


def test_import_takes_at_most_twice_as_long_as_numpys():
    """Interleaved medians, so that a busy machine slows both; in practice it is a fraction of numpy's."""
    clock = "import time; t = time.perf_counter(); import {}; print(time.perf_counter() - t)"
    times = {name: [] for name in ("numpy", "fastsmc")}
    for _ in range(11):
        for name, found in times.items():
            found.append(float(run(clock.format(name))[0]))
    assert median(times["fastsmc"]) <= 2 * median(times["numpy"])


def test_every_public_name_can_be_had():
    out, _ = run("import fastsmc as fs; print([n for n in fs.__all__ if getattr(fs, n, None) is None])")
    assert out == "[]\n"


def test_an_unknown_name_is_an_attribute_error():
    import fastsmc as fs

    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        fs.nothing  # noqa: B018
