"""``python -m bench.gpu [--quick] [--only KIND ...]``: the engines of a CUDA device against peers on the same one.

Providers are timed in turn, in queued calls, after their results were compared; ours and torch's are replayed from a
CUDA graph once more, where launches cost the host nothing. Peers of ``medium`` multiply bfloat16 numbers too. Rows go
to bench/results/gpu.csv, with card, driver and versions; those of cases that are not run stay there.
"""

from __future__ import annotations

import argparse
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from functools import cache, partial
from importlib import import_module
from statistics import median
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

import fastsmc as fs
from bench import mlp_gradient
from bench.harness import GRAPH, OURS, RESULTS, replace_lines, version
from bench.mlp_gradient import Case, problem
from fastsmc import backends, choice, ops
from fastsmc.arrays import capability
from fastsmc.likelihoods import Likelihood

Call = Callable[[], Any]

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"  # there by the interpreter, to try this out
ITERATIONS = 100_000  # more than are timed
ROUNDS, SAMPLE = 15, 0.02
"""Samples of a provider, and their length in seconds."""
WIDTHS = (784, 100, 100, 10)
CASES = (
    Case(WIDTHS, 1024, 1000),
    Case(WIDTHS, 1024, 64),
    Case((64, 32, 10), 1024, 256),
    Case((13, 50, 1), 1024, 256, "gaussian"),
)
"""The table of the targets, and networks that one block holds."""
RATES = {"medium": 990e12, "high": 330e12, "highest": 165e12}
"""Operations a second of Hopper's tensor cores by data sheet: one, three and six products of bfloat16 numbers."""
AGREE = {
    "values": {"highest": 1e-5, "high": 1e-3, "medium": 1e-2},
    "gradients": {"highest": 5e-3, "high": 5e-2, "medium": 2e-1},
}
"""Relative differences from torch: the few ReLUs that rounding turns on or off count by their square root in these."""
JAX_PRECISIONS = {"highest": "float32", "high": "tensorfloat32", "medium": "bfloat16"}
BANDWIDTH = {"H100": 3.35e12, "H200": 4.8e12}
"""Bytes a second by data sheet."""


@dataclass(frozen=True)
class Row:
    """One line of the results; ``floor_us`` is the least time by data sheet, ``ratio`` the time over our best."""

    case: str
    provider: str
    median_us: float
    p20_us: float
    p80_us: float
    ratio: float
    floor_us: float
    card: str
    driver: str
    cuda: str
    torch: str
    triton: str
    jax: str
    fastsmc: str
    date: str


@cache
def machine() -> dict[str, str]:
    """What the figures depend on besides the code."""
    query = ["nvidia-smi", "--query-gpu=name,driver_version", "--format=csv,noheader"]
    answer = subprocess.run(query, capture_output=True, text=True, check=True).stdout if DEVICE == "cuda" else "none,"
    card, driver = answer.splitlines()[0].split(",")
    versions = {name: version(name) for name in ("torch", "triton", "jax", "fastsmc")}
    date = datetime.now(timezone.utc).date().isoformat()
    return {"card": card, "driver": driver.strip(), "cuda": torch.version.cuda or "", **versions, "date": date}


def bytes_a_second() -> float:
    """Of the card's memory by data sheet; that of an H200 where the card is not known."""
    return next((rate for name, rate in BANDWIDTH.items() if name in machine()["card"]), BANDWIDTH["H200"])


def engines(case: Case | None = None, precision: str = "highest") -> dict[str, str]:
    """Backends of the device by what the table calls them; of a case, those that do not hand it to another."""
    found = [b for b in list(backends.BACKENDS.values())[1:] if b.tensors and b.available()[0]]
    if case is not None:
        size = fs.MLP(case.widths).layer_table, ops.PRECISIONS.index(precision), case.batch
        modules = {b: import_module(str(b.module)) for b in found}
        found = [b for b, module in modules.items() if not hasattr(module, "serves") or module.serves(*size)]
    return {f"{OURS} {backend.name}": backend.name for backend in found}


def on_device(*arrays: np.ndarray) -> list[torch.Tensor]:
    return [torch.as_tensor(array, device=DEVICE) for array in arrays]


def wait() -> None:
    """Until all that is queued on the device is done."""
    if DEVICE == "cuda":
        torch.cuda.synchronize()


def seconds(call: Call, repeats: int) -> float:
    """Per call, of so many that are queued one behind the other."""
    wait()
    begin = time.perf_counter()
    for _ in range(repeats):
        call()
    wait()
    return (time.perf_counter() - begin) / repeats


def graphed(call: Call) -> Call:
    """The replay of a call that was captured, after it ran on the stream of the capture."""
    graph, stream = torch.cuda.CUDAGraph(), torch.cuda.Stream()
    wait()
    with torch.cuda.stream(stream):  # also left by a capture that fails
        for _ in range(3):
            call()
        wait()
        with torch.cuda.graph(graph, stream=stream):
            call()
    return graph.replay


def with_graphs(calls: Mapping[str, Call]) -> dict[str, Call]:
    """The calls, and the replays of ours and torch's; a peer that cannot be captured says so."""
    found: dict[str, Call] = {}
    for name, call in calls.items():
        if name.startswith("jax"):  # whose compiled function is one call, and not on torch's stream
            found[name] = call
            continue
        try:
            found |= {name: call, name + GRAPH: graphed(call)}
        except Exception as error:
            if name.startswith(OURS):
                raise
            found[f"{name} (no graph: {type(error).__name__})"] = call
    return found


class Bench:
    """Collects rows, and prints a table per case."""

    def __init__(self, keep: bool = True) -> None:
        self.keep = keep
        self.rows: list[Row] = []
        self.failed: list[str] = []
        self.choices: list[dict[str, Any]] = []
        self.console = Console(width=130)

    def case(
        self,
        name: str,
        calls: Mapping[str, Call],
        floor: float,
        served: Sequence[str] = (),
        row: int = 0,
        graphs: bool = True,
    ) -> None:
        """Time providers in turn, and as graphs too; ``floor`` is in seconds."""
        repeats = {}
        if DEVICE == "cuda" and graphs:
            calls = with_graphs(calls)
        for provider, call in calls.items():
            seconds(call, 1)
            repeats[provider] = max(1, round(SAMPLE / seconds(call, 1)))
        rounds = [{p: seconds(call, repeats[p]) for p, call in calls.items()} for _ in range(ROUNDS)]
        times = {provider: [1e6 * samples[provider] for samples in rounds] for provider in calls}
        ours = min(median(samples) for provider, samples in times.items() if provider.startswith(OURS))
        table = Table("provider", "median", "p20", "p80", "over ours", "over the floor", title=name)
        for provider, samples in sorted(times.items(), key=lambda item: median(item[1])):
            low, middle, high = (float(t) for t in np.quantile(samples, (0.2, 0.5, 0.8)))
            self.rows.append(Row(name, provider, middle, low, high, middle / ours, 1e6 * floor, **machine()))
            ratios = (f"{middle / ours:.2f}x", f"{middle / (1e6 * floor):.1f}x")
            table.add_row(provider, *(f"{t:,.1f} us" for t in (middle, low, high)), *ratios)
        self.console.print(table)
        self.choose(served, row, times)
        self.write()

    def choose(self, served: Sequence[str], row: int, times: Mapping[str, Sequence[float]]) -> None:
        """The fastest engine is the choice for these ops on rows of this length, by the first case that has them.

        Calls count as a sampler makes them: trajectories replay themselves, all others are launched.
        """
        ranked = sorted((median(times[p]), backend) for p, backend in engines().items() if p in times)
        if served and len(ranked) > 1:
            (us, backend), (second_us, second) = ranked[:2]
            found = {"row": row, "backend": backend, "us": us, "second": second, "second_us": second_us}
            here = {"capability": capability(DEVICE), **{key: machine()[key] for key in ("card", "date")}}
            known = {(line["op"], line["row"]) for line in self.choices}
            self.choices += [{"op": op, **found, **here} for op in served if (op, row) not in known]

    def attempt(self, kind: Callable[..., None], *arguments: Any) -> None:
        """Run the cases of a kind; one that fails is told, and does not keep the others from being run."""
        try:
            kind(self, *arguments)
        except Exception as error:
            self.failed.append(f"{kind.__name__} {' '.join(map(str, arguments))}: {type(error).__name__}: {error}")
            self.console.print(f"[red]{self.failed[-1]}")

    def write(self) -> None:
        """To bench/results/, and this card's lines to the table of choices, after every case: runs break off."""
        if not self.keep:
            return
        replace_lines(choice.TABLE, self.choices, ("capability", "op", "row"))
        replace_lines(RESULTS / "gpu.csv", [asdict(row) for row in self.rows], ("case",))


def model_of(case: Case) -> tuple[fs.MLP, Likelihood]:
    """Network and likelihood."""
    net = fs.MLP(case.widths)
    return net, fs.Posterior(net, likelihood=case.likelihood).likelihood


def gradient(bench: Bench, case: Case, precision: str) -> None:
    """Log-likelihood and gradient; precisions have the same names in torch."""
    arrays = problem(case)
    theta, x, y = on_device(*arrays)
    model = model_of(case)
    torch.set_float32_matmul_precision(precision)
    how = {"precision": precision, "check": False}
    calls = {
        name: partial(ops.log_likelihood_and_grad, *model, theta, x, y, backend=backend, **how)
        for name, backend in engines(case, precision).items()
    }
    peers = {
        "torch.func.vmap": mlp_gradient.with_torch_func(case, *arrays, DEVICE),
        "torch baddbmm + autograd": mlp_gradient.with_torch_by_hand(case, *arrays, DEVICE),
    }
    theirs = peers["torch.func.vmap"]()
    for name, call in calls.items():
        for what, mine, other in zip(("values", "gradients"), call(), theirs, strict=True):
            error = float((mine.double() - other.double()).norm() / other.double().norm())
            if not error < AGREE[what][precision]:
                raise AssertionError(f"{case} {precision}: {what} of {name} and torch differ by {error:.1e}")
    products = "bfloat16" if precision == "medium" else "float32"
    if products == "bfloat16":  # "medium" is TF32 in torch but for autocast
        peers = {name: mlp_gradient.mixed(call, DEVICE) for name, call in peers.items()}
    try:
        import jax
    except ImportError:
        pass
    else:
        call = mlp_gradient.with_jax(case, *arrays, products)

        def by_jax() -> Any:
            with jax.default_matmul_precision(JAX_PRECISIONS[precision]):  # it compiles anew for calls outside
                return call()

        peers["jax.vmap (jit)"] = by_jax
    calls |= {f"{name}, bfloat16" if products == "bfloat16" else name: call for name, call in peers.items()}
    floor = max(case.flops / RATES[precision], 2 * arrays[0].nbytes / bytes_a_second())
    served = ("log_likelihood", "network_outputs") if precision == "highest" else ()
    bench.case(f"gradient {case} {precision}", calls, floor, served, theta.shape[1])
    torch.set_float32_matmul_precision("highest")


def trajectory(bench: Bench, case: Case, precision: str, steps: int = 10) -> None:
    """HMC: all steps of a trajectory, against their gradients alone."""
    arrays = problem(case)
    theta, x, y = on_device(*arrays)
    state = [theta, torch.randn_like(theta), torch.zeros_like(theta)]
    model = model_of(case)
    plan = {"prior_precision": torch.ones(theta.shape[1], device=DEVICE), "step_size": 1e-4, "num_steps": steps}
    calls = {}
    for name, backend in engines(case, precision).items():
        how = {"precision": precision, "backend": backend, "check": False}
        gradient = partial(ops.log_likelihood_and_grad, *model, theta, x, y, **how)
        calls[name] = partial(ops.trajectory, *model, *state, x, y, **plan, **how)
        calls[f"{name}: its gradients alone"] = lambda gradient=gradient: [gradient() for _ in range(steps)]
    each = max(case.flops / RATES[precision], 4 * arrays[0].nbytes / bytes_a_second())
    served = ("trajectory",) if precision == "highest" else ()
    bench.case(f"trajectory {case} {precision}, {steps} steps", calls, steps * each, served, theta.shape[1])


def iteration(bench: Bench, case: Case, steps: int = 10) -> None:
    """Of tempered SMC, which resamples every time: what the host's decisions add to the trajectories."""
    theta, x, y = on_device(*problem(case))
    post = fs.Posterior(fs.MLP(case.widths), likelihood=case.likelihood)
    state = [theta, torch.randn_like(theta), torch.zeros_like(theta)]
    tempering = fs.LikelihoodTempering(tuple(np.linspace(0, 1, ITERATIONS + 1)[1:]))
    calls: dict[str, Call] = {}
    for name, backend in engines(case).items():
        move = fs.HMC(steps, step_size=1e-4, jitter=0.0)
        how = {"ess_threshold": 1.0, "backend": backend, "num_iterations": ITERATIONS}
        states = fs.SMC(post, case.particles, tempering, move, **how).iterate(x, y)
        calls[name] = partial(next, states)
        trajectory = partial(post.on(backend).trajectory, *state, x, y, step_size=1e-4, num_steps=steps)
        calls[f"{name}: its trajectory alone"] = trajectory
    floor = steps * max(case.flops / RATES["highest"], 4 * theta.numel() * 4 / bytes_a_second())
    bench.case(f"one iteration of SMC, {case}, {steps} steps", calls, floor, graphs=False)


def resampling(bench: Bench, n: int) -> None:
    """Log weights to weights, effective sample size and ancestors."""
    (log_weights,) = on_device(np.random.default_rng(0).standard_normal(n))
    grid = (torch.arange(n, dtype=torch.float64, device=DEVICE) + 0.37) / n

    def by_us(backend: str) -> torch.Tensor:
        fs.normalize_log_weights(log_weights, backend=backend, check=False)
        return fs.resample(log_weights, 0.37, backend=backend, check=False)

    def by_torch() -> torch.Tensor:
        weights = torch.softmax(log_weights, 0)
        1 / (weights * weights).sum()
        scan = torch.cumsum(weights, 0)
        return torch.searchsorted(scan / scan[-1], grid).clamp_(max=n - 1)

    calls = {name: partial(by_us, backend) for name, backend in engines().items()}
    for name, call in calls.items():
        different = int((call() != by_torch()).sum())
        if different > 1e-6 * n + 2:
            raise AssertionError(f"{different} of {n} ancestors of {name} differ from torch's")
    served, floor = ("normalize_log_weights", "resample"), 24 * n / bytes_a_second()
    bench.case(f"normalise, ESS and systematic, N={n}", calls | {"torch": by_torch}, floor, served, n)


def resampling_step(bench: Bench, n: int) -> None:
    """Log weights to ancestors in place, offspring and log weights: by one op, and by those that it is made of."""
    (log_weights,) = on_device(np.random.default_rng(0).standard_normal(n))

    def whole(backend: str) -> torch.Tensor:
        return fs.adaptive_resample(log_weights, 0.37, 1.0, backend=backend, check=False).ancestors

    def in_parts(backend: str) -> torch.Tensor:
        how = {"backend": backend, "check": False}
        fs.normalize_log_weights(log_weights, **how)
        ancestors = fs.resample(log_weights, 0.37, **how)
        fs.offspring(ancestors, n, **how)
        return fs.permute_ancestors(ancestors, **how)

    calls: dict[str, Call] = {}
    for name, backend in engines().items():
        calls |= {name: partial(whole, backend), f"{name}: four ops": partial(in_parts, backend)}
    for name, call in calls.items():
        if not torch.equal(call(), next(iter(calls.values()))()):
            raise AssertionError(f"ancestors of {name} differ from the first engine's")
    bench.case(f"a resampling step, N={n}", calls, 32 * n / bytes_a_second(), ("adaptive_resample",), n)


def main() -> None:
    """Run all cases."""
    parser = argparse.ArgumentParser("bench.gpu", description=__doc__.partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="tiny sizes, nothing written: to see that it runs")
    kinds = {kind.__name__: kind for kind in (gradient, trajectory, resampling, resampling_step, iteration)}
    parser.add_argument("--only", nargs="+", choices=kinds, default=list(kinds), metavar="KIND", help=", ".join(kinds))
    chosen = parser.parse_args()
    bench = Bench(keep=not chosen.quick)
    cases = [Case((5, 4, 3), 2, 8)] if chosen.quick else CASES
    sizes = (300,) if chosen.quick else (4096, 1_000_000, 10_000_000)
    networks, rows = [(case, p) for case in cases for p in ops.PRECISIONS], [(n,) for n in sizes]
    plans: dict[str, Sequence[tuple[Any, ...]]] = {
        "gradient": networks,
        "trajectory": networks,
        "resampling": rows,
        "resampling_step": rows,
        "iteration": [(case,) for case in cases[1:] or cases],
    }
    for name in chosen.only:
        for plan in plans[name]:
            bench.attempt(kinds[name], *plan)
    if bench.failed:
        raise SystemExit("\n".join(("These failed:", *bench.failed)))


if __name__ == "__main__":
    main()
