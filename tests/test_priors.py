import numpy as np
import pytest
import torch
from scipy import stats

import fastsmc as fs
from fastsmc.priors import CoordinatePrior

NET = fs.MLP([3, 4, 2], "tanh")

STANDARD = {
    fs.Normal(): stats.norm(),
    fs.Laplace(): stats.laplace(),
    fs.StudentT(df=3): stats.t(3),
    fs.StudentT(df=0.7): stats.t(0.7),
}
POSITIVE = {
    fs.HalfNormal(0.3): stats.halfnorm(scale=0.3),
    fs.HalfCauchy(2.0): stats.halfcauchy(scale=2.0),
    fs.LogNormal(0.5, median=3.0): stats.lognorm(0.5, scale=3.0),
}
ALL = [*STANDARD, *POSITIVE]


def truth(density, z):
    """Log density of a coordinate: of a positive number that of its logarithm."""
    return POSITIVE[density].logpdf(np.exp(z)) + z if density in POSITIVE else STANDARD[density].logpdf(z)


@pytest.mark.parametrize("density", ALL, ids=repr)
def test_densities_are_those_of_scipy(density):
    z = np.linspace(-6, 4, 41)
    found = density.log_density(torch.from_numpy(z)).numpy()
    np.testing.assert_allclose(found, truth(density, z), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("density", ALL, ids=repr)
def test_slopes_are_derivatives_and_curvature_is_their_mean_square(density):
    z = torch.linspace(-6, 3.01, 4001, dtype=torch.float64, requires_grad=True)
    (slope,) = torch.autograd.grad(density.log_density(z).sum(), z)
    np.testing.assert_allclose(density.slope(z.detach()), slope, rtol=1e-9, atol=1e-12)
    grid = torch.linspace(-600, 600, 2_000_001, dtype=torch.float64)  # the mean of minus the second derivative
    finite = torch.nan_to_num(density.log_density(grid).exp() * density.slope(grid).square())
    spread = finite.sum().item() * 1200 / 2_000_000
    assert spread == pytest.approx(density.curvature, rel=2e-2 if density == fs.StudentT(df=0.7) else 1e-3)


@pytest.mark.parametrize("density", ALL, ids=repr)
def test_draws_have_the_density(density):
    u, v = torch.from_numpy(np.random.default_rng(5).random((2, 1, 50_000)))
    z = density.draw(u, v).numpy()[0]
    found = np.exp(z) if density in POSITIVE else z
    assert stats.kstest(found, (POSITIVE | STANDARD)[density].cdf).pvalue > 1e-6
    edges = density.draw(*torch.tensor([[[0.0, 1 - 2**-53]], [[0.25, 0.0]]], dtype=torch.float64))
    assert torch.isfinite(edges).all()


def test_a_posterior_draws_its_prior_and_knows_its_density():
    prior = {"0.weight": fs.Laplace(0.5), "*.bias": fs.StudentT(2.0, df=5), "*": fs.Normal("fan_in")}
    post = fs.Posterior(NET, prior)
    particles = post.sample_prior(4000, seed=3)
    laws = {
        "0.weight": stats.laplace(scale=0.5), "0.bias": stats.t(5, scale=2.0),
        "2.weight": stats.norm(scale=0.5), "2.bias": stats.t(5, scale=2.0),
    }  # fmt: skip
    parts = post.unpack(particles)
    assert list(parts) == list(laws)
    for name, law in laws.items():
        assert stats.kstest(parts[name].ravel(), law.cdf).pvalue > 1e-6, name
    expected = sum(law.logpdf(parts[name].astype(np.float64)).reshape(4000, -1).sum(1) for name, law in laws.items())
    np.testing.assert_allclose(post.log_prior(particles), expected, rtol=1e-6)
    assert np.array_equal(particles, post.sample_prior(4000, seed=3))
    assert not np.array_equal(particles, post.sample_prior(4000, seed=4))


@pytest.mark.parametrize("kind", [np.asarray, torch.from_numpy])
def test_gradients_of_the_prior_are_derivatives(kind):
    prior = {"*.bias": fs.StudentT(fs.HalfCauchy(2.0), df=5), "0.*": fs.Laplace(0.5), "*": fs.Normal(fs.HalfNormal())}
    post = fs.Posterior(NET, prior)
    particles = post.sample_prior(5, seed=3)
    slope = post.prior_slope(kind(particles))
    assert type(slope) is type(kind(particles))
    row = torch.from_numpy(particles).double().requires_grad_()
    normal = torch.from_numpy(post.coordinates.precision).double()
    (exact,) = torch.autograd.grad(-(post.coordinates.rest_energy(row) + 0.5 * row**2 @ normal).sum(), row)
    np.testing.assert_allclose(np.asarray(slope), exact.numpy(), rtol=1e-5, atol=1e-6)


def test_a_sampled_scale_is_a_coordinate_whose_weights_are_in_its_units():
    post = fs.Posterior(NET, {"*.bias": fs.Normal(2.0), "*": fs.Normal(fs.LogNormal(0.3, median=0.1))})
    assert post.num_params == NET.num_params + 1
    particles = post.sample_prior(3000, seed=1)
    parts = post.unpack(particles)
    scale = parts["prior[*].scale"]
    assert scale.shape == (3000,)
    assert np.median(scale) == pytest.approx(0.1, rel=0.05)
    inner = NET.unpack(particles[:, :-1])
    for name in ("0.weight", "2.weight"):
        np.testing.assert_allclose(parts[name], inner[name] * scale[:, None, None], rtol=1e-6)
    assert np.array_equal(parts["0.bias"], inner["0.bias"])
    x = np.ones((2, 3), np.float32)
    net = fs.Posterior(NET)
    weights = np.concatenate([parts[p.name].reshape(3000, -1) for p in NET.parameters], axis=1)
    np.testing.assert_allclose(post.outputs(particles, x), net.outputs(weights, x), rtol=1e-6)


def test_normal_priors_leave_nothing_to_the_rest():
    coordinates = CoordinatePrior(NET.parameters, {"*.bias": fs.Normal(2.0), "*": fs.Normal("fan_in")})
    assert (coordinates.rest, coordinates.names) == ([], ())
    assert np.array_equal(coordinates.precision, (coordinates.scales**-2).astype(np.float32))
    assert fs.Posterior(NET, {"*": fs.Normal(0.5)}).path == fs.Posterior(NET).path == "fused kernels"


@pytest.mark.parametrize(
    ("make", "error", "words"),
    [
        (lambda: fs.Laplace(0), ValueError, "scale is 0; it must be a positive number, 'fan_in' or a distribution"),
        (lambda: fs.Normal("fan_out"), ValueError, "scale is 'fan_out'"),
        (lambda: fs.StudentT(df=-1), ValueError, "df is -1; it must be a positive number"),
        (lambda: fs.HalfNormal(float("nan")), ValueError, "scale is nan; it must be a positive number"),
        (lambda: fs.LogNormal(median=0.0), ValueError, "median is 0.0"),
        (lambda: fs.Posterior(NET, fs.HalfNormal()), TypeError, "prior is HalfNormal"),
        (lambda: fs.Posterior(NET, {"0.*": fs.Normal()}), ValueError, "prior has no entry for '2.weight'"),
        (
            lambda: fs.Posterior(NET, {"*": fs.Normal(), "3.*": fs.Normal()}),
            ValueError,
            "entry '3.*' that no",
        ),
        (lambda: fs.Posterior(NET, {"*": 1.0}), TypeError, r"prior of '\*' is 1.0"),
    ],
)
def test_bad_priors_are_refused(make, error, words):
    with pytest.raises(error, match=words):
        make()
