"""What computes the log-likelihoods of all particles of a network: the kernels, or torch.func."""

from __future__ import annotations

import math
import sys
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

from fastsmc import arrays, ops
from fastsmc.likelihoods import Likelihood
from fastsmc.networks import LayeredNetwork, Network
from fastsmc.ops.densities import read_batch, read_inputs

if TYPE_CHECKING:
    from torch import Tensor

    from fastsmc.modules import TorchNetwork

Found = TypeVar("Found")
BUDGET = 2**28
"""Bytes of activations that torch.func may hold at a time."""


class Density(ABC):
    """Log-likelihoods [P] in float64 and gradients [P, d] in the particles' dtype; arguments as `ops` takes them."""

    whole_trajectories: bool = False
    """Whether ``trajectory`` exists."""

    def __init__(self, network: Network, likelihood: Likelihood) -> None:
        self.network, self.likelihood = network, likelihood

    @property
    def path(self) -> str:
        """How it is computed, and why, in a few words."""
        return self.network.path

    def precision_on(self, device: str) -> str:
        """The precision of the products: the one that was asked for, or a higher one."""
        return "highest"

    @abstractmethod
    def evaluate(
        self, particles: Any, x: Any, y: Any, weights: Any = None, with_grad: bool = True, check: bool = True
    ) -> tuple[Any, Any | None]:
        """Log-likelihood of every particle, and its gradient; see `fastsmc.ops` for ``check``."""

    @abstractmethod
    def outputs(self, particles: Any, x: Any) -> Any:
        """Outputs of every particle for every row of x: [P, B, outputs]."""

    def pointwise(self, particles: Any, x: Any, y: Any) -> Any:
        """Log density of every sample under every particle, float64 [P, B]."""
        outputs, back = arrays.Device(arrays.device(particles)).read(self.outputs(particles, x), "outputs")
        memory = arrays.Device(str(outputs.device))
        targets = self.likelihood.targets(memory.read(y, "y")[0], self.network.num_outputs, memory)
        return back(self.likelihood.log_density(outputs.double(), targets))


class Fused(Density):
    """By the kernels, on the particles as they are."""

    whole_trajectories = True

    def __init__(self, network: LayeredNetwork, likelihood: Likelihood, precision: str, backend: str | None) -> None:
        super().__init__(network, likelihood)
        self._how = {"precision": precision, "backend": backend}

    def precision_on(self, device: str) -> str:
        """See `Density`."""
        return ops.precision_in_use(self.network, **self._how, device=device)

    def evaluate(
        self, particles: Any, x: Any, y: Any, weights: Any = None, with_grad: bool = True, check: bool = True
    ) -> tuple[Any, Any | None]:
        """See `Density`."""
        arguments, how = (self.network, self.likelihood, particles, x, y), self._how | {"check": check}
        if with_grad:
            return ops.log_likelihood_and_grad(*arguments, weights=weights, **how)
        return ops.log_likelihood(*arguments, weights=weights, **how), None

    def outputs(self, particles: Any, x: Any) -> Any:
        """See `Density`."""
        return ops.network_outputs(self.network, particles, x, **self._how)

    def trajectory(self, particles: Any, momentum: Any, grad: Any, x: Any, y: Any, **plan: Any) -> ops.Trajectory:
        """See `ops.trajectory`."""
        return ops.trajectory(self.network, self.likelihood, particles, momentum, grad, x, y, **plan, **self._how)


class Embedding(Density):
    """Another density at particles of which some columns are sampled, and the others have fixed values.

    Parameters
    ----------
    inner
        The density of whole particles.
    template
        float32 [inner d], the fixed values.
    columns
        int64 [d], where the sampled ones belong.
    """

    def __init__(self, network: Network, inner: Density, template: Tensor, columns: Tensor) -> None:
        super().__init__(network, inner.likelihood)
        self._inner, self._template, self._columns = inner, template, columns

    def precision_on(self, device: str) -> str:
        """See `Density`."""
        return self._inner.precision_on(device)

    def evaluate(
        self, particles: Any, x: Any, y: Any, weights: Any = None, with_grad: bool = True, check: bool = True
    ) -> tuple[Any, Any | None]:
        """See `Density`."""
        whole, back = self._whole(particles)
        log_likelihood, grad = self._inner.evaluate(whole, x, y, weights, with_grad, check)
        if grad is not None:
            grad = back(grad[:, self._columns.to(grad.device)].contiguous())
        return back(log_likelihood), grad

    def outputs(self, particles: Any, x: Any) -> Any:
        """See `Density`."""
        whole, back = self._whole(particles)
        return back(self._inner.outputs(whole, x))

    def _whole(self, particles: Any) -> tuple[Tensor, arrays.Back]:
        theta, back = read_tensor(particles, self.network.num_params)
        whole = self._template.to(theta).repeat(len(theta), 1)
        whole[:, self._columns.to(theta.device)] = theta
        return whole, back


class Scaled(Density):
    """Another density at weights that are multiples of sampled scales, with a noise that is sampled too.

    The last coordinates of a particle are the logarithms of these. A sampled noise goes with an ``inner`` density whose
    noise is one: with S the sum of squares and n targets, log p = -S / (2 noise^2) - n log noise - n log(2 pi) / 2.

    Parameters
    ----------
    inner
        The density of the network's weights.
    units
        For each scale, which weights are in units of it.
    noise
        Whether the last coordinate is the logarithm of the noise.
    """

    def __init__(self, inner: Density, units: Sequence[Sequence[slice]], noise: bool) -> None:
        super().__init__(inner.network, inner.likelihood)
        self._inner, self._units, self._noise = inner, units, noise
        self._size = inner.network.num_params

    @property
    def path(self) -> str:
        """See `Density`."""
        return f"{self._inner.path}, beside scales that are sampled"

    def precision_on(self, device: str) -> str:
        """See `Density`."""
        return self._inner.precision_on(device)

    def evaluate(
        self, particles: Any, x: Any, y: Any, weights: Any = None, with_grad: bool = True, check: bool = True
    ) -> tuple[Any, Any | None]:
        """See `Density`."""
        theta, back = self._read(particles)
        at, size = self.weights(theta), self._size
        value, slope = self._inner.evaluate(at, x, y, weights, with_grad, check)
        grad = theta.new_empty(theta.shape) if with_grad else None
        if self._noise:
            samples = len(x) if weights is None else float(weights.sum())
            value, squares, count = self._with_noise(value, theta[:, -1], samples)
            if with_grad:
                slope *= (-2 * theta[:, -1:]).exp()
                grad[:, -1] = squares - count
        if with_grad:
            for k, (factor, columns) in enumerate(self._scales(theta), start=size):
                grad[:, k] = sum((slope[:, some] * at[:, some]).sum(dim=1) for some in columns)
                for some in columns:
                    slope[:, some] *= factor
            grad[:, :size] = slope
        return back(value), None if grad is None else back(grad)

    def outputs(self, particles: Any, x: Any) -> Any:
        """See `Density`."""
        theta, back = self._read(particles)
        return back(self._inner.outputs(self.weights(theta), x))

    def pointwise(self, particles: Any, x: Any, y: Any) -> Any:
        """See `Density`."""
        theta, back = self._read(particles)
        value = self._inner.pointwise(self.weights(theta), x, y)
        return back(self._with_noise(value, theta[:, -1:], 1)[0] if self._noise else value)

    def _with_noise(self, value: Tensor, log_noise: Tensor, samples: float) -> tuple[Tensor, Tensor, float]:
        """The log density, from that of a noise of one; the sum of squares over the variance; and n."""
        log_noise, count = log_noise.double(), self.network.num_outputs * samples
        constant = 0.5 * count * math.log(2 * math.pi)
        squares = -2 * (value + constant) * (-2 * log_noise).exp()
        return -0.5 * squares - count * log_noise - constant, squares, count

    def weights(self, theta: Tensor) -> Tensor:
        """The network's weights of particles, [P, d]."""
        weights = theta[:, : self._size].clone()
        for factor, columns in self._scales(theta):
            for some in columns:
                weights[:, some] *= factor
        return weights

    def _scales(self, theta: Tensor) -> Iterator[tuple[Tensor, Sequence[slice]]]:
        for k, columns in enumerate(self._units, start=self._size):
            yield theta[:, k : k + 1].exp(), columns

    def _read(self, particles: Any) -> tuple[Tensor, arrays.Back]:
        return read_tensor(particles, self._size + len(self._units) + self._noise)


class Functional(Density):
    """By torch.func, over blocks of particles and samples whose activations fit into ``BUDGET``.

    Where memory does not suffice for a block, it is halved, and so are all later ones. The log density of a sample is
    float32, as the module is; the sums over samples are float64.
    """

    def __init__(self, network: TorchNetwork, likelihood: Likelihood) -> None:
        super().__init__(network, likelihood)
        self._bytes: int | None = None
        self._most = sys.maxsize

    def evaluate(
        self, particles: Any, x: Any, y: Any, weights: Any = None, with_grad: bool = True, check: bool = True
    ) -> tuple[Any, Any | None]:
        """See `Density`."""
        import torch

        theta, back = read_tensor(particles, self.network.num_params)
        memory = arrays.Device(str(theta.device))
        dtype = memory.dtype(theta)
        batch = read_batch(x, y, weights, self.network, self.likelihood, memory, dtype, check)

        def total(row: Tensor, begin: int, end: int) -> Tensor:
            z = self.network.call(self.network.unpack(row), batch.x[begin:end])
            each = self.likelihood.log_density(z, batch.targets[begin:end]).double()
            return (each if batch.weights is None else each * batch.weights[begin:end]).sum()

        def block(begin: int, end: int, count: int) -> tuple[Tensor | None, Tensor]:
            if with_grad:
                both = torch.func.grad_and_value(lambda row: total(row, begin, end))
                return torch.vmap(both, chunk_size=count)(theta)
            with torch.no_grad():
                return None, torch.vmap(lambda row: total(row, begin, end), chunk_size=count)(theta)

        value = theta.new_zeros(len(theta), dtype=torch.float64)
        grad = torch.zeros_like(theta) if with_grad else None
        for slope, part in self._by_blocks(theta, len(batch.x), block):
            value += part
            if grad is not None:
                grad += slope
        return back(value.detach()), None if grad is None else back(grad)

    def outputs(self, particles: Any, x: Any) -> Any:
        """See `Density`."""
        import torch

        theta, back = read_tensor(particles, self.network.num_params)
        memory = arrays.Device(str(theta.device))
        inputs = read_inputs(x, self.network, memory, memory.dtype(theta))

        def block(begin: int, end: int, count: int) -> Tensor:
            with torch.no_grad():
                call = lambda row: self.network.call(self.network.unpack(row), inputs[begin:end])  # noqa: E731
                return torch.vmap(call, chunk_size=count)(theta)

        return back(torch.cat([*self._by_blocks(theta, len(inputs), block)], dim=1))

    def _by_blocks(self, theta: Tensor, samples: int, work: Callable[[int, int, int], Found]) -> Iterator[Found]:
        """What ``work(begin, end, count)`` finds of samples begin to end, with ``count`` particles at a time."""
        begin = 0
        while begin < samples:
            rows, count = self._blocks(theta, samples)
            end = min(begin + rows, samples)
            try:
                found = work(begin, end, count)
            except (MemoryError, RuntimeError) as error:
                if not _no_memory(error):
                    raise
                if rows * count == 1:
                    raise MemoryError(
                        f"memory does not suffice for one sample of one particle, with {self._bytes:,} bytes of "
                        "activations; the network must be smaller, or the memory larger"
                    ) from error
                self._most = rows * count // 2
            else:
                yield found
                begin = end

    def _blocks(self, theta: Tensor, samples: int) -> tuple[int, int]:
        """How many samples and particles go together."""
        if self._bytes is None:
            self._bytes = self._activation_bytes(theta[0])
        pairs = max(1, min(BUDGET // self._bytes, self._most))
        rows = min(samples, pairs)
        return rows, max(1, min(len(theta), pairs // rows))

    def _activation_bytes(self, row: Tensor) -> int:
        """What autograd keeps for a sample, measured on one pass over two of them and over four."""
        import torch

        def kept(samples: int) -> int:
            sizes: dict[int, int] = {}

            def pack(tensor: Tensor) -> Tensor:
                sizes[tensor.data_ptr()] = tensor.numel() * tensor.element_size()
                return tensor

            x = torch.zeros(samples, self.network.num_inputs, device=row.device, dtype=row.dtype)
            with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
                self.network.call(self.network.unpack(row.detach().requires_grad_()), x)
            return sum(sizes.values())

        per_sample = (kept(4) - kept(2)) // 2
        return max(2 * per_sample, row.element_size() * (self.network.num_inputs + self.network.num_outputs))


def _no_memory(error: Exception) -> bool:
    """Whether an error is for want of memory; torch has no class of its own for that of the host."""
    import torch

    return isinstance(error, MemoryError | torch.OutOfMemoryError) or "can't allocate memory" in str(error)


def through_torch(network: Network, likelihood: Likelihood, reason: str) -> Functional:
    """The density of a network that the kernels know, but not its likelihood."""
    from fastsmc.modules import TorchNetwork

    shape, outputs = network.input_shape, network.num_outputs
    return Functional(TorchNetwork(network.to_torch(), shape, outputs, network.fixed, reason), likelihood)


def read_tensor(particles: Any, size: int) -> tuple[Tensor, arrays.Back]:
    """View particles [P, size] of any kind as a torch tensor where they are, in place."""
    memory = arrays.Device(arrays.device(particles))
    theta, back = memory.read_floats(particles, "particles")
    if theta.ndim != 2 or theta.shape[1] != size or len(theta) == 0:
        raise ValueError(f"particles has shape {tuple(theta.shape)}; it must be [P, {size}] with P >= 1")
    return theta, back
