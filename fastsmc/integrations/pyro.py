"""For Pyro: the systematic resampling of its SMC filter, by our engines."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from fastsmc import ops


def systematic_sample(probs: Tensor) -> Tensor:
    """Indices [..., P] of probabilities [..., P], by numbers of torch's generator of their device."""
    u = torch.rand(probs.shape[:-1], dtype=probs.dtype, device=probs.device)
    return ops.systematic(probs.detach(), u)


def replacements() -> dict[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]]:
    """What `accelerate` replaces."""
    from pyro.infer import smcfilter

    return {smcfilter._systematic_sample: systematic_sample}
