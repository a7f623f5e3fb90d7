"""What the harness of the benchmarks keeps where something fails."""

import csv

import pytest

from bench import harness, readme
from bench.harness import OURS, QUICK, Bench


def ours():
    return lambda: 1.0


def broken():
    raise RuntimeError("no such thing")


def missing():
    raise ImportError("it is not installed")


def other():
    return lambda: 2.0


def agree(mine, theirs):
    if mine != theirs:
        raise AssertionError("they differ")


@pytest.fixture
def bench(monkeypatch, tmp_path):
    monkeypatch.setattr(harness, "RESULTS", tmp_path)
    monkeypatch.setattr(readme, "RESULTS", tmp_path)
    monkeypatch.setattr(Bench, "failed", [])
    return Bench("resampling", QUICK, keep=True)


def providers_by_case(folder):
    with (folder / "resampling.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    return {case: {row["provider"] for row in rows if row["case"] == case} for case in {row["case"] for row in rows}}


def test_what_fails_is_left_out_and_the_rest_is_kept_case_by_case(bench, tmp_path):
    bench.case("first", {OURS: ours, "peer": ours, "broken": broken, "missing": missing}, (), agree)
    assert providers_by_case(tmp_path) == {"first": {OURS, "peer"}}
    assert bench.case("second", {OURS: ours, "peer": other}, (), agree) == []
    assert bench.case("third", {OURS: broken, "peer": other}, (), agree) == []
    bench.case("first", {OURS: ours}, (), agree)
    bench.case("systematic N=10000", {OURS: ours}, (), agree)
    assert providers_by_case(tmp_path) == {"first": {OURS}, "systematic N=10000": {OURS}}
    assert Bench.failed == [
        "resampling: broken, first: RuntimeError: no such thing",
        "resampling: second: they differ",
        f"resampling: {OURS}, third: RuntimeError: no such thing",
    ]
    assert "| systematic resampling, N = 1e4 |" in readme.figures()  # of which there is no peer
