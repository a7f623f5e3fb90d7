import numpy as np
import pytest
import torch
from torch import nn

import fastsmc as fs
from fastsmc.annealing import Target
from fastsmc.result import History


def residual():
    torch.manual_seed(0)
    body = nn.Sequential(nn.LayerNorm(6), nn.Linear(6, 6), nn.GELU())

    class Residual(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.body, self.last = nn.Linear(5, 6), body, nn.Linear(6, 3)

        def forward(self, x):
            h = self.first(x)
            return self.last(h + self.body(h))

    return Residual()


POSTERIORS = {
    "mlp": lambda: fs.Posterior(fs.MLP([5, 4, 3])),
    "lenet": lambda: fs.Posterior(fs.LeNet5(1, 3, image_size=12)),
    "a scale that is sampled": lambda: fs.Posterior(fs.MLP([5, 4, 3], "tanh"), fs.Normal(fs.HalfNormal(0.5))),
    "partly fixed layers": lambda: fs.Posterior(
        fs.from_torch(nn.Sequential(nn.Linear(5, 4, bias=False), nn.ReLU(), nn.Linear(4, 3)), fixed=["0.*"])
    ),
    "through torch": lambda: fs.Posterior(fs.from_torch(residual(), fixed=["last.*"])),
    "bernoulli": lambda: fs.Posterior(fs.MLP([5, 1]), likelihood="bernoulli"),
    "counts": lambda: fs.Posterior(fs.MLP([5, 2]), likelihood="poisson"),
}


def result_of(name):
    torch.manual_seed(1)
    posterior = POSTERIORS[name]()
    particles = 0.3 * posterior.sample_prior(4)
    with np.errstate(divide="ignore"):
        weights = np.log([0.5, 0.25, 0.0, 0.25])
    return fs.Result(particles, weights, posterior, Target(0, 40), 40, History({"iteration": [0]}))


def inputs(result, samples):
    return np.random.default_rng(2).standard_normal((samples, *result.posterior.network.input_shape), np.float32)


@pytest.mark.parametrize("name", POSTERIORS)
def test_every_particle_is_a_state_of_its_module(name):
    result = result_of(name)
    x, module = inputs(result, 7), result.posterior.network.to_torch()
    outputs = result.posterior.outputs(result.particles, x)
    states = result.state_dicts()
    assert len(states) == 4
    for state, expected in zip(states, outputs, strict=True):
        assert state.keys() == module.state_dict().keys()
        module.load_state_dict(state)
        found = module(torch.from_numpy(x)).detach().numpy()
        assert np.abs(found - expected).max() <= 3e-6 * np.abs(expected).max()


@pytest.mark.parametrize("name", ["lenet", "through torch", "bernoulli"])
def test_onnx_predicts_as_the_particles_do(name, tmp_path):
    runtime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    result = result_of(name)
    path = tmp_path / "mean.onnx"
    result.to_onnx(path)
    session = runtime.InferenceSession(path.read_bytes())
    for samples in (1, 7):
        x = inputs(result, samples)
        (mean,) = session.run(["mean"], {"x": x})
        np.testing.assert_allclose(mean, result.predict_proba(x), rtol=2e-5, atol=2e-6)
