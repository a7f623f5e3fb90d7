"""The README's table of figures, from bench/results: what `make bench` measured is what it says."""

from __future__ import annotations

import csv
from collections import defaultdict

from bench.harness import OURS, RESULTS

README = RESULTS.parent.parent / "README.md"
BEGIN, END = "<!-- figures: written by make bench -->\n", "<!-- end of figures -->\n"

SHOWN = {
    "mlp_gradient": {
        "784-100-10 P=64 B=600 categorical": "log-likelihood + gradient, MLP 784-100-10, P = 64, B = 600",
        "784-100-10 P=8 B=600 categorical": "the same, P = 8",
        "784-100-10 P=512 B=64 categorical": "the same, P = 512, B = 64",
        "784-100-10 P=64 B=10000 categorical": "the same, P = 64, B = 10,000",
        "784-64-64-10 P=64 B=512 categorical": "MLP 784-64-64-10, P = 64, B = 512",
        "64-32-10 P=64 B=1437 categorical": "MLP 64-32-10, P = 64, B = 1437",
        "13-50-1 P=64 B=506 gaussian": "MLP 13-50-1, regression, P = 64, B = 506",
    },
    "lenet": {
        "LeNet-5 P=32 B=128": "LeNet-5, P = 32, B = 128",
        "LeNet-5's conv2 P=32 B=128": "its second convolution alone",
    },
    "trajectory": {"784-100-10 P=64 B=600, 10 steps": "HMC trajectory, 10 steps, MLP 784-100-10, P = 64, B = 600"},
    "iteration": {"784-100-10 P=64 B=600, 10 steps": "one iteration of tempered SMC with that move"},
    "resampling": {
        "systematic N=10000": "systematic resampling, N = 1e4",
        "systematic N=1000000": "systematic resampling, N = 1e6",
        "multinomial N=1000000": "multinomial resampling, N = 1e6",
        "normalise + ESS N=10000": "normalise log weights + ESS, N = 1e4",
        "normalise + ESS N=1000000": "the same, N = 1e6",
        "normalise + ESS N=1000000 float32": "the same in float32",
        "gather in place P=1000 d=20000": "resampled particles gathered in place, P = 1000, d = 20,000",
    },
}
"""Cases by benchmark, in words."""


def write() -> None:
    """Put the figures of the newest results between the marks of the README."""
    text = README.read_text()
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    README.write_text(before + BEGIN + figures() + END + after)


def figures() -> str:
    """A sentence on the machine, and a row for every case that is shown and measured."""
    lines = ["| work | fastsmc | of the limit | best peer | ratio |", "|---|---|---|---|---|"]
    machines = set()
    for bench, shown in SHOWN.items():
        path = RESULTS / f"{bench}.csv"
        cases = defaultdict(list)
        for row in csv.DictReader(path.open()) if path.exists() else ():
            cases[row["case"]].append(row)
        for case, words in shown.items():
            if case not in cases:
                continue
            ours = next(row for row in cases[case] if row["provider"] == OURS)
            peers = [row for row in cases[case] if not row["provider"].startswith(OURS)]
            best = min(peers, key=lambda row: float(row["median_us"]))
            share = f"{100 * float(ours['share_of_limit']):.0f} %"
            peer = f"{best['provider']}: {_time(best)}"
            lines.append(f"| {words} | {_time(ours)} | {share} | {peer} | {float(best['ratio']):.2f}x |")
            machines.add(f"{ours['machine']}, {ours['cores']} cores, {ours['simd']}, {ours['date']}")
    return f"Medians; {'; '.join(sorted(machines))}; float32 throughout.\n\n" + "\n".join(lines) + "\n"


def _time(row: dict[str, str]) -> str:
    microseconds = float(row["median_us"])
    if microseconds >= 1e6:
        return f"{microseconds / 1e6:.3g} s"
    return f"{microseconds / 1000:.3g} ms" if microseconds >= 1000 else f"{microseconds:.3g} us"
