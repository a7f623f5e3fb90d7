"""Custom operators of torch: what opcheck asks of them, compilation, derivatives."""

import numpy as np
import pytest
import torch

import fastsmc as fs
from fastsmc.integrations import torch as ops_of_torch

CASES = {
    "normalize_log_weights": lambda w, u, a: (w,),
    "resample": lambda w, u, a: (w, u[:, 0]),
    "adaptive_resample": lambda w, u, a: (w, u, 0.7, "stratified"),
    "offspring": lambda w, u, a: (a, 20),
    "permute_ancestors": lambda w, u, a: (a,),
    "gather_particles_": lambda w, u, a: (w.T.contiguous(), torch.arange(20) // 2 * 2),
}


def tensors():
    generator = torch.Generator().manual_seed(0)
    log_weights, u = (torch.randn(3, 20, generator=generator), torch.rand(3, 20, generator=generator))
    return log_weights, u, fs.resample(log_weights, u[:, 0])


@pytest.mark.parametrize("name", CASES)
def test_operators_are_what_torch_asks_of_them(name):
    torch.library.opcheck(getattr(ops_of_torch, name), CASES[name](*tensors()))


@pytest.mark.parametrize("name", ["normalize_log_weights", "resample", "adaptive_resample", "offspring"])
def test_operators_say_what_the_functions_say(name):
    arguments = CASES[name](*tensors())
    ours, plain = getattr(ops_of_torch, name)(*arguments), getattr(fs, name)(*arguments)
    for mine, theirs in zip(ours, plain, strict=True) if isinstance(ours, tuple) else [(ours, plain)]:
        assert torch.equal(mine, theirs)


def test_weights_are_differentiable():
    log_weights = torch.randn(2, 7, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(ops_of_torch.normalize_log_weights, (log_weights,))


def network(likelihood="categorical"):
    rng = np.random.default_rng(0)
    net = fs.MLP((4, 5, 3), "tanh")
    x = torch.from_numpy(rng.standard_normal((30, 4)).astype(np.float32))
    y = torch.from_numpy(rng.integers(0, 3, 30) if likelihood == "categorical" else rng.random((30, 3)))
    particles = torch.from_numpy(rng.standard_normal((6, net.num_params)).astype(np.float32))
    return net, x, y, particles


@pytest.mark.parametrize("likelihood", ["categorical", "bernoulli", fs.Gaussian(0.3)], ids=str)
def test_the_density_and_its_derivative_are_those_of_the_posterior(likelihood):
    net, x, y, particles = network(likelihood)
    of = ops_of_torch.log_likelihood(net, x, y, likelihood)
    value, grad = fs.Posterior(net, likelihood=likelihood).log_likelihood_and_grad(particles, x, y)
    assert torch.equal(of(particles), value)
    particles.requires_grad_(True)
    factors = torch.arange(6.0, dtype=torch.float64)
    (of(particles) * factors).sum().backward()
    torch.testing.assert_close(particles.grad, grad * factors[:, None].float())


def test_a_whole_step_compiles_into_one_graph():
    net, x, y, particles = network()
    of = ops_of_torch.log_likelihood(net, x, y)

    def step(particles):
        log_weights = of(particles)
        _, log_sum, _ = ops_of_torch.normalize_log_weights(log_weights)
        resampled = ops_of_torch.adaptive_resample(log_weights.detach(), torch.tensor(0.3))
        return log_sum, particles[resampled[0]]

    compiled = torch.compile(step, fullgraph=True, backend="aot_eager")
    for ours, plain in zip(compiled(particles), step(particles), strict=True):
        torch.testing.assert_close(ours, plain)
    grads = []
    for function in (compiled, step):
        leaf = particles.clone().requires_grad_(True)
        function(leaf)[0].backward()
        grads.append(leaf.grad)
    torch.testing.assert_close(*grads)


def test_hidden_transforms_go_beside_what_is_compiled():
    net, x, y, particles = network()
    gradient = torch.func.vmap(torch.func.grad(ops_of_torch.log_likelihood(net, x, y)))
    compiled = torch.compile(lambda p: 2 * torch.compiler.disable(gradient)(p), backend="aot_eager")
    torch.testing.assert_close(compiled(particles), 2 * gradient(particles))


def test_refusals_come_through():
    with pytest.raises(ValueError, match="log_weights has only -inf"):
        ops_of_torch.normalize_log_weights(torch.full((3,), -torch.inf))


def counted(monkeypatch):
    """How many particles each call of the engine is for."""
    sizes = []

    def counting(plain):
        def call(network, likelihood, particles, *rest, **options):
            sizes.append(len(particles))
            return plain(network, likelihood, particles, *rest, **options)

        return call

    for name in ("log_likelihood", "log_likelihood_and_grad"):
        monkeypatch.setattr(fs.ops, name, counting(getattr(fs.ops, name)))
    return sizes


def test_what_is_mapped_over_is_one_call(monkeypatch):
    net, x, y, particles = network()
    of = ops_of_torch.log_likelihood(net, x, y)
    value, grad = fs.Posterior(net).log_likelihood_and_grad(particles, x, y)
    sizes = counted(monkeypatch)
    torch.testing.assert_close(torch.func.vmap(of)(particles), value)
    slopes, values = torch.func.vmap(torch.func.grad_and_value(of))(particles)
    torch.testing.assert_close(values, value)
    torch.testing.assert_close(slopes, grad)
    columns = torch.func.vmap(of, in_dims=1)(particles.reshape(2, 3, -1))
    torch.testing.assert_close(columns, value.reshape(2, 3).T)
    assert sizes == [6, 6, 6]
    torch.testing.assert_close(of(particles[2]), value[2])
    torch.testing.assert_close(torch.func.grad(lambda p: of(p).sum())(particles), grad)
    torch.testing.assert_close(torch.func.grad(lambda p: torch.func.vmap(of)(p).sum())(particles), grad)
    with pytest.raises(NotImplementedError, match="all particles must share them"):
        torch.func.vmap(lambda x: ops_of_torch.log_likelihood(net, x, y)(particles))(torch.stack([x, x]))


def penalised(of, particles):
    """Backward through the norm of a gradient."""
    leaf = particles.clone().requires_grad_(True)
    (grad,) = torch.autograd.grad(of(leaf).sum(), leaf, create_graph=True)
    (grad.square().sum() + leaf.sum()).backward()


REFUSED = {
    "jvp": lambda of, p: torch.func.jvp(of, (p,), (p,)),
    "jvp of vmap": lambda of, p: torch.func.jvp(torch.func.vmap(of), (p,), (p,)),
    "vmap of jvp": lambda of, p: torch.func.vmap(lambda row: torch.func.jvp(of, (row,), (row,)))(p),
    "jacfwd": lambda of, p: torch.func.jacfwd(of)(p[0]),
    "hessian": lambda of, p: torch.func.hessian(of)(p[0]),
    "vmap of hessian": lambda of, p: torch.func.vmap(torch.func.hessian(of))(p),
    "jacrev of grad": lambda of, p: torch.func.jacrev(torch.func.grad(of))(p[0]),
    "grad of vmap of grad": lambda of, p: torch.func.grad(lambda q: torch.func.vmap(torch.func.grad(of))(q).sum())(p),
    "autograd's hessian": lambda of, p: torch.autograd.functional.hessian(of, p[0]),
    "autograd's hvp": lambda of, p: torch.autograd.functional.hvp(of, p[0], p[0]),
    "penalty of a gradient": penalised,
}


@pytest.mark.parametrize("name", REFUSED)
def test_other_derivatives_than_the_first_in_reverse_mode_are_refused(name):
    net, x, y, particles = network()
    of = ops_of_torch.log_likelihood(net, x, y)
    sentence = "differentiable once, in reverse mode; it must not be differentiated twice or in forward mode"
    with pytest.raises(NotImplementedError, match=f"^log_likelihood is {sentence}$"):
        REFUSED[name](of, particles)


def test_a_gradient_is_differentiable_by_what_the_value_is_multiplied_with():
    net, x, y, particles = network()
    leaf, factor = particles.clone().requires_grad_(True), torch.tensor(2.0, requires_grad=True)
    value = factor * ops_of_torch.log_likelihood(net, x, y)(leaf).sum()
    (grad,) = torch.autograd.grad(value, leaf, create_graph=True)
    (slope,) = torch.autograd.grad(grad.sum(), factor)
    torch.testing.assert_close(slope, grad.sum().detach() / 2)


def test_data_have_no_derivative():
    net, x, y, particles = network("gaussian")
    for name in ("x", "y"):
        data = {"x": x, "y": y} | {name: {"x": x, "y": y}[name].clone().requires_grad_(True)}
        with pytest.raises(ValueError, match=f"{name} requires grad; it must be detached"):
            ops_of_torch.log_likelihood(net, **data, likelihood="gaussian")
    with pytest.raises(ValueError, match="x requires grad"):
        torch.func.grad(lambda x: ops_of_torch.log_likelihood(net, x, y, "gaussian")(particles).sum())(x)
