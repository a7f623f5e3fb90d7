"""Resampling and the normalisation of log weights against particles, blackjax, jax and torch; gathering in place."""

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


def drawn_fastsmc(scheme, weights):
    rng = np.random.default_rng(1)
    return lambda: fs.resample(weights, rng.random(len(weights)), scheme, False)


def drawn_particles(scheme, weights):
    from particles import resampling

    draw = getattr(resampling, scheme)
    return lambda: draw(weights, M=len(weights))


def gather_fastsmc(particles, ancestors):
    return lambda: fs.gather_particles(particles, ancestors, particles)


def gather_numpy(particles, ancestors):
    out = np.empty_like(particles)
    return lambda: np.take(particles, ancestors, axis=0, out=out, mode="clip")


def gather_moved(particles, ancestors):
    moved = np.flatnonzero(ancestors != np.arange(len(ancestors)))

    def call():
        particles[moved] = particles[ancestors[moved]]
        return particles

    return call


def gather_torch(particles, ancestors):
    import torch

    values, index = map(torch.from_numpy, (particles, ancestors))
    out = torch.empty_like(values)
    return lambda: torch.index_select(values, 0, index, out=out)


def small_fastsmc(scheme, weights, u):
    return lambda: fs.resample(weights, u, scheme, False)


def small_torch(scheme, weights, u):
    import torch

    return small_fastsmc(scheme, torch.from_numpy(weights), torch.as_tensor(u))


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


def plausible_counts(weights, ours, other) -> None:
    """Draws with numbers of their own: both within 8 standard deviations of N w."""
    expected = len(weights) * weights
    for ancestors in (ours, other):
        counts = np.bincount(ancestors, minlength=len(weights))
        assert np.all(np.abs(counts - expected) < 8 * np.sqrt(expected + 1) + 8)


def same_weights(ours, other) -> None:
    """Weights, log sum and ESS agree to the precision of float32."""
    for mine, theirs in zip(ours, other, strict=True):
        np.testing.assert_allclose(theirs.astype(float), mine, rtol=2e-4)


def run(effort: Effort, quick: bool) -> None:
    """Measure all sizes."""
    bench = Bench("resampling", effort, not quick)
    rng = np.random.default_rng(0)
    for n in (1_000, 10_000, 100_000, 1_000_000, 10_000_000)[: 3 if quick else None]:
        log_weights = rng.normal(size=n)
        weights = np.exp(log_weights)
        weights /= weights.sum()
        moved = weights.nbytes + 8 * n  # read once, results written once
        bench.case(f"systematic N={n}", SYSTEMATIC, (weights,), partial(same_counts, weights), moved_bytes=moved)
        bench.case(f"normalise + ESS N={n}", NORMALISE, (log_weights,), same_weights, moved_bytes=moved)
        single = (log_weights.astype(np.float32),)
        bench.case(f"normalise + ESS N={n} float32", NORMALISE, single, same_weights, moved_bytes=8 * n)
        if n > 1_000_000:
            continue
        for scheme in ("multinomial", "residual"):
            providers = {OURS: partial(drawn_fastsmc, scheme), "particles": partial(drawn_particles, scheme)}
            agree = partial(plausible_counts, weights)
            bench.case(f"{scheme} N={n}", providers, (weights,), agree, moved_bytes=moved + 8 * n)
    _gather(bench, rng, 200 if quick else 1000)
    _small(bench, rng)


def _gather(bench: Bench, rng: np.random.Generator, particles: int) -> None:
    """In place, where survivors stay, against copies of everything or of what moves."""
    dim = 20_000
    ancestors = fs.permute_ancestors(fs.systematic(np.exp(rng.normal(size=particles)), U))
    values = rng.normal(size=(particles, dim)).astype(np.float32)
    moved = 2 * 4 * dim * int(np.count_nonzero(ancestors != np.arange(particles)))
    providers = {
        OURS: gather_fastsmc,
        "numpy.take to memory that is there": gather_numpy,
        "numpy, rows that move": gather_moved,
        "torch.index_select to memory that is there": gather_torch,
    }
    name = f"gather in place P={particles} d={dim}"
    bench.case(name, providers, (values, ancestors), np.testing.assert_array_equal, moved_bytes=moved)


def _small(bench: Bench, rng: np.random.Generator, n: int = 100) -> None:
    """What a call costs from Python."""
    weights = rng.random(n)
    weights /= weights.sum()
    for scheme, each in fs.ops.SCHEMES.items():
        u = rng.random(n) if each else U
        providers = {OURS: partial(small_fastsmc, scheme), "fastsmc on torch tensors": partial(small_torch, scheme)}
        bench.case(f"{scheme} N={n}", providers, (weights, u), np.testing.assert_array_equal)
