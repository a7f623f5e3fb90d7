"""A whole HMC trajectory of all particles, against its gradients alone and against blackjax."""

from __future__ import annotations

import numpy as np

import fastsmc as fs
from bench.harness import OURS, Bench, Effort
from bench.mlp_gradient import Case, problem

STEPS, STEP_SIZE = 10, 2e-3
CASES = (
    Case((64, 32, 10), 64, 1437),
    Case((784, 100, 10), 64, 64),
    Case((784, 100, 10), 64, 600),
    Case((784, 100, 10), 64, 600, precision="medium"),
)


def acceptance(log_ratio) -> float:
    """Mean acceptance probability."""
    return float(np.mean(np.exp(np.minimum(log_ratio, 0))))


def with_fastsmc(case, theta, x, y):
    post = fs.Posterior(fs.MLP(case.widths), precision=case.precision)
    start, grad = post.log_likelihood_and_grad(theta, x, y)
    start, state = start + post.log_prior(theta), tuple(np.empty_like(theta) for _ in range(3))

    def call():
        np.copyto(state[0], theta)
        np.copyto(state[2], grad)
        end = post.trajectory(*state, x, y, step_size=STEP_SIZE, num_steps=STEPS, refresh=0.0)
        log_density = end.log_likelihood + post.log_prior_from_energy(end.prior_energy)
        return acceptance(log_density - start + end.kinetic_before - end.kinetic_after)

    return call


def gradients_alone(case, theta, x, y):
    post = fs.Posterior(fs.MLP(case.widths), precision=case.precision)

    def call():
        for _ in range(STEPS):
            post.log_likelihood_and_grad(theta, x, y)
        return np.nan

    return call


def blackjax_log_densities(case, x, y):
    """Log prior and log-likelihood of one particle."""
    import jax
    import jax.numpy as jnp

    x, y = map(jnp.asarray, (x, y))

    def log_likelihood(particle):
        parts = jnp.split(particle, case.bounds[:-1])
        h = x
        for k, (i, o) in enumerate(case.layers):
            h = (jax.nn.relu(h) if k else h) @ parts[2 * k].reshape(o, i).T + parts[2 * k + 1]
        return jnp.sum(jnp.take_along_axis(jax.nn.log_softmax(h), y[:, None], axis=1))

    return lambda particle: -0.5 * jnp.sum(particle * particle), log_likelihood


def with_blackjax(case, theta, x, y):
    import blackjax
    import jax
    import jax.numpy as jnp

    log_prior, log_likelihood = blackjax_log_densities(case, x, y)
    hmc = blackjax.hmc(lambda p: log_prior(p) + log_likelihood(p), STEP_SIZE, jnp.ones(theta.shape[1]), STEPS)
    states = jax.jit(jax.vmap(hmc.init))(jnp.asarray(theta))
    step = jax.jit(jax.vmap(hmc.step))
    keys = jax.random.split(jax.random.key(0), len(theta))

    def call():
        _, info = jax.block_until_ready(step(keys, states))
        return float(info.acceptance_rate.mean())

    return call


BLACKJAX, BLACKJAX_FLOAT32 = "blackjax.hmc vmapped (jit)", "blackjax.hmc vmapped (jit), float32"
PROVIDERS = {
    OURS: with_fastsmc,
    f"{OURS}, the gradients alone": gradients_alone,
    BLACKJAX: with_blackjax,
}


def agree(ours, other) -> None:
    """The momenta are not the same, so only the mean acceptance can be."""
    if not (np.isnan(other) or abs(ours - other) < 0.1):
        raise AssertionError(f"mean acceptance is {ours} and {other}")


def run(effort: Effort, quick: bool) -> None:
    """Measure all shapes."""
    bench = Bench("trajectory", effort, not quick)
    for case in [case for case in CASES[: 1 if quick else None] if case.in_use]:
        name = str(case).replace(" categorical", f", {STEPS} steps")
        flops = STEPS * case.flops
        providers = {BLACKJAX_FLOAT32 if p == BLACKJAX else p: prepare for p, prepare in PROVIDERS.items()}
        providers = PROVIDERS if case.precision == "highest" else providers
        bench.case(name, providers, (case, *problem(case)), agree, flops=flops, precision=case.precision)
