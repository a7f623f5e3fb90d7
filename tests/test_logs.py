import json
import logging

import numpy as np
import pytest

import fastsmc as fs
from fastsmc import backends, logs


def data_of():
    rng = np.random.default_rng(1)
    x = rng.normal(size=(60, 3)).astype(np.float32)
    return x, (x @ rng.normal(size=(3, 2))).argmax(axis=1)


def sampler():
    return fs.SMC(fs.Posterior(fs.MLP([3, 2])), 8, fs.FullBatch(), fs.HMC(2), 4, seed=1)


def test_a_run_is_a_record_at_its_start_one_an_iteration_its_warnings_and_its_end(caplog):
    with caplog.at_level(logging.DEBUG, "fastsmc"):
        result = sampler().run(*data_of(), progress=False)
    assert {record.name for record in caplog.records} == {"fastsmc"}
    start, *rows, warning, end = ((record.levelname, record.fastsmc) for record in caplog.records)
    assert start == ("INFO", {"event": "start"} | result.settings)
    assert start[1]["num_data"] == 60 and start[1]["num_particles"] == 8 and start[1]["annealing"] == "FullBatch()"
    assert start[1]["backend"].partition(",")[0] in backends.names()
    assert start[1]["versions"]["numpy"] == np.__version__ and "cores" in start[1]["machine"]
    assert len(rows) == 4
    for number, row in enumerate(rows):
        assert row == (
            "DEBUG",
            {"event": "iteration"} | {name: result.history[name][number] for name in result.history},
        )
    assert warning == ("WARNING", {"event": "warning"}) and end == ("INFO", {"event": "end"})
    assert [r.getMessage() for r in caplog.records if r.levelname == "WARNING"] == result.warnings
    assert "8 particles on 60 data points" in caplog.messages[0]


def test_nothing_is_configured_and_nothing_is_shown(capfd):
    assert [type(handler) for handler in logging.getLogger("fastsmc").handlers] == [logging.NullHandler]
    assert logging.getLogger("fastsmc").level == logging.NOTSET
    assert sampler().run(*data_of()).warnings
    assert capfd.readouterr() == ("", "")


def test_a_file_has_every_iteration_before_the_next_begins(tmp_path):
    path, seen = tmp_path / "run.jsonl", []

    def look(state):
        lines = [json.loads(line) for line in path.read_text().splitlines()]
        seen.append([line["iteration"] for line in lines if line["event"] == "iteration"])

    with logs.written_to(path):
        result = sampler().run(*data_of(), progress=False, callback=look)
    assert seen == [[0], [0, 1], [0, 1, 2], [0, 1, 2, 3]]
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert lines[0]["seed"] == 1 and lines[0]["versions"]["numpy"] == np.__version__
    assert [line["ess"] for line in lines[1:5]] == list(result.history.ess)
    assert all(line["time"] and line["level"] and line["message"] for line in lines)
    sampler().run(*data_of(), progress=False)
    assert len(path.read_text().splitlines()) == len(lines)


def test_without_a_path_nothing_is_written(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with logs.written_to(None):
        sampler().run(*data_of(), progress=False)
    assert list(tmp_path.iterdir()) == []


def test_a_run_that_fails_is_an_error(caplog):
    (x, _), smc = data_of(), sampler()
    smc.posterior = fs.Posterior(fs.MLP([3, 1]), likelihood="gaussian")
    with caplog.at_level(logging.DEBUG, "fastsmc"), pytest.raises(fs.DegenerateError) as failed:
        smc.run(x, np.full(60, 1e30), progress=False)
    assert (caplog.records[-1].levelname, caplog.messages[-1]) == ("ERROR", str(failed.value))
    assert caplog.records[-1].fastsmc == {"event": "error"}


def test_every_line_is_json_whatever_it_holds():
    record = logging.makeLogRecord({"msg": "a\nb", "levelname": "INFO"})
    record.fastsmc = {"nan": np.float64("nan"), "array": np.arange(2), "move": fs.HMC(2), "at": {1: (np.inf, True)}}
    line = logs.JSONFormatter().format(record)
    assert "\n" not in line
    found = json.loads(line, parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))
    assert found["nan"] is None and found["array"] == [0, 1] and found["at"] == {"1": [None, True]}
    assert found["message"] == "a\nb" and found["move"] == repr(fs.HMC(2))
