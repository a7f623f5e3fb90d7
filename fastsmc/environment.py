"""Where a run happens: machine and versions."""

from __future__ import annotations

import os
import platform
from functools import cache
from importlib import metadata
from pathlib import Path

PACKAGES = ("fastsmc", "numpy", "torch", "triton", "safetensors", "matplotlib", "scikit-learn")


def versions() -> dict[str, str]:
    """Version of Python and of each package that a run's numbers or pictures depend on."""
    return {"python": platform.python_version()} | {name: version(name) for name in PACKAGES}


@cache  # which is a file that is parsed
def version(name: str) -> str:
    """Version of an installed package."""
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return "not installed"


def cores() -> frozenset[int]:
    """Numbers of the cores that this process may use."""
    affinity = getattr(os, "sched_getaffinity", lambda process: range(os.cpu_count() or 1))
    return frozenset(affinity(0))


def usable_cores() -> int:
    """Cores that this process may use."""
    return len(cores())


def machine() -> str:
    """Processor, cores and operating system, in a line."""
    return f"{processor()}, {usable_cores()} cores, {platform.system()} {platform.machine()}"


@cache
def processor() -> str:
    """The name of the processor."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":")[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()
