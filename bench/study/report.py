"""The report: tables, pictures and plain statements from the records, and what is missing."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from bench.study import pictures
from bench.study.grid import Run
from bench.study.problems import Problem
from bench.study.records import Record
from bench.study.summary import ENSEMBLE, Row, middle, summarise
from fastsmc.demo import BASELINE, SCHEMES, TOLERANCE
from fastsmc.files import write_atomically

ENOUGH = 6.0
"""The speed-up that is looked for (arXiv 2601.21983, abstract)."""

INTRODUCTION = f"""# Annealing schemes end to end

Written by `python -m bench.annealing_study`, from one file a run. All methods of a problem have the same network,
Gaussian prior and number of networks P. Wall time is without the evaluation on the test set, and without blackjax's
compilation. Every figure is a median over the seeds.

*To target* is when a run first comes within {100 * TOLERANCE:g} points of the final test accuracy of full batch with
the same move and seed (with HMC where the table has no full batch with that move), *to stay* from when on it is never
below that, and *speed-up* full batch's time to target over the run's.
"""


def write(wanted: Sequence[Run], records: Mapping[Run, Record], complaints: Sequence[str], path: Path) -> None:
    """Write the report and, in a folder of its name beside it, the pictures."""
    rows = summarise(records)
    parts = [INTRODUCTION, _machines(records.values()), _missing(wanted, records, complaints)]
    for problem in dict.fromkeys(run.problem for run in records):
        here = {run: record for run, record in records.items() if run.problem == problem}
        drawn = pictures.draw(problem, here, path.with_suffix(""))
        parts.append(_problem(problem, [row for run, row in rows.items() if run.problem == problem], here))
        parts += [f"![{caption}]({path.stem}/{file.name})\n" for caption, file in drawn.items()]
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, "\n".join(parts).encode())


def _machines(records: Iterable[Record]) -> str:
    days = defaultdict(set)
    for record in records:
        days[", ".join(f"{k} {v}" for k, v in record.machine.items() if v != "" and k != "date")].add(
            record.machine["date"]
        )
    return "".join(f"Measured on: {line}; {' to '.join(sorted({min(d), max(d)}))}.\n" for line, d in days.items())


def _missing(wanted: Sequence[Run], records: Mapping[Run, Record], complaints: Sequence[str]) -> str:
    seeds = defaultdict(list)
    for run in wanted:
        if run not in records:
            seeds[run.problem, run.method].append(run)
    begun = {run.problem for run in records}
    lines = [f"- {p.title}: everything" for p in dict.fromkeys(run.problem for run in wanted) if p not in begun]
    for (problem, method), missing in seeds.items():
        if problem in begun:
            lacking = missing[0].lacking()
            why = f" (needs {lacking}, not installed here)" if lacking else ""
            lines.append(f"- {problem.title}: {method.label}, seeds {', '.join(str(r.seed) for r in missing)}{why}")
    lines += [f"- {complaint}" for complaint in complaints]
    if not lines:
        return f"All {len(wanted)} runs are here.\n"
    return "\n".join([f"## Missing: {sum(map(len, seeds.values()))} of {len(wanted)} runs\n", *lines, ""])


def _problem(problem: Problem, rows: Sequence[Row], records: Mapping[Run, Record]) -> str:
    by_method = defaultdict(list)
    for row in rows:
        by_method[row.label].append(row)
    preset = problem.preset
    return "\n".join(
        [
            f"## {problem.title}\n",
            f"{problem.rows:,} training points, P = {preset.particles}, prior scale {preset.prior_scale}, "
            f"{preset.iterations} iterations of {preset.num_steps} gradients unless said otherwise, at most "
            f"{problem.budget:g} s a run. {_reference(rows, records)}\n",
            _in_short(by_method, preset.particles),
            _main_table(by_method),
            _ensemble_table(by_method),
            _collapse(by_method, preset.particles),
        ]
    )


def _reference(rows: Sequence[Row], records: Mapping[Run, Record]) -> str:
    full = [run for run in records if run.method.scheme == BASELINE]
    if not full:
        return "There is no full-batch run, hence no speed-up."
    cut = [run.name for run in full if records[run].notes]
    return f"Ended early, see below: {', '.join(cut)}." if cut else "Full batch ran to its end."


def _in_short(by_method: Mapping[str, Sequence[Row]], particles: int) -> str:
    """What the tables come to: who is how much faster than full batch, who predicts best, who keeps its particles."""

    def listed(labels: Iterable[str]) -> str:
        return "; ".join(labels) or "none"

    annealed = {
        label: [row for row in rows if row.reference and row.method.partition("-")[0] in SCHEMES]
        for label, rows in by_method.items()
    }
    faster = {
        label: middle(rows, "speedup") for label, rows in annealed.items() if rows and middle(rows, "speedup") >= ENOUGH
    }
    by_name = {row.name: row for rows in by_method.values() for row in rows}

    def why(label: str) -> str:
        rows = annealed[label]
        ours, full = (middle(some, "passes_to_target") for some in (rows, [by_name[row.reference] for row in rows]))
        return f"{label} ({_times(faster[label])}: there after {ours:.3g} data passes, full batch after {full:.3g})"

    best = {name: min(by_method, key=lambda label: middle(by_method[label], name)) for name in ("nll", "ece")}
    whole = [
        label for label, rows in by_method.items() if min(row.distinct_ancestors_min for row in rows) >= particles / 4
    ]
    return "\n".join(
        [
            f"- At least {ENOUGH:g}x full batch's speed to its accuracy, with its moves: {listed(map(why, faster))}.",
            f"- Lowest NLL: {best['nll']} ({middle(by_method[best['nll']], 'nll'):.4f}); lowest ECE: {best['ece']} "
            f"({middle(by_method[best['ece']], 'ece'):.4f}).",
            f"- No resampling left fewer than a quarter of the particles: {listed(whole)}.",
            "",
        ]
    )


def _main_table(by_method: Mapping[str, Sequence[Row]]) -> str:
    lines = [
        "| method | accuracy | NLL | ECE | seconds | data passes | to target, s | to stay, s | reached | speed-up |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for label, rows in by_method.items():
        referred = [row for row in rows if row.reference]
        reached = f"{sum(row.speedup > 0 for row in referred)} of {len(referred)}" if referred else "-"
        cells = [
            f"{100 * middle(rows, 'accuracy'):.2f} %",
            f"{middle(rows, 'nll'):.4f}",
            f"{middle(rows, 'ece'):.4f}",
            *(
                _short(middle(rows, name))
                for name in ("seconds", "data_passes", "seconds_to_target", "seconds_to_stay")
            ),
            reached,
            _times(middle(referred, "speedup") if referred else math.nan),
        ]
        lines.append(f"| {label} | {' | '.join(cells)} |")
    return "\n".join([*lines, ""])


def _ensemble_table(by_method: Mapping[str, Sequence[Row]]) -> str:
    lines = [
        "### Against the deep ensemble at equal wall time\n",
        "| method | seconds | ensemble's seconds | NLL | ensemble's NLL | ECE | ensemble's ECE | no worse in |",
        "|---|---|---|---|---|---|---|---|",
    ]
    heads = len(lines)
    for label, rows in by_method.items():
        compared = [row for row in rows if row.ensemble_nll == row.ensemble_nll and row.method != ENSEMBLE]
        if compared:
            names = ("seconds", "ensemble_seconds", "nll", "ensemble_nll", "ece", "ensemble_ece")
            better = [name for name in ("nll", "ece") if middle(compared, name) <= middle(compared, f"ensemble_{name}")]
            cells = [_short(middle(compared, name)) for name in names]
            lines.append(f"| {label} | {' | '.join(cells)} | {', '.join(better).upper() or 'neither'} |")
    return "\n".join([*lines, ""]) if len(lines) > heads else "There is no deep ensemble to compare with yet.\n"


def _collapse(by_method: Mapping[str, Sequence[Row]], particles: int) -> str:
    lines = [
        "### What collapsed\n",
        f"The least over all iterations and seeds, of {particles} particles; a single ancestor makes all particles "
        "copies of one, independent only as far as later moves made them. The log evidence is a median.\n",
        "| method | least ESS | least ancestors | points with one ancestor | log evidence | ends on | ended early |",
        "|---|---|---|---|---|---|---|",
    ]
    for label, rows in by_method.items():
        if not all(math.isnan(row.ess_min) for row in rows):
            ess = min(row.ess_min for row in rows)
            ancestors = int(min(row.distinct_ancestors_min for row in rows))
            collapsed, points = sum(row.collapsed for row in rows), sum(row.points for row in rows)
            ends, notes = (_distinct(getattr(row, name) for row in rows) for name in ("ends_on", "notes"))
            evidence = _short(middle(rows, "log_evidence"))
            lines.append(
                f"| {label} | {ess:.1f} | {ancestors} | {collapsed} of {points} | {evidence} | {ends} | {notes} |"
            )
    return "\n".join([*lines, ""])


def _distinct(texts: Iterable[str]) -> str:
    return "; ".join(dict.fromkeys(filter(None, texts)))


def _short(value: float) -> str:
    return "-" if math.isnan(value) else f"{value:.3g}" if abs(value) < 1000 else f"{value:.0f}"


def _times(ratio: float) -> str:
    return f"{ratio:.2f}x" if ratio > 0 else "-"
