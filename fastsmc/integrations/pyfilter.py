"""For pyfilter: its systematic resampling, by our engines."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from fastsmc import ops


def systematic(w: Tensor, normalized: bool = False, u: Tensor | float | None = None) -> Tensor:
    """Ancestors [P] or [P, B] of log weights, or of weights where they are normalised, along the first dimension.

    ``u`` is a uniform number, or one for each of B, [B, 1]; drawn by torch's generator unless it is given. With one for
    each ancestor, [B, P], as pyfilter's own takes it too, the scheme is stratified.
    """
    rows = w.detach().movedim(0, -1).contiguous()
    lead = rows.shape[:-1]
    u = torch.rand((*lead, 1), dtype=w.dtype, device=w.device) if u is None else torch.as_tensor(u, device=w.device)
    if u.shape[-1:] == rows.shape[-1:]:
        return ops.resample(rows, u.expand(rows.shape).contiguous(), "stratified", not normalized).movedim(-1, 0)
    return ops.resample(rows, u.expand(*lead, 1)[..., 0].contiguous(), log=not normalized).movedim(-1, 0)


def replacements() -> dict[Callable[..., Tensor], Callable[..., Tensor]]:
    """What `accelerate` replaces."""
    from pyfilter import resampling

    return {resampling.systematic: systematic}
