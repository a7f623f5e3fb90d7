"""Other libraries' samplers on our functions, unmodified."""

import numpy as np
import pytest

import fastsmc as fs
from fastsmc import ops


@pytest.mark.parametrize("scheme", ops.SCHEMES)
def test_particles_resamples_by_our_schemes(scheme):
    resampling = pytest.importorskip("particles.resampling")
    import fastsmc.integrations.particles  # noqa: F401

    weights = np.random.default_rng(0).random(50)
    weights /= weights.sum()
    np.random.seed(3)  # noqa: NPY002
    found = resampling.resampling(f"fastsmc_{scheme}", weights, 30)
    np.random.seed(3)  # noqa: NPY002
    u = np.random.rand(30) if ops.SCHEMES[scheme] else np.random.rand()  # noqa: NPY002
    assert np.array_equal(found, fs.resample(weights, u, scheme, log=False, num_samples=30))


def test_particles_filters_on_our_resampling():
    """Evidence of a random walk of unit steps seen with unit noise, by its normal density."""
    particles = pytest.importorskip("particles")
    from particles import distributions, state_space_models

    import fastsmc.integrations.particles  # noqa: F401

    class Walk(state_space_models.StateSpaceModel):
        def PX0(self):  # noqa: N802
            return distributions.Normal()

        def PX(self, t, xp):  # noqa: N802
            return distributions.Normal(loc=xp)

        def PY(self, t, xp, x):  # noqa: N802
            return distributions.Normal(loc=x)

    times = np.arange(1, 31)
    covariance = np.minimum(times[:, None], times) + np.eye(30)
    y = np.linalg.cholesky(covariance) @ np.random.default_rng(1).standard_normal(30)
    exact = -0.5 * (30 * np.log(2 * np.pi) + np.linalg.slogdet(covariance)[1] + y @ np.linalg.solve(covariance, y))
    np.random.seed(0)  # noqa: NPY002
    model = state_space_models.Bootstrap(ssm=Walk(), data=y)
    run = particles.SMC(fk=model, N=20_000, resampling="fastsmc_systematic")
    run.run()
    assert abs(run.logLt - exact) < 0.3  # six times its deviation from run to run


def test_blackjax_tempers_a_network_on_our_likelihood_and_resampling():
    """Against its own likelihood, written out in JAX, by evidence and by the mean log-likelihood."""
    jax = pytest.importorskip("jax")
    blackjax = pytest.importorskip("blackjax")
    pytest.importorskip("fastsmc._jax", reason="this package was built without its JAX module")
    from fastsmc.integrations.blackjax import bnn_log_likelihood, systematic

    rng = np.random.default_rng(2)
    net, x = fs.MLP((2, 4, 2), "tanh"), rng.standard_normal((60, 2)).astype(np.float32)
    y = (x[:, 0] * x[:, 1] > 0).astype(np.int64)

    def by_hand(theta):
        w1, b1, w2, b2 = (jax.numpy.reshape(theta[p.begin : p.end], p.shape) for p in net.parameters)
        logits = jax.numpy.tanh(x @ w1.T + b1) @ w2.T + b2
        return jax.numpy.sum(jax.nn.log_softmax(logits)[np.arange(60), y])

    def log_prior(theta):
        return -0.5 * jax.numpy.sum(theta**2)

    def sample(log_likelihood, resampling, seed):
        kernel = blackjax.hmc.build_kernel(), blackjax.hmc.init
        parameters = {"step_size": 0.1, "inverse_mass_matrix": np.ones(net.num_params), "num_integration_steps": 5}
        smc = blackjax.tempered_smc(
            log_prior, log_likelihood, *kernel, blackjax.smc.extend_params(parameters), resampling, num_mcmc_steps=3
        )

        def advance(carry, temperature):
            state, key, evidence = carry
            key, own = jax.random.split(key)
            state, info = smc.step(own, state, temperature)
            return (state, key, evidence + info.log_likelihood_increment), None

        key, start = jax.random.split(jax.random.key(seed))
        state = smc.init(jax.random.normal(start, (400, net.num_params)))
        temperatures = jax.numpy.linspace(0, 1, 31)[1:] ** 2
        (state, _, evidence), _ = jax.lax.scan(advance, (state, key, 0.0), temperatures)
        return float(evidence), float(jax.vmap(by_hand)(state.particles).mean())

    ours = bnn_log_likelihood(net, x, y)
    theta = jax.random.normal(jax.random.key(0), (5, net.num_params))
    np.testing.assert_allclose(jax.vmap(ours)(theta), jax.vmap(by_hand)(theta), rtol=1e-5)
    runs = (ours, systematic), (by_hand, blackjax.smc.resampling.systematic)
    found, plain = (np.array([sample(*functions, seed) for seed in range(4)]) for functions in runs)
    error = np.sqrt((found.var(0, ddof=1) + plain.var(0, ddof=1)) / 4)
    assert np.all(np.abs(found.mean(0) - plain.mean(0)) < 6 * error)  # 0.2 %, by Student's t; the seeds are fixed


@pytest.mark.parametrize("library", ["blackjax", "particles"])
def test_accelerate_replaces_and_restores(library):
    resampling = {"blackjax": "blackjax.smc.resampling", "particles": "particles.resampling"}[library]
    module = pytest.importorskip(resampling)
    if library == "blackjax":
        pytest.importorskip("fastsmc._jax", reason="this package was built without its JAX module")
    theirs = {scheme: getattr(module, scheme) for scheme in ops.SCHEMES}
    with pytest.raises(KeyError), fs.accelerate(library) as replaced:
        assert {f"{resampling}.{scheme}" for scheme in ops.SCHEMES} <= set(replaced)
        assert all(getattr(module, scheme) is not theirs[scheme] for scheme in ops.SCHEMES)
        if library == "particles":
            assert module.rs_funcs["systematic"] is not theirs["systematic"]
            assert "particles.resampling.rs_funcs.systematic" in replaced
        raise KeyError
    assert all(getattr(module, scheme) is theirs[scheme] for scheme in ops.SCHEMES)
    if library == "particles":
        assert module.rs_funcs["systematic"] is theirs["systematic"]


def test_names_that_are_imported_elsewhere_are_replaced_too():
    pytest.importorskip("blackjax")
    pytest.importorskip("fastsmc._jax", reason="this package was built without its JAX module")
    from blackjax.smc import pretuning

    theirs = pretuning.stratified
    with fs.accelerate("blackjax") as replaced:
        assert "blackjax.smc.pretuning.stratified" in replaced
        assert pretuning.stratified is not theirs
    assert pretuning.stratified is theirs


def test_a_library_that_is_not_known_is_refused():
    with pytest.raises(ValueError, match="library is 'numpy'; it must be one of 'blackjax', 'particles'"):
        fs.accelerate("numpy").__enter__()
