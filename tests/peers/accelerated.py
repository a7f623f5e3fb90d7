"""A plugin of pytest's: a library's tests, with its functions replaced by ours; ``FASTSMC_ACCELERATE`` names it."""

import os
from importlib import import_module

import fastsmc as fs

LIBRARY = os.environ["FASTSMC_ACCELERATE"]
import_module(LIBRARY)  # what its modules import from each other by name is replaced too
CONTEXT = fs.accelerate(LIBRARY)
REPLACED = CONTEXT.__enter__()


def pytest_report_header():
    """Name what is replaced, and by what."""
    return [f"{fs.__name__} {fs.__version__} in place of {', '.join(REPLACED)}"]


def pytest_unconfigure():
    """Put all back."""
    CONTEXT.__exit__(None, None, None)
