import sys
from types import ModuleType, SimpleNamespace

import pytest

from fastsmc import progress

ROW = {"iteration": 0, "ess": 31.25, "batch_size": 1437, "acceptance": float("nan")}


@pytest.fixture
def notebook(monkeypatch):
    """What a notebook shows below a cell: one line, and all that it was."""
    seen = []
    line = SimpleNamespace(update=lambda text: seen.append(text))
    module = ModuleType("IPython.display")
    module.Pretty = str
    module.display = lambda text, display_id: seen.append(text) or line
    monkeypatch.setitem(sys.modules, "IPython", ModuleType("IPython"))
    monkeypatch.setitem(sys.modules, "IPython.display", module)
    monkeypatch.setattr("rich.console._is_jupyter", lambda: True)
    return seen


def test_a_notebook_has_one_line_that_ends_with_the_last_state(notebook, monkeypatch, capsys):
    clock = iter(range(1000))
    monkeypatch.setattr(progress.time, "monotonic", lambda: next(clock) / 20)
    with progress.Progress(9, description="smooth") as bar:
        for _ in range(9):
            bar.update(ROW)
    assert notebook[0] == "smooth"
    assert notebook[-1].startswith("smooth 9/9  ESS 31.2  batch 1,437  ")
    assert 3 <= len(notebook) < 9, "updated at most five times a second"
    assert capsys.readouterr() == ("", "")


def test_a_notebook_is_quiet_where_that_is_asked_for(notebook):
    with progress.Progress(None, enabled=False) as bar:
        bar.update(ROW)
    assert notebook == []


def test_where_there_is_neither_terminal_nor_notebook_nothing_is_shown(monkeypatch):
    assert progress.display_here() is None
    monkeypatch.setitem(sys.modules, "IPython", ModuleType("IPython"))
    assert progress.display_here() is None
    monkeypatch.setattr(sys, "stderr", None)
    assert progress.display_here() is None


def test_a_stopwatch_that_is_paused_stands_still_for_its_readers_too(monkeypatch):
    now = [100.0]
    monkeypatch.setattr(progress.time, "perf_counter", lambda: now[0])
    watch = progress.Stopwatch(5.0)
    now[0] += 2
    with pytest.raises(KeyboardInterrupt), watch.paused():
        now[0] += 30
        assert watch.seconds() == 7
        raise KeyboardInterrupt
    assert watch.seconds() == 7
    now[0] += 1
    assert watch.seconds() == 8
