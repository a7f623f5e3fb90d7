"""For ArviZ: a result as `arviz.InferenceData` (ArviZ 0.x) or `xarray.DataTree` (from ArviZ 1.0 on).

>>> az.summary(result.to_arviz(x, y))
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from fastsmc import __version__, arrays, ops, random

if TYPE_CHECKING:
    from xarray import Dataset

    from fastsmc.result import Result

DRAWS, PARTICLES = ("chain", "draw"), ("particle",)


def to_arviz(
    result: Result,
    x: Any = None,
    y: Any = None,
    *,
    var_names: Sequence[str] | None = None,
    num_draws: int | None = None,
    seed: int = 0,
) -> Any:
    """Convert a result for ArviZ.

    ArviZ takes draws to weigh alike: the particles are resampled systematically. Draws that come from one particle are
    neighbours, so that what ArviZ makes of autocorrelations, such as its effective sample sizes, sees them. The
    particles themselves are kept, with their weights, in a group of their own.

    Parameters
    ----------
    result
        Of a run.
    x, y
        Data as `SMC.run` takes them, for the groups that need them: those of the run, for `arviz.loo` and others.
    var_names
        Names of the parameters to convert, as `Posterior.unpack` has them; all unless given.
    num_draws
        How many draws are resampled; P unless given.
    seed
        The resampling is a function of it.

    Returns
    -------
    arviz.InferenceData or xarray.DataTree, with the groups

    posterior
        The draws: every parameter by its name, float32 [1, num_draws, ...]; a noise that is sampled is one.
    sample_stats
        Of every draw: ``particle``, the row in the result, and ``lp``, the log prior density, with the log-likelihood
        of the data where they are given.
    log_likelihood
        ``y``: that of every data point, summed over its outputs, float64 [1, num_draws, n].
    observed_data, constant_data
        ``y`` and ``x``.
    weighted_posterior
        The particles: every parameter, [P, ...], and their weights as the coordinate ``weight``, so that
        ``group.weighted(group.weight).mean("particle")`` is the posterior mean.
    smc_history
        A value for each iteration: the columns of ``Result.history``.

    and attributes: ``log_evidence`` and its error, where there is one, the result's warnings, a line each, and its
    ``settings``, such as the seed, as JSON.

    Raises
    ------
    ValueError
        If only one of x and y is given, or a name is not one of the network's.
    """
    if (x is None) != (y is None):
        raise ValueError(f"{'x' if x is None else 'y'} is None; x and y must be given together, or neither of them")
    particles, weights = arrays.on_host(result.particles, "particles"), result.weights
    u = random.uniform((1, 1), seed=seed, stream=random.Stream.RESAMPLING)[0, 0]
    drawn = ops.systematic(weights, float(u), len(weights) if num_draws is None else num_draws)
    parameters = _chosen(result.posterior.unpack(particles), var_names)
    groups = {"posterior": _dataset({name: values[drawn][None] for name, values in parameters.items()}, DRAWS)}
    log_density = arrays.on_host(result.posterior.log_prior(particles[drawn]), "log_prior")
    if x is not None:
        x, y = arrays.on_host(x, "x"), arrays.on_host(y, "y")
        used, number = np.unique(drawn, return_inverse=True)
        result.posterior.log_likelihood(particles[used[:1]], x, y)  # checks x and y
        log_likelihood = result.pointwise(x, y, used)[number]
        log_density = log_density + log_likelihood.sum(axis=1)
        groups["log_likelihood"] = _dataset({"y": log_likelihood[None]}, DRAWS)
        groups["observed_data"] = _dataset({"y": y})
        groups["constant_data"] = _dataset({"x": x})
    groups["sample_stats"] = _dataset({"particle": drawn[None], "lp": log_density[None]}, DRAWS)
    groups["weighted_posterior"] = _dataset(parameters, PARTICLES).assign_coords(weight=("particle", weights))
    groups["smc_history"] = _dataset(dict(result.history), ("iteration",))
    return _container(groups, _attributes(result))


def _chosen(parameters: dict[str, np.ndarray], names: Sequence[str] | None) -> dict[str, np.ndarray]:
    if unknown := [name for name in names or () if name not in parameters]:
        raise ValueError(f"var_names holds {unknown[0]!r}; it must name parameters: {', '.join(parameters)}")
    return parameters if names is None else {name: parameters[name] for name in names}


def _dataset(variables: dict[str, np.ndarray], dims: tuple[str, ...] = ()) -> Dataset:
    """Arrays as ArviZ names their axes: these dimensions first, then ``NAME_dim_0`` and so on, counted from zero."""
    xarray = _imported("xarray")
    named = {
        name: ((*dims, *(f"{name}_dim_{k}" for k in range(values.ndim - len(dims)))), values)
        for name, values in variables.items()
    }
    dataset = xarray.Dataset(named)
    return dataset.assign_coords({dim: np.arange(size) for dim, size in dataset.sizes.items()})


def _attributes(result: Result) -> dict[str, Any]:
    known = {"log_evidence": result.log_evidence, "log_evidence_error": result.log_evidence_error}
    return {
        "inference_library": "fastsmc",
        "inference_library_version": __version__,
        "warnings": "\n".join(result.warnings),
        "settings": json.dumps(dict(result.settings)),
        **{name: value for name, value in known.items() if value is not None},
    }


def _container(groups: dict[str, Dataset], attributes: dict[str, Any]) -> Any:
    """What the installed ArviZ works on."""
    arviz, xarray = _imported("arviz"), _imported("xarray")
    if arviz.__version__.startswith("0."):
        return arviz.InferenceData(**groups, attrs=attributes)
    tree = xarray.DataTree.from_dict(groups)
    tree.attrs = attributes
    return tree


def _imported(name: str) -> Any:
    from importlib import import_module

    try:
        return import_module(name)
    except ModuleNotFoundError:
        raise ModuleNotFoundError(f"to_arviz needs {name}: pip install 'fastsmc[arviz]'") from None
