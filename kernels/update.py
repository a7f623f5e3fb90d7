"""What a leapfrog step does to each weight, said once for the kernels that do it.

    v     = persistence v + deviation xi
    v     = v + kick s (likelihood_scale g - precision theta)
    theta = theta + drift s v

Every product that is added is a fused one by name, so that both kernels give the same bits. The numbers of a step are
read from a plan on the device, float32 [5].
"""

import math

import torch
import triton
import triton.language as tl

from fastsmc.kernels.build import Build


@triton.jit
def refreshed(v, xi, deviation, persistence):
    """Momentum of which a share is kept; what is dropped may be NaN."""
    return tl.where(persistence == 0, xi * deviation, tl.fma(v, persistence, xi * deviation))


@triton.jit
def kicked(v, theta, grad, precision, scale, plan):
    """Momentum after the force of the prior and the scaled likelihood."""
    force = tl.fma(grad, tl.load(plan + 2), -(precision * theta))
    return tl.fma(scale * force, tl.load(plan), v)


@triton.jit
def drifted(theta, v, scale, plan):
    """Position after a step along the momentum."""
    return tl.fma(scale * v, tl.load(plan + 1), theta)


@triton.jit(do_not_specialize=["kick", "drift", "likelihood_scale", "persistence", "deviation"])
def _plan_kernel(plan, kick, drift, likelihood_scale, persistence, deviation):
    tl.store(plan, kick)
    tl.store(plan + 1, drift)
    tl.store(plan + 2, likelihood_scale)
    tl.store(plan + 3, persistence)
    tl.store(plan + 4, deviation)


def plan_tensor(
    kick: float, drift: float, likelihood_scale: float, persistence: float, device: torch.device
) -> torch.Tensor:
    """The numbers of a step on the device, without a copy from the host; the last is what keeps v standard normal."""
    plan = torch.empty(5, dtype=torch.float32, device=device)
    deviation = math.sqrt(1 - persistence**2)
    _plan_kernel[(1,)](plan, *map(float, (kick, drift, likelihood_scale, persistence, deviation)))
    return plan


BUILDS = (
    Build(
        "the plan of a step",
        _plan_kernel,
        {"plan": "*fp32"} | dict.fromkeys(("kick", "drift", "likelihood_scale", "persistence", "deviation"), "fp32"),
        {},
        registers=16,
        shared=0,
    ),
)
