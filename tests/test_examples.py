"""The examples run as they stand, and so do the blocks of pages."""

import os
import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
EXAMPLES = sorted(ROOT.glob("examples/*.py"))
UNDER = [path for path in EXAMPLES if path.stem.startswith("under_")]
"""Those under other libraries."""
PACKAGES = {"tfp": "tensorflow_probability"}
"""Of libraries that are called otherwise."""
TOLERANCES = {"log evidence": 0.6, "mean of": 0.03}
"""Picked by hand, for the seeds that are fixed there; tests/integrations/ has evidence held to standard errors."""


def printed(path, folder):
    """What an example prints; it leaves nothing behind."""
    environment = os.environ | {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "passive"}
    done = subprocess.run([sys.executable, path], cwd=folder, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert not list(folder.iterdir())
    return done.stdout


@pytest.mark.parametrize("path", [p for p in EXAMPLES if p not in UNDER], ids=lambda path: path.stem)
def test_an_example_runs(path, tmp_path):
    assert printed(path, tmp_path)


@pytest.mark.parametrize("path", UNDER, ids=lambda path: path.stem)
def test_an_accelerated_library_finds_what_is_known_in_closed_form(path, tmp_path):
    library = path.stem.removeprefix("under_")
    if find_spec(PACKAGES.get(library, library)) is None:
        pytest.skip(f"{library} is not installed")
    last = printed(path, tmp_path).splitlines()[-1]
    found, exact = map(float, re.search(r"(-?\d+\.\d+), exact (-?\d+\.\d+)", last).groups())
    (tolerance,) = (value for words, value in TOLERANCES.items() if last.startswith(words))
    assert abs(found - exact) < tolerance
    assert len(path.read_text().splitlines()) < 30


def test_every_example_is_in_a_page():
    pages = "".join(path.read_text() for path in ROOT.glob("docs/**/*.md"))
    absent = [path.name for path in EXAMPLES if f"/{path.name}" not in pages]
    assert absent == []


def test_the_block_of_the_page_on_libraries_runs():
    pytest.importorskip("blackjax")
    pytest.importorskip("fastsmc._jax", reason="this package was built without its JAX module")
    (block,) = re.findall(r"^```python\n(.*?)^```", (ROOT / "docs/howto/libraries.md").read_text(), re.M | re.S)
    names = {}
    exec(block, names)
    assert names["state"].size == 200


def test_the_tutorial_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"^```python\n(.*?)^```", (ROOT / "docs" / "tutorial.md").read_text(), re.M | re.S)
    names = {}
    exec("\n".join(blocks), names)
    assert names["result"].evaluate(names["x_test"], names["y_test"])["accuracy"] > 0.94
    assert {path.name for path in tmp_path.iterdir()} == {"digits.safetensors", "run.png", "run.html"}
