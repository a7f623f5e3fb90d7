"""Small results of every kind of likelihood, and what makes them."""

import numpy as np

import fastsmc as fs
from fastsmc.annealing import Target
from fastsmc.result import History

KINDS = {"categorical": 3, "bernoulli": 1, "gaussian": 2}


def data_of(kind="categorical", samples=40):
    rng = np.random.default_rng(1)
    x = rng.standard_normal((samples, 2), np.float32)
    y = {
        "categorical": lambda: rng.integers(0, 3, samples),
        "bernoulli": lambda: rng.integers(0, 2, samples),
        "gaussian": lambda: rng.standard_normal((samples, 2), np.float32),
    }[kind]()
    return x, y


def posterior_of(kind="categorical"):
    likelihood = fs.Gaussian(noise=0.3) if kind == "gaussian" else kind
    return fs.Posterior(fs.MLP([2, 4, KINDS[kind]], "tanh"), fs.Normal("fan_in"), likelihood)


def sampler(kind="categorical", **options):
    options = {"annealing": fs.DataAnnealing(sizes=[10, 20]), "move": fs.HMC(3), "num_iterations": 6, **options}
    return fs.SMC(posterior_of(kind), num_particles=8, **options)


def weighted(kind, poison=0.0):
    """A result with unequal weights, one of which is zero, of a particle that may hold anything."""
    posterior = posterior_of(kind)
    particles = posterior.sample_prior(5)
    particles[3] = np.where(poison == 0, particles[3], poison)
    weights = np.array([0.5, 0.25, 0.125, 0.0, 0.125])
    with np.errstate(divide="ignore"):
        return fs.Result(particles, np.log(weights), posterior, Target(0, 40), 40, History())


def same(a, b):
    """Whether two results are the same to the bit."""
    assert np.array_equal(a.particles, b.particles)
    assert np.array_equal(a.log_weights, b.log_weights)
    assert (a.particles.dtype, a.log_weights.dtype) == (b.particles.dtype, b.log_weights.dtype)
    assert sorted(a.history) == sorted(b.history)
    for name in a.history:
        assert np.array_equal(a.history[name], b.history[name])
        assert a.history[name].dtype == b.history[name].dtype
    for name in ("network", "prior", "likelihood", "precision"):
        assert getattr(a.posterior, name) == getattr(b.posterior, name)
    for name in ("target", "num_data", "warnings", "precision_in_use"):
        assert getattr(a, name) == getattr(b, name)
    return True
