"""How time grows with particles, samples, weights and the number of weights to resample; draws docs/scaling.png."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np

from bench import mlp_gradient, resampling
from bench.harness import OURS, Bench, Effort, Row
from bench.mlp_gradient import Case

PICTURE = Path(__file__).parent.parent / "docs" / "scaling.png"
BASE = Case((784, 100, 10), 32, 600)
AXES = {
    "particles P (784-100-10, B = 600)": {p: BASE._replace(particles=p) for p in (1, 4, 16, 64, 256)},
    "samples B (784-100-10, P = 32)": {b: BASE._replace(batch=b) for b in (16, 64, 256, 1024, 4096)},
    "weights d (784-h-10, P = 32, B = 256)": {795 * h + 10: Case((784, h, 10), 32, 256) for h in (4, 16, 64, 256)},
}
GRADIENT = {name: mlp_gradient.PROVIDERS[name] for name in (OURS, "jax.vmap (jit)", "torch baddbmm + autograd")}
SYSTEMATIC = {name: resampling.SYSTEMATIC[name] for name in (OURS, "particles", "torch")}
NUMBERS = (100, 1_000, 10_000, 100_000, 1_000_000, 10_000_000)


def run(effort: Effort, quick: bool) -> None:
    """Measure along every axis and draw."""
    bench = Bench(
        "scaling", replace(effort, rounds=min(effort.rounds, 15), seconds=min(effort.seconds, 6.0)), not quick
    )
    curves: dict[str, dict[int, list[Row]]] = {}
    for axis, cases in AXES.items():
        for size, case in list(cases.items())[: 2 if quick else None]:
            args = (case, *mlp_gradient.problem(case))
            rows = bench.case(f"gradient {case}", GRADIENT, args, mlp_gradient.agree, flops=case.flops)
            curves.setdefault(axis, {})[size] = rows
    for n in NUMBERS[: 2 if quick else None]:
        weights = np.exp(np.random.default_rng(0).normal(size=n))
        weights /= weights.sum()
        same = partial(resampling.same_counts, weights)
        rows = bench.case(f"systematic N={n}", SYSTEMATIC, (weights,), same, moved_bytes=16.0 * n)
        curves.setdefault("systematic resampling, N weights", {})[n] = rows
        draw(curves)


def draw(curves: dict[str, dict[int, list[Row]]]) -> None:
    """One panel per axis, both scales logarithmic; bands from the 20th to the 80th percentile."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    everyone = {row.provider: None for points in curves.values() for rows in points.values() for row in rows}
    colours = {provider: f"C{k}" for k, provider in enumerate(sorted(everyone, key=lambda p: (p != OURS, p)))}
    figure, axes = plt.subplots(1, len(curves), figsize=(4 * len(curves), 3.6), layout="constrained")
    for panel, (title, points) in zip(axes, curves.items(), strict=True):
        for provider in dict.fromkeys(row.provider for rows in points.values() for row in rows):
            found = [(n, row) for n, rows in points.items() for row in rows if row.provider == provider]
            sizes = [n for n, _ in found]
            low, middle, high = (
                [getattr(row, name) / 1e3 for _, row in found] for name in ("p20_us", "median_us", "p80_us")
            )
            style = {"color": colours[provider], "zorder": 2 + (provider == OURS)}
            panel.plot(sizes, middle, marker="o", markersize=3, label=provider, **style)
            panel.fill_between(sizes, low, high, alpha=0.2, **style)
        panel.set(xscale="log", yscale="log", xlabel=title, ylabel="ms")
        panel.grid(alpha=0.3)
        panel.legend(fontsize=7)
    figure.savefig(PICTURE, dpi=120)
    plt.close(figure)
