"""The examples run as they stand, and so do the tutorial's blocks, one after the other."""

import os
import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
NEEDED = {"under_blackjax": "blackjax"}
"""What an example needs that the tests do not."""


@pytest.mark.parametrize("path", sorted(ROOT.glob("examples/*.py")), ids=lambda path: path.stem)
def test_an_example_runs(path, tmp_path):
    needed = NEEDED.get(path.stem)
    if needed and find_spec(needed) is None:
        pytest.skip(f"{needed} is not installed")
    environment = os.environ | {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "passive"}
    done = subprocess.run([sys.executable, path], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout
    assert not list(tmp_path.iterdir())


def test_every_example_is_in_a_page():
    pages = "".join(path.read_text() for path in ROOT.glob("docs/**/*.md"))
    absent = [path.name for path in ROOT.glob("examples/*.py") if f"/{path.name}" not in pages]
    assert absent == []


def test_the_tutorial_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"^```python\n(.*?)^```", (ROOT / "docs" / "tutorial.md").read_text(), re.M | re.S)
    names = {}
    exec("\n".join(blocks), names)
    assert names["result"].evaluate(names["x_test"], names["y_test"])["accuracy"] > 0.94
    assert {path.name for path in tmp_path.iterdir()} == {"digits.safetensors", "run.png", "run.html"}
