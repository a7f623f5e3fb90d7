"""The engine of CUDA devices: one function per op (see `fastsmc.backends`), on torch tensors."""

from fastsmc.arrays import on_its_device
from fastsmc.kernels.adaptive_resample import adaptive_resample
from fastsmc.kernels.evaluation import log_likelihood, network_outputs, precision_in_use
from fastsmc.kernels.gather import gather_particles
from fastsmc.kernels.leapfrog import leapfrog, trajectory
from fastsmc.kernels.offspring import offspring, permute_ancestors
from fastsmc.kernels.philox import normal, philox, uniform
from fastsmc.kernels.resample import resample, schemes
from fastsmc.kernels.weights import normalize_log_weights

__all__ = [
    "adaptive_resample",
    "gather_particles",
    "leapfrog",
    "log_likelihood",
    "network_outputs",
    "normal",
    "normalize_log_weights",
    "offspring",
    "permute_ancestors",
    "philox",
    "precision_in_use",
    "resample",
    "schemes",
    "trajectory",
    "uniform",
]

globals().update({op: on_its_device(globals()[op]) for op in __all__})  # Triton launches on the current one
