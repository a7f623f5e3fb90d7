"""Other libraries, sped up: one module each, imported only by those who have the library.

A module that `accelerate` takes has ``replacements()``: the library's functions, and what we put in their place.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, MutableMapping
from contextlib import contextmanager
from importlib import import_module
from typing import Any

from fastsmc.likelihoods import Likelihood, as_likelihood
from fastsmc.networks import MAX_LAYERS, LayeredNetwork
from fastsmc.ops.densities import precision_code
from fastsmc.priors import Normal, Positive

LIBRARIES = ("blackjax", "cuthbert", "particles", "pocomc", "pyfilter", "pymc", "pyro", "stonesoup", "tfp")


@contextmanager
def accelerate(library: str) -> Iterator[list[str]]:
    """Replace a library's functions by ours, wherever a loaded module has them, until the context ends.

    What was compiled before, by ``jax.jit`` for instance, stays as it was compiled.

    Parameters
    ----------
    library : {"blackjax", "cuthbert", "particles", "pocomc", "pyfilter", "pymc", "pyro", "stonesoup", "tfp"}

    Returns
    -------
    replaced : list of str
        The full names of what was replaced.

    Raises
    ------
    ValueError
        If there is nothing for a library of this name.
    ImportError
        If the library, or what the package needs for it, is not installed.
    """
    if library not in LIBRARIES:
        raise ValueError(f"library is {library!r}; it must be one of {', '.join(map(repr, LIBRARIES))}")
    replacements = import_module(f"{__name__}.{library}").replacements()
    found = [place for theirs in replacements for place in _places(theirs, library)]
    try:
        for _, names, name, theirs in found:
            names[name] = replacements[theirs]
        yield sorted(f"{module}.{name}" for module, _, name, _ in found)
    finally:
        for _, names, name, theirs in found:
            names[name] = theirs


def in_kernels(network: Any, likelihood: str | Likelihood, precision: str) -> Likelihood:
    """The likelihood, for those who call the kernels directly; what they do not compute is refused."""
    if not isinstance(network, LayeredNetwork) or len(network.layers) > MAX_LAYERS:
        raise ValueError(
            f"network is {network!r}; it must be a chain of at most {MAX_LAYERS} layers that the kernels know, with "
            "all their weights sampled"
        )
    precision_code(precision)
    return as_likelihood(likelihood).in_kernels()


def check_normal(said: str, prior: Any) -> None:
    """Refuse a prior of which the kernels do not know all: ``said`` is what goes before it in the sentence."""
    if not isinstance(prior, Normal) or isinstance(prior.scale, Positive):
        raise ValueError(f"{said} {prior!r}; it must be Normal, with a scale that is known")


Place = tuple[str, MutableMapping[str, Any], str, Callable[..., Any]]


def _places(function: Callable[..., Any], library: str) -> Iterator[Place]:
    """Where a function has a name: in modules that are loaded, and in the library's tables of functions."""
    for module, names in [(name, vars(module)) for name, module in sys.modules.items() if module is not None]:
        package = module.partition(".")[0]
        if package == "fastsmc":
            continue
        yield from ((module, names, name, function) for name, value in list(names.items()) if value is function)
        if package == library:
            for table, values in [(name, value) for name, value in names.items() if type(value) is dict]:
                yield from ((f"{module}.{table}", values, key, function) for key in values if values[key] is function)
