"""What the study runs on: a data set with a network, and how much of everything."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np

import fastsmc as fs
from fastsmc.data import Dataset
from fastsmc.demo import PRESETS, Preset
from fastsmc.networks import Network


@dataclass(frozen=True)
class Problem:
    """A data set, a network, and the wall time of a method on it."""

    name: str
    title: str
    data: str
    net: Network
    preset: Preset
    rows: int
    """Of training data, for the estimate of the time."""
    budget: float
    """Seconds of a method at most; the iteration that passes them is its last."""
    opt_in: str = ""
    """Run only where ``--only`` contains this word."""

    @property
    def posterior(self) -> fs.Posterior:
        return fs.Posterior(self.net, prior=fs.Normal(self.preset.prior_scale))

    def load(self, data_dir: Path | None) -> Dataset:
        return self.preset.load(data_dir)

    def quick(self) -> Problem:
        """As little of the same as still does everything."""
        preset = replace(self.preset, particles=4, iterations=10, num_steps=1)
        return replace(self, preset=preset, budget=2.0)

    def seconds_per_pass(self) -> float:
        """Of log-likelihood and gradient of all particles over all the data, measured on a batch of noise."""
        rng, batch = np.random.default_rng(0), min(self.rows, 256)
        x = rng.normal(size=(batch, self.net.num_inputs)).astype(np.float32)
        y = rng.integers(0, self.net.num_outputs, batch)
        post, particles = self.posterior, self.posterior.sample_prior(self.preset.particles)
        post.log_likelihood_and_grad(particles, x, y)
        begin = perf_counter()
        post.log_likelihood_and_grad(particles, x, y)
        return (perf_counter() - begin) * self.rows / batch

    def settings(self) -> dict[str, Any]:
        """All that a result depends on."""
        preset = asdict(self.preset)
        del preset["load"]
        return {"name": self.name, "data": self.data, "net": repr(self.net), "budget": self.budget, **preset}


DIGITS, MNIST = PRESETS["digits"], PRESETS["mnist"]
PROBLEMS = (
    Problem(
        name="digits",
        title="scikit-learn's digits, MLP 64-32-10",
        data="digits",
        net=fs.MLP([64, *DIGITS.hidden, 10]),
        preset=DIGITS,
        rows=1437,
        budget=10.0,
    ),
    Problem(
        name="mnist",
        title="MNIST, MLP 784-100-10",
        data="mnist",
        net=fs.MLP([784, *MNIST.hidden, 10]),
        preset=MNIST,
        rows=60_000,
        budget=240.0,
    ),
    Problem(
        name="mnist-lenet",
        title="MNIST, LeNet-5",
        data="mnist",
        net=fs.LeNet5(),
        preset=replace(MNIST, particles=16),
        rows=60_000,
        budget=300.0,
        opt_in="lenet",
    ),
)
