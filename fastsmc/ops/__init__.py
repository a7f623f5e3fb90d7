"""Every kernel as one plain function: check, allocate, dispatch. The only door to the kernels.

Arrays may be NumPy arrays, torch tensors or anything that speaks DLPack; results come back as the same kind.
Leading dimensions are a batch. ``backend`` forces an engine (see ``fastsmc.backends``). Bad values raise
ValueError, bad types TypeError, in one sentence each; the tests of values are part of the kernels' own
passes. ``check=False`` skips those that would wait for a device; on host arrays they cost nothing and are
always made.
"""

from fastsmc.ops.densities import (
    PRECISIONS,
    log_likelihood,
    log_likelihood_and_grad,
    network_outputs,
    precision_in_use,
    read_particles,
)
from fastsmc.ops.trajectories import LeapfrogEnergies, Trajectory, leapfrog, trajectory
from fastsmc.ops.weights import (
    SCHEMES,
    NormalizedWeights,
    Resampled,
    adaptive_resample,
    gather_particles,
    multinomial,
    normalize_log_weights,
    offspring,
    permute_ancestors,
    resample,
    residual,
    stratified,
    systematic,
)

__all__ = [
    "PRECISIONS",
    "SCHEMES",
    "LeapfrogEnergies",
    "NormalizedWeights",
    "Resampled",
    "Trajectory",
    "adaptive_resample",
    "gather_particles",
    "leapfrog",
    "log_likelihood",
    "log_likelihood_and_grad",
    "multinomial",
    "network_outputs",
    "normalize_log_weights",
    "offspring",
    "permute_ancestors",
    "precision_in_use",
    "read_particles",
    "resample",
    "residual",
    "stratified",
    "systematic",
    "trajectory",
]
