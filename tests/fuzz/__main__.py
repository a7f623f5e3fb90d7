"""Fuzz the readers of files, the bindings of the engine and the ops: ``python tests/fuzz --runs 20000``.

Guided by the coverage of the Python code where atheris is installed (libFuzzer), else, or with ``--plain``, by
mutations with a fixed seed. A run fails by a crash, by an exception that is not a refusal, by five seconds without an
answer, by memory beyond a multiple of the input, or by an answer that is not the reference's.
"""

import argparse
import signal
import subprocess
import sys
import tempfile
import tracemalloc
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec
from pathlib import Path

import numpy as np

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent))
SECONDS = 5
LONGEST = 4096
SLACK = 4 << 20
"""Bytes that a run may need whatever its input."""
REFUSALS = (ValueError, TypeError, OSError, MemoryError)


def one_by_one(target):
    """A function of bytes that holds the target to what is promised, and its counts of answers."""
    counts = Counter()
    tracemalloc.start()  # now, as it makes imports several times as slow

    def run(content):
        tracemalloc.reset_peak()
        before = tracemalloc.get_traced_memory()[0]
        try:
            target.run(content)
            counts["accepted"] += 1
        except REFUSALS as error:
            sentence = str(error).strip()
            assert not target.sentences or (sentence and "\n" not in sentence), f"not one sentence: {error!r}"
            counts["refused"] += 1
        used = tracemalloc.get_traced_memory()[1] - before
        assert used <= SLACK + target.growth * len(content), f"{used:,} bytes for an input of {len(content):,}"

    return run, counts


def mutated(rng, seeds):
    """One of the seeds with some bytes changed, cut, repeated or put in from another."""
    content = bytearray(seeds[rng.integers(len(seeds))])
    for _ in range(rng.integers(0, 6)):
        begin, end = sorted(rng.integers(0, len(content) + 1, 2))
        kind = rng.integers(5)
        if kind == 0 and content:
            content[rng.integers(len(content))] = rng.choice([0, 1, 0x7F, 0x80, 0xFF, rng.integers(256)])
        elif kind == 1:
            del content[begin : min(end, begin + 64)]
        elif kind == 2:
            content[begin:begin] = content[begin : min(end, begin + 64)]
        elif kind == 3:
            content[begin:end] = rng.bytes(min(end - begin, 64))
        else:
            other = seeds[rng.integers(len(seeds))]
            content[begin:end] = other[begin:end]
    return bytes(content[:LONGEST])


def plainly(target, run, runs, seed):
    """The input that a run is on is in a file, whatever ends the process."""
    rng, kept = np.random.default_rng(seed), Path(f"fuzz-{target.name}.bin")
    for _ in range(runs):
        content = mutated(rng, target.seeds)
        kept.write_bytes(content)
        signal.setitimer(signal.ITIMER_REAL, SECONDS)
        run(content)
    signal.setitimer(signal.ITIMER_REAL, 0)
    kept.unlink()


def guided(name, runs, seed):
    import atheris

    with atheris.instrument_imports(include=["fastsmc", "zipfile", "gzip", "numpy.lib"], enable_loader_override=False):
        target = made(name)
    run, counts = one_by_one(target)

    def counted(content):
        run(content)
        if counts.total() == runs:
            report(name, counts, "atheris")

    with tempfile.TemporaryDirectory() as corpus:
        for number, content in enumerate(target.seeds):
            (Path(corpus) / str(number)).write_bytes(content)
        options = [
            f"-runs={runs}",
            f"-seed={seed + 1}",
            f"-max_len={LONGEST}",
            f"-timeout={SECONDS}",
            "-rss_limit_mb=0",
        ]
        atheris.Setup([sys.argv[0], *options, "-verbosity=0", f"-artifact_prefix=fuzz-{name}-", corpus], counted)
        atheris.Fuzz()


def made(name):
    from targets import TARGETS

    return TARGETS[name]()


def report(name, counts, how):
    accepted, refused = counts["accepted"], counts["refused"]
    print(f"fuzz {name}: {accepted + refused:,} runs, {accepted:,} accepted, {refused:,} refused ({how})", flush=True)
    assert accepted, f"{name} refuses everything: nothing behind its checks was run"


def all_targets(options):
    """Each in a process of its own, as many at once as there are cores; the first that failed ends the program."""
    from targets import TARGETS

    from fastsmc.environment import usable_cores

    def status_of(name):
        return subprocess.run([sys.executable, HERE, "--target", name, *options]).returncode

    with ThreadPoolExecutor(usable_cores()) as pool:
        for name, status in zip(TARGETS, pool.map(status_of, TARGETS), strict=True):
            if status:
                sys.exit(f"fuzz {name} failed with status {status}; the input is in fuzz-{name}*, and --input runs it")


def main():
    parser = argparse.ArgumentParser("python tests/fuzz", description=__doc__)
    parser.add_argument("--runs", type=int, default=2000, help="of each target")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--target", help="this one alone, in this process")
    parser.add_argument("--plain", action="store_true", help="without atheris")
    parser.add_argument("--input", type=Path, help="run the target on this file")
    args = parser.parse_args()
    if args.target is None:
        all_targets(["--runs", str(args.runs), "--seed", str(args.seed), *["--plain"] * args.plain])
        return
    if not args.plain and args.input is None and find_spec("atheris"):
        guided(args.target, args.runs, args.seed)
        return
    target = made(args.target)
    run, counts = one_by_one(target)
    if args.input is not None:
        run(args.input.read_bytes())
    else:
        plainly(target, run, args.runs, args.seed)
    report(args.target, counts, "plain")


if __name__ == "__main__":
    main()
