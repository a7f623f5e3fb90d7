"""The benchmark of a device: what was measured is kept, whatever comes after it."""

import csv
import os
import subprocess
import sys
from pathlib import Path

import pytest

from bench import gpu, gpu_tune, harness
from fastsmc import choice

SCRIPT = Path(__file__).parents[1] / "bench" / "gpu_all.sh"
CHOICES = choice.TABLE


class OddError(Exception):
    """Of no class that a benchmark could know."""


@pytest.fixture
def tables(tmp_path, monkeypatch):
    """Tables of results and choices without lines, and a folder that outlives the run."""
    monkeypatch.setattr(gpu, "RESULTS", tmp_path)
    monkeypatch.setattr(choice, "TABLE", tmp_path / "choice.csv")
    for path, source in ((tmp_path / "gpu.csv", harness.RESULTS / "gpu.csv"), (choice.TABLE, CHOICES)):
        path.write_text(source.read_text().partition("\n")[0] + "\n")
    monkeypatch.setenv("OUT", str(tmp_path / "out"))
    monkeypatch.setattr(gpu, "SAMPLE", 1e-4)
    (tmp_path / "out").mkdir()
    return tmp_path / "out"


def cases_in(path):
    with path.open(newline="") as file:
        return [row["case"] for row in csv.DictReader(file)]


def test_a_case_that_fails_does_not_take_the_others_with_it(tables, monkeypatch):
    seen = []

    def resampling(bench, n):
        if n == 1_000_000:
            seen.append(cases_in(tables / "gpu.csv"))  # what there would be if the call ended now
            raise OddError("no room")
        bench.case(f"N={n}", {"fastsmc cpu": lambda: None}, 1e-6)

    monkeypatch.setattr(gpu, "resampling", resampling)
    monkeypatch.setattr(sys, "argv", ["bench.gpu", "--only", "resampling"])
    with pytest.raises(SystemExit, match="resampling 1000000: OddError: no room"):
        gpu.main()
    assert seen == [["N=4096"]]
    assert cases_in(tables / "gpu.csv") == ["N=4096", "N=10000000"]
    assert (tables / "choice.csv").exists()


def test_tuning_goes_on_after_a_failure(tables, tmp_path, monkeypatch):
    columns = gpu_tune.TABLE.read_text().partition("\n")[0]
    monkeypatch.setattr(gpu_tune, "TABLE", tmp_path / "tiles.csv")
    old = columns.replace("capability", "9.0").replace("precision", "0").replace("batch", "1000")
    gpu_tune.TABLE.write_text(f"{columns}\n{old}\n")

    def tune(batch, precision):
        if precision == 0:
            raise OddError("no room")
        line = dict.fromkeys(columns.split(","), 1)
        return line | {"capability": "9.0", "precision": precision, "batch": batch}

    monkeypatch.setattr(gpu_tune, "tune", tune)
    with pytest.raises(SystemExit, match="highest, batch 64: OddError: no room"):
        gpu_tune.main()
    with (tables / "tiles.csv").open(newline="") as file:
        kept = [(row["precision"], row["batch"]) for row in csv.DictReader(file)]
    assert kept == [("0", "1000"), ("1", "64"), ("1", "1000"), ("2", "64"), ("2", "1000")]


def test_options_behind_the_names_go_to_the_benchmark(tmp_path):
    (tmp_path / "bin").mkdir()
    for name in ("python", "nvidia-smi"):
        (tmp_path / "bin" / name).write_text(f'#!/bin/sh\necho "{name} $OUT $*"\n')
        (tmp_path / "bin" / name).chmod(0o755)
    where = {**os.environ, "PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}", "OUT": str(tmp_path / "out")}
    done = subprocess.run(
        ["bash", SCRIPT, "tune", "bench", "--only", "gradient"], env=where, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    called = [line.removeprefix(f"python {tmp_path / 'out'} ") for line in done.stdout.splitlines()]
    assert called[-2:] == ["-m bench.gpu_tune", "-m bench.gpu --only gradient"]
