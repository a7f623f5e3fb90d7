"""Random configurations against the reference, for as long as is wanted: ``python -m bench.soak --hours 2``.

Each case is a function of the seed and its number, and ``--case NUMBER`` computes it alone: a network of random shape,
whose values, gradients and outputs are held to float64's by the rule of tests/problems.py, in the median over
particles; resampling, whose ancestors are to be the reference's; a trajectory, which is to be its steps one by one; or
a short run, which is to be the same for any number of threads, and after an interruption. ``--record`` appends what was
found to bench/results/soak.csv.
"""

from __future__ import annotations

import argparse
import csv
import sys
import tempfile
import time
import traceback
from collections import Counter
from contextlib import suppress
from datetime import date
from pathlib import Path

import numpy as np

import fastsmc as fs
from bench.harness import RESULTS
from bench.kills import differences
from fastsmc import backends, environment, ops
from fastsmc.likelihoods import LIKELIHOODS
from fastsmc.networks import ACTIVATIONS

sys.path.append(str(Path(__file__).parents[1] / "tests"))
from problems import Problem, errors_of, threads

COLUMNS = (
    "date",
    "machine",
    "version",
    "seed",
    "seconds",
    "cases",
    *("networks", "resampling", "trajectories", "runs"),
)
COLUMNS += ("worst_error_over_allowed", "failures")
PARTICLES = 32
ATYPICAL = 0.05
"""Error of a particle with a unit that is zero to rounding, or two equal pixels in a pool: on for one way of computing
and off for another. Most particles, of which the median is, have none."""
SCHEMES = {
    "full batch": lambda n: fs.FullBatch(),
    "mini-batches": lambda n: fs.MiniBatch(max(2, n // 3)),
    "data annealing": lambda n: fs.DataAnnealing(sizes=[n // 4 + 1, n // 2 + 1]),
    "smooth": lambda n: fs.SmoothDataAnnealing(start=n // 5 + 1),
    "adaptive": lambda n: fs.AdaptiveDataAnnealing(start=n // 4 + 1, settle=1),
    "tempering": lambda n: fs.LikelihoodTempering(),
}
MOVES = {
    "HMC": lambda: fs.HMC(3),
    "MALA": lambda: fs.MALA(num_moves=2),
    "random walk": lambda: fs.RandomWalk(num_moves=2),
    "Langevin": lambda: fs.Langevin(num_moves=2),
    "kinetic Langevin": lambda: fs.KineticLangevin(num_steps=2, precondition=True),
    "SGHMC": lambda: fs.SGHMC(num_steps=2, batch_size=7),
}


def engines() -> list[str]:
    """Those on the host that are not the reference."""
    return [b.name for b in backends.BACKENDS.values() if b.name in ("cpu", "cuda") and b.available()[0]]


def network(rng: np.random.Generator) -> fs.MLP | fs.LeNet5:
    """Of odd widths and random depth, or with convolutions."""
    activation = str(rng.choice(ACTIVATIONS))
    if rng.random() < 0.15:
        return fs.LeNet5(int(rng.integers(1, 3)), int(rng.integers(1, 6)), activation, int(rng.integers(12, 18)))
    widths = np.exp(rng.uniform(0, np.log(120), rng.integers(2, 6))).astype(int) + 1
    return fs.MLP([int(width) for width in widths], activation)


def problem(rng: np.random.Generator) -> Problem:
    """With enough particles for a mean error."""
    samples = int(np.exp(rng.uniform(0, np.log(700))))
    kind = str(rng.choice(list(LIKELIHOODS)))
    made = Problem(network(rng), PARTICLES, samples, kind, int(rng.integers(2**31)), float(rng.uniform(0.1, 2)))
    return made.weighted() if rng.random() < 0.3 else made


def same(ours: tuple, theirs: tuple, what: str) -> None:
    """To the bit."""
    for a, b in zip(ours, theirs, strict=True):
        if not np.array_equal(a, b, equal_nan=True):
            raise AssertionError(f"{what} differ")


def networks(rng: np.random.Generator) -> float:
    """The largest error over what is allowed."""
    case = problem(rng)
    engine, precision = str(rng.choice(engines())), str(rng.choice(["highest", "medium"]))
    if engine == "cuda" and not fits(case, precision):
        engine = "cpu"
    in_use = ops.precision_in_use(case.net, precision, backend=engine)
    truth, plain = case.truth(), case.by_torch(mixed=in_use == "medium")
    with threads(1):
        ours = case.everything(engine, precision=precision)
    with threads(int(rng.integers(2, 5))):
        same(ours, case.everything(engine, precision=precision), "values on one thread and on several")
    ratios = []
    for parts in zip(plain, ours, truth, strict=True):
        rows = [part.reshape(PARTICLES, -1) for part in parts]
        for order in (2, np.inf):
            error, allowed = errors_of(*rows, order, np.median)
            ratios.append(error / allowed)
        if in_use == "highest" and len(rows[0].T) > 1:
            ratios.append(errors_of(*rows, 2, np.max)[0] / ATYPICAL)
    if not max(ratios) <= 1:
        raise AssertionError(f"{case.net} on {engine}: an error is {max(ratios):.3g} times what is allowed")
    return max(ratios)


def fits(case: Problem, precision: str) -> bool:
    """Whether a block of the CUDA engine has room for it."""
    from fastsmc import cuda

    return cuda.serves(case.net.layer_table, ops.PRECISIONS.index(precision), len(case.x))


def resampling(rng: np.random.Generator) -> float:
    """Ancestors and effective sample sizes."""
    n, m = (int(np.exp(rng.uniform(0, np.log(200_000)))) + 1 for _ in range(2))
    scheme, dtype = str(rng.choice(list(ops.SCHEMES))), rng.choice([np.float32, np.float64])
    log_weights = (rng.standard_normal(n) * rng.choice([0.1, 1, 10, 100])).astype(dtype)
    log_weights[rng.random(n) < rng.choice([0, 0.5, 0.99])] = -np.inf
    log_weights[rng.integers(n)] = 0
    u = rng.random(m if ops.SCHEMES[scheme] else ())

    def on(engine: str) -> tuple:
        return (ops.resample(log_weights, u, scheme=scheme, num_samples=m, backend=engine),)

    truth = on("reference")
    for engine in engines():
        for count in (1, 3):
            with threads(count):
                same(on(engine), truth, f"{scheme} ancestors of {n} on {engine} with {count} threads")
    return 0.0


def trajectories(rng: np.random.Generator) -> float:
    """A trajectory, and its steps one by one."""
    case, steps, size = problem(rng), int(rng.integers(1, 5)), float(rng.uniform(1e-4, 1e-2))
    likelihood, scale = case.likelihood, float(rng.uniform(0.5, 2))
    precision = np.full(case.net.num_params, 2.0, np.float32)
    data = {"weights": case.weights, "backend": "cpu"}
    _, slope = ops.log_likelihood_and_grad(case.net, likelihood, case.theta, case.x, case.y, **data)
    start = case.theta, rng.standard_normal(case.theta.shape, np.float32), slope

    def whole() -> tuple:
        state = [part.copy() for part in start]
        plan = {"prior_precision": precision, "step_size": size, "num_steps": steps, "likelihood_scale": scale}
        end = ops.trajectory(case.net, likelihood, *state, case.x, case.y, **plan, **data)
        return (*state, end.log_likelihood)

    def by_steps() -> tuple:
        theta, v, grad = (part.copy() for part in start)
        how = {"precision": precision, "likelihood_scale": scale, "backend": "cpu"}
        ops.leapfrog(theta, v, grad, kick=size / 2, drift=size, **how)
        for k in range(steps):
            value, grad = ops.log_likelihood_and_grad(case.net, likelihood, theta, case.x, case.y, **data)
            last = k + 1 == steps
            ops.leapfrog(theta, v, grad, kick=size / 2 if last else size, drift=0.0 if last else size, **how)
        return theta, v, grad, value

    with threads(1):
        expected = by_steps()
        same(whole(), expected, "a trajectory and its steps")
    with threads(3):
        same(whole(), expected, "a trajectory and its steps on several threads")
    return 0.0


def runs(rng: np.random.Generator) -> float:
    """A short run on one thread, on several, and one that is interrupted and goes on."""
    samples, kind = int(rng.integers(20, 120)), str(rng.choice(["categorical", "gaussian", "bernoulli"]))
    outputs = 3 if kind == "categorical" else 1
    x = rng.standard_normal((samples, 3), np.float32)
    targets = {"categorical": lambda: rng.integers(0, 3, samples), "bernoulli": lambda: rng.integers(0, 2, samples)}
    y = targets.get(kind, lambda: rng.standard_normal(samples, np.float32))()
    post = fs.Posterior(fs.MLP([3, int(rng.integers(2, 30)), outputs], "tanh"), fs.Normal("fan_in"), kind)
    scheme, move = str(rng.choice(list(SCHEMES))), str(rng.choice(list(MOVES)))
    limit = None if scheme in ("adaptive", "tempering") else int(rng.integers(3, 8))
    options = {"resampling": str(rng.choice(list(ops.SCHEMES))), "seed": int(rng.integers(2**63))}
    options["num_particles"] = int(rng.integers(4, 24))

    def smc() -> fs.SMC:
        return fs.SMC(post, annealing=SCHEMES[scheme](samples), move=MOVES[move](), num_iterations=limit, **options)

    with threads(1):
        one = smc().run(x, y, progress=False)
    with threads(2):
        several = smc().run(x, y, progress=False)
    after = int(rng.integers(1, len(one.history) + 1))
    with tempfile.TemporaryDirectory() as folder:
        with suppress(StopIteration):
            smc().run(x, y, False, fs.Checkpoint(Path(folder) / "run", iterations=1), stop_after(after))
        resumed = fs.resume(Path(folder) / "run", progress=False)
    for other, what in ((several, "on several threads"), (resumed, f"resumed after iteration {after}")):
        if parts := differences(one, other):
            raise AssertionError(f"{scheme} with {move}, {what}: {', '.join(parts)} differ")
    return 0.0


def stop_after(iterations: int):
    def callback(result: fs.Result) -> None:
        if len(result.history) == iterations:
            raise StopIteration

    return callback


CHECKS = {check.__name__: check for check in (networks, resampling, trajectories, runs)}


def compute(seed: int, number: int) -> tuple[str, float]:
    """The kind of a case, and its largest error over what is allowed; 0 where bits are compared."""
    rng = np.random.default_rng([seed, number])
    kind = str(rng.choice(list(CHECKS)))
    return kind, CHECKS[kind](rng)


def record(row: dict) -> None:
    """Append to the table."""
    path = RESULTS / "soak.csv"
    is_new = not path.exists()
    with path.open("a", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        if is_new:
            writer.writeheader()
        writer.writerow(row)


def main() -> int:
    """Compute cases until the time is up."""
    parser = argparse.ArgumentParser("python -m bench.soak", description=__doc__)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--hours", type=float, default=0, help="beside the seconds")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--case", type=int, help="compute this one alone")
    parser.add_argument("--record", action="store_true")
    args = parser.parse_args()
    if args.case is not None:
        print(*compute(args.seed, args.case))
        return 0
    counts, worst, failures, begin = Counter(), 0.0, [], time.monotonic()
    while time.monotonic() - begin < args.seconds + 3600 * args.hours:
        number = counts.total() + len(failures)
        try:
            kind, ratio = compute(args.seed, number)
        except Exception:  # whatever a case ends by, it is a failure that is counted, and the exit status
            traceback.print_exc()
            print(f"again: python -m bench.soak --seed {args.seed} --case {number}", flush=True)
            failures.append(number)
        else:
            counts[kind] += 1
            worst = max(worst, ratio)
    total, seconds = counts.total() + len(failures), time.monotonic() - begin
    parts = ", ".join(f"{counts[kind]} {kind}" for kind in CHECKS)
    print(
        f"soak: {total} cases in {seconds:.0f} s from seed {args.seed} ({parts}); "
        f"largest error {worst:.2f} of what is allowed; {len(failures)} failures"
    )
    if args.record:
        machine = environment.machine()
        row = {"date": date.today(), "machine": machine, "version": fs.__version__, "seed": args.seed}
        row |= {"seconds": round(seconds), "cases": total, **counts, "failures": len(failures)}
        record(row | {"worst_error_over_allowed": f"{worst:.3f}"})
    return int(bool(failures))


if __name__ == "__main__":
    sys.exit(main())
