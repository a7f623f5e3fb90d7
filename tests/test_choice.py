"""Which of several engines of a device serves a call."""

from types import SimpleNamespace

import pytest
import torch

from fastsmc import arrays, backends, choice
from fastsmc.backends import Backend
from fastsmc.choice import Choice, Line


@pytest.fixture
def engines(monkeypatch):
    """Two engines whose functions say which they are, on a card of which a little is known."""
    lines = (
        Line("9.0", "resample", 1, "cuda"),
        Line("9.0", "resample", 100, "triton"),
        Line("9.0", "leapfrog", 50, "cuda"),
        Line("8.0", "offspring", 1, "cuda"),
        Line("9.0", "gather", 1, "metal"),
    )
    monkeypatch.setattr(choice, "table", lambda: lines)
    monkeypatch.setattr(choice, "capability", lambda device: {"cuda:0": "9.0"}[device])
    ops = ("resample", "leapfrog", "offspring", "gather")
    return {
        name: SimpleNamespace(**{op: lambda *_, name=name: name for op in ops}, schemes=lambda name=name: [name])
        for name in ("triton", "cuda")
    }


@pytest.mark.parametrize(
    ("op", "row", "served"),
    [
        ("resample", 1, "cuda"),
        ("resample", 99, "cuda"),
        ("resample", 100, "triton"),
        ("resample", 10**6, "triton"),
        ("leapfrog", 49, "triton"),  # nothing is known of rows so short
        ("leapfrog", 50, "cuda"),
        ("offspring", 5, "triton"),  # measured on another card
        ("gather", 5, "triton"),  # by a backend that is not here
    ],
)
def test_a_call_goes_to_the_fastest_that_was_measured(engines, op, row, served):
    chosen = Choice("cuda:0", engines)
    for particles in (1, 3):  # which decide nothing
        assert getattr(chosen, op)("systematic", torch.zeros(particles, row)) == served


@pytest.mark.parametrize(
    ("op", "arguments"),
    [
        ("log_likelihood", (0, 1.0, 2, torch.zeros(2, 60), torch.zeros(9, 3), torch.zeros(9))),
        ("network_outputs", (2, torch.zeros(2, 60), torch.zeros(9, 3))),
        ("trajectory", (0, 1.0, 2, *torch.zeros(3, 2, 60), torch.zeros(9, 3), torch.zeros(9))),
    ],
)
@pytest.mark.parametrize(("room", "served"), [(True, "cuda"), (False, "triton")])
def test_a_network_that_the_fastest_has_no_room_for_goes_to_the_preferred(monkeypatch, op, arguments, room, served):
    asked = []
    engines = {name: SimpleNamespace(**{op: lambda *_, name=name: name}) for name in ("triton", "cuda")}
    engines["cuda"].serves = lambda *network: asked.append(network) or room
    monkeypatch.setattr(choice, "fastest", lambda device, op, row: "cuda")
    assert getattr(Choice("cuda:0", engines), op)("layers", *arguments) == served
    assert asked == [("layers", 2, 9)]


def test_what_has_no_arrays_goes_to_the_preferred(engines):
    assert Choice("cuda:0", engines).schemes() == ["triton"]


def test_the_table_can_be_read():
    assert all(line.backend in backends.names() and line.row > 0 for line in choice.table())


def test_a_device_with_two_engines_has_them_both(monkeypatch):
    two = {name: Backend(name, "meta", f"fastsmc.{name}", tensors=True) for name in ("random", "metrics")}
    monkeypatch.setattr(backends, "BACKENDS", {"reference": backends.BACKENDS["reference"], **two})
    choose = backends._choose.__wrapped__
    monkeypatch.delenv("FASTSMC_BACKEND", raising=False)
    assert isinstance(choose(None, "meta").ops, Choice)
    assert choose(None, "meta").ops.__name__ == "random or metrics"
    assert isinstance(choose(None, "meta").memory, arrays.Device)
    assert choose("metrics", "meta").ops.__name__ == "fastsmc.metrics"
