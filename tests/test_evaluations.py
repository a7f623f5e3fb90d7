"""Evaluations that are remembered: computed once, found with the same bits, and taken for nothing but what they are."""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from problems import Problem
from test_jax import accelerated, jax

import fastsmc as fs
from fastsmc import _jax

PROBLEM = Problem(fs.MLP((6, 5, 3), "tanh"), 8, 30, "categorical", seed=1)
FRESH = iter(range(1 << 30))


@pytest.fixture(autouse=True)
def forgotten():
    """What other tests left."""
    accelerated.forget()


def density(problem=PROBLEM, likelihood=None, remember=True, **options):
    """The value of all particles, and the value with its gradient."""
    likelihood = problem.likelihood if likelihood is None else likelihood
    one = accelerated.log_likelihood(problem.net, problem.x, problem.y, likelihood, remember=remember, **options)
    return jax.jit(jax.vmap(one)), jax.jit(jax.vmap(jax.value_and_grad(one)))


def population(count=8, net=PROBLEM.net):
    """Particles that no test has seen."""
    return np.random.default_rng(next(FRESH)).standard_normal((count, net.num_params)).astype(np.float32)


def computed(function, theta):
    """How many particles a call computed, and what it returned as arrays of numpy's."""
    before = _jax.computed()
    result = jax.tree.map(np.asarray, function(theta))
    return _jax.computed() - before, result


def same(a, b):
    return all(np.array_equal(x, y) for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True))


def test_particles_are_found_in_any_order_and_number():
    value, gradient = density()
    theta = population()
    number, first = computed(gradient, theta)
    assert number == len(theta)
    for ancestors, died in (([5, 5, 0, 1, 7, 7, 7, 2], 0), (range(8), 3), ([3], 0), ([4, 6], 2)):
        ancestors = np.array(ancestors)
        number, found = computed(gradient, theta[ancestors])
        assert number == died  # who has no offspring is forgotten
        assert same(found, [part[ancestors] for part in first])
        assert same(computed(value, theta[ancestors]), (0, first[0][ancestors]))


def test_new_particles_among_old_ones_are_computed_alone():
    theta, others = population(), population()
    new = np.array([1, 4, 5])
    for plain, remembering in zip(density(remember=False), density(), strict=True):
        computed(remembering, theta)
        mixed = theta.copy()
        mixed[new] = others[new]
        number, found = computed(remembering, mixed)
        assert number == len(new)
        assert same(found, plain(mixed))
        assert computed(remembering, mixed)[0] == 0


def test_a_value_is_not_a_gradient():
    value, gradient = density()
    theta = population()
    assert computed(value, theta)[0] == 8
    number, (values, _) = computed(gradient, theta)
    assert number == 8
    assert same(computed(value, theta), (0, values))
    assert computed(gradient, theta)[0] == 0


def test_a_population_that_was_found_outlasts_new_ones():
    _, gradient = density()
    old, new = population(), [population() for _ in range(5)]
    for theta in (old, old, *new):
        computed(gradient, theta)
    assert [computed(gradient, theta)[0] for theta in (new[0], old)] == [8, 0]


def test_what_a_trajectory_passes_is_kept_by_its_end():
    """Of runs as long as the last one or longer, the end has its gradient; of shorter ones, its value."""
    value, gradient = density()
    kept, start = [], population()
    computed(gradient, start)
    for steps in (4, 4, 3, 3, 6):
        computed(gradient, start)
        for _ in range(steps):
            start = population()
            computed(gradient, start)
        kept.append((computed(value, start)[0], computed(gradient, start)[0]))
    assert kept == [(0, 0), (0, 0), (0, 8), (0, 0), (0, 0)]


@pytest.mark.parametrize("inputs", [1, 14, 15, 16, 31])
def test_every_bit_of_a_particle_counts(inputs):
    """The last of them too, where they do not fill the words that are hashed at once."""
    problem = Problem(fs.MLP((inputs, 1)), 1, 10, "gaussian", seed=0)
    plain, remembering = density(problem, remember=False)[0], density(problem)[0]
    theta = np.repeat(population(1, problem.net), 3 * inputs + 3, axis=0)
    for k in range(inputs + 1):
        theta[3 * k, k] = np.nextafter(theta[3 * k, k], np.float32(9))
        theta[3 * k + 1, k] *= -1
        theta[3 * k + 2, [k, k - 1]] = theta[3 * k + 2, [k - 1, k]]
    for one in theta:
        assert computed(remembering, one[None]) == (1, plain(one[None]))


def test_signed_zeros_and_nan_are_bits_too():
    value = density()[0]
    theta = np.zeros((3, PROBLEM.net.num_params), np.float32)
    theta[1] = -0.0
    theta[2] = np.nan
    number, first = computed(value, theta)
    assert number == 3
    assert np.isnan(first[2])
    number, again = computed(value, theta)
    assert number == 0
    assert np.array_equal(first, again, equal_nan=True)


def likelihoods():
    """Densities that differ in one thing each."""
    gaussian = Problem(fs.MLP((6, 5, 3), "tanh"), 1, 30, "gaussian", seed=1)
    other = [Problem(fs.MLP((6, 5, 3), "tanh"), 1, 30, "gaussian", seed=1) for _ in range(3)]
    other[0].x = other[0].x + np.float32(1e-3)
    other[1].y = np.roll(other[1].y, 1, axis=0)
    other[2].net = fs.MLP((6, 5, 3), "relu")
    shorter = Problem(fs.MLP((6, 5, 3), "tanh"), 1, 30, "gaussian", seed=1)
    shorter.x, shorter.y = shorter.x[:-1], shorter.y[:-1]
    noises = [density(gaussian, fs.likelihoods.Gaussian(noise)) for noise in (0.5, 0.6)]
    precise = density(gaussian, precision="medium")
    return [density(problem) for problem in (gaussian, *other, shorter)] + [*noises, precise]


def test_densities_do_not_share_what_they_know():
    theta = population()
    found = [computed(gradient, theta) for _, gradient in likelihoods()]
    assert [number for number, _ in found] == [8] * len(found)
    alone = density(Problem(fs.MLP((6, 5, 3), "tanh"), 1, 30, "gaussian", seed=1))[1]
    assert same(found[0][1], alone(theta))


def test_the_same_density_made_twice_does():
    theta = population()
    (_, first), (_, second) = density(), density()
    assert [computed(gradient, theta)[0] for gradient in (first, second)] == [8, 0]


def test_populations_and_networks_of_other_sizes():
    small = Problem(fs.MLP((2, 3)), 1, 10, "categorical", seed=0)
    for problem, count in ((PROBLEM, 8), (PROBLEM, 100), (small, 3), (PROBLEM, 1), (PROBLEM, 0), (small, 40)):
        theta = population(count, problem.net)
        plain, remembering = density(problem, remember=False)[1], density(problem)[1]
        assert computed(remembering, theta)[0] == count
        number, found = computed(remembering, theta)
        assert number == 0
        assert same(found, plain(theta))


def test_without_being_asked_nothing_is_remembered():
    theta = population()
    for function in density(remember=False):
        assert computed(function, theta)[0] == computed(function, theta)[0] == 0  # none are counted either
    assert computed(density()[0], theta)[0] == 8


def test_float64_is_remembered_as_it_is_computed():
    with jax.enable_x64(True):
        _, gradient = density()
        theta = population().astype(np.float64)
        number, first = computed(gradient, theta)
        assert number == 8
        assert first[0].dtype == first[1].dtype == np.float64
        assert same(computed(gradient, theta), (0, first))


def test_what_is_forgotten_is_computed_again():
    theta, (_, gradient) = population(), density()
    numbers = [computed(gradient, theta)[0] for _ in range(2)]
    accelerated.forget()
    assert [*numbers, computed(gradient, theta)[0]] == [8, 0, 8]


def test_threads_take_turns():
    plain, remembering = density(remember=False)[1], density()[1]
    populations = [population() for _ in range(16)]
    truth = [plain(theta) for theta in populations]

    def often(k):
        order = np.random.default_rng(k).integers(16, size=100)
        return all(same(remembering(populations[i]), truth[i]) for i in order)

    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(often, range(4)))


def test_the_end_of_a_fused_trajectory_is_found():
    run = accelerated.trajectory(PROBLEM.net, PROBLEM.x, PROBLEM.y, 3, remember=True)
    theta, (_, gradient) = population(), density()
    plain = density(remember=False)[1]
    _, (_, grad) = computed(gradient, theta)
    end = run(theta, population(), grad, 1.0, 1.0, 0.01, 1.0)
    number, found = computed(gradient, end.particles)
    assert number == 0
    assert same(found, (end.log_likelihood, end.grad))
    assert same(found, plain(end.particles))
