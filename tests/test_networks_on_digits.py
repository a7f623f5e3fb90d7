"""Networks of three kinds on real images, from the prior to test accuracy: by the kernels and through torch.func."""

import numpy as np
import pytest
import torch
from torch import nn

import fastsmc as fs
from fastsmc import data

SAMPLES = 500


class Residual(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.last = nn.Linear(64, 24), nn.Linear(24, 10)
        self.block = nn.Sequential(nn.LayerNorm(24), nn.Linear(24, 24), nn.SiLU(), nn.Linear(24, 24))

    def forward(self, x):
        h = self.first(x)
        return self.last(h + self.block(h))


class Encoder(nn.Module):
    """Of an image as a sequence of its rows."""

    def __init__(self, width=16):
        super().__init__()
        self.embed, self.place = nn.Linear(8, width), nn.Parameter(torch.zeros(8, width))
        layer = nn.TransformerEncoderLayer(width, 2, 32, dropout=0.0, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, 1, enable_nested_tensor=False)
        self.out = nn.Linear(8 * width, 10)

    def forward(self, x):
        return self.out(self.encoder(self.embed(x) + self.place).flatten(1))


def enlarged(x):
    """Images of 16 x 16."""
    return np.kron(x.reshape(-1, 8, 8), np.ones((2, 2), np.float32)).reshape(len(x), 1, 16, 16)


# network, shape of its images, particles, iterations, and an accuracy that 500 of the images are enough for
NETWORKS = {
    "LeNet-5": (lambda: fs.LeNet5(image_size=16), enlarged, 8, 24, 0.8),
    "residual MLP": (lambda: fs.from_torch(Residual()), lambda x: x, 8, 12, 0.8),
    "transformer encoder": (
        lambda: fs.from_torch(Encoder().eval(), (8, 8)), lambda x: x.reshape(-1, 8, 8), 4, 12, 0.7,
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", NETWORKS)
def test_it_learns(name):
    make, shape, particles, iterations, enough = NETWORKS[name]
    digits = data.load("digits")
    smc = fs.SMC(
        fs.Posterior(make(), fs.Normal("fan_in")), particles, fs.SmoothDataAnnealing(start=60, full=0.5),
        fs.SGHMC(num_steps=6, batch_size=125), iterations,
    )  # fmt: skip
    result = smc.run(shape(digits.x_train[:SAMPLES]), digits.y_train[:SAMPLES], progress=False)
    assert result.evaluate(shape(digits.x_test), digits.y_test)["accuracy"] > enough
    assert result.history.batch_size[-1] == SAMPLES
