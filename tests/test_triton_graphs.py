"""Trajectories that are replayed: the same bits as launch by launch, whatever varies between two uses."""

from contextlib import contextmanager
from types import SimpleNamespace

import pytest
import torch
from test_triton_leapfrog import DEVICE, Problem

import fastsmc as fs
from fastsmc.kernels import graphs, leapfrog
from fastsmc.kernels.evaluation import Evaluation
from fastsmc.kernels.graphs import Graphs
from fastsmc.kernels.mlp import Data
from fastsmc.kernels.tiles import choose_tiles


class Tape:
    """Captures by keeping the work, as a device keeps its launches: with the numbers of the host as they were."""

    def __init__(self):
        self.captures = self.replays = 0

    def __call__(self, work):
        self.captures += 1
        status = torch.zeros(1, dtype=torch.int64, device=DEVICE)

        def replay():
            self.replays += 1
            status.copy_(work())

        return replay, status


CAPTURES = [Tape, *([lambda: graphs.capture] if DEVICE == "cuda" else [])]


class Walk:
    """Trajectories from the same start in the same memory, each with numbers of its own."""

    def __init__(self, graphs):
        self.graphs = graphs
        problem = Problem("in one", weighted=True, scaled=True)
        density, state, (x, y, weights), total, start, end, _ = problem.prepared(0)
        self.density, self.state, self.batch, self.ends = density, state, (x, y), (total, start, end)
        self.begin = [part.clone() for part in state]
        self.weights, (self.prior, self.scale) = weights, problem.constants()

    def go(self, use, steps=2, status=None):
        """Everything that a use may change is another one than in the use before, and elsewhere."""
        for part, begin in zip(self.state, self.begin, strict=True):
            part.copy_(begin)
        ends = [torch.full_like(end, torch.nan) for end in self.ends]
        weights, scale = self.weights * (1 + use), self.scale / (1 + use)
        plan = 0.01 / (1 + use), steps, 1.0 + use, True, 0.1 * use, 5 + use, use, 2 * use, use
        arrays = (*self.state, *self.batch, weights, self.prior, scale, *ends)
        left = leapfrog.trajectory(*self.density, *arrays, *plan, graphs=self.graphs)
        return [part.clone() for part in self.state] + ends + [left]


@pytest.mark.parametrize("capture", CAPTURES)
def test_a_replay_gives_the_bits_of_the_launches(capture):
    capture = capture()
    replayed, launched = Walk(Graphs(capture)), Walk(Graphs(None))
    for use in range(5):
        found, expected = replayed.go(use), launched.go(use)
        assert all(a.equal(b) for a, b in zip(found, expected, strict=True))
        assert not any(part.isnan().any() for part in found)
    if isinstance(capture, Tape):
        assert (capture.captures, capture.replays) == (1, 3)


@pytest.mark.parametrize("capture", CAPTURES)
def test_a_replay_reports_bad_labels_of_its_own_use(capture):
    walk = Walk(Graphs(capture()))
    y, statuses = walk.batch[1], []
    for use, bad in enumerate([None, None, 11, None, 7]):
        label = None if bad is None else int(y[bad])
        if bad is not None:
            y[bad] = 99
        statuses.append(walk.go(use)[-1])
        if bad is not None:
            y[bad] = label
    assert [status.item() for status in statuses] == [2**62, 2**62, 10 << 48 | 11, 2**62, 10 << 48 | 7]


def test_other_work_has_a_graph_of_its_own():
    tape = Tape()
    walk, expected = Walk(Graphs(tape)), Walk(Graphs(None))
    for steps in (1, 2, 1, 2, 1, 2):
        for found, truth in zip(walk.go(0, steps), expected.go(0, steps), strict=True):
            assert found.equal(truth)
    assert (tape.captures, tape.replays) == (2, 2)
    walk.state = [part.clone() for part in walk.state]  # elsewhere: none of the graphs may be replayed
    assert all(a.equal(b) for a, b in zip(walk.go(3), expected.go(3), strict=True))
    assert (tape.captures, tape.replays) == (2, 2)


def test_the_least_recently_used_is_forgotten():
    tape = Tape()
    walk = Walk(Graphs(tape, most=1))
    for steps in (1, 2, 1, 2):
        walk.go(0, steps)
    assert tape.captures == 0
    for _ in range(3):
        walk.go(0, 2)
    assert (tape.captures, tape.replays) == (1, 2)


def test_work_that_takes_much_memory_is_not_captured():
    tape = Tape()
    walk = Walk(Graphs(tape, scratch=1))
    for use in range(3):
        walk.go(use)
    assert tape.captures == 0


def test_a_device_has_a_stream_of_its_own_for_captures(monkeypatch):
    """A capture on that of another device would hold none of the launches, and one of all threads breaks on theirs."""
    asked, current = [], [1]

    @contextmanager
    def graph(graph, pool, stream, capture_error_mode):
        asked.append((pool, stream, capture_error_mode))
        yield

    monkeypatch.setattr(torch.cuda, "CUDAGraph", lambda: SimpleNamespace(replay=None))
    monkeypatch.setattr(torch.cuda, "graph", graph)
    monkeypatch.setattr(torch.cuda, "graph_pool_handle", object)
    monkeypatch.setattr(torch.cuda, "Stream", lambda device: ("stream", device, object()))
    monkeypatch.setattr(torch.cuda, "current_device", lambda: current[0])
    graphs._room.cache_clear()
    for current[0] in (1, 0, 1):
        assert graphs.capture(lambda: "status") == (None, "status")
    graphs._room.cache_clear()
    assert [stream[:2] for _, stream, _ in asked] == [("stream", device) for device in (1, 0, 1)]
    assert asked[0] == asked[2]
    assert {mode for *_, mode in asked} == {"thread_local"}


def test_scratch_counts_what_is_allocated():
    problem = Problem("in one")
    density, (theta, *_), (x, y, weights), *_ = problem.prepared(0)
    layers, likelihood, noise, precision = density
    schedule = Evaluation.of(layers, precision, Data(x, y, weights, likelihood, noise)).schedule
    assert schedule.scratch(len(theta)) == len(theta) * len(x) * (4 * 16 + 3 * 2 * 32 + 4 * 16)
    assert schedule.scratch(10**9) <= schedule.tiles.scratch


def test_a_schedule_is_made_once_for_all_batches_of_a_size():
    problem = Problem("in one")
    (layers, likelihood, noise, precision), _, (x, y, weights), *_ = problem.prepared(0)
    first, second = (Evaluation.of(layers, precision, Data(x + k, y, weights, likelihood, noise)) for k in range(2))
    assert first.schedule is second.schedule
    assert Evaluation.of(layers, precision, Data(x[1:])).schedule != first.schedule
    assert Evaluation.of(layers, precision, Data(x), choose_tiles(precision, 512)).schedule != first.schedule


@pytest.mark.parametrize(("precision", "sizes"), [(0, [342, 342, 340]), (1, [342, 342, 340]), (2, [512, 512])])
def test_groups_of_particles_are_equal(precision, sizes):
    """The last would not fill a card if it had what is left."""
    data = Data(torch.zeros(1000, 784), torch.zeros(1000, dtype=torch.int64))
    layers = fs.MLP((784, 100, 100, 10)).layer_table
    schedule = Evaluation.of(layers, precision, data, choose_tiles(precision, 1000, "9.0")).schedule
    groups = [part.last - part.first for part in schedule.parts(1024)]
    assert groups == sizes
    assert schedule.scratch(1024) == groups[0] * schedule.scratch(1) <= schedule.tiles.scratch
    assert sum(part.last - part.first for part in schedule.parts(1027)) == 1027
    assert max(part.last - part.first for part in schedule.parts(1)) == 1
