import numpy as np
import pytest
import torch

import fastsmc as fs
from fastsmc import ops
from fastsmc.networks import ACTIVATIONS, convolution

WIDTHS = [(6, 4), (13, 7, 5, 3), (1, 1, 1)]


@pytest.mark.parametrize("widths", WIDTHS)
def test_parameters_are_those_of_torch_in_its_order(widths):
    net = fs.MLP(widths, "tanh")
    ours = [(p.name, p.shape, p.end - p.begin) for p in net.parameters]
    theirs = [(name, tuple(p.shape), p.numel()) for name, p in net.to_torch().named_parameters()]
    assert ours == theirs
    assert [p.begin for p in net.parameters] == [0, *(p.end for p in net.parameters[:-1])]
    assert net.num_params == net.parameters[-1].end == sum(p.numel() for p in net.to_torch().parameters())
    assert [p.fan_in for p in net.parameters] == [n for n in widths[:-1] for _ in ("weight", "bias")]
    assert (net.num_inputs, net.num_outputs) == (widths[0], widths[-1])


LENETS = {
    (1, 10, "relu", 28): 61_706,
    (3, 10, "tanh", 32): 6 * (75 + 1) + 16 * (150 + 1) + 120 * (576 + 1) + 84 * 121 + 10 * 85,
    (2, 3, "gelu", 13): 6 * (50 + 1) + 16 * (150 + 1) + 120 * (16 + 1) + 84 * 121 + 3 * 85,
}


@pytest.mark.parametrize("arguments", LENETS)
def test_lenet_has_the_parameters_of_torch_in_its_order(arguments):
    net = fs.LeNet5(*arguments)
    ours = [(p.name, p.shape, p.end - p.begin) for p in net.parameters]
    assert ours == [(name, tuple(p.shape), p.numel()) for name, p in net.to_torch().named_parameters()]
    channels, classes, _, size = arguments
    assert net.num_params == LENETS[arguments]
    assert [p.fan_in for p in net.parameters][:4] == [25 * channels] * 2 + [150] * 2
    assert (net.num_inputs, net.num_outputs) == (channels * size**2, classes)


def test_lenet_reads_images_and_rows_in_torch_too():
    module, images = fs.LeNet5(3, 5, image_size=16).to_torch(), torch.randn(4, 3, 16, 16)
    assert torch.equal(module(images), module(images.flatten(1)))
    assert module(images).shape == (4, 5)


@pytest.mark.parametrize("lead", [(), (3,), (2, 3)])
def test_unpacked_particles_are_views(lead):
    net = fs.MLP((4, 3, 2))
    particles = np.arange(np.prod(lead, dtype=int) * net.num_params, dtype=np.float32).reshape(*lead, -1)
    parts = net.unpack(particles)
    assert list(parts) == [p.name for p in net.parameters]
    assert all(part.shape == (*lead, *p.shape) for part, p in zip(parts.values(), net.parameters, strict=True))
    assert all(np.shares_memory(part, particles) for part in parts.values())
    joined = np.concatenate([part.reshape(*lead, -1) for part in parts.values()], axis=-1)
    assert np.array_equal(joined, particles)
    parts["2.weight"][...] = -1
    weights = next(p for p in net.parameters if p.name == "2.weight")
    assert np.all(particles[..., weights.begin : weights.end] == -1)
    assert np.count_nonzero(particles == -1) == np.prod(lead) * 6


def test_unpacked_tensors_are_views():
    net = fs.MLP((4, 3, 2))
    particles = torch.zeros(5, net.num_params)
    net.unpack(particles)["0.bias"].fill_(1)
    assert particles.sum() == 5 * 3


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("widths", WIDTHS)
def test_a_particle_becomes_a_module_and_comes_back(backend, widths, activation):
    net = fs.MLP(widths, activation)
    particle = np.random.default_rng(1).standard_normal(net.num_params, np.float32)
    module = net.to_torch()
    module.load_state_dict({name: torch.from_numpy(part) for name, part in net.unpack(particle).items()})
    again = torch.nn.utils.parameters_to_vector(module.parameters()).detach().numpy()
    assert np.array_equal(again, particle)
    x = np.random.default_rng(2).standard_normal((9, widths[0]), np.float32)
    plain = module(torch.from_numpy(x)).detach().numpy()
    truth = module.double()(torch.from_numpy(x).double()).detach().numpy()
    ours = ops.network_outputs(net, particle[None], x, backend=backend)[0]
    error, allowed = np.linalg.norm(ours - truth), np.linalg.norm(plain - truth)
    assert error <= 2 * allowed + np.finfo(np.float32).eps * np.linalg.norm(truth)


def test_networks_are_values():
    assert fs.MLP([3, 2]) == fs.MLP((3, 2)) == fs.MLP(np.array([3, 2]))
    assert hash(fs.MLP([3, 2])) == hash(fs.MLP((3, 2)))
    assert fs.MLP([3, 2]) != fs.MLP([3, 2], "tanh")
    assert all(type(width) is int for width in fs.MLP(np.array([3.0, 2.0])).widths)
    with pytest.raises(AttributeError):
        fs.MLP([3, 2]).widths = (3, 3)


REFUSED = [
    (lambda: fs.MLP([]), "widths is []; it must list at least two positive whole numbers"),
    (lambda: fs.MLP([3]), "widths is [3]; it must list at least two"),
    (lambda: fs.MLP([3, 0]), "widths is [3, 0]; it must"),
    (lambda: fs.MLP([3, -1, 2]), "widths is [3, -1, 2]; it must"),
    (lambda: fs.MLP([3, 2.5]), "widths is [3, 2.5]; it must"),
    (lambda: fs.MLP([2] * 65), "widths has 65 entries; at most 64 are supported"),
    (lambda: fs.MLP([3, 2], "sigmoid"), "activation is 'sigmoid'; it must be one of identity, relu, tanh, gelu, silu"),
    (lambda: fs.LeNet5(0), "in_channels is 0; it must be a whole number of at least 1"),
    (lambda: fs.LeNet5(1.5), "in_channels is 1.5; it must be a whole number of at least 1"),
    (lambda: fs.LeNet5(num_classes=True), "num_classes is True; it must be a whole number of at least 1"),
    (lambda: fs.LeNet5(num_classes="10"), "num_classes is '10'; it must be a whole number of at least 1"),
    (lambda: fs.LeNet5(image_size=11), "image_size is 11; it must be a whole number of at least 12"),
    (lambda: fs.LeNet5(image_size=float("nan")), "image_size is nan; it must be a whole number of at least 12"),
    (lambda: fs.LeNet5(activation="sigmoid"), "activation is 'sigmoid'; it must be one of identity, relu, tanh"),
    (
        lambda: convolution((1, 4, 4), 2, 3, "relu", padding=-1),
        "padding is -1; it must be a whole number of at least 0",
    ),
    (lambda: convolution((1, 4, 4), 2, 3, "relu", pool=0), "pool is 0; it must be a whole number of at least 1"),
    (lambda: convolution((1, 4, 4), 2, 3, "relu", pool=17), "pool is 17; squares of at most 16 x 16 are supported"),
    (lambda: convolution((1, 4, 4), 2, 0, "relu"), "kernel is 0; it must be a whole number of at least 1"),
    (lambda: convolution((1, 4, 5), 2, 5, "relu"), "the image is 4 x 5; a 5 x 5 filter with padding 0, pooled by 1"),
    (lambda: convolution((1, 4, 4), 2, 3, "sin"), "activation is 'sin'; it must be one of identity, relu, tanh"),
    (lambda: fs.MLP([3, 2]).unpack(np.zeros((5, 9))), "particles has 9 weights each; this network has 8"),
]


@pytest.mark.parametrize(("call", "sentence"), REFUSED, ids=range(len(REFUSED)))
def test_refused_in_one_sentence(call, sentence):
    with pytest.raises(ValueError) as raised:
        call()
    assert sentence in str(raised.value)
    assert "\n" not in str(raised.value)
