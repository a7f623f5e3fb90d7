"""Gradients and a trajectory on images themselves, whose zeros we do not multiply; elsewhere data are normal.

Rates are of all multiplications, those by zero too.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from bench import mlp_gradient, trajectory
from bench.harness import Bench, Effort
from bench.mlp_gradient import Case, problem
from fastsmc import data

WIDTHS = {"digits": (64, 32, 10), "MNIST": (784, 100, 10)}
GRADIENTS = {"digits": [(64, 1437)], "MNIST": [(64, 64), (64, 600), (32, 2000), (64, 10_000)]}
TRAJECTORIES = {"digits": (64, 1437), "MNIST": (64, 600)}


def datasets(data_dir: Path | None) -> dict[str, data.Dataset]:
    """The digits, and MNIST where there is a folder of its files."""
    found = {"digits": data.load_digits()}
    return found if data_dir is None else found | {"MNIST": data.load_mnist(data_dir)}


def images(case: Case, dataset: data.Dataset) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Particles, and the first training images with their labels."""
    theta, _, _ = problem(case)
    x, y = (array[: case.batch] for array in (dataset.x_train, dataset.y_train))
    return theta, x.reshape(len(x), -1), y


def run(effort: Effort, quick: bool, data_dir: Path | None = None) -> None:
    """Measure the digits, and MNIST where ``data_dir`` has it; never in a quick run."""
    bench = Bench("images", effort, not quick)
    for name, dataset in datasets(None if quick else data_dir).items():
        for sizes in GRADIENTS[name]:
            case = Case(WIDTHS[name], *sizes)
            arguments = case, *images(case, dataset)
            bench.case(f"{name}, {case}", mlp_gradient.PROVIDERS, arguments, mlp_gradient.agree, flops=case.flops)
        case = Case(WIDTHS[name], *TRAJECTORIES[name])
        title = f"{name}, {case}".replace(" categorical", f", HMC of {trajectory.STEPS} steps")
        arguments, flops = (case, *images(case, dataset)), trajectory.STEPS * case.flops
        bench.case(title, trajectory.PROVIDERS, arguments, trajectory.agree, flops=flops)
