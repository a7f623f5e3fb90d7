import math
from itertools import product
from statistics import NormalDist

import numpy as np
import pytest
from problems import threads_change_no_bit

from fastsmc import backends, ops, random

EPS = np.finfo(np.float32).eps
FALSE_ALARM = 1e-6
# one, odd, around a vector of 4 to 16 and four of them, and around the block of the running sums: 256 to 1024
SIZES = [1, 3, 7, 15, 17, 31, 33, 63, 65, 127, 255, 257, 1023, 1025, 2500]
NAMES = {"seed": 5, "iteration": 3, "stream": 2, "first_slot": 4}
STEP = {"kick": 0.3, "drift": 0.2, "likelihood_scale": 1.7}


def state(dim, particles=3):
    rng = np.random.default_rng(dim)
    theta, v, grad = rng.standard_normal((3, particles, dim), np.float32)
    return theta, v, grad, rng.uniform(0.5, 2, dim).astype(np.float32)


def scale_of(dim):
    """Over four orders of magnitude."""
    return (10 ** np.random.default_rng(dim).uniform(-2, 2, dim)).astype(np.float32)


def noise_of(dim):
    """Some of it zero."""
    return np.maximum(np.random.default_rng(dim).uniform(-0.5, 1, dim), 0).astype(np.float32)


def by_formula(theta, v, grad, precision, scale, noise, xi, refresh, dtype):
    """Every line of the docstring in one precision, energies summed in it too."""
    theta, v, grad, precision, xi = (a.astype(dtype) for a in (theta, v, grad, precision, xi))
    scale = dtype(1) if scale is None else scale.astype(dtype)
    kick, drift, likelihood_scale = (dtype(STEP[name]) for name in ("kick", "drift", "likelihood_scale"))
    if refresh is not None:
        v = dtype(refresh) * v + np.asarray(math.sqrt(1 - refresh**2) if noise is None else noise, dtype) * xi
    before = np.sum(v * v, axis=1) / 2
    v = v + kick * (scale * (likelihood_scale * grad - precision * theta))
    moved = theta + drift * (scale * v)
    return moved, v, before, np.sum(v * v, axis=1) / 2, np.sum(precision * moved * moved, axis=1) / 2


@pytest.mark.parametrize("dim", SIZES)
@pytest.mark.parametrize("refresh", [None, 0, 0.7, 1])
@pytest.mark.parametrize("aliased", [True, False])
@pytest.mark.parametrize("scaled", [False, True])
@pytest.mark.parametrize("noisy", [False, True])
def test_a_step_is_as_exact_as_plain_float32(backend, dim, refresh, aliased, scaled, noisy):
    theta, v, grad, precision = state(dim)
    scale, noise = scale_of(dim) if scaled else None, noise_of(dim) if noisy else None
    xi = random.normal(theta.shape, **NAMES, backend=backend)
    truth, plain = (
        by_formula(theta, v, grad, precision, scale, noise, xi, refresh, dtype) for dtype in (np.float64, np.float32)
    )
    particles, momentum = theta.copy(), v.copy()
    out = particles if aliased else np.full_like(theta, np.nan)
    how = {"precision": precision, "scale": scale, "noise": noise, "refresh": refresh, "backend": backend}
    energies = ops.leapfrog(particles, momentum, grad, out=out, **how, **STEP, **NAMES)
    assert aliased or np.array_equal(particles, theta)
    assert [e.dtype for e in energies] == [np.float64] * 3
    for ours, exact, float32 in zip((out, momentum, *energies), truth, plain, strict=True):
        assert ours.shape == exact.shape
        error, allowed = (np.linalg.norm(a - exact) for a in (ours, float32))
        assert error <= 2 * allowed + EPS * np.linalg.norm(exact)


@pytest.mark.parametrize("dim", SIZES)
@pytest.mark.parametrize("refresh", [None, 0.7])
def test_a_scale_of_ones_changes_no_bit(backend, dim, refresh):
    plain, scaled = state(dim), state(dim)
    how = {"precision": plain[3], "refresh": refresh, "backend": backend, **STEP}
    energies = ops.leapfrog(*plain[:3], **how), ops.leapfrog(*scaled[:3], scale=np.ones(dim, np.float32), **how)
    assert all(map(np.array_equal, energies[0], energies[1]))
    assert all(map(np.array_equal, plain, scaled))


@pytest.mark.parametrize("dim", [33, 1025])
@pytest.mark.parametrize("scaled", [False, True])
@pytest.mark.parametrize("noisy", [False, True])
def test_the_reference_is_the_formula_in_float64(dim, scaled, noisy):
    theta, v, grad, precision = (a.astype(np.float64) for a in state(dim))
    xi = np.empty(theta.shape)
    backends.choose("reference").ops.normal(xi, *(NAMES[n] for n in ("seed", "iteration", "stream", "first_slot")))
    scale, noise = scale_of(dim) if scaled else None, noise_of(dim) if noisy else None
    truth = by_formula(theta, v, grad, precision, scale, noise, xi, 0.7, np.float64)
    how = {"precision": precision, "scale": scale, "noise": noise, "refresh": 0.7, "backend": "reference"}
    energies = ops.leapfrog(theta, v, grad, **how, **STEP, **NAMES)
    for ours, exact in zip((theta, v, *energies), truth, strict=True):
        assert np.linalg.norm(ours - exact) <= dim * 2.0**-53 * np.linalg.norm(exact)


@pytest.mark.parametrize("dim", SIZES)
def test_fresh_momentum_is_the_normal_numbers_it_names(backend, dim):
    theta, _, grad, precision = state(dim)
    momentum = np.full_like(theta, np.nan)  # what is dropped is not read
    nowhere = {"kick": 0.0, "drift": 0.0}
    before = theta.copy()
    energies = ops.leapfrog(
        theta, momentum, grad, precision=precision, refresh=0.0, backend=backend, **nowhere, **NAMES
    )
    assert np.array_equal(momentum, random.normal(theta.shape, **NAMES, backend=backend))
    assert np.array_equal(theta, before)
    assert np.array_equal(energies.kinetic_before, energies.kinetic_after)


@pytest.mark.parametrize("scaled", [False, True])
def test_particles_may_be_updated_in_parts(backend, scaled):
    """As ranks do: each row alone, named by its slot, gives the bits of all together."""
    whole, parts = state(129, 5), state(129, 5)
    scale = scale_of(129) if scaled else None
    shared = {"precision": whole[3], "scale": scale, "refresh": 0.5, "seed": 1, "backend": backend, **STEP}
    energies = ops.leapfrog(*whole[:3], **shared, first_slot=2)
    for row in range(5):
        alone = ops.leapfrog(*(a[row : row + 1] for a in parts[:3]), **shared, first_slot=2 + row)
        assert [e[0] for e in alone] == [e[row] for e in energies]
    assert all(map(np.array_equal, whole, parts))


def test_it_is_one_and_the_same_twice(backend):
    once, again = state(1000), state(1000)
    results = [
        ops.leapfrog(*arrays[:3], precision=arrays[3], refresh=0.5, backend=backend, **STEP) for arrays in (once, again)
    ]
    assert all(map(np.array_equal, results[0], results[1]))
    assert all(map(np.array_equal, once, again))


@pytest.mark.parametrize("poison", [np.nan, np.inf])
def test_a_particle_that_is_not_a_number_harms_no_other(backend, poison):
    clean, dirty = state(70), state(70)
    dirty[0][1, 40] = poison
    with np.errstate(invalid="ignore"):
        energies = [ops.leapfrog(*a[:3], precision=a[3], backend=backend, **STEP) for a in (clean, dirty)]
    for pure, bad in zip((*energies[0], *clean[:2]), (*energies[1], *dirty[:2]), strict=True):
        assert np.array_equal(pure[[0, 2]], bad[[0, 2]])
    assert not np.isfinite(energies[1].kinetic_after[1])
    assert not np.isfinite(energies[1].prior_energy[1])


class Gaussian:
    """log pi = -(prior + data precision) theta^2 / 2 + pull theta in every coordinate, over many particles.

    Badly scaled, the coordinates differ by up to four orders of magnitude, and the steps are scaled accordingly.
    """

    def __init__(self, backend, dtype=np.float32, badly_scaled=False, dim=67, particles=50):
        rng = np.random.default_rng(0)
        self.backend, self.dtype = backend, dtype
        self.prior, self.data, self.pull = rng.uniform(0.5, 2, (3, dim)).astype(dtype)
        self.theta, self.v = rng.standard_normal((2, particles, dim)).astype(dtype)
        self.scale = scale_of(dim).astype(dtype) if badly_scaled else None
        self.size = self.scale if badly_scaled else np.ones(dim, dtype)
        self.prior, self.data = self.prior / self.size**2, self.data / self.size**2
        self.pull, self.theta = self.pull / self.size, self.theta * self.size

    def grad(self, theta):
        return (self.pull - self.data * theta).astype(self.dtype)

    def step(self, theta, v, kick, drift):
        """The op, or the same by plain NumPy."""
        if self.backend is None:
            v += self.dtype(kick) * (self.size * (self.grad(theta) - self.prior * theta))
            theta += self.dtype(drift) * (self.size * v)
            return None
        how = {"precision": self.prior, "scale": self.scale, "backend": self.backend}
        return ops.leapfrog(theta, v, self.grad(theta), kick=kick, drift=drift, **how)

    def trajectory(self, theta, v, steps, size):
        """As moves.HMC composes it; returns the energies of the first and of the last kick."""
        first = self.step(theta, v, size / 2, size)
        for _ in range(steps - 1):
            self.step(theta, v, size, size)
        return first, self.step(theta, v, size / 2, 0.0)

    def potential(self, theta):
        theta = theta.astype(np.float64)
        return np.sum((self.prior + self.data) * theta**2 / 2 - self.pull * theta, axis=1)

    def energy_error(self, steps, size):
        theta, v = self.theta.copy(), self.v.copy()
        first, last = self.trajectory(theta, v, steps, size)
        return self.potential(theta) + last.kinetic_after - self.potential(self.theta) - first.kinetic_before

    def distance(self, theta):
        return np.linalg.norm((theta - self.theta) / self.size)

    def there_and_back(self):
        theta, v = self.theta.copy(), self.v.copy()
        self.trajectory(theta, v, 25, 0.1)
        assert self.distance(theta) > self.distance(0)  # it went somewhere
        v *= -1
        self.trajectory(theta, v, 25, 0.1)
        return np.hypot(self.distance(theta), np.linalg.norm(v + self.v))


every_target = pytest.mark.parametrize("badly_scaled", [False, True])


@every_target
def test_a_trajectory_is_reversible_to_rounding(engine, badly_scaled):
    ours, plain = (Gaussian(name, badly_scaled=badly_scaled) for name in (engine, None))
    size = ours.distance(0)
    assert ours.there_and_back() <= 2 * plain.there_and_back() + EPS * size
    # fifty steps of a few roundings each
    assert Gaussian("reference", np.float64, badly_scaled).there_and_back() <= 50 * 8 * 2.0**-53 * size


@every_target
def test_the_energy_error_is_of_second_order(backend, badly_scaled):
    target = Gaussian(backend, badly_scaled=badly_scaled)
    coarse, fine = (np.linalg.norm(target.energy_error(n, 2.0 / n)) for n in (10, 20))
    assert 3.5 < coarse / fine < 4.5
    exact = Gaussian("reference", np.float64, badly_scaled)
    errors = [np.linalg.norm(exact.energy_error(n, 2.0 / n)) for n in (100, 200)]
    assert errors[0] / errors[1] == pytest.approx(4, abs=0.01)


@every_target
def test_the_energies_are_those_of_the_state(backend, badly_scaled):
    target = Gaussian(backend, badly_scaled=badly_scaled)
    theta, v = target.theta.copy(), target.v.copy()
    first, last = target.trajectory(theta, v, 5, 0.1)
    for ours, truth in (
        (first.kinetic_before, np.sum(target.v.astype(float) ** 2, axis=1) / 2),
        (last.kinetic_after, np.sum(v.astype(float) ** 2, axis=1) / 2),
        (last.prior_energy, np.sum(target.prior * theta.astype(float) ** 2, axis=1) / 2),
    ):
        assert np.all(np.abs(ours - truth) <= 2 * EPS * truth)


@pytest.mark.statistics
@pytest.mark.parametrize("refresh", [0.0, 0.7])
def test_refreshed_momentum_is_standard_normal(backend, refresh):
    """z of mean, variance and the correlation with what was there, Bonferroni over the three: false alarm 1e-6."""
    shape = (256, 1000)
    old = random.normal(shape, seed=1, stream=9).astype(np.float32)
    v, zero = old.copy(), np.zeros(shape, np.float32)
    energies = ops.leapfrog(
        zero.copy(), v, zero, precision=np.ones(1000, np.float32), kick=0.0, drift=0.0, refresh=refresh, seed=1,
        backend=backend,
    )  # fmt: skip
    v, old = v.astype(float), old.astype(float)
    checks = [(v, 0, 1), (v**2, 1, 2), (v * old, refresh, 1 + refresh**2)]
    bound = -NormalDist().inv_cdf(FALSE_ALARM / 2 / len(checks))
    for values, mean, variance in checks:
        assert abs(values.mean() - mean) < bound * math.sqrt(variance / values.size)
    assert np.allclose(energies.kinetic_before, np.sum(v * v, axis=1) / 2, rtol=2 * EPS)


def everything():
    rng = np.random.default_rng(3)
    for particles, dim in ((3, 33), (5, 10_001), (64, 1000)):
        theta, v, grad = rng.standard_normal((3, particles, dim), np.float32)
        precision = rng.uniform(0.5, 2, dim).astype(np.float32)
        for refresh, scale in ((None, None), (0.7, None), (0.7, rng.uniform(0.5, 2, dim).astype(np.float32))):
            how = {"precision": precision, "scale": scale, "noise": scale, "kick": 0.1, "drift": 0.2}
            yield from ops.leapfrog(theta, v, grad, refresh=refresh, **how)
            yield from (theta, v)
        for kind in (random.philox, random.uniform, random.normal):
            yield kind((particles, dim), seed=1)


def test_the_number_of_threads_changes_no_bit():
    threads_change_no_bit(everything)


def test_torch_tensors_are_updated_in_place(backend):
    torch = pytest.importorskip("torch")
    arrays = state(65)
    tensors = [torch.from_numpy(a.copy()) for a in arrays]
    plain = ops.leapfrog(*arrays[:3], precision=arrays[3], refresh=0.5, backend=backend, **STEP)
    energies = ops.leapfrog(*tensors[:3], precision=tensors[3], refresh=0.5, backend=backend, **STEP)
    assert all(type(e) is torch.Tensor and e.dtype == torch.float64 for e in energies)
    assert all(map(np.array_equal, energies, plain))
    assert all(map(np.array_equal, tensors, arrays))


A = np.zeros((2, 3), np.float32)
ONE = np.ones(3, np.float32)
FROZEN = np.zeros((2, 3), np.float32)
FROZEN.flags.writeable = False


def step(b, particles=A, momentum=A, grad=A, precision=ONE, **others):
    # copies, but for what cannot be written into
    particles, momentum = (a if a is FROZEN or not a.flags.c_contiguous else a.copy() for a in (particles, momentum))
    return ops.leapfrog(particles, momentum, grad, precision=precision, **{**STEP, **others}, backend=b)


# (what is called, the exception, parts of its sentence)
REFUSED = [
    (lambda b: step(b, momentum=A[:, :2].copy()), ValueError, "momentum has shape (2, 2) and dtype float32"),
    (lambda b: step(b, momentum=A.astype(float)), ValueError, "momentum has shape (2, 3) and dtype float64"),
    (lambda b: step(b, momentum=FROZEN), ValueError, "momentum is read-only; it must be writeable"),
    (lambda b: step(b, momentum=np.zeros((3, 2), np.float32).T), ValueError, "momentum is not a C-contiguous array"),
    (lambda b: step(b, particles=FROZEN), ValueError, "out is read-only; it must be writeable"),
    (lambda b: step(b, out=np.zeros((2, 4), np.float32)), ValueError, "out has shape (2, 4) and dtype float32"),
    (lambda b: step(b, out=np.zeros((2, 6), np.float32)[:, ::2]), ValueError, "out is not a C-contiguous array"),
    (lambda b: step(b, grad=A[:1]), ValueError, "grad has shape (1, 3) and dtype float32; it must have"),
    (lambda b: step(b, grad=A.astype(float)), ValueError, "grad has shape (2, 3) and dtype float64; it must have"),
    (lambda b: step(b, grad=A.astype(int)), TypeError, "grad has dtype int64; it must be float32 or float64"),
    (lambda b: step(b, precision=ONE[:2]), ValueError, "precision has shape (2,), particles (2, 3); they must be [d]"),
    (lambda b: step(b, precision=A), ValueError, "precision has shape (2, 3), particles (2, 3); they must be"),
    (lambda b: step(b, *([ONE] * 3)), ValueError, "precision has shape (3,), particles (3,); they must be"),
    (lambda b: step(b, scale=ONE[:2]), ValueError, "scale has shape (2,), particles (2, 3); they must be [d] and"),
    (lambda b: step(b, scale=1.0), ValueError, "scale has shape (), particles (2, 3); they must be [d] and [P, d]"),
    (lambda b: step(b, scale=[1, 1, 1]), TypeError, "scale has dtype int64; it must be float32 or float64"),
    (lambda b: step(b, scale=ONE * 0), ValueError, "scale[0] is 0.0; scale must be positive and finite"),
    (lambda b: step(b, scale=[1, -2.0, 1]), ValueError, "scale[1] is -2.0; scale must be positive and finite"),
    (lambda b: step(b, scale=[1, 1, math.nan]), ValueError, "scale[2] is nan; scale must be positive and finite"),
    (lambda b: step(b, scale=[1, math.inf, 1]), ValueError, "scale[1] is inf; scale must be positive and finite"),
    (lambda b: step(b, noise=ONE[:2]), ValueError, "noise has shape (2,), particles (2, 3); they must be [d] and"),
    (lambda b: step(b, noise=[1, -2.0, 1]), ValueError, "noise[1] is -2.0; noise must be non-negative and finite"),
    (lambda b: step(b, noise=[1, 1, math.nan]), ValueError, "noise[2] is nan; noise must be non-negative and finite"),
    (lambda b: step(b, refresh=1.01), ValueError, "refresh is 1.01; it must lie between 0 and 1"),
    (lambda b: step(b, refresh=-0.1), ValueError, "refresh is -0.1; it must lie between 0 and 1"),
    (lambda b: step(b, refresh=math.nan), ValueError, "refresh is nan; it must lie between 0 and 1"),
]  # fmt: skip


@pytest.mark.parametrize(("call", "error", "sentence"), REFUSED, ids=range(len(REFUSED)))
def test_refused_in_one_sentence(backend, call, error, sentence):
    with pytest.raises(error) as raised:
        call(backend)
    assert sentence in str(raised.value)
    assert "\n" not in str(raised.value)


def test_float64_particles_are_for_the_reference_alone(engine):
    wide = A.astype(float)
    step("reference", wide, wide, wide)
    with pytest.raises(TypeError, match="particles has dtype float64; the engine computes in float32"):
        step(engine, wide, wide, wide)


def test_what_is_written_overlaps_no_other_argument(backend):
    memory = np.ones((3, 5), np.float32)
    ours = {k: np.zeros((2, 5), np.float32) for k in ("particles", "momentum", "grad")}
    ours["precision"] = np.ones(5, np.float32)

    def move(**arrays):
        ops.leapfrog(**{**ours, **arrays}, kick=0.1, drift=0.1, backend=backend)

    own = "each must have memory of its own"
    for name in ("momentum", "grad"):
        with pytest.raises(ValueError, match=f"{name} overlaps out; {own}"):
            move(**{"out": memory[1:], name: memory[:2]})
    for written, name in product(("particles", "out", "momentum"), ("precision", "scale", "noise")):
        with pytest.raises(ValueError, match=f"{name} overlaps {written}; {own}"):
            move(**{written: memory[1:], name: memory[2]})
    with pytest.raises(ValueError, match=f"particles overlaps momentum; {own}"):
        move(particles=memory[:2], momentum=memory[1:], out=np.zeros((2, 5), np.float32))
    for written, read in (("out", "particles"), ("momentum", "grad")):
        sentence = f"{written} overlaps {read}; it must be {read} itself or memory of its own"
        with pytest.raises(ValueError, match=sentence):
            move(**{read: memory[:2], written: memory[1:]})
        move(**{read: memory[:2], written: memory[:2]})


def test_a_key_that_does_not_fit_is_refused():
    state = {k: np.zeros((2, 5), np.float32) for k in ("particles", "momentum", "grad")}
    with pytest.raises(ValueError, match="seed is -1; it must be a whole number"):
        ops.leapfrog(**state, precision=np.ones(5, np.float32), kick=0.1, drift=0.1, refresh=0.0, seed=-1)
