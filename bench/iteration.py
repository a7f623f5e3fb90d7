"""One iteration of tempered SMC with HMC moves: the whole against its trajectory alone, and against blackjax."""

from __future__ import annotations

import numpy as np

import fastsmc as fs
from bench.harness import OURS, Bench, Effort
from bench.mlp_gradient import Case, problem
from bench.trajectory import STEP_SIZE, STEPS, blackjax_log_densities, with_fastsmc

CASES = (
    Case((64, 32, 10), 64, 1437),
    Case((784, 100, 10), 64, 64),
    Case((784, 100, 10), 64, 600),
)
TEMPERATURES = tuple(np.linspace(0, 1, 10_001)[1:])
TRAJECTORY = f"{OURS}, its trajectory alone"


def whole_iteration(case, theta, x, y):
    """Re-weight, resample, move by one trajectory, and hand out the state, at a slowly rising temperature."""
    smc = fs.SMC(
        fs.Posterior(fs.MLP(case.widths)),
        num_particles=case.particles,
        annealing=fs.LikelihoodTempering(temperatures=TEMPERATURES),
        move=fs.HMC(num_steps=STEPS, step_size=STEP_SIZE),
        num_iterations=len(TEMPERATURES),
        ess_threshold=1.0,
    )
    states = smc.iterate(x, y)
    return lambda: next(states).history.last["acceptance"]


def with_blackjax(case, theta, x, y):
    from blackjax.smc import resampling

    return tempered(theta, *blackjax_log_densities(case, x, y), resampling.systematic)


def tempered(theta, log_prior, log_likelihood, resample, **options):
    """Tempered SMC of blackjax's with a likelihood and a resampling function."""
    import blackjax
    import jax
    from blackjax.smc import extend_params

    parameters = {
        "step_size": STEP_SIZE,
        "inverse_mass_matrix": np.ones(theta.shape[1]),
        "num_integration_steps": STEPS,
    }
    kernel = blackjax.hmc.build_kernel(), blackjax.hmc.init
    smc = blackjax.tempered_smc(
        log_prior, log_likelihood, *kernel, extend_params(parameters), resample, num_mcmc_steps=1, **options
    )
    step, keys = jax.jit(smc.step), iter(jax.random.split(jax.random.key(0), len(TEMPERATURES)))
    state, temperatures = smc.init(jax.numpy.asarray(theta)), iter(TEMPERATURES)

    def call():
        nonlocal state
        state, info = jax.block_until_ready(step(next(keys), state, next(temperatures)))
        return float(info.update_info.acceptance_rate.mean())

    return call


PROVIDERS = {OURS: whole_iteration, TRAJECTORY: with_fastsmc, "blackjax.tempered_smc (jit)": with_blackjax}


def agree(ours, other) -> None:
    """The random numbers are not the same, so only the mean acceptance can be."""
    if not abs(ours - other) < 0.1:
        raise AssertionError(f"mean acceptance is {ours} and {other}")


def run(effort: Effort, quick: bool) -> None:
    """Measure all shapes."""
    bench = Bench("iteration", effort, not quick)
    for case in CASES[: 1 if quick else None]:
        name = str(case).replace(" categorical", f", {STEPS} steps")
        rows = bench.case(name, PROVIDERS, (case, *problem(case)), agree, flops=STEPS * case.flops)
        whole, alone = (next(r.median_us for r in rows if r.provider == name) for name in (OURS, TRAJECTORY))
        bench.console.print(f"resampling, weights and bookkeeping: {1 - alone / whole:.1%} of an iteration\n")
