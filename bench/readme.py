"""The README's table of figures, from bench/results: what `make bench` measured is what it says."""

from __future__ import annotations

import csv
from collections import defaultdict

from bench.harness import GRAPH, OURS, RESULTS

README = RESULTS.parent.parent / "README.md"
BEGIN, BEGIN_DEVICES, END = (
    "<!-- figures: written by make bench -->\n",
    "<!-- figures of GPUs -->\n",
    "<!-- end of figures -->\n",
)

SHOWN = {
    "mlp_gradient": {
        "784-100-10 P=64 B=600 categorical": "log-likelihood + gradient, MLP 784-100-10, P = 64, B = 600",
        "784-100-10 P=8 B=600 categorical": "the same, P = 8",
        "784-100-10 P=512 B=64 categorical": "the same, P = 512, B = 64",
        "784-100-10 P=64 B=10000 categorical": "the same, P = 64, B = 10,000",
        "784-64-64-10 P=64 B=512 categorical": "MLP 784-64-64-10, P = 64, B = 512",
        "64-32-10 P=64 B=1437 categorical": "MLP 64-32-10, P = 64, B = 1437",
        "13-50-1 P=64 B=506 gaussian": "MLP 13-50-1, regression, P = 64, B = 506",
        "784-100-10 P=64 B=600 categorical high": "MLP 784-100-10, P = 64, B = 600, in `high`",
        "784-100-10 P=64 B=600 categorical medium": "MLP 784-100-10, P = 64, B = 600, in `medium`",
        "784-64-64-10 P=64 B=512 categorical medium": "MLP 784-64-64-10, P = 64, B = 512, in `medium`",
        "64-32-10 P=64 B=1437 categorical medium": "MLP 64-32-10, P = 64, B = 1437, in `medium`",
    },
    "lenet": {
        "LeNet-5 P=32 B=128": "LeNet-5, P = 32, B = 128",
        "LeNet-5's conv2 P=32 B=128": "its second convolution alone",
    },
    "trajectory": {
        "784-100-10 P=64 B=600, 10 steps": "HMC trajectory, 10 steps, MLP 784-100-10, P = 64, B = 600",
        "784-100-10 P=64 B=600, 10 steps medium": "the same, in `medium`",
    },
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


ON_DEVICES = {
    "gradient 784-100-100-10 P=1024 B=1000 categorical medium": "log-likelihood + gradient, B = 1000, `medium`",
    "gradient 784-100-100-10 P=1024 B=1000 categorical high": "the same, `high`",
    "gradient 784-100-100-10 P=1024 B=1000 categorical highest": "the same, `highest`",
    "gradient 784-100-100-10 P=1024 B=64 categorical medium": "B = 64, `medium`",
    "gradient 784-100-100-10 P=1024 B=64 categorical highest": "the same, `highest`",
    "trajectory 784-100-100-10 P=1024 B=1000 categorical medium, 10 steps": "HMC, 10 steps, B = 1000, `medium`",
    "trajectory 784-100-100-10 P=1024 B=1000 categorical highest, 10 steps": "the same, `highest`",
    "trajectory 784-100-100-10 P=1024 B=64 categorical medium, 10 steps": "HMC, 10 steps, B = 64, `medium`",
    "gradient 64-32-10 P=1024 B=256 categorical highest": "MLP 64-32-10, P = 1024, B = 256, `highest`",
    "gradient 13-50-1 P=1024 B=256 categorical highest": "MLP 13-50-1, P = 1024, B = 256, `highest`",
    "normalise, ESS and systematic, N=4096": "normalise, ESS and systematic, N = 4096",
    "normalise, ESS and systematic, N=1000000": "the same, N = 1e6",
    "normalise, ESS and systematic, N=10000000": "the same, N = 1e7",
    "a resampling step, N=4096": "a resampling step in one op, N = 4096",
    "a resampling step, N=1000000": "the same in one op, N = 1e6",
}
"""Cases of bench.gpu; networks are 784-100-100-10 with P = 1024 where the words say no other."""

Cases = dict[str, list[dict[str, str]]]


def write() -> None:
    """Put the figures of the newest results between the marks of the README."""
    text = README.read_text()
    for begin, table in ((BEGIN, figures()), (BEGIN_DEVICES, device_figures())):
        before, _, rest = text.partition(begin)
        text = before + begin + table + END + rest.partition(END)[2]
    README.write_text(text)


def figures() -> str:
    """A sentence on the machine, and a row for every case that is shown and measured."""
    lines = ["| work | fastsmc | of the limit | best peer | ratio |", "|---|---|---|---|---|"]
    machines = defaultdict(set)
    for bench, shown in SHOWN.items():
        cases = _cases(bench)
        for case, words in shown.items():
            if case not in cases:
                continue
            ours = next(row for row in cases[case] if row["provider"] == OURS)
            peers = [row for row in cases[case] if not row["provider"].startswith(OURS)]
            share, peer, ratio = f"{100 * float(ours['share_of_limit']):.0f} %", "", ""
            if peers:
                best = _best(peers)
                peer, ratio = f"{best['provider']}: {_time(best)}", f"{float(best['ratio']):.2f}x"
            lines.append(f"| {words} | {_time(ours)} | {share} | {peer} | {ratio} |")
            machines[f"{ours['machine']}, {ours['cores']} cores"] |= {ours["simd"], ours["date"]}
    measured = "; ".join(f"{name}, {', '.join(sorted(how, reverse=True))}" for name, how in sorted(machines.items()))
    lines.insert(0, f"Medians; {measured}; float32 but where it says `high` or `medium`.\n")
    return "\n".join(lines) + "\n"


def device_figures() -> str:
    """The same of the cards that were measured; a peer is compared with ours as it was called, as a graph or not."""
    columns = ("work", "fastsmc", "by", "over the floor", "call by call", "best peer", "ratio")
    lines = [f"| {' | '.join(columns)} |", "|---" * len(columns) + "|"]
    cards = defaultdict(set)
    cases = _cases("gpu")
    for case in (case for case in ON_DEVICES if case in cases):
        rows = cases[case]
        of_ours = [row for row in rows if row["provider"].startswith(OURS) and ":" not in row["provider"]]
        ours, eager = _best(of_ours), _best([row for row in of_ours if not row["provider"].endswith(GRAPH)])
        peers = [row for row in rows if not row["provider"].startswith(OURS)]
        floor = f"{float(ours['median_us']) / float(ours['floor_us']):.1f}x" if float(ours["floor_us"]) > 1 else ""
        peer, ratio = "", ""
        if peers:
            best = _best(peers)
            peer = f"{best['provider']}: {_time(best)}"
            same = ours if best["provider"].endswith(GRAPH) else eager
            ratio = f"{float(best['median_us']) / float(same['median_us']):.2f}x"
        engine = ours["provider"].removeprefix(f"{OURS} ")
        cells = (ON_DEVICES[case], _time(ours), engine, floor, _time(eager), peer, ratio)
        lines.append(f"| {' | '.join(cells)} |")
        cards[f"{ours['card']}, driver {ours['driver']}, torch {ours['torch']}"].add(ours["date"])
    measured = "; ".join(f"{card}, {' and '.join(sorted(dates))}" for card, dates in sorted(cards.items()))
    return f"Medians; {measured}.\n\n" + "\n".join(lines) + "\n"


def _cases(bench: str) -> Cases:
    path = RESULTS / f"{bench}.csv"
    cases = defaultdict(list)
    for row in csv.DictReader(path.open()) if path.exists() else ():
        cases[row["case"]].append(row)
    return cases


def _best(rows: list[dict[str, str]]) -> dict[str, str]:
    return min(rows, key=lambda row: float(row["median_us"]))


def _time(row: dict[str, str]) -> str:
    microseconds = float(row["median_us"])
    if microseconds >= 1e6:
        return f"{microseconds / 1e6:.3g} s"
    return f"{microseconds / 1000:.3g} ms" if microseconds >= 1000 else f"{microseconds:.3g} us"
