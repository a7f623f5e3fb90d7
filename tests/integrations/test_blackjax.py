"""blackjax on our likelihood, resampling and moves."""

import numpy as np
import pytest
import torch
from conjugate import closed_form, problem

import fastsmc as fs
from fastsmc.annealing import Target

jax = pytest.importorskip("jax")
blackjax = pytest.importorskip("blackjax")
_jax = pytest.importorskip("fastsmc._jax", reason="this package was built without its JAX module")

from fastsmc.integrations import blackjax as integration  # noqa: E402
from fastsmc.integrations.blackjax import (  # noqa: E402
    bnn_log_likelihood,
    data_annealing,
    fused_hmc,
    systematic,
)
from fastsmc.integrations.jax import forget  # noqa: E402

PARAMETERS = {"step_size": 0.1, "inverse_mass_matrix": np.ones(3), "num_integration_steps": 5}
SEEDS = range(6)


def log_prior(theta):
    return jax.numpy.sum(jax.scipy.stats.norm.logpdf(theta))


def hmc():
    return blackjax.hmc.build_kernel(), blackjax.hmc.init, blackjax.smc.extend_params(PARAMETERS)


def assert_posterior(errors, truth):
    """Log evidence and moments of repeated runs [runs, quantities], by Student's t: false alarm 1e-3, seeds fixed."""
    t = (np.mean(errors, 0) - truth) / (np.std(errors, 0, ddof=1) / np.sqrt(len(errors)))
    assert np.all(np.abs(t) < 6.9), t


def regression(num_data=60):
    """Linear regression as a network, its posterior in closed form, and where its data are."""
    posterior, x, y = problem(num_data)
    exact = closed_form(posterior, x, y, 0, Target(0, num_data))
    return posterior, x, y, exact


def summary(evidence, particles, weights, exact):
    """What is compared with the closed form: log evidence, weighted means, variances relative to the right ones."""
    _, mean, covariance = exact
    error = np.asarray(particles, np.float64) - mean
    weights = np.asarray(weights, np.float64) / np.sum(weights)
    return [evidence, *(weights @ error), *(weights @ error**2 / np.diag(covariance))]


@pytest.mark.parametrize("scheme", fs.ops.SCHEMES)
def test_resampling_functions_take_a_column_of_weights(scheme):
    """As `blackjax.smc.pretuning` hands them over."""
    resampling = getattr(integration, scheme)
    key, weights = jax.random.key(0), jax.random.uniform(jax.random.key(1), (50,))
    assert np.array_equal(resampling(key, weights[:, None], 30), resampling(key, weights, 30))


def test_fused_moves_sample_the_posterior():
    posterior, x, y, exact = regression()
    net, likelihood = posterior.network, posterior.likelihood
    ours = bnn_log_likelihood(net, x, y, likelihood)
    moves = fused_hmc(net, x, y, 5, likelihood=likelihood)
    smc = blackjax.adaptive_tempered_smc(
        log_prior, ours, *hmc(), systematic, 0.8, num_mcmc_steps=4, update_particles_fn=moves
    )
    step, found = jax.jit(smc.step), []
    for seed in SEEDS:
        key, start = jax.random.split(jax.random.key(seed))
        state, evidence = smc.init(jax.random.normal(start, (500, 3))), 0.0
        while state.tempering_param < 1:
            key, own = jax.random.split(key)
            state, info = step(own, state)
            evidence += float(info.log_likelihood_increment)
            assert info.update_info.acceptance_rate.shape == (4, 500)
            assert 0.3 < info.update_info.acceptance_rate.mean() <= 1
        found.append(summary(evidence, state.particles, state.weights, exact))
    assert_posterior(found, [exact[0], *np.zeros(3), *np.ones(3)])


def test_fused_moves_are_blackjax_own_in_distribution():
    """Mean acceptance and squared jumps under a mass matrix, from particles that are anywhere: false alarm 1e-6."""
    posterior, x, y, _ = regression()
    mass = {"inverse_mass_matrix": np.array([0.5, 2.0, 1.0])}
    parameters = blackjax.smc.extend_params(PARAMETERS | mass)
    likelihood = bnn_log_likelihood(posterior.network, x, y, posterior.likelihood)
    moves = fused_hmc(
        posterior.network, x, y, 5, likelihood=posterior.likelihood, resampling_fn=lambda k, w, n: np.arange(n)
    )
    state = blackjax.smc.tempered.TemperedSMCState(
        0.3 * jax.random.normal(jax.random.key(0), (4000, 3)), np.full(4000, 1 / 4000), 0.5
    )

    def moved(update, key):
        kernel = blackjax.smc.tempered.build_kernel(
            log_prior, likelihood, *hmc()[:2], lambda k, w, n: np.arange(n), update_particles_fn=update
        )
        after, info = kernel(jax.random.key(key), state, 1, 0.5, parameters)
        jumps, rate = (after.particles - state.particles) ** 2, info.update_info.acceptance_rate.reshape(-1, 1)
        found = np.concatenate([jumps, rate], axis=1, dtype=np.float64)
        return found.mean(0), found.var(0) / len(found)

    (ours, variance), (theirs, their_variance) = moved(moves, 1), moved(None, 2)
    assert np.all(np.abs(ours - theirs) < 5.2 * np.sqrt(variance + their_variance))


def test_parameters_of_fused_moves_must_be_shared():
    posterior, x, y, _ = regression()
    moves = fused_hmc(posterior.network, x, y, 5, likelihood=posterior.likelihood)
    state = blackjax.smc.tempered.init(np.zeros((10, 3), np.float32))
    with pytest.raises(ValueError, match=r"step_size has shape \(10,\); fused moves need it shared by all particles"):
        moves(jax.random.key(0), state, 1, {"step_size": np.ones(10)}, log_prior, log_prior)


@pytest.mark.parametrize(
    ("parameters", "sentence"),
    [
        ({"inverse_mass_matrix": np.eye(3)}, r"inverse_mass_matrix has shape \(1, 3, 3\); .* particles, \(1, 3\)"),
        ({"num_integration_steps": 7}, "num_integration_steps is 7 in mcmc_parameters; it must be 5"),
        ({"divergence_threshold": 10.0}, "mcmc_parameters has 'divergence_threshold'; fused moves take 'step_size', "),
    ],
)
def test_parameters_that_fused_moves_would_ignore_are_refused(parameters, sentence):
    posterior, x, y, _ = regression()
    moves = fused_hmc(posterior.network, x, y, 5, likelihood=posterior.likelihood)
    state = blackjax.smc.tempered.init(np.zeros((10, 3), np.float32))
    given = blackjax.smc.extend_params(PARAMETERS | parameters)
    with pytest.raises(ValueError, match=sentence):
        jax.jit(lambda key: moves(key, state, 1, given, log_prior, log_prior))(jax.random.key(0))


@pytest.mark.parametrize(
    "prior", [fs.Laplace(), {"*": fs.Normal()}, fs.Normal(fs.HalfNormal(1.0))], ids=["Laplace", "table", "sampled"]
)
def test_priors_that_fused_moves_do_not_know_are_refused(prior):
    posterior, x, y, _ = regression()
    with pytest.raises(ValueError, match=r"prior is .*; it must be Normal, with a scale that is known"):
        fused_hmc(posterior.network, x, y, 5, prior, posterior.likelihood)


def test_networks_that_kernels_do_not_know_are_refused_before_a_run():
    _, x, y, _ = regression()
    network = fs.from_torch(torch.nn.Sequential(torch.nn.Linear(2, 1), torch.nn.Softplus()))
    for make in (
        lambda: fused_hmc(network, x, y, 5, likelihood="gaussian"),
        lambda: data_annealing(log_prior, network, x, y, *hmc(), likelihood="gaussian"),
    ):
        with pytest.raises(ValueError, match=r"network is .*; it must be a chain of at most 64 layers"):
            make()


def in_steps(algorithm, sizes, seed):
    key, start = jax.random.split(jax.random.key(seed))
    state, evidence = algorithm.init(jax.random.normal(start, (500, 3))), 0.0
    for size in sizes:
        key, own = jax.random.split(key)
        state, info = algorithm.step(own, state, size)
        evidence += float(info.log_likelihood_increment)
    return state, evidence


@pytest.mark.parametrize("sizes", [(12, 60), (2, 8, 24, 60)], ids=len)
def test_data_annealing_is_right_for_every_schedule(sizes):
    posterior, x, y, exact = regression()
    data = jax.numpy.asarray(x), jax.numpy.asarray(y)
    algorithm = data_annealing(
        log_prior, posterior.network, *data, *hmc(), num_mcmc_steps=4, likelihood=posterior.likelihood
    )
    found = []
    for seed in SEEDS:
        state, evidence = in_steps(algorithm, sizes, seed)
        assert state.size == 60
        found.append(summary(evidence, state.particles, state.weights, exact))
    assert_posterior(found, [exact[0], *np.zeros(3), *np.ones(3)])


def test_blackjax_own_data_annealing_counts_data_twice():
    """The evidence by its partial posteriors: it moves under the new one before it weights."""
    _, x, y, exact = regression()
    rows, targets = jax.numpy.asarray(x), jax.numpy.asarray(y)

    def partial_posterior(mask):
        def log_density(theta):
            return log_prior(theta) + jax.numpy.sum(
                mask * jax.scipy.stats.norm.logpdf(targets, rows @ theta[:2] + theta[2])
            )

        return log_density

    smc = blackjax.partial_posteriors_smc(*hmc()[:2], hmc()[2], systematic, 4, partial_posterior)
    step, evidences = jax.jit(smc.step), []
    for seed in SEEDS:
        key, start = jax.random.split(jax.random.key(seed))
        state, evidence = smc.init(jax.random.normal(start, (500, 3)), 60), 0.0
        for size in (4, 12, 30, 60):
            key, own = jax.random.split(key)
            state, info = step(own, state, (np.arange(60) < size).astype(np.float32))
            evidence += float(info.log_likelihood_increment)
        evidences.append(evidence)
    assert np.min(evidences) > exact[0] + 0.5


def test_sizes_go_up():
    posterior, x, y, _ = regression()
    algorithm = data_annealing(log_prior, posterior.network, x, y, *hmc(), likelihood=posterior.likelihood)
    state = algorithm.init(np.zeros((10, 3), np.float32))._replace(size=20)
    for size in (19, 61):
        with pytest.raises(ValueError, match=f"size is {size}; it must lie between 20, that of the state, and 60"):
            algorithm.step(jax.random.key(0), state, size)


def test_blackjax_tempers_a_network_on_our_likelihood_and_resampling():
    """Against its own likelihood, written out in JAX, by evidence and by the mean log-likelihood."""
    rng = np.random.default_rng(2)
    net, x = fs.MLP((2, 4, 2), "tanh"), rng.standard_normal((60, 2)).astype(np.float32)
    y = (x[:, 0] * x[:, 1] > 0).astype(np.int64)

    def by_hand(theta):
        w1, b1, w2, b2 = (jax.numpy.reshape(theta[p.begin : p.end], p.shape) for p in net.parameters)
        logits = jax.numpy.tanh(x @ w1.T + b1) @ w2.T + b2
        return jax.numpy.sum(jax.nn.log_softmax(logits)[np.arange(60), y])

    def sampler(log_likelihood, resampling):
        parameters = blackjax.smc.extend_params(PARAMETERS | {"inverse_mass_matrix": np.ones(net.num_params)})
        smc = blackjax.tempered_smc(log_prior, log_likelihood, *hmc()[:2], parameters, resampling, num_mcmc_steps=3)

        def advance(carry, temperature):
            state, key, evidence = carry
            key, own = jax.random.split(key)
            state, info = smc.step(own, state, temperature)
            return (state, key, evidence + info.log_likelihood_increment), None

        @jax.jit
        def sample(key):
            key, start = jax.random.split(key)
            state = smc.init(jax.random.normal(start, (400, net.num_params)))
            temperatures = jax.numpy.linspace(0, 1, 31)[1:] ** 2
            (state, _, evidence), _ = jax.lax.scan(advance, (state, key, 0.0), temperatures)
            return evidence, jax.vmap(by_hand)(state.particles).mean()

        return sample

    ours = bnn_log_likelihood(net, x, y)
    theta = jax.random.normal(jax.random.key(0), (5, net.num_params))
    np.testing.assert_allclose(jax.vmap(ours)(theta), jax.vmap(by_hand)(theta), rtol=1e-5)
    runs = (ours, systematic), (by_hand, blackjax.smc.resampling.systematic)
    samplers = (sampler(*functions) for functions in runs)
    found, plain = (np.array([sample(jax.random.key(seed)) for seed in range(4)]) for sample in samplers)
    error = np.sqrt((found.var(0, ddof=1) + plain.var(0, ddof=1)) / 4)
    assert np.all(np.abs(found.mean(0) - plain.mean(0)) < 6 * error)  # 0.2 %, by Student's t; the seeds are fixed


def random_walk():
    kernel = blackjax.rmh.build_kernel()

    def step(rng_key, state, logdensity_fn, scale):
        return kernel(rng_key, state, logdensity_fn, lambda key, x: x + scale * jax.random.normal(key, x.shape))

    return step, blackjax.rmh.init, blackjax.smc.extend_params({"scale": 0.05})


@pytest.mark.parametrize(("kernel", "steps"), [(random_walk, 1), (hmc, 5)])
def test_blackjax_computes_what_it_asks_for_again_only_once(kernel, steps):
    """Where a move starts, and for the weight of where it ended; the samples are the same, bit for bit."""
    posterior, x, y, _ = regression()
    data = posterior.network, x, y, posterior.likelihood

    def sample(remember):
        forget()
        smc = blackjax.tempered_smc(
            log_prior, bnn_log_likelihood(*data, remember=remember), *kernel(), systematic, num_mcmc_steps=1
        )
        step, state = jax.jit(smc.step), smc.init(jax.random.normal(jax.random.key(0), (200, 3)))
        counts = [_jax.computed()]
        for k, temperature in enumerate(np.linspace(0, 1, 21)[1:] ** 2):
            state, info = jax.block_until_ready(step(jax.random.key(k), state, temperature))
            counts.append(_jax.computed())
        return np.asarray(state.particles), info.update_info.is_accepted.mean(), np.diff(counts)

    particles, accepted, computed = sample(remember=True)
    plain, _, uncounted = sample(remember=False)
    assert 0.1 < accepted < 1  # some stay where they were
    assert np.array_equal(particles, plain)
    assert not uncounted.any()
    assert np.all(computed[3:] == steps * 200)  # at first, it is not yet known how long a trajectory is
