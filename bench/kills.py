"""Kill runs at random instants and let them go on: ``python -m bench.kills --kills 200`` counts what that loses.

A run is killed (SIGKILL) and resumed until it is through; then its result must be that of a run that nobody killed, to
the bit.
"""

from __future__ import annotations

import argparse
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

import fastsmc as fs
from fastsmc.checkpoint import RUN

PROGRAM = """
import sys
import numpy as np
import fastsmc as fs

folder, end = sys.argv[1:]
rng = np.random.default_rng(1)
x, y = rng.standard_normal((1000, 8), np.float32), rng.integers(0, 3, 1000)
post = fs.Posterior(fs.MLP([8, 40, 3], "tanh"), fs.Normal("fan_in"))
try:
    result = fs.resume(folder, progress=False)
except ValueError as error:
    if "holds no run" not in str(error):
        raise
    smc = fs.SMC(post, 16, fs.SmoothDataAnnealing(start=50), fs.HMC(10), 80)
    result = smc.run(x, y, progress=False, checkpoint=fs.Checkpoint(folder, iterations=1))
result.save(end)
"""
LONGEST = 1.2
"""Seconds that a process lives at most once its folder has a run."""


def undisturbed(folder: Path) -> fs.Result:
    """The result of the run that nobody kills."""
    end = folder / "whole.safetensors"
    subprocess.run([sys.executable, "-c", PROGRAM, folder / "whole", end], check=True)
    return fs.load(end)


def killed(folder: Path, rng: np.random.Generator, most: int) -> tuple[int, fs.Result]:
    """How often a run was killed until it was through, and its result; it is left alone after ``most`` kills."""
    kills, end = 0, folder / "end.safetensors"
    while not end.exists():
        process = subprocess.Popen([sys.executable, "-c", PROGRAM, folder, end], stderr=subprocess.PIPE)
        if kills < most:
            while process.poll() is None and not (folder / RUN).exists():
                time.sleep(0.01)
            time.sleep(rng.uniform(0, LONGEST))
            process.send_signal(signal.SIGKILL)
        error = process.communicate()[1].decode()
        if process.returncode not in (0, -signal.SIGKILL):
            raise RuntimeError(f"a run was lost after {kills + 1} kills: {error}")
        kills += process.returncode != 0
    return kills, fs.load(end)


def differences(one: fs.Result, other: fs.Result) -> list[str]:
    """What two results do not share to the bit; the seconds are the clock's."""
    columns = [name for name in one.history if name != "seconds"]
    pairs = {name: (one.history[name], other.history[name]) for name in columns}
    pairs |= {name: (getattr(one, name), getattr(other, name)) for name in ("particles", "log_weights", "genealogy")}
    return [name for name, (a, b) in pairs.items() if not np.array_equal(a, b, equal_nan=True)]


def main() -> int:
    """Kill and count."""
    parser = argparse.ArgumentParser("python -m bench.kills", description=__doc__)
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    rng, kills, runs, lost = np.random.default_rng(args.seed), 0, 0, 0
    with tempfile.TemporaryDirectory() as name:
        whole = undisturbed(Path(name))
        while kills < args.kills:
            folder = Path(name) / str(runs)
            folder.mkdir()
            more, result = killed(folder, rng, args.kills - kills)
            lost += bool(differences(whole, result))
            kills, runs = kills + more, runs + 1
    print(f"{kills} kills of {runs} runs: {lost} of them lost or changed")
    return int(lost > 0)


if __name__ == "__main__":
    sys.exit(main())
