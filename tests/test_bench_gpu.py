"""The benchmark of a device: what was measured is kept, whatever comes after it."""

import csv
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

import fastsmc as fs
from bench import gpu, gpu_tune, harness, mlp_gradient, readme
from fastsmc import backends, choice
from fastsmc.kernels.graphs import GRAPHS

SCRIPT = Path(__file__).parents[1] / "bench" / "gpu_all.sh"
CHOICES = choice.TABLE
CASE = mlp_gradient.Case((6, 9, 8, 3), 4, 32)


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


def test_peers_are_replayed_too_and_one_that_cannot_be_says_so(monkeypatch):
    def graphed(call):
        if call == "dynamic":
            raise OddError("shapes depend on numbers")
        return f"replay of {call}"

    monkeypatch.setattr(gpu, "graphed", graphed)
    found = gpu.with_graphs({"fastsmc cuda": "ours", "torch": "static", "torch.func": "dynamic", "jax (jit)": "one"})
    assert found == {
        "fastsmc cuda": "ours",
        "fastsmc cuda, as a graph": "replay of ours",
        "torch": "static",
        "torch, as a graph": "replay of static",
        "torch.func (no graph: OddError)": "dynamic",
        "jax (jit)": "one",
    }
    with pytest.raises(OddError):
        gpu.with_graphs({"fastsmc cuda": "dynamic"})


class Operands(TorchDispatchMode):
    """The types of what matrices are multiplied with."""

    def __init__(self):
        super().__init__()
        self.types = set()

    def __torch_dispatch__(self, function, types, arguments=(), options=None):
        if function.overloadpacket._qualified_op_name.partition("::")[2] in ("mm", "bmm", "addmm", "baddbmm"):
            self.types |= {a.dtype for a in arguments}
        return function(*arguments, **(options or {}))


@pytest.mark.parametrize("prepare", [mlp_gradient.with_torch_func, mlp_gradient.with_torch_by_hand])
def test_peers_of_medium_multiply_bfloat16_numbers_forwards_and_backwards(prepare):
    call = prepare(CASE, *mlp_gradient.problem(CASE))
    with Operands() as operands:
        plain = call()
    assert operands.types == {torch.float32}
    with Operands() as operands:
        lowered = mlp_gradient.mixed(call)()
    assert operands.types == {torch.bfloat16}
    assert lowered[0].dtype == torch.float32
    torch.testing.assert_close(lowered[0], plain[0], rtol=2e-2, atol=0)


def test_jax_multiplies_bfloat16_numbers_in_medium():
    jax = pytest.importorskip("jax")
    arrays = mlp_gradient.problem(CASE)
    plain, lowered = (mlp_gradient.with_jax(CASE, *arrays, products)() for products in ("float32", "bfloat16"))
    assert all(a.dtype == jax.numpy.float32 for a in lowered)
    for a, b in zip(plain, lowered, strict=True):
        assert 1e-4 < np.linalg.norm(a - b) / np.linalg.norm(a) < 5e-2


@pytest.mark.parametrize(("graph", "ratio"), [("", "2.00x"), (harness.GRAPH, "3.00x")])
def test_the_table_compares_what_was_called_in_the_same_way(tmp_path, monkeypatch, graph, ratio):
    times = {f"fastsmc cuda{harness.GRAPH}": 100, "fastsmc cuda": 300, "torch": 600} | {
        f"torch{graph}": 300 if graph else 600
    }
    machine = {"floor_us": 10, "card": "H200", "driver": "1", "torch": "2", "date": "today"}
    rows = [{"case": "a resampling step, N=4096", "provider": p, "median_us": t} | machine for p, t in times.items()]
    harness.write_csv(tmp_path / "gpu.csv", rows, list(rows[0]))
    monkeypatch.setattr(readme, "RESULTS", tmp_path)
    peer = f"torch{graph}: {'300' if graph else '600'} us"
    assert (
        readme.device_figures()
        .splitlines()[-1]
        .endswith(f"| 100 us | cuda, as a graph | 10.0x | 300 us | {peer} | {ratio} |")
    )


@pytest.mark.parametrize(("widths", "there"), [((64, 32, 10), True), ((784, 100, 100, 10), False)])
def test_an_engine_is_measured_where_it_computes_itself(unmirrored, present, widths, there):
    present("cuda")
    case = mlp_gradient.Case(widths, 4, 64)
    assert ("fastsmc cuda" in gpu.engines(case, "high")) == there
    assert "fastsmc cuda" in gpu.engines()


@pytest.mark.triton
@pytest.mark.skipif(not backends.INTERPRETED, reason="launches are counted in the interpreter")
def test_trajectories_are_timed_as_samplers_make_them(unmirrored, monkeypatch):
    """By replays, once they have come back to the same memory: the choice of an engine is by these times."""
    replays = []
    monkeypatch.setattr(GRAPHS, "_capture", lambda work: (lambda: replays.append(work()), None))
    x, y = mlp_gradient.problem(CASE)[1:]
    smc = fs.SMC(fs.Posterior(fs.MLP(CASE.widths)), 4, fs.FullBatch(), fs.HMC(2, jitter=0.0), 9, backend="triton")
    smc.run(torch.from_numpy(x), torch.from_numpy(y), progress=False)
    assert len(replays) >= 2
    replays.clear()
    calls = {}
    monkeypatch.setattr(gpu.Bench, "case", lambda bench, name, these, *_: calls.update(these))
    gpu.trajectory(gpu.Bench(keep=False), CASE, "highest", 2)
    for _ in range(4):
        calls["fastsmc triton"]()
    assert len(replays) == 2
