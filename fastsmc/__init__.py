"""Data-annealed Sequential Monte Carlo for Bayesian neural networks, on fused kernels.

Every public name is loaded from its module when it is first used, so that the import costs next to nothing.
"""

from importlib import import_module
from typing import Any

_PUBLIC = {
    "AdaptiveDataAnnealing": "annealing",
    "Bernoulli": "likelihoods",
    "Categorical": "likelihoods",
    "Checkpoint": "checkpoint",
    "DataAnnealing": "annealing",
    "DegenerateError": "cloud",
    "FullBatch": "annealing",
    "Gaussian": "likelihoods",
    "HalfCauchy": "priors",
    "HalfNormal": "priors",
    "HMC": "moves",
    "Langevin": "moves",
    "Laplace": "priors",
    "KineticLangevin": "moves",
    "LeNet5": "networks",
    "LikelihoodTempering": "annealing",
    "LogNormal": "priors",
    "MALA": "moves",
    "MLP": "networks",
    "MiniBatch": "annealing",
    "Normal": "priors",
    "PersistentSMC": "persistent",
    "Poisson": "likelihoods",
    "Posterior": "posterior",
    "RandomWalk": "moves",
    "RankError": "ranks",
    "Result": "result",
    "Runs": "runs",
    "SGHMC": "stochastic",
    "SMC": "smc",
    "SMCClassifier": "integrations.sklearn",
    "SMCRegressor": "integrations.sklearn",
    "SmoothDataAnnealing": "annealing",
    "Standardiser": "data",
    "Trace": "trace",
    "WarmStart": "start",
    "accelerate": "integrations",
    "StudentT": "priors",
    "adaptive_resample": "ops",
    "from_torch": "modules",
    "gather_particles": "ops",
    "load": "files",
    "multinomial": "ops",
    "normalize_log_weights": "ops",
    "offspring": "ops",
    "permute_ancestors": "ops",
    "recycle": "runs",
    "resample": "ops",
    "residual": "ops",
    "resume": "checkpoint",
    "run_many": "runs",
    "stratified": "ops",
    "systematic": "ops",
}

__all__ = sorted(_PUBLIC)


def __getattr__(name: str) -> Any:
    if name == "__version__":
        value: Any = import_module("importlib.metadata").version(__name__)
    elif name in _PUBLIC:
        value = getattr(import_module(f"{__name__}.{_PUBLIC[name]}"), name)
    else:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return [*globals(), *_PUBLIC, "__version__"]
