"""Scripts and functions in processes of their own, whose environment sets threads, instruction sets and ranks."""

import multiprocessing
import os
import socket
import subprocess
import sys
from pathlib import Path


def printed(script, *arguments, **environment):
    """What a script prints; it can import the test modules."""
    paths = os.pathsep.join(filter(None, [str(Path(__file__).parent), os.environ.get("PYTHONPATH")]))
    done = subprocess.run(
        [sys.executable, "-c", script, *arguments],
        env={**os.environ, "PYTHONPATH": paths, **environment},
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def together(count, function, *arguments, timeout=120):
    """Exit codes of the ranks that call a function of a module, each in a process; None of those still at it."""
    context = multiprocessing.get_context("forkserver")  # which imports torch once for all
    context.set_forkserver_preload(["torch.distributed", "fastsmc.checkpoint"])
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    ranks = [
        context.Process(target=_as_rank, args=(index, count, port, function, arguments), daemon=True)
        for index in range(count)
    ]
    for rank in ranks:
        rank.start()
    for rank in ranks:
        rank.join(timeout)
    codes = [rank.exitcode for rank in ranks]
    for rank in ranks:
        rank.kill()
    return codes


def _as_rank(index, count, port, function, arguments):
    import torch

    os.environ |= {"RANK": str(index), "WORLD_SIZE": str(count), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    os.environ["OMP_NUM_THREADS"] = "1"
    torch.set_num_threads(1)
    function(*arguments)
