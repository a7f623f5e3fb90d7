"""What a user would otherwise take, in torch: a deep ensemble and stochastic-gradient HMC, vmapped over P networks.

All networks see the same mini-batches, so that no batch is replicated; they differ by their start and their noise.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, ClassVar

import fastsmc as fs
from bench.lenet import torch_log_likelihood
from bench.study.methods import Method, State, weighted
from bench.study.problems import Problem
from fastsmc.data import Dataset
from fastsmc.progress import Stopwatch

if TYPE_CHECKING:
    from torch import Generator, Tensor

POINTS, EARLIEST = 30, 1e-3
"""Of a curve: so many, each later than the last by the same factor, from this share of the budget on."""
Force = Callable[["Tensor", "Tensor", "Tensor"], "Tensor"]
Step = Callable[["Tensor", "Tensor"], None]


@dataclass(frozen=True, kw_only=True)
class MiniBatched(Method):
    """Steps on mini-batches of the data, which are shuffled anew for every pass."""

    batch_size: int = 128

    def stepper(self, theta: Tensor, force: Force, rows: int, generator: Generator) -> Step:
        """A function of a batch that moves all networks ``theta`` [P, d] in place."""
        raise NotImplementedError

    def sample(self, problem: Problem, dataset: Dataset, seed: int) -> Iterator[State]:
        import torch

        generator = torch.Generator().manual_seed(seed)
        start = fs.Posterior(problem.net, prior=fs.Normal("fan_in")).sample_prior(problem.preset.particles, seed)
        log_likelihood, theta, x, y = torch_log_likelihood(problem, start, dataset.x_train, dataset.y_train)
        gradient = torch.func.vmap(torch.func.grad(log_likelihood), in_dims=(0, None, None))
        precision = torch.from_numpy(problem.posterior.prior_precision)
        rows = len(x)

        def force(theta: Tensor, x: Tensor, y: Tensor) -> Tensor:
            """Gradient of the log posterior, estimated from a batch, [P, d]."""
            return rows / len(x) * gradient(theta, x, y) - precision * theta

        step = self.stepper(theta, force, rows, generator)
        force(theta, x[:1], y[:1])  # torch.func loads itself at its first call
        budget = self.share * problem.budget
        due, later, seen = EARLIEST * budget, EARLIEST ** (-1 / POINTS), 0
        clock = Stopwatch()
        while True:
            for batch in torch.randperm(rows, generator=generator).split(self.batch_size):
                step(x[batch], y[batch])
                seen += len(batch)
                if (seconds := clock.seconds()) >= due:
                    due = min(seconds * later, budget)
                    with clock.paused():
                        yield State(seconds, seen / rows, weighted(problem, theta.numpy()).predict_proba, {}, [])


@dataclass(frozen=True, kw_only=True)
class Ensemble(MiniBatched):
    """Networks trained to the mode of the same posterior by Adam (Lakshminarayanan, Pritzel and Blundell, 2017)."""

    learning_rate: float = 1e-3
    scheme: ClassVar[str] = "ensemble"

    @property
    def label(self) -> str:
        return f"deep ensemble, Adam{self.remark}"

    def stepper(self, theta: Tensor, force: Force, rows: int, generator: Generator) -> Step:
        from torch.optim import Adam

        optimiser = Adam([theta], lr=self.learning_rate)  # it is elementwise: one for all networks

        def step(x: Tensor, y: Tensor) -> None:
            theta.grad = force(theta, x, y).div_(-rows)
            optimiser.step()

        return step


@dataclass(frozen=True, kw_only=True)
class StochasticGradientHMC(MiniBatched):
    """SGHMC (Chen, Fox and Guestrin, 2014, equation 15, without an estimate of the gradient's noise).

    ``theta += v; v += learning_rate / N * force - friction * v + sqrt(2 * friction * learning_rate / N) * xi``.
    It predicts with the newest state of each of the P chains.
    """

    learning_rate: float = 0.01
    friction: float = 0.05
    scheme: ClassVar[str] = "sghmc"

    @property
    def label(self) -> str:
        return f"SGHMC{self.remark}"

    def stepper(self, theta: Tensor, force: Force, rows: int, generator: Generator) -> Step:
        import torch

        rate = self.learning_rate / rows
        noise = partial(torch.randn, theta.shape, generator=generator)
        velocity = noise().mul_(rate**0.5)

        def step(x: Tensor, y: Tensor) -> None:
            theta.add_(velocity)
            velocity.mul_(1 - self.friction).add_(force(theta, x, y), alpha=rate)
            velocity.add_(noise(), alpha=(2 * self.friction * rate) ** 0.5)

        return step
