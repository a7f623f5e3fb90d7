"""Particles for other programs: as torch's state, and their mean prediction as ONNX."""

from __future__ import annotations

import io
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from fastsmc import arrays
from fastsmc.files import write_atomically
from fastsmc.likelihoods import Likelihood

if TYPE_CHECKING:
    from fastsmc.result import Result


def state_dicts(result: Result) -> list[dict[str, Tensor]]:
    """Every particle as the ``state_dict`` of its network's module, with what was fixed: P of them.

    ``network.to_torch().load_state_dict(state)`` takes one. Weights whose scale was sampled are in their own units.
    """
    network = result.posterior.network
    still = {name: torch.from_numpy(value) for name, value in network.still.items()}
    tensors = result.posterior.unpack(torch.from_numpy(arrays.on_host(result.particles, "particles")))
    names = [p.name for p in network.parameters]
    return [still | {name: tensors[name][k].clone() for name in names} for k in range(len(result.weights))]


def to_onnx(result: Result, path: str | Path) -> None:
    """Write the prediction of all particles of positive weight, their weighted mean, as an ONNX model.

    It takes ``x``, float32 [n, ...] in the shape of the network's inputs, to ``mean``, float32 [n, K]: what
    `Result.predict_proba` returns, or for a regression the posterior mean.

    Raises
    ------
    ModuleNotFoundError
        Without the packages ``onnx`` and ``onnxscript``.
    """
    try:
        import onnxscript  # noqa: F401 - what torch exports with
    except ModuleNotFoundError:
        raise ModuleNotFoundError("an ONNX file needs onnx and onnxscript: pip install 'fastsmc[onnx]'") from None
    network = result.posterior.network
    x = torch.zeros(2, *network.input_shape)
    program = torch.onnx.export(
        Mean(result).eval(),
        (x,),
        input_names=["x"],
        output_names=["mean"],
        dynamic_shapes=({0: torch.export.Dim("n", min=1)},),
        dynamo=True,
        verbose=False,
    )
    content = io.BytesIO()
    program.save(content)
    write_atomically(Path(path), content.getvalue())


class Mean(nn.Module):
    """The weighted mean prediction of a result's particles."""

    def __init__(self, result: Result) -> None:
        super().__init__()
        network, states, self.members = result.posterior.network, state_dicts(result), nn.ModuleList()
        self.likelihood: Likelihood = result.posterior.likelihood
        used = np.flatnonzero(result.weights)
        for k in used:
            module: Any = network.to_torch()
            names = [name for name, _ in module.named_parameters() if name not in network.fixed]
            own = dict(zip(names, (states[k][p.name] for p in network.parameters), strict=True))
            module.load_state_dict(module.state_dict() | own)
            self.members.append(module)
        self.register_buffer("weights", torch.from_numpy(result.weights[used].astype(np.float32)))

    def forward(self, x: Tensor) -> Tensor:
        """Of samples [n, ...]: [n, K]."""
        return sum(
            weight * self.likelihood.expectation(member(x))
            for weight, member in zip(self.weights, self.members, strict=True)
        )
