"""Systematic resampling and the normalisation of log weights, against particles, blackjax, jax and torch."""

from __future__ import annotations

from functools import partial

import numpy as np

import fastsmc as fs
from bench.harness import OURS, Bench, Effort

U = 0.37


def run(effort: Effort, quick: bool) -> None:
    """Measure all sizes."""
    bench = Bench("resampling", effort)
    for n in (1_000, 10_000, 100_000, 1_000_000, 10_000_000)[: 3 if quick else 5]:
        log_weights = np.random.default_rng(0).normal(size=n)
        weights = np.exp(log_weights)
        weights /= weights.sum()
        bench.case(f"systematic N={n}", systematic(weights), partial(same_counts, weights))
        bench.case(f"normalise + ESS N={n}", normalise(log_weights), same_weights)
    if not quick:
        bench.write()


def systematic(weights: np.ndarray) -> dict:
    """Ancestors from normalised weights; each provider in its own default precision."""
    n = len(weights)

    def ours():
        return lambda: fs.systematic(weights, U)

    def particles():
        from particles import resampling

        return lambda: resampling.systematic(weights, M=n)

    def blackjax():
        import jax
        from blackjax.smc import resampling

        draw = jax.jit(lambda key, w: resampling.systematic(key, w, n))
        key, w = jax.random.key(0), jax.numpy.asarray(weights, "float32")
        return lambda: draw(key, w).block_until_ready()

    def torch():
        import torch

        w = torch.from_numpy(weights)
        grid = (torch.arange(n, dtype=torch.float64) + U) / n

        def draw():
            scan = torch.cumsum(w, 0)
            return torch.searchsorted(scan / scan[-1], grid).clamp_(max=n - 1)

        return draw

    return {OURS: ours, "particles": particles, "blackjax (jit, float32)": blackjax, "torch": torch}


def normalise(log_weights: np.ndarray) -> dict:
    """Weights, log of their sum, and effective sample size."""

    def ours():
        return lambda: fs.normalize_log_weights(log_weights)

    def particles():
        from particles import resampling

        def call():
            found = resampling.Weights(log_weights)
            return found.W, found.log_mean + np.log(len(log_weights)), found.ESS

        return call

    def jax():
        import jax

        @jax.jit
        def call(lw):
            log_sum = jax.nn.logsumexp(lw)
            w = jax.numpy.exp(lw - log_sum)
            return w, log_sum, 1 / jax.numpy.sum(w * w)

        lw = jax.numpy.asarray(log_weights, "float32")
        return lambda: jax.block_until_ready(call(lw))

    def torch():
        import torch

        lw = torch.from_numpy(log_weights)

        def call():
            log_sum = torch.logsumexp(lw, 0)
            w = torch.exp(lw - log_sum)
            return w, log_sum, 1 / w.square().sum()

        return call

    return {OURS: ours, "particles": particles, "jax (jit, float32)": jax, "torch": torch}


def same_counts(weights: np.ndarray, ours, other) -> None:
    """Both draw every particle floor or ceil of N w times; a peer's rounded scan may miss that by one."""
    expected = len(weights) * weights
    for ancestors, slack in ((ours, 1e-6), (other, 1)):
        counts = np.bincount(np.asarray(ancestors), minlength=len(weights))
        assert counts.sum() == len(weights)
        worst = np.abs(counts - expected).max()
        assert worst < 1 + slack, f"a count is {worst} away from N w"


def same_weights(ours, other) -> None:
    """Weights, log sum and ESS agree to the precision of float32."""
    for mine, theirs in zip(ours, other, strict=True):
        np.testing.assert_allclose(np.asarray(theirs, np.float64), mine, rtol=2e-4)
