"""What a leapfrog step does to each weight, said once for the kernels that do it.

    v     = persistence v + deviation xi
    v     = v + kick s (likelihood_scale g - precision theta)
    theta = theta + drift s v

Every product that is added is a fused one by name, so that both kernels give the same bits. The numbers of a step are
read from a plan on the device, float32 [8], the first five.
"""

from __future__ import annotations

import math
from typing import NamedTuple

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


@triton.jit
def kick_and_drift(grad, at, mask, row, particles, momentum, precision, scale, plan):
    """A step of the weights ``at`` of the particle that begins at ``row``, whose gradient is in registers."""
    theta = tl.load(particles + row + at, mask=mask, other=0)
    v = tl.load(momentum + row + at, mask=mask, other=0)
    lam = tl.load(precision + at, mask=mask, other=0)
    s = 1.0 if scale is None else tl.load(scale + at, mask=mask, other=0)
    v = kicked(v, theta, grad, lam, s, plan)
    tl.store(momentum + row + at, v, mask=mask)
    tl.store(particles + row + at, drifted(theta, v, s, plan), mask=mask)


class Update(NamedTuple):
    """A kick and a drift of particles [P, d] in place; ``scale`` may be None, ``plan`` is what `plan_tensor` makes."""

    particles: torch.Tensor
    momentum: torch.Tensor
    prior_precision: torch.Tensor
    scale: torch.Tensor | None
    plan: torch.Tensor

    def of(self, group: slice) -> Update:
        """The same of some particles."""
        return self._replace(particles=self.particles[group], momentum=self.momentum[group])


PLAN = tl.constexpr(8)
"""Numbers from one plan to the next: five, and what keeps them aligned."""


@triton.jit
def write_plan(plan, kick, drift, likelihood_scale, persistence, deviation):
    """The numbers of a step; the last is what keeps momentum standard normal."""
    tl.store(plan, kick)
    tl.store(plan + 1, drift)
    tl.store(plan + 2, likelihood_scale)
    tl.store(plan + 3, persistence)
    tl.store(plan + 4, deviation)


@triton.jit(do_not_specialize=["kick", "drift", "likelihood_scale", "persistence", "deviation"])
def _plan_kernel(plan, kick, drift, likelihood_scale, persistence, deviation):
    write_plan(plan, kick, drift, likelihood_scale, persistence, deviation)


def plan_tensor(
    kick: float, drift: float, likelihood_scale: float, persistence: float, device: torch.device
) -> torch.Tensor:
    """The numbers of a step on the device, without a copy from the host."""
    plan = torch.empty(PLAN.value, dtype=torch.float32, device=device)
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
