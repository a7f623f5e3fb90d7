"""Files of results: safetensors, with a description in JSON; checked as a whole before any of it is believed."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from fastsmc import arrays
from fastsmc.annealing import (
    AdaptiveDataAnnealing,
    DataAnnealing,
    FullBatch,
    LikelihoodTempering,
    MiniBatch,
    SmoothDataAnnealing,
    Target,
)
from fastsmc.likelihoods import Bernoulli, Categorical, Gaussian, Likelihood, Poisson, as_likelihood
from fastsmc.moves import HMC, MALA, KineticLangevin, Langevin, RandomWalk
from fastsmc.networks import MLP, Layers, LeNet5, Network
from fastsmc.posterior import Posterior
from fastsmc.priors import HalfCauchy, HalfNormal, Laplace, LogNormal, Normal, Prior, StudentT
from fastsmc.start import Resumption
from fastsmc.stochastic import SGHMC

if TYPE_CHECKING:
    from fastsmc.result import Result

FORMAT = 2
"""Version of the file format."""
PARTS = ("network", "prior", "likelihood")
"""Of a posterior."""
KINDS = {
    kind.__name__: kind
    for kind in (
        *(MLP, LeNet5, Layers),
        *(Normal, Laplace, StudentT, HalfNormal, HalfCauchy, LogNormal),
        *(Categorical, Bernoulli, Gaussian, Poisson),
        *(FullBatch, MiniBatch, DataAnnealing, SmoothDataAnnealing, AdaptiveDataAnnealing, LikelihoodTempering),
        *(RandomWalk, HMC, MALA, Langevin, KineticLangevin, SGHMC),
    )
}
"""What a description may name, and `load` makes; all else has to be given to it."""


def save(result: Result, path: str | Path) -> None:
    """Write a result, as a whole or not at all; see `load`."""
    write_atomically(Path(path), encoded(result))


def encoded(result: Result, state: Resumption | None = None) -> bytes:
    """A result, and the state of its sampler where that is given, as the bytes of a file."""
    from safetensors.numpy import save as encode

    posterior = result.posterior
    description = {
        "format": FORMAT,
        "network": describe(posterior.network),
        "parameters": [[p.name, list(p.shape)] for p in posterior.network.parameters],
        "prior": describe(posterior.prior),
        "likelihood": describe(posterior.likelihood),
        "precision": posterior.precision,
        "precision_in_use": result.precision_in_use,
        "target": asdict(result.target),
        "num_data": result.num_data,
        "warnings": result.warnings,
        "interrupted": result.interrupted,
        "started_from": result.started_from,
        "settings": dict(result.settings),
        "history": list(result.history),
    }
    tensors = {name: arrays.on_host(getattr(result, name), name) for name in ("particles", "log_weights")}
    tensors |= {f"history.{name}": result.history[name] for name in result.history}
    tensors |= {f"fixed.{name}": value for name, value in posterior.network.still.items()}
    if result.genealogy is not None:
        tensors["genealogy"] = np.stack(result.genealogy)
    if state is not None:
        description["state"] = {f.name: getattr(state, f.name) for f in fields(state) if f.name not in _OWN}
        tensors |= {f"state.{name}": value for name, value in state.arrays.items()}
    tensors = {name: np.ascontiguousarray(value) for name, value in tensors.items()}
    text = json.dumps(description, default=_plain)
    return encode(tensors, {"fastsmc": text, "sha256": _digest(text, tensors)})


def _plain(value: Any) -> Any:
    """A number of NumPy's as one of Python's."""
    if isinstance(value, np.generic):
        return value.item()
    raise TypeError(f"a file cannot hold {value!r}")


_OWN = ("result", "arrays")
"""What of a state has tensors of its own."""


def load(
    path: str | Path,
    *,
    network: Network | None = None,
    prior: Prior | Mapping[str, Prior] | None = None,
    likelihood: Likelihood | Any = None,
) -> Result:
    """Read what `Result.save` wrote; arrays are NumPy's.

    Parameters
    ----------
    path
        Of the file.
    network, prior, likelihood
        Those that were sampled with, where they cannot be told in a file: a module that is not a chain of layers, a
        prior or a likelihood of one's own. Where the file tells them, they must be the same; names and shapes of the
        weights, and the values of what was fixed, always.

    Raises
    ------
    ValueError
        If the file is cut off or damaged, was not written by fastsmc or by another version of it, does not agree with
        itself, or needs an argument. Nothing in it is ever executed.
    """
    return load_state(path, network=network, prior=prior, likelihood=likelihood)[0]


def load_state(path: str | Path, **given: Any) -> tuple[Result, Resumption | None]:
    """The same, and the state of the sampler, if the file has one."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "numpy") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        description = json.loads(metadata.get("fastsmc", "null"))
    except (SafetensorError, json.JSONDecodeError) as error:
        raise ValueError(f"{path} is not a whole safetensors file: {error}") from None
    if not isinstance(description, dict):
        raise ValueError(f"{path} was not written by fastsmc")
    if description.get("format") != FORMAT:
        raise ValueError(
            f"{path} has format {description.get('format')!r}; this version of fastsmc reads format {FORMAT}"
        )
    if metadata.get("sha256") != _digest(metadata["fastsmc"], tensors):
        raise ValueError(f"{path} is damaged: its contents are not those that were written")
    with legible(path):
        parts = {name: given_or_made(name, given.get(name), description[name]) for name in PARTS}
        result = _result(Posterior(**parts, precision=description["precision"]), description, tensors)
        return result, _state(result, description, tensors)


@contextmanager
def legible(path: str | Path) -> Iterator[None]:
    """Say which file it is whose contents are not what they should be."""
    try:
        yield
    except (KeyError, TypeError, ValueError, AttributeError, ArithmeticError) as error:
        said = f"it has no {error}" if isinstance(error, KeyError) else error
        raise ValueError(f"{path} cannot be read: {said}") from None


def _result(posterior: Posterior, description: dict[str, Any], tensors: dict[str, np.ndarray]) -> Result:
    """A result of what a file holds, if that fits together."""
    from fastsmc.result import History, Result

    network = posterior.network
    if [[p.name, list(p.shape)] for p in network.parameters] != description["parameters"]:
        raise ValueError("its particles are of weights with other names or shapes than those of network")
    still = {name.removeprefix("fixed."): value for name, value in tensors.items() if name.startswith("fixed.")}
    ours = network.still
    if still.keys() != ours.keys() or not all(np.array_equal(still[name], ours[name]) for name in ours):
        raise ValueError("what its network had fixed has other values than in network")
    particles, log_weights = tensors["particles"], tensors["log_weights"]
    if particles.shape != (len(log_weights), posterior.num_params) or particles.dtype != np.float32:
        raise ValueError(f"it holds particles of shape {particles.shape}, which do not fit its network and weights")
    if log_weights.dtype != np.float64 or not abs(np.exp(log_weights).sum() - 1) < 1e-6:
        raise ValueError("its weights do not sum to one")
    history = {name: tensors[f"history.{name}"] for name in description["history"]}
    if len({values.shape for values in history.values()}) > 1 or any(values.ndim != 1 for values in history.values()):
        raise ValueError("the columns of its history differ in length")
    genealogy = tensors.get("genealogy")
    if genealogy is not None:
        rows = (len(history["iteration"]), len(particles))
        if genealogy.shape != rows or not ((genealogy >= 0) & (genealogy < len(particles))).all():
            raise ValueError("its genealogy does not name particles")
    names = ("num_data", "warnings", "interrupted", "precision_in_use", "started_from", "settings")
    return Result(
        particles,
        log_weights,
        posterior,
        Target(**description["target"]),
        history=History(history),
        genealogy=None if genealogy is None else tuple(genealogy),
        **{name: description[name] for name in names},
    )


def _state(result: Result, description: dict[str, Any], tensors: dict[str, np.ndarray]) -> Resumption | None:
    if "state" not in description:
        return None
    held = {name.removeprefix("state."): value for name, value in tensors.items() if name.startswith("state.")}
    return Resumption(result, held, **description["state"])


def describe(value: Any) -> Any:
    """A value in JSON: a dataclass by its name and fields, one that `KINDS` does not have by its name alone."""
    if isinstance(value, Mapping):
        return {"entries": {name: describe(entry) for name, entry in value.items()}}
    if isinstance(value, np.ndarray | np.generic):
        return value.tolist()
    if isinstance(value, tuple | list):
        return [describe(entry) for entry in value]
    if type(value) in KINDS.values():
        return {
            "kind": type(value).__name__,
            **{f.name: describe(getattr(value, f.name)) for f in fields(value) if f.compare},
        }
    known = value is None or isinstance(value, bool | int | float | str)
    return value if known else {"kind": type(value).__name__}


def given_or_made(name: str, given: Any, description: Any) -> Any:
    """What a description says, or what is given, which must be the same as far as that says it."""
    foreign = _foreign(description)
    if given is None and foreign is not None:
        raise ValueError(f"its {name} is a {foreign}, which a file cannot hold; it must be given to load as {name}=")
    if given is None:
        return _make(description)
    if name == "likelihood":
        given = as_likelihood(given)
    in_order = not isinstance(given, Mapping) or list(given) == list(description.get("entries", ()))
    if describe(given) != description or not in_order:
        held = f"with a {foreign}, as it was" if foreign else f"{_make(description)!r}, or left out"
        raise ValueError(f"{name} is {given!r}; it must be that of the file, {held}")
    return given


def _foreign(description: Any) -> str | None:
    """The first kind in a description that `KINDS` does not have."""
    if not isinstance(description, dict):
        return None
    parts = description.get("entries", description)
    kind = description.get("kind") if parts is description else None
    if kind is not None and kind not in KINDS:
        return kind
    return next(filter(None, map(_foreign, parts.values())), None)


def _make(description: Any) -> Any:
    """The inverse of `describe`; constructors check what they are given."""
    if not isinstance(description, dict):
        return description
    if "entries" in description:
        return {name: _make(entry) for name, entry in description["entries"].items()}
    values = dict(description)
    return KINDS[values.pop("kind")](**{name: _make(value) for name, value in values.items()})


def _digest(text: str, tensors: Mapping[str, np.ndarray]) -> str:
    """SHA-256 of a description and the tensors that it goes with."""
    digest = hashlib.sha256(text.encode())
    for name in sorted(tensors):
        value = tensors[name]
        digest.update(f"{name}{value.dtype.str}{value.shape}".encode())
        digest.update(value.data)
    return digest.hexdigest()


def write_atomically(path: Path, content: bytes, keep: Path | None = None) -> None:
    """A temporary file beside ``path``, flushed to disk, then renamed: no reader ever sees half of it.

    What was there before becomes ``keep``, if that is given.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        if keep is not None and path.exists():
            os.replace(path, keep)
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
