"""Two ranks with a thread each against one process with two: ``python -m bench.ranks``, on two cores or more.

The same run both ways, in turn, in processes of their own: what an iteration takes, how many particles went to the
other rank and how many bytes in all; and whether the bits are the same. And the processor time of both ranks over that
of one process with one thread, which what else the machine does changes less.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import socket
import subprocess
import sys
import time
from statistics import median
from typing import Any

import numpy as np

import fastsmc as fs
from fastsmc.environment import machine

MOVES = {
    "HMC, 10 steps": lambda: fs.HMC(num_steps=10, step_size=1e-3),
    "kinetic Langevin, preconditioned": lambda: fs.KineticLangevin(num_steps=5, precondition=True, step_size=1e-3),
    "SGHMC": lambda: fs.SGHMC(step_size=1e-3),
}
WARM = 2
"""Iterations that are left out."""


def run(move: str, particles: int, points: int, iterations: int, ranks: int) -> dict[str, object]:
    """What one rank sees of a run that resamples at every iteration."""
    rng = np.random.default_rng(0)
    x, y = rng.standard_normal((points, 784), np.float32), rng.integers(0, 10, points)
    posterior = fs.Posterior(fs.MLP([784, 100, 10]), fs.Normal("fan_in"))
    annealing = fs.SmoothDataAnnealing(start=points // 2, full=0.5)
    how = {"ess_threshold": 1.0, "resampling": "multinomial", "distributed": ranks > 1}
    smc = fs.SMC(posterior, particles, annealing, MOVES[move](), iterations, **how)
    states = [(time.process_time(), state) for state in smc.iterate(x, y)]
    processor, state = [seconds for seconds, _ in states], states[-1][1]
    particles = smc.ranks.whole(state.particles)
    return {
        "seconds": median(np.diff(state.history.seconds)[WARM:].tolist()),
        "processor": processor[-1] - processor[WARM - 1],
        "exchanged": smc.ranks.exchanged / iterations,
        "megabytes": smc.ranks.sent_bytes / iterations / 1e6,
        "digest": hashlib.sha256(particles.tobytes() + state.log_weights.tobytes()).hexdigest(),
    }


def launch(arguments: list[str], ranks: int, threads: int, module: str = "bench.ranks") -> list[Any]:
    """What each rank of a module's run prints, as JSON."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    where = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": str(ranks)}
    environment = os.environ | where | {"OMP_NUM_THREADS": str(threads)}
    command = [sys.executable, "-m", module, *arguments, "--as-one-of", str(ranks)]
    processes = [
        subprocess.Popen(command, env=environment | {"RANK": str(rank)}, stdout=subprocess.PIPE)
        for rank in range(ranks)
    ]
    return [json.loads(process.communicate()[0]) for process in processes]


def main() -> int:
    """Measure, and print a line for each move."""
    parser = argparse.ArgumentParser("python -m bench.ranks", description=__doc__)
    parser.add_argument("--move", choices=MOVES)
    parser.add_argument("--particles", type=int, default=64)
    parser.add_argument("--points", type=int, default=600)
    parser.add_argument("--iterations", type=int, default=8)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--as-one-of", type=int, help=argparse.SUPPRESS)
    args = parser.parse_args()
    sizes = args.particles, args.points, args.iterations
    if args.as_one_of:
        print(json.dumps(run(args.move, *sizes, args.as_one_of)))
        return 0
    print(f"{machine()}; MLP 784-100-10, P = {args.particles}, N = {args.points}; {args.repeats} runs each, in turn")
    names, different = [args.move] if args.move else list(MOVES), 0
    for name in names:
        options = zip(("--particles", "--points", "--iterations"), map(str, sizes), strict=True)
        arguments = ["--move", name, *(word for option in options for word in option)]
        shapes = ((1, 2), (2, 1), (1, 1))  # ranks, threads of each
        repeats = [[launch(arguments, *shape) for shape in shapes] for _ in range(args.repeats)]
        one = [alone[0]["seconds"] for alone, _, _ in repeats]
        two = [max(rank["seconds"] for rank in ranks) for _, ranks, _ in repeats]
        work = median(sum(r["processor"] for r in ranks) / single[0]["processor"] for _, ranks, single in repeats)
        same = len({rank["digest"] for repeat in repeats for ranks in repeat for rank in ranks}) == 1
        sent = {key: sum(rank[key] for rank in repeats[0][1]) for key in ("exchanged", "megabytes")}
        runs = ", ".join(f"{b / a - 1:+.0%}" for a, b in zip(one, two, strict=True))
        print(
            f"{name}: {median(one) * 1e3:.0f} ms an iteration in one process, {median(two) * 1e3:.0f} ms on two ranks "
            f"({median(two) / median(one) - 1:+.1%}; runs {runs}), processor time {work - 1:+.1%}; "
            f"{sent['exchanged']:.1f} particles and {sent['megabytes']:.1f} MB sent; "
            f"{'the same bits' if same else 'OTHER BITS'}"
        )
        different += not same
    return int(different > 0)


if __name__ == "__main__":
    sys.exit(main())
