"""Functions that take the place of another library's, by what that library asks of them."""

import numpy as np
import pytest
import torch

import fastsmc as fs


def weights_of(n, rng):
    weights = rng.standard_exponential(n)
    return weights / weights.sum()


def test_pocomc_resamples_by_numpys_generator():
    from fastsmc.integrations.pocomc import systematic_resample

    weights = weights_of(50, np.random.default_rng(0))
    found = systematic_resample(80, weights, random_state=3)
    np.random.seed(3)  # noqa: NPY002
    assert np.array_equal(found, fs.systematic(weights, np.random.random(), 80))  # noqa: NPY002
    np.random.seed(3)  # noqa: NPY002
    assert np.array_equal(systematic_resample(size=80, weights=7 * weights), found)


def test_pocomc_has_the_same_indices_by_itself():
    tools = pytest.importorskip("pocomc.tools")
    from fastsmc.integrations.pocomc import systematic_resample

    rng = np.random.default_rng(1)
    for n in (1, 7, 1000):
        weights = weights_of(n, rng)
        assert np.array_equal(systematic_resample(n, weights, 5), tools.systematic_resample(n, weights, 5))


def test_pyro_resamples_batches_by_torchs_generator():
    from fastsmc.integrations.pyro import systematic_sample

    weights = torch.from_numpy(np.random.default_rng(2).random((3, 4, 50)))
    torch.manual_seed(0)
    found = systematic_sample(weights)
    torch.manual_seed(0)
    u = torch.rand(3, 4, dtype=torch.float64)
    assert torch.equal(found, fs.systematic(weights, u))


def test_pyfilter_resamples_along_the_first_dimension():
    from fastsmc.integrations.pyfilter import systematic

    w = torch.from_numpy(np.random.default_rng(5).standard_normal((50, 3)))
    torch.manual_seed(0)
    found = systematic(w)
    torch.manual_seed(0)
    u = torch.rand(3, dtype=torch.float64)
    assert torch.equal(found, fs.resample(w.T.contiguous(), u).T)
    weights = torch.softmax(w, 0)
    assert torch.equal(systematic(weights, normalized=True, u=u[:, None]), found)
    assert torch.equal(systematic(w, u=u[:, None]), found)
    of_each = torch.rand(3, 50)
    assert torch.equal(systematic(w, u=of_each), fs.resample(w.T.contiguous(), of_each, "stratified").T)
    for u_of_all in (0.25, torch.tensor([0.25])):
        assert torch.equal(systematic(w[:, 0], u=u_of_all), fs.resample(w[:, 0].contiguous(), torch.tensor(0.25)))


def test_stone_soup_resamples_states_and_lists():
    state = pytest.importorskip("stonesoup.types.state")
    from stonesoup.resampler import particle as theirs

    from fastsmc.integrations.stonesoup import SystematicResampler

    weights = weights_of(50, np.random.default_rng(6))
    vectors = state.StateVectors(np.arange(100.0).reshape(2, 50))
    particles = state.ParticleState(vectors, weight=weights)

    def drawn(resampler, particles, number):
        np.random.seed(3)  # noqa: NPY002
        return resampler.resample(particles, number)

    for number in (None, 20, 80):
        found = drawn(SystematicResampler(), particles, number)
        size = number or 50
        np.random.seed(3)  # noqa: NPY002
        expected = fs.systematic(weights, np.random.random(), size)  # noqa: NPY002
        assert np.array_equal(found.state_vector, vectors[:, expected])
        assert np.allclose(found.log_weight, -np.log(size))
        assert len(drawn(theirs.SystematicResampler(), particles, number)) == len(found)
    listed = drawn(SystematicResampler(), list(particles.particles), None)
    assert np.array_equal(listed.state_vector, drawn(SystematicResampler(), particles, None).state_vector)
    kept = theirs.ESSResampler(threshold=51, resampler=SystematicResampler()).resample(particles)
    assert len(kept) == 50 and np.allclose(kept.log_weight, -np.log(50))


def test_posteriors_gets_the_gradient_of_each_particle():
    from fastsmc.integrations.posteriors import log_posterior_of

    rng = np.random.default_rng(7)
    x, y = (torch.from_numpy(rng.standard_normal(shape, np.float32)) for shape in ((30, 4), (30, 2)))
    posterior = fs.Posterior(fs.MLP([4, 5, 2], "tanh"), fs.Normal(0.7), fs.Gaussian(0.3))
    particles = torch.from_numpy(posterior.sample_prior(6))
    of_all = log_posterior_of(posterior, num_data=100)
    (total, of_batch), grad = of_all(particles, (x, y)), torch.func.grad(of_all, has_aux=True)(particles, (x, y))[0]
    value, slope = posterior.log_likelihood_and_grad(particles, x, y)
    torch.testing.assert_close(of_batch, value)
    torch.testing.assert_close(grad, slope / 30 - particles / 0.7**2 / 100)
    expected = value.sum() / 30 - 0.5 * (particles.double() ** 2).sum() / 0.7**2 / 100
    torch.testing.assert_close(total, expected)
    for prior in (fs.Laplace(), fs.Normal(fs.HalfNormal(1.0))):
        sentence = rf"posterior has the prior {type(prior).__name__}.*; it must be Normal, with a scale that is known"
        with pytest.raises(ValueError, match=sentence):
            log_posterior_of(fs.Posterior(fs.MLP([4, 2]), prior), 10)


def through_torch():
    """A network that the kernels do not know, and one with a bias that is not sampled."""
    softplus = torch.nn.Sequential(torch.nn.Linear(4, 2), torch.nn.Softplus())
    return fs.from_torch(softplus), fs.from_torch(torch.nn.Sequential(torch.nn.Linear(4, 2)), fixed=["0.bias"])


def of_posteriors(network, x, y, **options):
    from fastsmc.integrations.posteriors import log_posterior_of

    return log_posterior_of(fs.Posterior(network, **options), 10)


def of_torch(network, x, y, **options):
    from fastsmc.integrations.torch import log_likelihood

    return log_likelihood(network, x, y, **options)


def of_jax(network, x, y, **options):
    pytest.importorskip("fastsmc._jax", reason="this package was built without its JAX module")
    from fastsmc.integrations.jax import log_likelihood

    return log_likelihood(network, x.numpy(), y.numpy(), **options)


@pytest.mark.parametrize("density", [of_posteriors, of_torch, of_jax])
def test_what_the_kernels_do_not_compute_is_refused_at_once(density):
    x, y = torch.zeros(3, 4), torch.zeros(3, dtype=torch.int64)
    for network in through_torch():
        sentence = "; it must be a chain of at most 64 layers that the kernels know, with all their weights sampled"
        with pytest.raises(ValueError, match=f"network is .*{sentence}"):
            density(network, x, y)
    with pytest.raises(ValueError, match=r"likelihood is Gaussian.*; it must be one of the kernels' own"):
        density(fs.MLP([4, 2]), x, y, likelihood=fs.Gaussian(fs.HalfNormal(1.0)))
    with pytest.raises(ValueError, match="precision is 'low'; it must be one of"):
        density(fs.MLP([4, 2]), x, y, precision="low")


@pytest.fixture
def jax():
    pytest.importorskip("fastsmc._jax", reason="this package was built without its JAX module")
    return pytest.importorskip("jax")


def test_cuthbert_resamples_logits_and_positions(jax):
    from fastsmc.integrations.cuthbert import resampling

    logits = jax.random.normal(jax.random.key(0), (50,)) + 100
    positions = {"a": jax.numpy.arange(50.0), "b": jax.numpy.arange(100.0).reshape(50, 2)}
    ancestors, after, gathered = resampling(jax.random.key(1), logits, positions, 30)
    u = jax.random.uniform(jax.random.key(1), (), logits.dtype)
    assert np.array_equal(ancestors, fs.resample(np.array(logits), np.array(u), num_samples=30))
    assert np.array_equal(after, np.zeros(30))
    assert np.array_equal(gathered["a"], ancestors)
    assert np.array_equal(gathered["b"], positions["b"][ancestors])


def test_cuthbert_takes_it_for_a_resampling_of_its_own(jax):
    protocols = pytest.importorskip("cuthbertlib.resampling.protocols")
    from fastsmc.integrations.cuthbert import resampling

    assert isinstance(resampling, protocols.Resampling)


def test_ancestors_have_no_derivative_and_stand_in_no_ones_way(jax):
    from fastsmc.integrations.cuthbert import resampling

    def mean_of_gathered(logits, positions):
        return resampling(jax.random.key(0), logits, positions, 20)[2].mean()

    logits, positions = jax.numpy.zeros(20), jax.numpy.arange(20.0)
    by_logits, by_positions = jax.grad(mean_of_gathered, (0, 1))(logits, positions)
    assert np.array_equal(by_logits, np.zeros(20))
    assert np.allclose(by_positions, 1 / 20)


def test_pfjax_gets_particles_and_their_ancestors(jax):
    from fastsmc.integrations.pfjax import resample_systematic

    logw = jax.random.normal(jax.random.key(0), (50,))
    particles = {"a": jax.numpy.arange(50.0), "b": jax.numpy.arange(100.0).reshape(50, 2)}
    found = jax.jit(resample_systematic)(jax.random.key(1), particles, logw)
    u = jax.random.uniform(jax.random.key(1), (), logw.dtype)
    assert np.array_equal(found["ancestors"], fs.resample(np.array(logw), np.array(u)))
    assert np.array_equal(found["x_particles"]["b"], particles["b"][found["ancestors"]])


@pytest.mark.parametrize("name", ["resample_systematic", "resample_stratified"])
def test_tfp_gets_indices_of_its_shapes(jax, name):
    """Sample shape first, then what log probabilities have beside the particles, with samples along that dimension."""
    from fastsmc.integrations import tfp

    resample = getattr(tfp, name)
    log_probs = jax.nn.log_softmax(jax.random.normal(jax.random.key(0), (50, 3)), axis=0)
    found = resample(log_probs, 40, (), seed=jax.random.key(1))
    assert found.shape == (40, 3) and found.dtype == np.int32
    assert np.all(np.diff(found, axis=0) >= 0)
    for column in range(3):
        counts = np.bincount(found[:, column], minlength=50)
        assert np.all(np.abs(counts - 40 * np.exp(log_probs[:, column])) < 2)
    assert resample(log_probs.T, 40, (), particles_dim=1, seed=jax.random.key(1)).shape == (3, 40)
    assert resample(log_probs, 40, (2, 5), seed=jax.random.key(1)).shape == (40, 2, 5, 3)
    with pytest.raises(ValueError, match="seed is None"):
        resample(log_probs, 40, ())


def test_what_pymc_draws_is_what_we_draw():
    kernels = pytest.importorskip("pymc.smc.kernels")
    from fastsmc.integrations.pymc import systematic_resampling

    weights = weights_of(500, np.random.default_rng(3))
    ours, theirs = (
        draw(weights, np.random.default_rng(4)) for draw in (systematic_resampling, kernels.systematic_resampling)
    )
    assert np.array_equal(ours, theirs)
