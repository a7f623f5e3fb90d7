"""Systematic resampling and the normalisation of log weights, against particles, blackjax, jax and torch."""

from __future__ import annotations

from functools import partial

import numpy as np

import fastsmc as fs
from bench.harness import OURS, Bench, Effort

U = 0.37


def systematic_fastsmc(weights):
    return lambda: fs.systematic(weights, U)


def systematic_particles(weights):
    from particles import resampling

    return lambda: resampling.systematic(weights, M=len(weights))


def systematic_blackjax(weights):
    import jax
    from blackjax.smc import resampling

    call = jax.jit(lambda key, w: resampling.systematic(key, w, len(weights)))
    key, w = jax.random.key(0), jax.numpy.asarray(weights, "float32")
    return lambda: call(key, w).block_until_ready()


def systematic_torch(weights):
    import torch

    w, n = torch.from_numpy(weights), len(weights)
    grid = (torch.arange(n, dtype=torch.float64) + U) / n

    def call():
        scan = torch.cumsum(w, 0)
        return torch.searchsorted(scan / scan[-1], grid).clamp_(max=n - 1)

    return call


def normalise_fastsmc(log_weights):
    return lambda: fs.normalize_log_weights(log_weights)


def normalise_particles(log_weights):
    from particles import resampling

    def call():
        found = resampling.Weights(log_weights)
        return found.W, found.log_mean + np.log(len(log_weights)), found.ESS

    return call


def normalise_jax(log_weights):
    import jax

    @jax.jit
    def call(lw):
        log_sum = jax.nn.logsumexp(lw)
        w = jax.numpy.exp(lw - log_sum)
        return w, log_sum, 1 / jax.numpy.sum(w * w)

    lw = jax.numpy.asarray(log_weights, "float32")
    return lambda: jax.block_until_ready(call(lw))


def normalise_torch(log_weights):
    import torch

    lw = torch.from_numpy(log_weights)

    def call():
        log_sum = torch.logsumexp(lw, 0)
        w = torch.exp(lw - log_sum)
        return w, log_sum, 1 / w.square().sum()

    return call


SYSTEMATIC = {
    OURS: systematic_fastsmc,
    "particles": systematic_particles,
    "blackjax (jit, float32)": systematic_blackjax,
    "torch": systematic_torch,
}
NORMALISE = {
    OURS: normalise_fastsmc,
    "particles": normalise_particles,
    "jax (jit, float32)": normalise_jax,
    "torch": normalise_torch,
}


def same_counts(weights, ours, other) -> None:
    """Both draw every particle floor or ceil of N w times; a peer's rounded scan may miss that by one."""
    expected = len(weights) * weights
    for ancestors, slack in ((ours, 1e-6), (other, 1)):
        counts = np.bincount(ancestors, minlength=len(weights))
        worst = np.abs(counts - expected).max()
        assert counts.sum() == len(weights)
        assert worst < 1 + slack, f"a count is {worst} away from N w"


def same_weights(ours, other) -> None:
    """Weights, log sum and ESS agree to the precision of float32."""
    for mine, theirs in zip(ours, other, strict=True):
        np.testing.assert_allclose(theirs.astype(float), mine, rtol=2e-4)


def run(effort: Effort, quick: bool) -> None:
    """Measure all sizes."""
    bench = Bench("resampling", effort)
    for n in (1_000, 10_000, 100_000, 1_000_000, 10_000_000)[: 3 if quick else None]:
        log_weights = np.random.default_rng(0).normal(size=n)
        weights = np.exp(log_weights)
        weights /= weights.sum()
        bench.case(f"systematic N={n}", SYSTEMATIC, (weights,), partial(same_counts, weights))
        bench.case(f"normalise + ESS N={n}", NORMALISE, (log_weights,), same_weights)
    if not quick:
        bench.write()
