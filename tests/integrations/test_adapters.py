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
