"""What ranks pay for their messages, and what that means for many: ``python -m bench.collectives``.

Ranks on this machine exchange messages of growing size, each with each; latency and bandwidth are fitted to the times.
``--predict`` prints the table of docs/scaling.md instead, by the model there with the figures there.
"""

from __future__ import annotations

import argparse
import json
import sys
import time

import numpy as np
from torch import distributed

from bench.ranks import launch
from fastsmc.environment import machine
from fastsmc.ranks import Ranks

RANKS = (2, 3, 4)
SIZES = tuple(4**k for k in range(2, 11))
"""float64 numbers that a rank sends to each other one."""


def times(repeats: int) -> list[float]:
    """Median seconds of an exchange of each size, on one rank."""
    ranks, found = Ranks(1000), []
    for size in SIZES:
        sizes = np.full(ranks.count, size)
        sent, seconds = np.zeros(size * ranks.count), []
        for _ in range(repeats + 3):
            begin = time.perf_counter()
            ranks._share(sent[:size], sizes)
            seconds.append(time.perf_counter() - begin)
        found.append(float(np.median(seconds[3:])))
    distributed.destroy_process_group()
    return found


def fitted(measured: dict[int, list[float]]) -> tuple[float, float]:
    """Seconds of latency for each other rank, and of a byte, by relative least squares."""
    rows = [
        (ranks - 1, 8 * size * (ranks - 1), t)
        for ranks, found in measured.items()
        for size, t in zip(SIZES, found, strict=True)
    ]
    others, sent, seconds = np.array(rows).T
    latency, byte = np.linalg.lstsq(np.stack([others, sent], 1) / seconds[:, None], np.ones(len(rows)), rcond=None)[0]
    return latency, byte


MOVE = 46e-6
"""Seconds of a particle's iteration: HMC with 10 steps on 1,000 points, 47 ms for 1,024 on an H200."""
COLUMNS, WIDTH = 0.1e-6, 64
"""Seconds that every rank spends on each of all particles, measured on one core; bytes of its columns on their way."""
LATENCY, BANDWIDTH, COLLECTIVES = 20e-6, 10e9, 10
"""Between hosts, assumed; and how many exchanges an iteration has."""
ROW, ROWS, MEMORY = 318_040, 7, 120e9
"""Bytes of a particle; rows of so many that it takes with gradient, momentum and scratch; bytes of a GPU for them."""
MOVED = 0.3
"""Share of the particles that go to another rank in an iteration, assumed: ESS near a half, resampling every time."""


def predicted(particles: float, gpus: int) -> tuple[float, float, float]:
    """Seconds of an iteration: of moves, of columns on the host, of messages."""
    sent = particles * WIDTH + MOVED * particles * ROW / gpus if gpus > 1 else 0.0
    return MOVE * particles / gpus, COLUMNS * particles, COLLECTIVES * LATENCY * (gpus - 1) + sent / BANDWIDTH


def predict() -> None:
    """Print the table of the documentation."""
    for particles in (1e4, 1e5, 1e6):
        for gpus in (1, 8, 32, 128, 512, 1000):
            parts = predicted(particles, gpus)
            if ROWS * ROW * particles / gpus < MEMORY:
                cells = f"{particles:,.0f}", f"{gpus:,}", *(f"{part * 1e3:,.0f} ms" for part in (*parts, sum(parts)))
                print(f"| {' | '.join(cells)} |")


def main() -> int:
    """Measure and fit, or predict."""
    parser = argparse.ArgumentParser("python -m bench.collectives", description=__doc__)
    parser.add_argument("--repeats", type=int, default=50)
    parser.add_argument("--predict", action="store_true")
    parser.add_argument("--as-one-of", type=int, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.as_one_of:
        print(json.dumps(times(args.repeats)))
        return 0
    if args.predict:
        predict()
        return 0
    measured = {
        ranks: np.max(launch(["--repeats", str(args.repeats)], ranks, 1, "bench.collectives"), axis=0).tolist()
        for ranks in RANKS
    }
    print(f"{machine()}; microseconds of an exchange, each rank with each")
    print("bytes to each", *(f"{ranks} ranks" for ranks in RANKS), sep="\t")
    for k, size in enumerate(SIZES):
        print(8 * size, *(f"{measured[ranks][k] * 1e6:.0f}" for ranks in RANKS), sep="\t")
    latency, byte = fitted(measured)
    print(f"fitted: {latency * 1e6:.0f} us for each other rank, {1e-9 / byte:.2f} GB/s")
    return 0


if __name__ == "__main__":
    sys.exit(main())
