"""What other libraries gain from our functions: their own samplers, unmodified, with and without."""

from __future__ import annotations

from pathlib import Path

import numpy as np

import fastsmc as fs
from bench.harness import OURS, Bench, Effort
from bench.images import datasets, images
from bench.iteration import agree, tempered, with_blackjax
from bench.mlp_gradient import Case
from bench.trajectory import STEPS, blackjax_log_densities

CASES = {
    "digits": [Case((64, 32, 10), 64, 1437)],
    "MNIST": [Case((784, 100, 10), 32, 2000), Case((784, 100, 10), 32, 10_000)],
}
PARTICLES, DRAWS = 1_000_000, 2000


def accelerated_blackjax(case, theta, x, y):
    from fastsmc.integrations.blackjax import bnn_log_likelihood, systematic

    log_prior, _ = blackjax_log_densities(case, x, y)
    return tempered(theta, log_prior, bnn_log_likelihood(fs.MLP(case.widths), x, y), systematic)


def fused_moves_in_blackjax(case, theta, x, y):
    from fastsmc.integrations.blackjax import bnn_log_likelihood, fused_hmc, systematic

    net = fs.MLP(case.widths)
    log_prior, _ = blackjax_log_densities(case, x, y)
    moves = fused_hmc(net, x, y, STEPS)
    return tempered(theta, log_prior, bnn_log_likelihood(net, x, y), systematic, update_particles_fn=moves)


def ours_in_pymc(x, y):
    from fastsmc.integrations.pymc import IMH

    return sampled_by(IMH, x, y)


def pymc_alone(x, y):
    from pymc.smc import IMH

    return sampled_by(IMH, x, y)


def sampled_by(kernel, x, y):
    """A whole run of PyMC's stages on a linear regression; returns the log evidence."""
    import pymc

    with pymc.Model():
        slope = pymc.Normal("slope", 0, 1, shape=x.shape[1])
        pymc.Normal("y", x @ slope, 1, observed=y)
        smc = kernel(draws=DRAWS, random_seed=0)

    def call():
        smc._reset_state()
        smc._initialize_kernel()
        smc.setup_kernel()
        while smc.beta < 1:
            smc.update_beta_and_weights()
            smc.step()
        return smc.log_marginal_likelihood

    return call


def ours_in_particles(weights):
    import fastsmc.integrations.particles  # noqa: F401  (registers the name)

    return by_name("fastsmc_systematic", weights)


def particles_alone(weights):
    return by_name("systematic", weights)


def by_name(scheme, weights):
    """As particles' SMC class resamples."""
    from particles import resampling

    return lambda: resampling.resampling(scheme, weights)


def same_evidence(ours, other) -> None:
    """Of runs by other random numbers."""
    if not abs(ours - other) < 1:
        raise AssertionError(f"log evidences are {ours} and {other}")


def same_mean(ours, other) -> None:
    """Of ancestors by other random numbers: a spacing apart at most."""
    if not abs(ours.mean() - other.mean()) < 1:
        raise AssertionError(f"mean ancestors are {ours.mean()} and {other.mean()}")


def run(effort: Effort, quick: bool, data_dir: Path | None = None) -> None:
    """Measure all libraries, on MNIST where ``data_dir`` has it; never in a quick run."""
    bench = Bench("drop_in", effort, not quick)
    providers = {
        OURS: accelerated_blackjax,
        f"{OURS}, fused moves": fused_moves_in_blackjax,
        "blackjax (jit)": with_blackjax,
    }
    for name, dataset in datasets(None if quick else data_dir).items():
        for case in CASES[name]:
            title = f"{name}, {case}".replace(" categorical", f", tempered SMC, HMC of {STEPS} steps")
            bench.case(title, providers, (case, *images(case, dataset)), agree, flops=STEPS * case.flops)
    weights = np.random.default_rng(0).random(10_000 if quick else PARTICLES)
    weights /= weights.sum()
    providers = {OURS: ours_in_particles, "particles": particles_alone}
    bench.case(f"systematic resampling by name, N={len(weights)}", providers, (weights,), same_mean)
    x = np.random.default_rng(0).standard_normal((200, 3))
    y = x @ [1.0, -2.0, 0.5] + np.random.default_rng(1).standard_normal(200)
    providers = {OURS: ours_in_pymc, "PyMC": pymc_alone}
    bench.case(f"PyMC's IMH kernel, regression of 3 weights, {DRAWS} draws", providers, (x, y), same_evidence)
