"""Scripts in processes of their own, whose environment sets threads and instruction sets."""

import os
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


def threads_change_no_bit(script):
    """A script prints a digest of results."""
    one, *others = (printed(script, OMP_NUM_THREADS=threads) for threads in ("1", "2", "3", "16"))
    assert one.strip()
    assert all(other == one for other in others)
