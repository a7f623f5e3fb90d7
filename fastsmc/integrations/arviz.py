"""For ArviZ: results as `arviz.InferenceData` (ArviZ 0.x) or `xarray.DataTree` (from ArviZ 1.0 on).

>>> az.summary(result.to_arviz(x, y))
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from fastsmc import __version__, arrays, ops, random, sources
from fastsmc.runs import Runs

if TYPE_CHECKING:
    from xarray import Dataset

    from fastsmc.result import Result


def to_arviz(
    result: Result | Runs,
    x: Any = None,
    y: Any = None,
    *,
    var_names: Sequence[str] | None = None,
    num_draws: int | None = None,
    seed: int = 0,
) -> Any:
    """Convert a result, or several runs, for ArviZ: each run is a chain.

    ArviZ takes draws to weigh alike: the particles are resampled systematically. Draws that come from one particle are
    neighbours, so that what ArviZ makes of autocorrelations, such as its effective sample sizes, sees them. The
    particles themselves are kept, with their weights, in a group of their own.

    Parameters
    ----------
    result
        Of a run, or of several as `run_many` makes them, which ArviZ can compare.
    x, y
        Data as `Result.evaluate` takes them, for the groups that need them; those of the run, for `arviz.loo`.
    var_names
        Names of the parameters to convert, as `Posterior.unpack` has them; all unless given.
    num_draws
        How many draws of each run are resampled; P unless given.
    seed
        The resampling is a function of it.

    Returns
    -------
    arviz.InferenceData or xarray.DataTree, with the groups

    posterior
        The draws: every parameter by its name, float32 [chain, draw, ...]; a noise that is sampled is one.
    sample_stats
        Of every draw: ``particle``, the row in the result, and ``lp``, the log prior density, with the log-likelihood
        of the data where they are given.
    log_likelihood
        ``y``: that of every data point, summed over its outputs, float64 [chain, draw, n].
    observed_data, constant_data
        ``y`` and ``x``.
    weighted_posterior
        The particles: every parameter, [chain, particle, ...], and their weights as the coordinate ``weight``, so that
        ``group.weighted(group.weight).mean("particle")`` is the posterior mean.
    smc_history
        The columns of `Result.history`, [chain, iteration]; NaN after the end of the shorter of several runs.

    and attributes: ``log_evidence`` and its error, where there is one, the warnings, a line each, and the ``settings``
    of the (last) run, such as the seed, as JSON.

    Raises
    ------
    ValueError
        If only one of x and y is given, or a name is not one of the network's.
    """
    if (x is None) != (y is None):
        raise ValueError(f"{'x' if x is None else 'y'} is None; x and y must be given together, or neither of them")
    runs = result.results if isinstance(result, Runs) else (result,)
    data = {} if x is None else {"x": sources.whole(x), "y": arrays.on_host(sources.table(y, "y"), "y")}
    offsets = random.uniform((len(runs), 1), seed=seed, stream=random.Stream.RESAMPLING)[:, 0]
    chains = [_chain(run, data, var_names, num_draws, float(u)) for run, u in zip(runs, offsets, strict=True)]
    concat, how = _imported("xarray").concat, {"dim": "chain", "join": "outer", "coords": "all", "data_vars": "all"}
    groups = {name: concat([chain[name] for chain in chains], **how) for name in chains[0]}
    groups = {name: group.assign_coords(chain=np.arange(len(runs))) for name, group in groups.items()}
    if data:
        groups["observed_data"] = _dataset({"y": data["y"]})
        groups["constant_data"] = _dataset({"x": data["x"]})
    return _container(groups, _attributes(result, runs))


def _chain(
    run: Result, data: dict[str, np.ndarray], names: Sequence[str] | None, num_draws: int | None, u: float
) -> dict[str, Dataset]:
    """The groups of a run, without the dimension of the chains."""
    particles, weights = arrays.on_host(run.particles, "particles"), run.weights
    drawn = ops.systematic(weights, u, len(weights) if num_draws is None else num_draws)
    parameters = _chosen(run.posterior.unpack(particles), names)
    log_density, groups = arrays.on_host(run.posterior.log_prior(particles[drawn]), "log_prior"), {}
    if data:
        used, number = np.unique(drawn, return_inverse=True)
        run.posterior.log_likelihood(particles[used[:1]], **data)  # checks them
        log_likelihood = run.pointwise(**data, used=used)[number]
        log_density = log_density + log_likelihood.sum(axis=1)
        groups["log_likelihood"] = _dataset({"y": log_likelihood}, "draw")
    return groups | {
        "posterior": _dataset({name: values[drawn] for name, values in parameters.items()}, "draw"),
        "sample_stats": _dataset({"particle": drawn, "lp": log_density}, "draw"),
        "weighted_posterior": _dataset(parameters, "particle").assign_coords(weight=("particle", weights)),
        "smc_history": _dataset(dict(run.history), "iteration"),
    }


def _chosen(parameters: dict[str, np.ndarray], names: Sequence[str] | None) -> dict[str, np.ndarray]:
    if unknown := [name for name in names or () if name not in parameters]:
        raise ValueError(f"var_names holds {unknown[0]!r}; it must name parameters: {', '.join(parameters)}")
    return parameters if names is None else {name: parameters[name] for name in names}


def _dataset(variables: dict[str, np.ndarray], *dims: str) -> Dataset:
    """Arrays as ArviZ names their axes: these dimensions first, then ``NAME_dim_0`` and so on, counted from zero."""
    named = {
        name: ((*dims, *(f"{name}_dim_{k}" for k in range(values.ndim - len(dims)))), values)
        for name, values in variables.items()
    }
    dataset = _imported("xarray").Dataset(named)
    counted = {dim: np.arange(size) for dim, size in dataset.sizes.items() if dim not in dataset.coords}
    return dataset.assign_coords(counted)


def _attributes(result: Result | Runs, runs: Sequence[Result]) -> dict[str, Any]:
    known = {"log_evidence": result.log_evidence, "log_evidence_error": result.log_evidence_error}
    return {
        "inference_library": "fastsmc",
        "inference_library_version": __version__,
        "warnings": "\n".join(dict.fromkeys(sentence for run in runs for sentence in run.warnings)),
        "settings": json.dumps(dict(runs[-1].settings)),
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
