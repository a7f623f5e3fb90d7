"""``python -m bench.annealing_study``: annealing schemes end to end, against full batch and what a user would take.

The study can be stopped at any time: every finished run is a file, and what is done is not done again.
"""

from __future__ import annotations

import argparse
import multiprocessing
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from rich.console import Console
from rich.table import Table

from bench.harness import RESULTS
from bench.study import grid, records, report, summary
from bench.study.grid import Run

NAME = "annealing_study"
ROOT = RESULTS.parent.parent
DATA = ("digits", "mnist", "all")


def main(arguments: Sequence[str] | None = None) -> int:
    """Parse the options, print the plan, run what is missing, report."""
    parser = argparse.ArgumentParser(f"bench.{NAME}", description=__doc__.partition("\n")[2])
    parser.add_argument("--data", choices=DATA, default="all", help="default: all")
    parser.add_argument("--data-dir", type=Path, help="the folder of MNIST's four IDX files")
    parser.add_argument("--quick", action="store_true", help="tiny sizes; the report stays in the folder of the runs")
    parser.add_argument("--seeds", type=int, help="default: 3; 1 with --quick")
    parser.add_argument("--out", type=Path, help=f"folder of the runs; default: bench/results/{NAME}")
    parser.add_argument("--only", default="", metavar="SUBSTRING", help="runs whose name, as in the plan, contains it")
    parser.add_argument("--report", action="store_true", help="run nothing")
    args = parser.parse_args(arguments)
    seeds = (1 if args.quick else 3) if args.seeds is None else args.seeds
    out = args.out or (ROOT / "build" / f"{NAME}_quick" if args.quick else RESULTS / NAME)
    table = list(grid.table(args.quick, seeds))
    wanted = [run for run in table if grid.chosen(run, args.data, args.only)]
    if not wanted:
        parser.error(f"--only {args.only!r} with --data {args.data} and --seeds {seeds} names no run of the table")
    if not args.report:
        if args.data_dir is None and any(run.problem.data == "mnist" for run in wanted):
            parser.error(
                "--data-dir is missing; it must be the folder of MNIST's four IDX files, unless --data is digits"
            )
        try:
            execute(wanted, args, out)
        except KeyboardInterrupt:
            print("stopped; the same command goes on from here")
    return conclude(table, wanted, out, *((out, out) if args.quick else (RESULTS, ROOT / "docs")))


def execute(wanted: Sequence[Run], args: argparse.Namespace, out: Path) -> None:
    """Run what is not done, each run in a process of its own, so that it inherits no threads and no memory."""
    say = partial(print, flush=True)
    done, complaints = records.finished(wanted, out)
    for complaint in complaints:
        say(f"{complaint}; it is computed again")
    to_do = [run for run in wanted if run not in done]
    show_plan(to_do, len(done))
    for number, run in enumerate(to_do, 1):
        head = f"[{number}/{len(to_do)}] {run.name}: "
        if lacking := run.lacking():
            say(f"{head}left out, it needs {lacking}: pip install -e '.[bench]'")
            continue
        context = multiprocessing.get_context("spawn")
        process = context.Process(
            target=compute, args=(run.name, args.quick, run.seed, args.data_dir, out), daemon=True
        )
        process.start()
        process.join()
        if process.exitcode:
            say(f"{head}failed, see above; the study goes on without it")
            continue
        record = records.read(out / run.file, run)
        quality = f"accuracy {record.last('accuracy'):.2%}, NLL {record.last('nll'):.4f}, ECE {record.last('ece'):.4f}"
        say(f"{head}{quality}, {record.last('seconds'):.3g} s")


def compute(name: str, quick: bool, seed: int, data_dir: Path | None, out: Path) -> None:
    """Do one run and write its file."""
    run = next(run for run in grid.table(quick, seed + 1) if run.name == name)
    records.write(records.follow(run, run.problem.load(data_dir)), out / run.file)


def show_plan(to_do: Sequence[Run], done: int) -> None:
    """Print what is going to run, and for how long at most."""
    per_pass = {problem: problem.seconds_per_pass() for problem in dict.fromkeys(run.problem for run in to_do)}
    plan = Table("runs", "seeds", "seconds each", title=f"{len(to_do)} runs to do, {done} done", title_justify="left")
    for problem, method in dict.fromkeys((run.problem, run.method) for run in to_do):
        same = [run for run in to_do if (run.problem, run.method) == (problem, method)]
        seeds = " ".join(str(run.seed) for run in same)
        plan.add_row(f"{problem.name}/{method.name}", seeds, f"{same[0].seconds(per_pass[problem]):.3g}")
    minutes = sum(run.seconds(per_pass[run.problem]) for run in to_do) / 60
    plan.caption = f"at most about {minutes:.0f} minutes, without start-up and evaluation"
    Console().print(plan)


def conclude(table: Sequence[Run], wanted: Sequence[Run], out: Path, results: Path, docs: Path) -> int:
    """Report on all that a folder holds; 1 where a run that was wanted is missing."""
    found, complaints = records.finished(table, out)
    seen = {run.problem for run in found}
    if found:
        csv, text = results / f"{NAME}.csv", docs / f"{NAME}.md"
        summary.save(found, csv)
        report.write([run for run in table if run.problem in seen or not run.problem.opt_in], found, complaints, text)
        print(f"written: {csv}, {text}")
    done = sum(run in found for run in wanted)
    print(f"{done} of {len(wanted)} runs are done")
    return int(done < len(wanted))


if __name__ == "__main__":
    sys.exit(main())
