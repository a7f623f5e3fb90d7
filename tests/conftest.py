"""The matrix of ops and backends: one fixture, and a line at the end that says what ran on what."""

import os
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from fastsmc import backends
from fastsmc.arrays import BFLOAT16

sys.path.append(str(Path(__file__).parents[1]))  # for bench, last: fastsmc is the installed one
if backends.INTERPRETED:
    import interpreter

    interpreter.quicken()

_ran: Counter[str] = Counter()
_absent: dict[str, str] = {}
_own = dict(backends.BACKENDS)


class Mirror:
    """An engine that takes tensors, for NumPy arrays, which it copies to its device and back: tests bring those."""

    def __init__(self, engine, device):
        self.__name__, self._engine, self._device = engine.__name__, engine, device

    def __getattr__(self, name):
        import torch

        function = getattr(self._engine, name)
        if not callable(function):
            return function

        def whole(array):  # what arrays that share memory are parts of
            owner = array if array.base is None else array.base
            plain = isinstance(owner, np.ndarray) and owner.flags.c_contiguous and owner.dtype == array.dtype
            return owner if plain else array

        def call(*arguments):
            tables = 1 if name in ("log_likelihood", "network_outputs", "precision_in_use", "trajectory") else 0
            owners = {id(whole(a)): whole(a) for a in arguments[tables:] if isinstance(a, np.ndarray)}
            bits = {key: a.view(np.int16) if a.dtype == BFLOAT16 else a for key, a in owners.items()}
            if name == "gather_particles" and any(a.dtype.kind in "SV" for a in bits.values()):
                pytest.skip(f"{self.__name__} takes torch's tensors, which hold no bytes")
            mirrors = {key: torch.from_numpy(a.copy()).to(self._device) for key, a in bits.items()}

            def mirrored(a):
                owner = whole(a)
                begin = (a.ctypes.data - owner.ctypes.data) // a.itemsize
                return mirrors[id(owner)].view(-1)[begin : begin + a.size].view(a.shape)

            there = [mirrored(a) if isinstance(a, np.ndarray) else a for a in arguments[tables:]]
            try:
                status = function(*arguments[:tables], *there)
            except getattr(self._engine, "NoRoomError", ()) as error:  # test_cuda_network.py says for which networks
                pytest.skip(str(error))
            for key, a in bits.items():
                if a.flags.writeable:
                    a[...] = mirrors[key].cpu().numpy()
            return status

        return call


def _mirrored(backend):
    """The backend as it is used in the matrix."""
    if not (backend.tensors and backend.available()[0]):
        return backend
    name = f"mirror.{backend.name}"
    sys.modules[name] = Mirror(sys.modules[backend.module], backend.device)
    return replace(backend, device="cpu", module=name, tensors=False)


@pytest.fixture(scope="session", autouse=True)
def _mirrors():
    """Engines that take tensors take the tests' arrays."""
    patch = pytest.MonkeyPatch()
    for name, backend in _own.items():
        patch.setitem(backends.BACKENDS, name, _mirrored(backend))
    yield
    patch.undo()


@pytest.fixture
def unmirrored(monkeypatch):
    """Engines that take tensors take no others."""
    backends._choose.cache_clear()
    for name, backend in _own.items():
        monkeypatch.setitem(backends.BACKENDS, name, backend)
    yield
    backends._choose.cache_clear()


def pytest_collection_modifyitems(items):
    """Mark what a backend of a device has to show: ``-m triton`` for the interpreter, ``-m gpu`` where there is one."""
    for item in items:
        chosen = {
            *item.path.stem.split("_"),
            *(map(str, item.callspec.params.values()) if hasattr(item, "callspec") else ()),
        }
        for name in chosen & {"triton", "cuda"}:
            item.add_marker(name)
            if backends.BACKENDS[name].device == "cuda":
                item.add_marker("gpu")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_teardown(item):
    """Blame the test whose kernel broke the CUDA context, and leave: nothing can be run in this process any more."""
    yield
    if (torch := sys.modules.get("torch")) is not None and torch.cuda.is_initialized():
        try:
            torch.cuda.synchronize()
        except RuntimeError as error:
            print(f"{item.nodeid} broke the CUDA context: {error}", file=sys.__stderr__, flush=True)
            os._exit(1)  # xdist tells the test, and starts another worker for those that are left


def _present(name):
    ok, reason = backends.BACKENDS[name].available()
    if not ok:
        _absent[name] = reason
        pytest.skip(f"{name}: {reason}")
    _ran[name] += 1
    return name


@pytest.fixture
def present():
    """A function that skips what its backend is absent for, and returns the name."""
    return _present


@pytest.fixture(params=backends.names())
def backend(request):
    """Each backend in turn; absent ones are skipped with their reason."""
    return _present(request.param)


@pytest.fixture(params=backends.names()[1:])
def engine(request):
    """Each backend but the reference, to be compared with it."""
    return _present(request.param)


@pytest.fixture(params=[name for name in backends.names()[1:] if name != "triton"])
def bitwise(request):
    """Each engine whose sums have the reference's order, and so its bits."""
    return _present(request.param)


def pytest_sessionfinish(session):
    """Hand what ran in a worker to whoever prints the summary."""
    if hasattr(session.config, "workeroutput"):
        session.config.workeroutput["matrix"] = [dict(_ran), _absent]


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node):
    """Take what a worker hands over."""
    ran, absent = getattr(node, "workeroutput", {}).get("matrix", ({}, {}))
    _ran.update(ran)
    _absent.update(absent)


def pytest_terminal_summary(terminalreporter):
    states = {state.name: state.detail for state in backends.report()}
    parts = [f"{n} on {name}" + (f" ({states[name]})" if states[name] else "") for name, n in _ran.items()]
    parts += [f"none on {name} ({reason})" for name, reason in _absent.items()]
    if parts:
        terminalreporter.write_line("op tests: " + "; ".join(parts))


@pytest.fixture
def poison_prior(monkeypatch):
    """A function that makes draws 3 and 7 of a posterior's prior hold NaN and infinity."""

    def poison(posterior):
        draw = posterior.sample_prior

        def poisoned(num_particles, seed, first_slot=0):
            particles = draw(num_particles, seed, first_slot)
            particles[3, 5], particles[7, 0] = np.nan, np.inf
            return particles

        monkeypatch.setattr(posterior, "sample_prior", poisoned)

    return poison
