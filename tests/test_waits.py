"""Moves on a device: the host waits for what it decides by at the end of a move, and for nothing between two steps."""

from dataclasses import replace

import numpy as np
import pytest
from torch.overrides import TorchFunctionMode

import fastsmc as fs
from fastsmc import backends

WAITS = {"__bool__", "__float__", "__index__", "__int__", "cpu", "item", "nonzero", "tolist"}
"""Functions of tensors that need to know what a device has computed."""


class Counted(TorchFunctionMode):
    """How often such a function was called."""

    calls = 0

    def __torch_function__(self, func, types, args=(), kwargs=None):
        self.calls += getattr(func, "__name__", None) in WAITS
        return func(*args, **(kwargs or {}))


@pytest.fixture(params=["cuda"])
def device(request, unmirrored, present):
    """Where the CUDA engine, or its host twin, takes tensors."""
    return backends.BACKENDS[present(request.param)].device


ITERATIONS = 3


def waits(move, likelihood, device):
    """In some iterations over weighted data."""
    rng = np.random.default_rng(0)
    x, weights = rng.normal(size=(60, 3)).astype(np.float32), rng.uniform(0.5, 1.5, 60)
    y = rng.integers(0, 2, 60).astype(np.int64 if likelihood == "categorical" else np.float32)
    posterior = fs.Posterior(fs.MLP([3, 4, 2 if likelihood == "categorical" else 1], "tanh"), likelihood=likelihood)
    smc = fs.SMC(posterior, 8, fs.FullBatch(), move, ITERATIONS, backend="cuda", device=device)
    with Counted() as counted:
        smc.run(x, y, weights=weights, progress=False)
    return counted.calls


MOVES = {
    "hmc": lambda steps: fs.HMC(steps, step_size=0.01),
    "kinetic langevin": lambda steps: fs.KineticLangevin(steps, step_size=0.01),
    "preconditioned hmc": lambda steps: fs.HMC(steps, step_size=0.01, precondition=True),
    "sghmc": lambda steps: fs.SGHMC(step_size=0.01, batch_size=20, num_steps=steps, coverage=0.0),
    "weighted sghmc": lambda steps: fs.SGHMC(
        step_size=0.01, batch_size=20, num_steps=steps, coverage=0.0, weighted=True, precondition=False
    ),
}


@pytest.mark.parametrize("likelihood", ["categorical", "bernoulli", "gaussian", "poisson"])
@pytest.mark.parametrize("move", MOVES)
def test_the_steps_of_a_move_wait_for_nothing(move, likelihood, device):
    few, many = (waits(MOVES[move](steps), likelihood, device) for steps in (2, 9))
    assert 0 < few == many


@pytest.mark.parametrize(
    ("move", "times"),
    # log densities and energies; of gradients a mean and a mean square; of forces, and of the momentum, a mean square
    [("hmc", 1), ("kinetic langevin", 1), ("preconditioned hmc", 3), ("sghmc", 3)],
)
def test_a_move_waits_for_what_it_decides_by(move, times, device):
    few, many = (waits(replace(MOVES[move](3), num_moves=moves), "categorical", device) for moves in (1, 5))
    assert many - few == 4 * ITERATIONS * times
