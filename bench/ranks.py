"""Two ranks with a thread each against one process with two: ``python -m bench.ranks``, on two cores or more.

The same run both ways, in turn, in processes of their own: what an iteration takes, how many particles went to the
other rank and how many bytes in all; and whether the bits are the same.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import socket
import subprocess
import sys
from statistics import median

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
    result = smc.run(x, y, progress=False)
    return {
        "seconds": median(np.diff(result.history.seconds)[WARM:].tolist()),
        "exchanged": smc.ranks.exchanged / iterations,
        "megabytes": smc.ranks.sent_bytes / iterations / 1e6,
        "digest": hashlib.sha256(result.particles.tobytes() + result.log_weights.tobytes()).hexdigest(),
    }


def launch(arguments: list[str], ranks: int, threads: int) -> list[dict[str, object]]:
    """What each rank of a run prints."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    where = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": str(ranks)}
    environment = os.environ | where | {"OMP_NUM_THREADS": str(threads)}
    command = [sys.executable, "-m", "bench.ranks", *arguments, "--as-one-of", str(ranks)]
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
        pairs = [(launch(arguments, 1, 2)[0], launch(arguments, 2, 1)) for _ in range(args.repeats)]
        one = [alone["seconds"] for alone, _ in pairs]
        two = [max(rank["seconds"] for rank in ranks) for _, ranks in pairs]
        same = len({rank["digest"] for alone, ranks in pairs for rank in (alone, *ranks)}) == 1
        sent = {key: sum(rank[key] for rank in pairs[0][1]) for key in ("exchanged", "megabytes")}
        runs = ", ".join(f"{b / a - 1:+.0%}" for a, b in zip(one, two, strict=True))
        print(
            f"{name}: {median(one) * 1e3:.0f} ms an iteration in one process, {median(two) * 1e3:.0f} ms on two ranks "
            f"({median(two) / median(one) - 1:+.1%}; runs {runs}); "
            f"{sent['exchanged']:.1f} particles and {sent['megabytes']:.1f} MB sent; "
            f"{'the same bits' if same else 'OTHER BITS'}"
        )
        different += not same
    return int(different > 0)


if __name__ == "__main__":
    sys.exit(main())
