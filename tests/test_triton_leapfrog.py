"""The Triton engine's random numbers, leapfrog steps and trajectories, in Triton's interpreter or on a GPU."""

import numpy as np
import pytest
import torch
from problems import fewer_interpreted
from test_update import EPS, NAMES, STEP, by_formula, noise_of, scale_of, state

import fastsmc as fs
from fastsmc import random, reference
from fastsmc.backends import INTERPRETED

if not (INTERPRETED or torch.cuda.is_available()):
    pytest.skip("Triton kernels need a GPU, or TRITON_INTERPRET=1", allow_module_level=True)

from fastsmc.kernels import leapfrog, philox
from fastsmc.kernels.evaluation import log_likelihood
from fastsmc.kernels.tiles import Tiles

DEVICE = "cpu" if INTERPRETED else "cuda"
ONES, ONES64 = 2**32 - 1, 2**64 - 1
KEY = tuple(NAMES[name] for name in ("seed", "iteration", "stream", "first_slot"))
# one, around a block of four words, around a program's 1024 numbers
SIZES = [1, 3, 5, 1023, 1025]


def on_device(array):
    return None if array is None else torch.tensor(array, device=DEVICE)


def random_numbers(kind, shape, *key):
    dtype = {"philox": torch.uint32, "uniform": torch.float64, "normal": torch.float32}[kind]
    out = torch.full(shape, 77, dtype=dtype, device=DEVICE)
    getattr(philox, kind)(out, *key)
    return out.cpu().numpy()


@fewer_interpreted(
    ["seed", "place"],
    [0, 1, 2**32, 2**63 + 5, ONES64],
    [(0, 0, 0), (1, 1, 1), (0x13198A2E, 3, 0x243F6A88), (ONES, ONES, ONES)],
    kept=lambda seed, place: seed == ONES64 or place == (0x13198A2E, 3, 0x243F6A88),
)
def test_integers_and_uniforms_are_those_of_every_engine(seed, place):
    iteration, stream, first_slot = place
    names = {"seed": seed, "iteration": iteration, "stream": stream, "first_slot": first_slot}
    for kind in ("philox", "uniform"):
        found = random_numbers(kind, (3, 1026), seed, *place)
        assert np.array_equal(found, getattr(random, kind)((3, 1026), **names))


@pytest.mark.parametrize("numbers", SIZES)
def test_normal_numbers_are_as_exact_as_the_cpu_engines(numbers):
    truth = np.full((3, numbers), np.nan)
    reference.normal(truth, *KEY)
    found, plain = random_numbers("normal", truth.shape, *KEY), random.normal(truth.shape, **NAMES, backend="cpu")
    assert np.linalg.norm(found - truth) <= 2 * np.linalg.norm(plain - truth) + EPS * np.linalg.norm(truth)


def step(arrays, scale=None, noise=None, refresh=None, out=None, first_slot=NAMES["first_slot"]):
    """One step of the engine; the energies, over NaN."""
    theta, v, grad, precision = arrays
    energies = torch.full((len(theta), 3), torch.nan, dtype=torch.float64, device=DEVICE)
    key = refresh is not None, refresh or 0.0, *KEY[:3], first_slot
    out = theta if out is None else out
    leapfrog.leapfrog(theta, v, grad, precision, scale, noise, out, energies, *STEP.values(), *key)
    return energies


@fewer_interpreted(
    ["dim", "refresh", "scaled", "noisy"],
    SIZES,
    [None, 0, 0.7, 1],
    [False, True],
    [False, True],
    kept=lambda dim, refresh, scaled, noisy: dim in (5, 1025) or (scaled and noisy and refresh == 0.7),
)
def test_a_step_is_as_exact_as_plain_float32(dim, refresh, scaled, noisy):
    scale, noise = scale_of(dim) if scaled else None, noise_of(dim) if noisy else None
    arrays = state(dim)
    xi = random_numbers("normal", arrays[0].shape, *KEY)
    truth, plain = (by_formula(*arrays, scale, noise, xi, refresh, dtype) for dtype in (np.float64, np.float32))
    theta, v, *rest = map(on_device, arrays)
    out = torch.full_like(theta, torch.nan)
    energies = step((theta, v, *rest), on_device(scale), on_device(noise), refresh, out)
    assert np.array_equal(theta.cpu(), arrays[0])
    for ours, exact, float32 in zip((out, v, *energies.T), truth, plain, strict=True):
        error, allowed = (np.linalg.norm(a - exact) for a in (ours.cpu().numpy(), float32))
        # of five numbers plain float32's error is luck; four operations round, and energies double what they lost
        assert error <= 2 * allowed + 4 * EPS * np.linalg.norm(exact)


def test_in_place_and_a_scale_of_ones_change_no_bit():
    apart, in_place, scaled = (list(map(on_device, state(1500))) for _ in range(3))
    out = torch.full_like(apart[0], torch.nan)
    ones = torch.ones(1500, device=DEVICE)
    energies = step(apart, refresh=0.5, out=out), step(in_place, refresh=0.5), step(scaled, ones, refresh=0.5)
    assert energies[0].equal(energies[1])
    assert energies[0].equal(energies[2])
    assert out.equal(in_place[0])
    assert out.equal(scaled[0])
    assert apart[1].equal(in_place[1])
    assert apart[1].equal(scaled[1])


def test_momentum_that_is_dropped_is_not_read():
    theta, v, grad, precision = map(on_device, state(1025))
    momentum = torch.full_like(v, torch.nan)
    energies = torch.full((3, 3), torch.nan, dtype=torch.float64, device=DEVICE)
    nowhere = (0.0, 0.0, 1.0)
    leapfrog.leapfrog(theta, momentum, grad, precision, None, None, theta, energies, *nowhere, True, 0.0, *KEY)
    assert np.array_equal(momentum.cpu(), random_numbers("normal", theta.shape, *KEY))
    assert energies[:, 0].equal(energies[:, 1])


def test_each_particle_alone_gives_the_same_bits():
    whole, parts = (list(map(on_device, state(1500, 3))) for _ in range(2))
    energies = step(whole, refresh=0.5, first_slot=ONES - 1)  # slots go round
    for row in range(3):
        alone = step((*(a[row : row + 1] for a in parts[:3]), parts[3]), None, None, 0.5, None, (ONES - 1 + row) & ONES)
        assert alone[0].equal(energies[row])
    assert all(a.equal(b) for a, b in zip(whole, parts, strict=True))


# widths, particles, samples, tiles: gradients summed and used in one launch, in slices, in chunks and groups
CASES = {
    "in one": ((13, 7, 3), 3, 40, None),
    "no hidden layer, widths over the tile of a weight gradient": ((70, 3), 2, 20, None),
    "slices": ((13, 7, 3), 3, 40, Tiles(samples=16, slice=16)),
    "chunks and groups": ((13, 7, 3), 3, 40, Tiles(samples=16, slice=16, chunk=32, scratch=8000)),
}


class Problem:
    def __init__(self, case, kind="categorical", weighted=False, scaled=False):
        widths, particles, samples, self.tiles = CASES[case]
        rng = np.random.default_rng(1)
        self.post = fs.Posterior(fs.MLP(widths, "tanh"), prior=fs.Normal("fan_in"), likelihood=kind)
        theta = self.post.sample_prior(particles)
        self.x = rng.standard_normal((samples, widths[0]), np.float32)
        labels = rng.integers(0, widths[-1], samples)
        self.y = labels if kind == "categorical" else rng.random((samples, widths[-1]), np.float32)
        self.weights = rng.uniform(0, 2, samples).astype(np.float32) if weighted else None
        self.scale = rng.uniform(0.3, 1.5, theta.shape[1]).astype(np.float32) if scaled else None
        self.state = theta, rng.standard_normal(theta.shape, np.float32)

    def prepared(self, precision):
        """State with its gradient, the density's arguments, and a function that evaluates it."""
        density = self.post.network.layer_table, self.post.likelihood.code, self.post.likelihood.noise, precision
        theta, v, *batch = map(on_device, (*self.state, self.x, self.y, self.weights))

        def evaluate(total, grad):
            log_likelihood(*density, theta, *batch, total, grad, tiles=self.tiles)

        total = torch.full((len(theta),), torch.nan, dtype=torch.float64, device=DEVICE)
        grad = torch.full_like(theta, torch.nan)
        evaluate(total, grad)
        start, end = (torch.full((len(theta), 3), torch.nan, dtype=torch.float64, device=DEVICE) for _ in range(2))
        return density, (theta, v, grad), batch, total.fill_(torch.nan), start, end, evaluate

    def constants(self):
        return on_device(np.asarray(self.post.prior_precision, np.float32)), on_device(self.scale)

    def in_one(self, precision, size, steps, power, refresh):
        density, state, batch, total, start, end, _ = self.prepared(precision)
        plan = size, steps, power, refresh is not None, refresh or 0.0, *KEY
        how = {"tiles": self.tiles}
        leapfrog.trajectory(*density, *state, *batch, *self.constants(), total, start, end, *plan, **how)
        return *state, total, start[:, 0], end[:, 1], end[:, 2]

    def by_steps(self, precision, size, steps, power, refresh):
        _, (theta, v, grad), _, total, start, end, evaluate = self.prepared(precision)
        prior, scale = self.constants()
        key = refresh is not None, refresh or 0.0, *KEY
        leapfrog.leapfrog(theta, v, grad, prior, scale, None, theta, start, size / 2, size, power, *key)
        for k in range(1, steps + 1):
            evaluate(total, grad)
            kick, drift = (size, size) if k < steps else (size / 2, 0.0)
            leapfrog.leapfrog(
                theta, v, grad, prior, scale, None, theta, end, kick, drift, power, False, 0.0, 0, 0, 0, 0
            )
        return theta, v, grad, total, start[:, 0], end[:, 1], end[:, 2]


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize(("steps", "scaled"), [(1, False), (2, True)])
def test_a_trajectory_is_its_steps(case, steps, scaled):
    problem = Problem(case, weighted=scaled, scaled=scaled)
    plan = 0.01, steps, 1.7, 0.6 if scaled else None
    for found, expected in zip(problem.in_one(0, *plan), problem.by_steps(0, *plan), strict=True):
        assert found.equal(expected)


@pytest.mark.parametrize("precision", [1, 2])
def test_a_trajectory_is_its_steps_in_every_precision(precision):
    plan = 0.01, 2, 1.7, 0.6
    problem = Problem("in one", scaled=True)
    for found, expected in zip(problem.in_one(precision, *plan), problem.by_steps(precision, *plan), strict=True):
        assert found.equal(expected)


@pytest.mark.parametrize("kind", ["categorical", "bernoulli", "gaussian"])
@pytest.mark.parametrize("case", ["in one", "slices"])
def test_it_goes_where_float64_goes(kind, case):
    problem = Problem(case, kind, weighted=True, scaled=True)
    found = problem.in_one(0, 0.005, 4, 1.0, 0.3)
    theta, v = (a.astype(float) for a in problem.state)
    post = problem.post.on("reference")
    grad = post.log_likelihood_and_grad(theta, problem.x, problem.y, weights=problem.weights).grad
    names = dict(zip(("seed", "iteration", "stream", "first_slot"), KEY, strict=True))
    plan = {"step_size": 0.005, "num_steps": 4, "refresh": 0.3, "scale": problem.scale, **names}
    exact = post.trajectory(theta, v, grad, problem.x, problem.y, weights=problem.weights, **plan)
    for ours, truth in zip(found, (theta, v, grad, *exact), strict=True):
        error = np.linalg.norm(ours.cpu().numpy() - truth)
        assert error <= 1e-5 * np.linalg.norm(truth)  # 4 steps of 1e-7, in a curved landscape


def test_a_trajectory_reports_bad_labels():
    problem = Problem("in one")
    problem.y[[11, 30]] = 3
    density, state, batch, total, start, end, _ = problem.prepared(0)
    plan = 0.01, 2, 1.0, False, 0.0, *KEY
    status = leapfrog.trajectory(*density, *state, *batch, *problem.constants(), total, start, end, *plan)
    assert status.item() == 10 << 48 | 11
