"""The ``fastsmc`` command: demo, train, doctor and bench."""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from fastsmc import data, logs, plotting
from fastsmc.demo import BASELINE, PRESETS, SCHEMES, picture, run_schemes, summarise, table
from fastsmc.environment import usable_cores, version, versions
from fastsmc.networks import MLP, LeNet5, Network
from fastsmc.ops import PRECISIONS

INTERRUPTED = 130
MOVES = {
    "hmc": lambda fs, steps: fs.HMC(num_steps=steps),
    "kinetic": lambda fs, steps: fs.KineticLangevin(num_steps=steps),
    "sghmc": lambda fs, steps: fs.SGHMC(num_steps=steps),
    "mala": lambda fs, steps: fs.MALA(),
    "langevin": lambda fs, steps: fs.Langevin(),
    "random-walk": lambda fs, steps: fs.RandomWalk(),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code."""
    args = _parser().parse_args(argv)
    try:
        return args.command(args)
    except KeyboardInterrupt:
        print("fastsmc: interrupted", file=sys.stderr)
        return INTERRUPTED
    except (ArithmeticError, ImportError, OSError, RuntimeError, TypeError, ValueError) as error:
        print(f"fastsmc: {error}", file=sys.stderr)
        return 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("fastsmc", description="Sequential Monte Carlo for Bayesian neural networks.")
    parser.add_argument("--version", action="version", version=f"fastsmc {version('fastsmc')}")
    commands = parser.add_subparsers(required=True, metavar="command")

    demo = commands.add_parser("demo", help="annealing schemes side by side on images")
    demo.set_defaults(command=_demo)
    demo.add_argument("--data", choices=PRESETS, default="digits")
    demo.add_argument("--data-dir", type=Path, help="folder of MNIST's four IDX files")
    demo.add_argument("--schemes", nargs="+", choices=SCHEMES, default=[BASELINE, "smooth", "adaptive"])
    demo.add_argument("--out", type=_output, default=Path("demo.png"), help="picture (default: %(default)s)")
    _add_run_options(demo)

    train = commands.add_parser(
        "train",
        help="sample the weights of a network for your own data",
        epilog="torchrun -m fastsmc train ... shares the particles out over the processes that it starts.",
    )
    train.set_defaults(command=_train)
    train.add_argument("data", help="a folder of IDX files, a .npz or .csv file, or 'digits'")
    train.add_argument("--target", help="target column of a CSV file (default: the last)")
    train.add_argument(
        "--standardise",
        action="store_true",
        help="scale every feature to mean 0, deviation 1, and so the targets of a regression",
    )
    train.add_argument("--network", choices=NETWORKS, default="mlp", help="lenet5 reads every row as a square image")
    train.add_argument("--hidden", nargs="*", type=_whole, default=[32], metavar="WIDTH", help="hidden layers of mlp")
    train.add_argument("--activation", default="relu")
    train.add_argument("--likelihood", choices=("categorical", "gaussian"), default="categorical")
    train.add_argument("--noise", type=float, help="deviation of the Gaussian likelihood (default: learned)")
    train.add_argument("--prior-scale", type=_scale, default="fan_in", help="a number or fan_in (the default)")
    train.add_argument("--scheme", choices=SCHEMES, default="adaptive", help="default: %(default)s")
    train.add_argument(
        "--start", type=_whole, help="data points of the first batch of data, smooth and mini (default: a twentieth)"
    )
    train.add_argument(
        "--likelihood-scale",
        choices=("none", "full"),
        help="of data, smooth and mini: count every data point of a batch once (the default), or scale it up to all",
    )
    train.add_argument("--device", help="such as cuda (default: the cpu)")
    train.add_argument(
        "--precision", choices=PRECISIONS, default=PRECISIONS[0], help="of products (default: highest, float32)"
    )
    train.add_argument("--move", choices=MOVES, help="default: exact moves up to 5,000 rows, sghmc beyond")
    train.add_argument("--num-steps", type=_whole, help="steps of --move hmc, kinetic and sghmc (default: 10)")
    train.add_argument("--out", type=_output, help="where to save the particles (.safetensors)")
    train.add_argument("--plot", type=_output, help="where to draw the run")
    train.add_argument("--report", type=_output, help="where to write a report of the run (.html)")
    train.add_argument("--log", type=_output, help="where to write each iteration as it ends, a JSON object a line")
    _add_run_options(train, particles=32)

    doctor = commands.add_parser("doctor", help="versions, backends, and why one is missing")
    doctor.set_defaults(command=_doctor)

    bench = commands.add_parser("bench", help="run the benchmarks of a source checkout")
    bench.set_defaults(command=_bench)
    bench.add_argument("--quick", action="store_true", help="smaller sizes, fewer repeats")
    return parser


def _add_run_options(parser: argparse.ArgumentParser, particles: int | None = None) -> None:
    shown = "default: by data set" if particles is None else "default: %(default)s"
    parser.add_argument("--particles", type=_whole, default=particles, help=shown)
    parser.add_argument("--iterations", type=_whole, help="of schemes that do not end by themselves")
    parser.add_argument("--seed", type=_natural, default=0)
    parser.add_argument("--json", type=_output, help="where to write figures and history")
    parser.add_argument("--quiet", action="store_true", help="no progress bar")


def _whole(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text} is not a positive whole number")
    return value


def _natural(text: str) -> int:
    value = int(text)
    if value < 0:
        raise argparse.ArgumentTypeError(f"{text} is not a whole number from 0 on")
    return value


def _output(text: str) -> Path:
    path = Path(text)
    if not path.absolute().parent.is_dir():
        raise argparse.ArgumentTypeError(f"the folder of {text} does not exist")
    if path.is_dir():
        raise argparse.ArgumentTypeError(f"{text} is a folder, not a file")
    if not os.access(path if path.exists() else path.absolute().parent, os.W_OK):
        raise argparse.ArgumentTypeError(f"{text} cannot be written")
    return path


def _scale(text: str) -> float | str:
    return text if text == "fan_in" else float(text)


def _demo(args: argparse.Namespace) -> int:
    plotting.check_format(args.out)
    chosen = {name: getattr(args, name) for name in ("particles", "iterations") if getattr(args, name)}
    preset = replace(PRESETS[args.data], **chosen)
    dataset = preset.load(args.data_dir)
    widths = "-".join(map(str, (dataset.x_train.shape[1], *preset.hidden, dataset.classes)))
    title = f"{dataset.name}: MLP {widths}, {preset.particles} particles"
    schemes = list(dict.fromkeys(args.schemes))
    tried = run_schemes(schemes, dataset, preset, seed=args.seed, progress=not args.quiet)
    runs = [run for run in tried if len(run.trace)]
    rows = summarise(runs)
    if rows:
        _show(table(rows, title))
    for run in tried:
        _warn(run.warnings, run.label)
    if args.json:
        for row, run in zip(rows, runs, strict=True):
            row |= {"test_accuracy": run.trace["accuracy"], "history": dict(run.result.history)}
        _write_json(args.json, {"title": title, "seed": args.seed, "versions": versions(), "runs": rows})
    if runs:
        picture(runs, dataset, args.out, title)
        print(f"picture: {args.out}")
    return INTERRUPTED if any(run.interrupted for run in tried) else int(not runs)


def _train(args: argparse.Namespace) -> int:
    import fastsmc as fs

    _check_options(args)
    regression = args.likelihood == "gaussian"
    dataset = data.load(args.data, target=args.target, regression=regression, seed=args.seed)
    features = {}
    if args.standardise:
        dataset, mean, scale = dataset.standardised()
        features = {"feature_mean": mean, "feature_scale": scale}
        if regression:
            dataset, mean, scale = dataset.with_standardised_targets()
            features |= {"target_mean": mean, "target_scale": scale}
    elif (spread := float(abs(dataset.x_train).max())) > 100:
        print(f"note: features reach {spread:g}; --standardise puts them on one scale", file=sys.stderr)
    outputs = dataset.classes or (1 if dataset.y_train.ndim == 1 else dataset.y_train.shape[1])
    net = NETWORKS[args.network](dataset.x_train.shape[1], outputs, args)
    if dataset.classes and len(empty := np.setdiff1d(range(dataset.classes), dataset.y_train)):
        print(f"note: classes are 0 to {dataset.classes - 1}; no row for training has {empty[0]}", file=sys.stderr)
    noise = fs.HalfNormal(float(dataset.y_train.std()) or 1.0) if args.noise is None else args.noise
    likelihood = fs.Gaussian(noise) if regression else args.likelihood
    start = args.start or max(1, len(dataset.x_train) // 20)
    posterior = fs.Posterior(net, prior=fs.Normal(args.prior_scale), likelihood=likelihood, precision=args.precision)
    smc = fs.SMC(
        posterior,
        num_particles=args.particles,
        annealing=SCHEMES[args.scheme].make(fs, start, args.likelihood_scale or "none"),
        move=args.move and MOVES[args.move](fs, args.num_steps or 10),
        num_iterations=args.iterations,
        device=args.device,
        seed=args.seed,
        distributed=int(os.environ.get("WORLD_SIZE", "1")) > 1,
    )
    trace = None
    if args.plot or args.report:
        plotting.figure_class()
        if args.plot:
            plotting.check_format(args.plot)
        trace = fs.Trace(dataset.x_test, dataset.y_test, share=0.2)
    with logs.written_to(None if smc.ranks.index else args.log):
        result = smc.run(dataset.x_train, dataset.y_train, progress=not args.quiet, callback=trace)
    if smc.ranks.index:
        return 0  # the first rank tells
    quality = result.evaluate(dataset.x_test, dataset.y_test)
    seconds = float(result.history["seconds"][-1])
    shown = "  ".join(f"{name} {value:.4f}" for name, value in quality.items())
    sizes = f"{len(dataset.x_train):,} rows, {net.num_params:,} weights, {args.particles} particles"
    print(f"{dataset.name}: {sizes}")
    units = ", in deviations of the target" if "target_scale" in features else ""
    print(f"test data{units}: {shown}  ({seconds:.1f} s)")
    if result.precision_in_use != args.precision:
        print(f"note: precision {args.precision} was computed as {result.precision_in_use}", file=sys.stderr)
    _warn(result.warnings)
    if args.out:
        replace(result, settings={**result.settings, **logs.plain(features)}).save(args.out)
        print(f"particles: {args.out}")
    if args.plot:
        result.plot(args.plot, dataset.x_test, dataset.y_test, trace)
        print(f"picture: {args.plot}")
    if args.report:
        images = dataset.x_test.reshape(-1, *dataset.shape)
        about = {"data": f"{dataset.name}, {len(images):,} rows for testing", "target": args.target}
        if "target_scale" in features:
            about["units of the target"] = f"deviations, of {', '.join(f'{s:.4g}' for s in features['target_scale'])}"
        title = f"fastsmc train {Path(dataset.name).name}"
        result.report(args.report, images, dataset.y_test, trace=trace, title=title, about=about, saved=args.out)
        print(f"report: {args.report}")
    if args.json:
        report = {
            "data": dataset.name,
            "test": quality,
            "seed": args.seed,
            "precision": result.precision_in_use,
            "versions": versions(),
            **features,
        }
        _write_json(args.json, report | {"warnings": result.warnings, "history": dict(result.history)})
    return INTERRUPTED if result.interrupted else 0


GROWING, STEPPING = ("data", "smooth", "mini"), ("hmc", "kinetic", "sghmc")


def _check_options(args: argparse.Namespace) -> None:
    """Refuse options that would be without effect."""
    for name, applies, when in (
        ("noise", args.likelihood == "gaussian", "--likelihood is gaussian"),
        ("start", args.scheme in GROWING, f"--scheme is one of {', '.join(GROWING)}"),
        ("likelihood_scale", args.scheme in GROWING, f"--scheme is one of {', '.join(GROWING)}"),
        ("num_steps", args.move in STEPPING, f"--move is one of {', '.join(STEPPING)}"),
    ):
        if not applies and getattr(args, name) is not None:
            option = f"--{name.replace('_', '-')}"
            raise ValueError(f"{option} is {getattr(args, name)}; it must be left out unless {when}")


def _mlp(features: int, outputs: int, args: argparse.Namespace) -> Network:
    return MLP([features, *args.hidden, outputs], args.activation)


def _lenet5(features: int, outputs: int, args: argparse.Namespace) -> Network:
    for channels in (1, 3):
        size = math.isqrt(features // channels)
        if channels * size**2 == features:
            return LeNet5(channels, outputs, args.activation, size)
    raise ValueError(f"{args.data} has {features} features; lenet5 needs square images of 1 or 3 channels")


NETWORKS = {"mlp": _mlp, "lenet5": _lenet5}


def _doctor(args: argparse.Namespace) -> int:
    from rich.table import Table

    from fastsmc import backends

    for name, found in versions().items():
        print(f"{name:13}{found}")
    print(f"{'processor':13}{platform.machine()}, {os.cpu_count()} cores, {usable_cores()} usable here")
    try:
        import torch

        devices = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
        print(f"{'threads':13}{torch.get_num_threads()}")
        print(f"{'devices':13}{', '.join(['cpu', *devices])}")
    except ImportError as error:
        print(f"{'devices':13}cpu; torch cannot be imported: {error}")
    grid = Table("backend", "device", "available", "")
    for row in backends.report():
        grid.add_row(row.name, row.device, "yes" if row.ok else "no", row.detail or row.reason)
    _show(grid)
    print(f"{'precision':13}{_precisions()}")
    return 0


def _precisions() -> str:
    """What each precision is computed as by the engine that serves arrays in main memory."""
    from fastsmc import MLP, ops

    try:
        in_use = {name: ops.precision_in_use(MLP([784, 100, 10]), name) for name in ops.PRECISIONS}
    except ValueError as error:
        return f"unknown: {error}"
    return ", ".join(name if used == name else f"{name} (computed as {used} here)" for name, used in in_use.items())


def _bench(args: argparse.Namespace) -> int:
    root = Path(__file__).resolve().parent.parent
    if not (root / "bench" / "__main__.py").is_file():
        raise FileNotFoundError("the benchmarks are in the source checkout, not in the wheel: run `make bench` there")
    return subprocess.run([sys.executable, "-m", "bench", *["--quick"] * args.quick], cwd=root).returncode


def _show(grid: Any) -> None:
    """Print a table; where the output is no terminal, as wide as it needs to be."""
    from rich.console import Console

    console = Console()
    console.print(grid) if console.is_terminal else Console(width=160).print(grid)


def _warn(sentences: Sequence[str], subject: str = "") -> None:
    for sentence in sentences:
        print(f"warning: {subject}{': ' if subject else ''}{sentence}")


def _write_json(path: Path, report: Any) -> None:
    path.write_text(json.dumps(logs.plain(report), indent=1) + "\n")
    print(f"figures: {path}")
