"""``python -m bench.gpu_tune``: the fastest tiles of a network's kernel on this card, for kernels/tiles.csv.

Every choice is compiled, compared with the default's result, and timed against it in turn; those that the card refuses
are passed over. The lines of other cards stay as they are.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, replace
from functools import partial
from itertools import product
from statistics import median

import torch
from rich.console import Console
from triton import CompilationError, OutOfResources

import fastsmc as fs
from bench.gpu import WIDTHS, machine, on_device, seconds
from bench.harness import replace_lines
from bench.mlp_gradient import Case, problem
from fastsmc import ops
from fastsmc.arrays import capability
from fastsmc.kernels.evaluation import log_likelihood
from fastsmc.kernels.tiles import TABLE, Measured, Tiles, choose_tiles, warps_of

BATCHES, PARTICLES = (64, 1000), 256
ROUNDS, REPEATS = 7, 5
SAMPLES, DEPTHS, STAGES = (64, 128), (32, 64), (3, 4)
GAIN = 0.97
"""Of the default's time: what is not faster than that is noise."""


def choices(default: Tiles) -> Iterator[Tiles]:
    """What may be faster; slices, and by that what is lost in sums, stay as they are."""
    for samples, depth, stages in product(SAMPLES, DEPTHS, STAGES):
        if samples <= max(default.samples, 64):
            yield replace(default, samples=samples, depth=depth, warps=warps_of(samples), stages=stages)


def tune(batch: int, precision: int) -> dict[str, object]:
    """The line of a batch and a precision: the default's, where no choice beats it."""
    theta, x, y = on_device(*problem(Case(WIDTHS, PARTICLES, batch)))
    post = fs.Posterior(fs.MLP(WIDTHS))
    total, grad = theta.new_empty(len(theta), dtype=torch.float64), torch.empty_like(theta)
    arrays = (theta, x, y, None, total, grad)
    model = post.network.layer_table, post.likelihood.code, post.likelihood.noise, precision
    default = choose_tiles(precision, batch)
    run = partial(log_likelihood, *model, *arrays)
    run(tiles=default)
    expected = total.clone()
    best, fastest = None, default
    for tiles in choices(default):
        try:
            run(tiles=tiles)
        except (CompilationError, OutOfResources):
            continue
        if not torch.allclose(total, expected, rtol=1e-3):
            raise AssertionError(f"{tiles}: log-likelihoods differ from those of {default}")
        rounds = [[seconds(partial(run, tiles=t), REPEATS) for t in (tiles, default)] for _ in range(ROUNDS)]
        ours, theirs = map(median, zip(*rounds, strict=True))
        if ours / theirs < (GAIN if best is None else best[0] / best[1]):
            best, fastest = (ours, theirs), tiles
    ours, theirs = best or (seconds(partial(run, tiles=default), REPEATS),) * 2
    sizes = {name: getattr(fastest, name) for name in ("samples", "depth", "stages")}
    line = Measured(capability(str(theta.device)), precision, batch, **sizes)
    times = {"median_us": round(1e6 * ours, 1), "default_us": round(1e6 * theirs, 1)}
    return {**asdict(line), **times, **{name: machine()[name] for name in ("card", "triton", "date")}}


def main() -> None:
    """Tune every precision and batch, and replace this card's lines one by one; those that fail are told at the end."""
    console, failed = Console(), []
    for precision, batch in product(range(len(ops.PRECISIONS)), BATCHES):
        name = f"{ops.PRECISIONS[precision]}, batch {batch}"
        try:
            line = tune(batch, precision)
        except Exception as error:
            failed.append(f"{name}: {type(error).__name__}: {error}")
            continue
        console.print(f"{name}: {line['default_us'] / line['median_us']:.2f}x {line}")
        replace_lines(TABLE, [line], ("capability", "precision", "batch"))
    if failed:
        raise SystemExit("\n".join(("These failed:", *failed)))


if __name__ == "__main__":
    main()
