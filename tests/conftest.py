"""The matrix of ops and backends: one fixture, and a line at the end that says what ran on what."""

import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from fastsmc import backends

sys.path.append(str(Path(__file__).parents[1]))  # for bench, last: fastsmc is the installed one

_ran: Counter[str] = Counter()
_absent: dict[str, str] = {}


def _present(name):
    ok, reason = backends.BACKENDS[name].available()
    if not ok:
        _absent[name] = reason
        pytest.skip(f"{name}: {reason}")
    _ran[name] += 1
    return name


@pytest.fixture(params=backends.names())
def backend(request):
    """Each backend in turn; absent ones are skipped with their reason."""
    return _present(request.param)


@pytest.fixture(params=backends.names()[1:])
def engine(request):
    """Each backend but the reference, to be compared with it."""
    return _present(request.param)


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

        def poisoned(num_particles, seed):
            particles = draw(num_particles, seed)
            particles[3, 5], particles[7, 0] = np.nan, np.inf
            return particles

        monkeypatch.setattr(posterior, "sample_prior", poisoned)

    return poison
