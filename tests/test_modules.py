import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

import fastsmc as fs
from fastsmc import densities


class Plain(nn.Module):
    """A forward of one's own, of known layers."""

    def __init__(self, pool=True):
        super().__init__()
        self.features = nn.Sequential(nn.Conv2d(1, 4, 3, padding="same"), nn.MaxPool2d(2))
        self.head = nn.ModuleDict({"hidden": nn.Linear(4 * 16, 7), "out": nn.Linear(7, 3)})

    def forward(self, x):
        x = functional.relu(self.features(x))
        x = functional.dropout(x.view(x.shape[0], -1), 0.5, self.training)
        return self.head["out"](torch.tanh(self.head["hidden"](x)))


class Residual(nn.Module):
    def __init__(self, width=6):
        super().__init__()
        self.first, self.last = nn.Linear(5, width), nn.Linear(width, 3)
        self.block = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, width), nn.GELU(), nn.Linear(width, width))

    def forward(self, x):
        h = self.first(x)
        return self.last(h + self.block(h))


class Encoder(nn.Module):
    """Of sequences of eight numbers."""

    def __init__(self, steps=8, width=8):
        super().__init__()
        self.embed = nn.Linear(1, width)
        self.place = nn.Parameter(torch.randn(steps, width) * 0.1)
        layer = nn.TransformerEncoderLayer(width, 2, 12, dropout=0.0, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, 1, enable_nested_tensor=False)
        self.out = nn.Linear(width, 3)

    def forward(self, x):
        return self.out(self.encoder(self.embed(x[..., None]) + self.place).mean(1))


class Tokens(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed, self.out = nn.Embedding(11, 4), nn.Linear(4, 3)

    def forward(self, x):
        return self.out(self.embed(x).mean(1))


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second, self.out = nn.Linear(5, 5), nn.Linear(5, 5), nn.Linear(5, 3)
        self.second.weight = self.first.weight

    def forward(self, x):
        return self.out(torch.tanh(self.second(torch.tanh(self.first(x)))))


def mlp(*ends):
    return nn.Sequential(nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, 3), *ends)


FUSED = {
    "sequential": (mlp, None),
    "with dropout that is off": (lambda: nn.Sequential(nn.Dropout(0.5), *mlp()).eval(), (5,)),
    "flattened images": (lambda: nn.Sequential(nn.Flatten(), nn.Linear(12, 3)), (3, 2, 2)),
    "gelu, then a pool": (
        lambda: nn.Sequential(nn.Conv2d(2, 3, 3), nn.GELU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(27, 3)),
        (2, 8, 8),
    ),
    "forward of one's own": (lambda: Plain().eval(), (1, 8, 8)),
    "without a bias": (lambda: nn.Sequential(nn.Linear(5, 4, bias=False), nn.SiLU(), nn.Linear(4, 3)), None),
}
THROUGH_TORCH = {
    "residual": (Residual, None, "no kernel has LayerNorm at 'block.0'"),
    "transformer": (lambda: Encoder().eval(), (8,), "it cannot be traced|no kernel has|does not take"),
    "tokens": (Tokens, (6,), "no kernel has Embedding at 'embed'"),
    "strided convolution": (
        lambda: nn.Sequential(nn.Conv2d(1, 3, 3, stride=2), nn.Flatten(), nn.Linear(27, 3)), (1, 8, 8),
        "'0' is no convolution of stride 1",
    ),
    "average pool": (
        lambda: nn.Sequential(nn.Conv2d(1, 3, 3), nn.AvgPool2d(2), nn.Flatten(), nn.Linear(27, 3)), (1, 8, 8),
        "no kernel has AvgPool2d at '1'",
    ),
    "pool, then gelu": (
        lambda: nn.Sequential(nn.Conv2d(1, 3, 3), nn.MaxPool2d(2), nn.GELU(), nn.Flatten(), nn.Linear(27, 3)),
        (1, 8, 8), "'2' does not follow",
    ),
    "approximate gelu": (
        lambda: nn.Sequential(nn.Linear(5, 4), nn.GELU("tanh"), nn.Linear(4, 3)), None, "approximation of GELU",
    ),
    "batch normalisation that is fixed": (
        lambda: nn.Sequential(nn.Linear(5, 4), nn.BatchNorm1d(4), nn.Linear(4, 3)).eval(), None, "BatchNorm1d",
    ),
    "tied weights": (Tied, None, "uses a tensor twice"),
    "a layer used twice": (lambda: nn.Sequential(*[nn.Linear(3, 3)] * 2), None, "uses a tensor twice"),
}  # fmt: skip
MODULES = FUSED | {name: (make, shape) for name, (make, shape, _) in THROUGH_TORCH.items()}


def data(net, samples=6):
    rng = np.random.default_rng(2)
    whole = isinstance(net.to_torch(), Tokens)
    shape = (samples, *net.input_shape)
    x = rng.integers(0, 11, shape).astype(np.float32) if whole else rng.standard_normal(shape, np.float32)
    return x, rng.integers(0, 3, samples), rng.uniform(0, 2, samples).astype(np.float32)


def by_autograd(net, particles, x, y, weights):
    """In float64, particle by particle; whole numbers stay whole."""
    module, found = net.to_torch().double(), []
    inputs = torch.from_numpy(x).long() if isinstance(module, Tokens) else torch.from_numpy(x).double()
    for row in torch.from_numpy(particles).double():
        row.requires_grad_()
        z = torch.func.functional_call(module, net.unpack(row), (inputs,))
        value = (-functional.cross_entropy(z, torch.from_numpy(y), reduction="none") * torch.from_numpy(weights)).sum()
        found.append((value.item(), torch.autograd.grad(value, row)[0].numpy(), z.detach().numpy()))
    return tuple(np.array(part) for part in zip(*found, strict=True))


def from_torch(name, **options):
    torch.manual_seed(3)
    make, shape = MODULES[name]
    return fs.from_torch(make(), shape, **options)


@pytest.mark.parametrize("name", MODULES)
@pytest.mark.parametrize("kind", [np.asarray, torch.from_numpy])
def test_values_gradients_and_outputs_are_those_of_autograd(name, kind):
    net = from_torch(name)
    post = fs.Posterior(net, fs.Normal("fan_in"))
    particles, (x, y, weights) = post.sample_prior(3, seed=1), data(net)
    value, grad = post.log_likelihood_and_grad(kind(particles), kind(x), kind(y), weights=kind(weights))
    assert type(value) is type(grad) is type(kind(x))
    exact = by_autograd(net, particles, x, y, weights)
    found = (value, grad, post.outputs(kind(particles), kind(x)))
    for ours, truth in zip(found, exact, strict=True):
        assert np.abs(np.asarray(ours) - truth).max() <= 2e-6 * np.abs(truth).max()
    plain = post.log_likelihood(particles, x, y)
    ones = np.ones(len(x), np.float32)
    np.testing.assert_allclose(plain, by_autograd(net, particles, x, y, ones)[0], rtol=2e-6)


@pytest.mark.parametrize("name", FUSED)
def test_chains_of_known_layers_go_to_the_kernels(name):
    net = from_torch(name)
    assert net.path.startswith("fused kernels")
    theirs = [(name, tuple(p.shape)) for name, p in net.to_torch().named_parameters()]
    assert [(p.name, p.shape) for p in net.parameters] == theirs


@pytest.mark.parametrize("name", THROUGH_TORCH)
def test_all_else_goes_through_torch_and_says_why(name):
    net, reason = from_torch(name), THROUGH_TORCH[name][2]
    assert net.path.startswith("torch.func: ")
    with pytest.raises(AssertionError, match=reason):
        raise AssertionError(fs.Posterior(net).path)


@pytest.mark.parametrize("name", ["sequential", "residual"])
def test_fixed_parameters_keep_their_values(name):
    pattern = {"sequential": "0.*", "residual": "block.*"}[name]
    whole, part = from_torch(name), from_torch(name, fixed=[pattern])
    module = part.to_torch()
    state = {k: v for k, v in module.state_dict().items() if k not in [p.name for p in part.parameters]}
    assert state and part.num_params == whole.num_params - sum(v.numel() for v in state.values())
    assert all(p.requires_grad != (name in state) for name, p in module.named_parameters())
    posts = fs.Posterior(whole), fs.Posterior(part, fs.StudentT(0.5))
    particles, (x, y, _) = posts[1].sample_prior(3, seed=1), data(part)
    tensors = part.unpack(particles) | {k: np.repeat(v[None].numpy(), 3, axis=0) for k, v in state.items()}
    full = np.concatenate([tensors[p.name].reshape(3, -1) for p in whole.parameters], axis=1)
    value, grad = posts[1].log_likelihood_and_grad(particles, x, y)
    expected, slope = posts[0].log_likelihood_and_grad(full, x, y)
    np.testing.assert_allclose(value, expected, rtol=1e-6)
    found = {k: v for k, v in whole.unpack(slope).items() if k not in state}
    for key, gradient in part.unpack(grad).items():
        np.testing.assert_allclose(gradient, found[key], rtol=1e-5, atol=1e-6)


def test_frozen_parameters_of_a_module_are_fixed():
    module = mlp()
    module[0].requires_grad_(False)
    assert [p.name for p in fs.from_torch(module).parameters] == ["2.weight", "2.bias"]


def test_the_module_is_copied():
    module = mlp()
    net = fs.from_torch(module, fixed=["0.*"])
    x = np.ones((1, 5), np.float32)
    post = fs.Posterior(net)
    before = post.outputs(post.sample_prior(2), x)
    with torch.no_grad():
        module[0].weight.zero_()
    assert np.array_equal(post.outputs(post.sample_prior(2), x), before)


def test_blocks_of_particles_and_samples_change_nothing_but_rounding(monkeypatch):
    post = fs.Posterior(from_torch("residual"))
    particles, (x, y, weights) = post.sample_prior(5), data(post.network, samples=23)
    together = (*post.log_likelihood_and_grad(particles, x, y, weights=weights), post.outputs(particles, x))
    for budget in (1, 3000):
        monkeypatch.setattr(densities, "BUDGET", budget)
        parts = (*post.log_likelihood_and_grad(particles, x, y, weights=weights), post.outputs(particles, x))
        for a, b in zip(parts, together, strict=True):
            assert np.abs(a - b).max() <= 1e-6 * np.abs(b).max()


def student(outputs, y):
    return torch.distributions.StudentT(4.0, outputs, 0.5).log_prob(y).sum(-1)


def test_a_likelihood_may_be_any_function_of_torch():
    post = fs.Posterior(from_torch("sequential"), likelihood=student)
    assert post.path == "torch.func: the kernels do not know the custom likelihood"
    particles, (x, _, weights) = post.sample_prior(4), data(post.network)
    y = np.random.default_rng(4).standard_normal((len(x), 3)).astype(np.float32)
    value, grad = post.log_likelihood_and_grad(particles, x, y, weights=weights)
    row = torch.from_numpy(particles[2]).double().requires_grad_()
    z = torch.func.functional_call(
        post.network.to_torch().double(), post.network.unpack(row), (torch.from_numpy(x).double(),)
    )
    exact = (student(z, torch.from_numpy(y)) * torch.from_numpy(weights)).sum()
    assert value[2] == pytest.approx(exact.item(), rel=1e-6)
    np.testing.assert_allclose(grad[2], torch.autograd.grad(exact, row)[0], rtol=1e-4, atol=1e-6)
    wrong = fs.Posterior(fs.MLP([5, 3]), likelihood=lambda z, y: student(z, y).sum())
    with pytest.raises(ValueError, match=r"likelihood returns \(\) for outputs \(6, 3\); it must"):
        wrong.log_likelihood(wrong.sample_prior(2), x, y)


def not_2d():
    return nn.Sequential(nn.Linear(5, 6), nn.Unflatten(1, (2, 3)))


@pytest.mark.parametrize(
    ("make", "options", "words"),
    [
        (lambda: mlp(nn.Dropout(0.1)), {}, "Dropout in training mode at '3'.*module.eval"),
        (
            lambda: nn.Sequential(nn.BatchNorm1d(5), *mlp()),
            {"input_shape": (5,)},
            "BatchNorm1d in training mode",
        ),
        (Plain, {"input_shape": (1, 8, 8)}, "module draws random numbers"),
        (lambda: Plain().eval(), {}, "input_shape is None, and the module starts with Conv2d"),
        (lambda: Plain().eval(), {"input_shape": (1, 9, 7)}, r"input_shape is \(1, 9, 7\), which the module does not"),
        (mlp, {"fixed": ["5.*"]}, "fixed has '5.*'; it must match a parameter of the module: 0.weight"),
        (mlp, {"fixed": ["*"]}, "at least one parameter of the module must be left to sample"),
        (not_2d, {}, r"module makes \(2, 2, 3\) of two samples; it must be a tensor \[2, outputs\]"),
    ],
)
def test_bad_modules_are_refused(make, options, words):
    with pytest.raises(ValueError, match=words):
        fs.from_torch(make(), **options)
