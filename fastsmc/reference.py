"""Every op in a few lines of NumPy: the truth that all other engines are tested against.

The functions have the names and arguments of any engine (see `fastsmc.backends`): they write into arrays of
the caller and return None, or the status ``(code, position)`` of the first value that cannot be accepted.
"""

import math
from decimal import Decimal

import numpy as np

from fastsmc.networks import Layer

Status = tuple[int, int] | None
Factors = np.ndarray | float

_LANES = 8
_BLOCK = 2048
_LIMIT = 3 << 60  # of the sum of fixed-point masses
_POWERS = np.array([float(Decimal(2) ** (Decimal(j) / 16)) for j in range(16)])


def normalize_log_weights(log_weights: np.ndarray, weights: np.ndarray, log_sum: np.ndarray, ess: np.ndarray) -> Status:
    """Weights, log-sum and effective sample size of log weights [..., P]."""
    rows = _rows(log_weights).astype(np.float64)
    if status := _check_log_weights(rows):
        return status
    largest = rows.max(axis=1)
    blocks = _blocks(rows, -np.inf)
    reference = blocks.max(axis=2, keepdims=True)
    with np.errstate(over="ignore"):  # finite minus finite may be -inf: weight zero
        e = exp64(blocks - np.maximum(reference, -np.finfo(np.float64).max))
        factor = exp64(reference[:, :, 0] - largest[:, None])
    total = (factor * _ordered_sum(e)).cumsum(axis=1)[:, -1]
    squares = (factor * factor * _ordered_sum(e * e)).cumsum(axis=1)[:, -1]
    smallest = np.finfo(weights.dtype).tiny
    kept = np.where(e < smallest, 0.0, e).astype(weights.dtype)  # what an engine leaves in the output meanwhile
    w = (kept * (factor / total[:, None])[:, :, None]).reshape(len(rows), -1)[:, : rows.shape[1]]
    weights[...] = np.where(w < smallest, 0.0, w).reshape(weights.shape)
    log_sum[...] = (largest + np.log(total)).reshape(log_sum.shape)
    ess[...] = (total * total / squares).reshape(ess.shape)
    return None


def exp64(x: np.ndarray) -> np.ndarray:
    """exp(x) for x <= 0, to the bit as csrc/common/weight_exp.h defines it."""
    magic = 6755399441055744.0  # 1.5 * 2^52
    bounded = np.maximum(x, -708.0)
    n = (bounded * float.fromhex("0x1.71547652b82fep+4") + magic) - magic
    r = (bounded - n * float.fromhex("0x1.62e42feep-5")) - n * float.fromhex("0x1.a39ef35793c76p-37")
    r2 = r * r
    c = [1 / math.factorial(k) for k in range(8)]
    tail = ((c[2] + r * c[3]) + r2 * (c[4] + r * c[5])) + (r2 * r2) * (c[6] + r * c[7])
    sixteenths = n.astype(np.int32)
    power = np.ldexp(_POWERS[sixteenths & 15], sixteenths >> 4)
    return np.where(x < -708.0, 0.0, power + power * (r + r2 * tail))


def resample(scheme: str, log: bool, weights: np.ndarray, u: np.ndarray, ancestors: np.ndarray) -> Status:
    """Ancestors [..., M] by fixed-point scans: see csrc/common/fixed_scan.h."""
    rows, samples = _rows(weights).astype(np.float64), ancestors.shape[-1]
    uniforms = u.reshape(len(rows), -1).astype(np.float64)
    status = (_check_log_weights if log else _check_weights)(rows) or _first(5, ~((uniforms >= 0) & (uniforms < 1)))
    if status:
        return status
    for w, row_u, out in zip(rows, uniforms, _rows(ancestors), strict=True):
        q = masses(exp64(w - w.max()) if log else w)
        out[:] = _SCHEMES[scheme](q, (row_u * 2.0**53).astype(np.uint64), samples)
    return None


def masses(weights: np.ndarray) -> np.ndarray:
    """Weights as 64-bit integers, at the finest scale at which their sum is below 3 2^60."""
    scale = 61 - (len(weights) - 1).bit_length() - int(np.frexp(weights.max())[1])
    while int(_floors(weights, scale + 1).sum()) < _LIMIT:
        scale += 1
    return _floors(weights, scale)


def _floors(weights: np.ndarray, scale: int) -> np.ndarray:
    """``floor(weights * 2**scale)``, from exact integers."""
    fraction, exponent = np.frexp(weights)
    mantissa = (fraction * 2.0**63).astype(np.uint64)
    return mantissa >> np.clip(63 - scale - exponent.astype(np.int64), 0, 63).astype(np.uint64)


def _comb(q: np.ndarray, bits: np.ndarray, samples: int) -> np.ndarray:
    """Systematic with one number, stratified with one for each stratum."""
    total = int(q.sum())
    step, rest, m = np.uint64(total // samples), np.uint64(total % samples), np.uint64(samples)
    j = np.arange(samples, dtype=np.uint64)
    positions = j * step + (j * rest + _share(bits, total)) // m
    return np.searchsorted(np.cumsum(q), positions, side="right")


def _multinomial(q: np.ndarray, bits: np.ndarray, samples: int) -> np.ndarray:
    return np.searchsorted(np.cumsum(q), np.sort(_share(bits, int(q.sum()))), side="right")


def _residual(q: np.ndarray, bits: np.ndarray, samples: int) -> np.ndarray:
    """Copies by the quotients of M q_i / T; the rest drawn by the remainders, shifted so that they fit."""
    total, products = int(q.sum()), q.astype(object) * samples
    copies, remainders = products // total, products % total
    copied = np.repeat(np.arange(len(q)), copies.astype(np.int64))
    drawn = samples - len(copied)
    if drawn == 0:
        return copied
    rest = (remainders >> drawn.bit_length()).astype(np.uint64)
    return np.sort(np.concatenate([copied, _multinomial(rest, bits[:drawn], drawn)]))


_SCHEMES = {"systematic": _comb, "stratified": _comb, "multinomial": _multinomial, "residual": _residual}


def _share(bits: np.ndarray, total: int) -> np.ndarray:
    """floor(u * total) from the 53 bits of u, by Python's integers."""
    return ((bits.astype(object) * total) >> 53).astype(np.uint64)


def offspring(ancestors: np.ndarray, counts: np.ndarray) -> Status:
    """Count ancestors [..., M] into [..., P]."""
    rows, particles = _rows(ancestors), counts.shape[-1]
    if status := _check_ancestors(rows, particles):
        return status
    counts[...] = np.stack([np.bincount(a, minlength=particles) for a in rows]).reshape(counts.shape)
    return None


def permute_ancestors(ancestors: np.ndarray, permuted: np.ndarray) -> Status:
    """Survivors to their own slots, further copies to the others, both in ascending order."""
    rows, particles = _rows(ancestors), ancestors.shape[-1]
    if status := _check_ancestors(rows, particles):
        return status
    for a, out in zip(rows, _rows(permuted), strict=True):
        counts = np.bincount(a, minlength=particles)
        slots = np.arange(particles)
        out[:] = slots
        out[counts == 0] = np.repeat(slots, np.maximum(counts - 1, 0))
    return None


def adaptive_resample(
    scheme: str,
    threshold: float,
    log_weights: np.ndarray,
    u: np.ndarray,
    ancestors: np.ndarray,
    counts: np.ndarray,
    normalized: np.ndarray,
    log_sum: np.ndarray,
    ess: np.ndarray,
) -> Status:
    """Ancestors in place, offspring and log weights [..., P] of rows that are resampled, or kept."""
    if status := normalize_log_weights(log_weights, normalized, log_sum, ess):
        return status
    if status := resample(scheme, True, log_weights, u, counts):
        return status
    permute_ancestors(counts, ancestors)
    particles = log_weights.shape[-1]
    kept = ~(ess.astype(np.float64) < threshold * particles)
    ancestors[kept] = np.arange(particles)
    offspring(ancestors, counts)
    exact = log_weights.astype(np.float64)
    exact -= exact.max(axis=-1, keepdims=True)
    exact -= np.log(np.exp(exact).sum(axis=-1, keepdims=True))
    normalized[...] = np.where(kept[..., None], exact, -np.log(particles))
    return None


def gather_particles(particles: np.ndarray, ancestors: np.ndarray, out: np.ndarray) -> Status:
    """Rows of particles [P, ...] into out [M, ...], which may be the particles themselves."""
    if status := _check_ancestors(ancestors, len(particles)):
        return status
    if np.may_share_memory(particles, out):
        if particles.__array_interface__["data"] != out.__array_interface__["data"]:
            return 9, 0
        if len(ancestors) != len(particles):
            return 8, 0
        if status := _first(7, ancestors[ancestors] != ancestors):
            return status
    out[...] = particles[ancestors]
    return None


def _rows(array: np.ndarray) -> np.ndarray:
    return array.reshape(-1, array.shape[-1])


def _first(code: int, bad: np.ndarray) -> Status:
    """Return the status of the first True entry."""
    return (code, int(np.argmax(bad))) if bad.any() else None


def _check_weights(rows: np.ndarray) -> Status:
    empty = np.broadcast_to((rows == 0).all(axis=1, keepdims=True), rows.shape)
    return _first(1, ~((rows >= 0) & (rows < np.inf))) or _first(2, empty)


def _check_log_weights(rows: np.ndarray) -> Status:
    empty = np.broadcast_to((rows == -np.inf).all(axis=1, keepdims=True), rows.shape)
    return _first(3, ~(rows < np.inf)) or _first(4, empty)


def _check_ancestors(rows: np.ndarray, particles: int) -> Status:
    return _first(6, (rows < 0) | (rows >= particles))


def _blocks(rows: np.ndarray, filler: float) -> np.ndarray:
    """Rows [.., n] as blocks [.., b, _BLOCK], the last one filled up."""
    padding = -rows.shape[1] % _BLOCK
    return np.pad(rows, ((0, 0), (0, padding)), constant_values=filler).reshape(len(rows), -1, _BLOCK)


def _ordered_sum(blocks: np.ndarray) -> np.ndarray:
    """Sum each block in the fixed order of all engines: 8 lanes, then lane by lane."""
    lanes = blocks.reshape(*blocks.shape[:2], -1, _LANES).cumsum(axis=2)[:, :, -1]
    return lanes.cumsum(axis=2)[:, :, -1]


def log_likelihood(
    layers: np.ndarray,
    likelihood: int,
    noise: float,
    precision: int,
    particles: np.ndarray,
    x: np.ndarray,
    y: np.ndarray,
    weights: np.ndarray | None,
    log_likelihood: np.ndarray,
    grad: np.ndarray | None,
) -> Status:
    """Log-likelihood of every particle, and its gradient by the chain rule, one particle at a time."""
    if status := _check_labels(layers, likelihood, y):
        return status
    w = 1.0 if weights is None else weights.astype(np.float64)[:, None]
    for p, theta in enumerate(particles):
        stack = _stack(layers, theta)
        z, kept = _forward(stack, x)
        log_likelihood[p], delta = _LOSSES[likelihood](z, y.astype(np.float64), noise, w)
        if grad is None:
            continue
        gradients: list[np.ndarray] = []
        for (layer, weight, _), (h, slope, place) in zip(stack[::-1], kept[::-1], strict=True):
            delta = _unpool(layer, delta, place) * slope
            *parts, delta = (_dense_gradients if layer.is_dense else _convolution_gradients)(layer, weight, h, delta)
            gradients = [*(part.ravel() for part in parts), *gradients]
        grad[p] = np.concatenate(gradients)
    return None


def _check_labels(layers: np.ndarray, likelihood: int, y: np.ndarray) -> Status:
    return _first(10, (y < 0) | (y >= _table(layers)[-1].num_outputs)) if likelihood == 0 else None


def network_outputs(
    layers: np.ndarray, precision: int, particles: np.ndarray, x: np.ndarray, outputs: np.ndarray
) -> Status:
    """Outputs [P, B, K] of every particle's network."""
    for p, theta in enumerate(particles):
        outputs[p] = _forward(_stack(layers, theta), x)[0]


def precision_in_use(layers: np.ndarray, precision: int) -> int:
    """Float64 is better than any that can be asked for."""
    return 0


def _table(layers: np.ndarray) -> list[Layer]:
    return [Layer(*map(int, row)) for row in layers]


def _stack(layers: np.ndarray, theta: np.ndarray) -> list[tuple[Layer, np.ndarray, np.ndarray]]:
    """Layers with their weights and biases."""
    stack, rest = [], theta.astype(np.float64)
    for layer in _table(layers):
        shape = layer.weight_shape
        weight, bias, rest = np.split(rest, [math.prod(shape), math.prod(shape) + shape[0]])
        stack.append((layer, weight.reshape(shape), bias))
    return stack


def _forward(stack: list, x: np.ndarray) -> tuple[np.ndarray, list]:
    """Outputs, and for every layer its inputs, slopes and places of maxima."""
    h, kept = x.astype(np.float64), []
    for layer, weight, bias in stack:
        inputs = h
        z = inputs @ weight.T + bias if layer.is_dense else _convolve(layer, weight, bias, inputs)
        a, slope = _ACTIVATIONS[layer.activation](z)
        h, place = _pool(layer, a)
        kept.append((inputs, slope, place))
    return h, kept


def _dense_gradients(layer: Layer, weight: np.ndarray, h: np.ndarray, dz: np.ndarray) -> tuple[np.ndarray, ...]:
    return dz.T @ h, dz.sum(axis=0), dz @ weight


def _windows(images: np.ndarray, size: int, step: int = 1) -> np.ndarray:
    """[..., y, x, size, size]: every square of images [..., height, width], `step` apart."""
    return np.lib.stride_tricks.sliding_window_view(images, (size, size), axis=(-2, -1))[..., ::step, ::step, :, :]


def _padded(layer: Layer, h: np.ndarray) -> np.ndarray:
    border = (layer.padding, layer.padding)
    return np.pad(h.reshape(len(h), *layer[2:5]), ((0, 0), (0, 0), border, border))


def _convolve(layer: Layer, weight: np.ndarray, bias: np.ndarray, h: np.ndarray) -> np.ndarray:
    """Images [B, out, height, width] of inputs [B, in]."""
    terms = _windows(_padded(layer, h), layer.kernel)
    return np.einsum("bcyxij,ocij->boyx", terms, weight, optimize=True) + bias[:, None, None]


def _convolution_gradients(layer: Layer, weight: np.ndarray, h: np.ndarray, dz: np.ndarray) -> tuple[np.ndarray, ...]:
    image = _padded(layer, h)
    spread = np.zeros_like(image)
    height, width = dz.shape[2:]
    for i, j in np.ndindex(weight.shape[2:]):
        spread[:, :, i : i + height, j : j + width] += np.einsum("boyx,oc->bcyx", dz, weight[:, :, i, j], optimize=True)
    rows, columns = (slice(layer.padding, image.shape[k] - layer.padding) for k in (2, 3))
    grad = np.einsum("bcyxij,boyx->ocij", _windows(image, layer.kernel), dz, optimize=True)
    return grad, dz.sum(axis=(0, 2, 3)), spread[:, :, rows, columns].reshape(len(h), -1)


def _pool(layer: Layer, a: np.ndarray) -> tuple[np.ndarray, np.ndarray | None]:
    """Maxima over squares, flattened, and for each its place in the square: the first of equals in row-major order."""
    if layer.is_dense:
        return a, None
    squares = _windows(a, layer.pool, layer.pool).reshape(*a.shape[:2], layer.out_height, layer.out_width, -1)
    return squares.max(axis=-1).reshape(len(a), -1), squares.argmax(axis=-1)


def _unpool(layer: Layer, delta: np.ndarray, place: np.ndarray | None) -> np.ndarray:
    """The gradient of all pixels: that of a maximum where it was, zero elsewhere."""
    if place is None:
        return delta
    full = np.zeros((*place.shape[:2], *layer.unpooled))
    b, c, y, x = np.indices(place.shape)
    full[b, c, y * layer.pool + place // layer.pool, x * layer.pool + place % layer.pool] = delta.reshape(place.shape)
    return full


def _gelu(z: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    cdf = 0.5 * np.vectorize(math.erfc, otypes=[float])(-z / math.sqrt(2))
    return z * cdf, cdf + z * np.exp(-z * z / 2) / math.sqrt(2 * math.pi)


def _sigmoid(z: np.ndarray) -> np.ndarray:
    return 0.5 * (1 + np.tanh(z / 2))


# Value and slope, in the order of networks.ACTIVATIONS.
_ACTIVATIONS = (
    lambda z: (z, np.ones_like(z)),
    lambda z: (np.maximum(z, 0), (z > 0).astype(float)),
    lambda z: (np.tanh(z), 1 - np.tanh(z) ** 2),
    _gelu,
    lambda z: (z * _sigmoid(z), _sigmoid(z) * (1 + z * (1 - _sigmoid(z)))),
)


def _categorical(z: np.ndarray, y: np.ndarray, noise: float, w: Factors) -> tuple[float, np.ndarray]:
    hit = np.eye(z.shape[1])[y.astype(np.int64)]
    log_sum = np.logaddexp.reduce(z, axis=1, keepdims=True)
    return float(np.sum(w * (hit * (z - log_sum)))), w * (hit - np.exp(z - log_sum))


def _bernoulli(z: np.ndarray, y: np.ndarray, noise: float, w: Factors) -> tuple[float, np.ndarray]:
    return float(np.sum(w * (y * z - np.logaddexp(0, z)))), w * (y - _sigmoid(z))


def _gaussian(z: np.ndarray, y: np.ndarray, noise: float, w: Factors) -> tuple[float, np.ndarray]:
    r = (y - z) / noise
    return float(-0.5 * np.sum(w * (r * r + math.log(2 * math.pi * noise**2)))), w * (r / noise)


def _poisson(z: np.ndarray, y: np.ndarray, noise: float, w: Factors) -> tuple[float, np.ndarray]:
    rate = np.exp(z)
    return float(np.sum(w * (y * z - rate))), w * (y - rate)


# In the order of the likelihoods' codes.
_LOSSES = (_categorical, _bernoulli, _gaussian, _poisson)


def leapfrog(
    particles: np.ndarray,
    momentum: np.ndarray,
    grad: np.ndarray,
    precision: np.ndarray,
    scale: np.ndarray | None,
    noise: np.ndarray | None,
    out: np.ndarray,
    energies: np.ndarray,
    kick: float,
    drift: float,
    likelihood_scale: float,
    refresh: bool,
    persistence: float,
    seed: int,
    iteration: int,
    stream: int,
    first_slot: int,
) -> Status:
    """Refresh, kick, drift; energies [P, 3] as fastsmc.ops.leapfrog returns them."""
    theta, lam = (a.astype(np.float64) for a in (particles, precision))
    v = np.zeros(theta.shape) if refresh and persistence == 0 else momentum.astype(np.float64)
    s = 1.0 if scale is None else scale.astype(np.float64)
    if refresh:
        xi = np.empty(theta.shape)
        normal(xi, seed, iteration, stream, first_slot)
        v = persistence * v + (math.sqrt(1 - persistence**2) if noise is None else noise) * xi
    energies[:, 0] = 0.5 * np.sum(v * v, axis=1)
    v = v + kick * (s * (likelihood_scale * grad - lam * theta))
    energies[:, 1] = 0.5 * np.sum(v * v, axis=1)
    theta = theta + drift * (s * v)
    energies[:, 2] = 0.5 * np.sum(lam * theta * theta, axis=1)
    momentum[...], out[...] = v, theta


def trajectory(
    layers: np.ndarray,
    likelihood: int,
    noise: float,
    precision: int,
    particles: np.ndarray,
    momentum: np.ndarray,
    grad: np.ndarray,
    x: np.ndarray,
    y: np.ndarray,
    weights: np.ndarray | None,
    prior_precision: np.ndarray,
    scale: np.ndarray | None,
    total: np.ndarray,
    start: np.ndarray,
    end: np.ndarray,
    step_size: float,
    steps: int,
    likelihood_scale: float,
    refresh: bool,
    *key: float,
) -> Status:
    """Half a kick and a drift, then the gradient and a kick after every drift."""
    if status := _check_labels(layers, likelihood, y):
        return status
    for step in range(steps + 1):
        if step > 0:
            log_likelihood(layers, likelihood, noise, precision, particles, x, y, weights, total, grad)
        kick = step_size if 0 < step < steps else step_size / 2
        drift = step_size if step < steps else 0.0
        plan = (kick, drift, likelihood_scale, refresh and step == 0, *key)
        leapfrog(particles, momentum, grad, prior_precision, scale, None, particles, end if step else start, *plan)
    return None


def philox(out: np.ndarray, seed: int, iteration: int, stream: int, first_slot: int) -> Status:
    """Philox 4x32-10; number i of a slot is word i % 4 of block i // 4."""
    slots, numbers = out.shape
    mask = np.uint64(0xFFFFFFFF)
    block, slot = np.meshgrid(np.arange(-(-numbers // 4)), np.arange(slots) + first_slot)
    c0, c1 = block.astype(np.uint64), slot.astype(np.uint64) & mask
    c2, c3 = (np.full_like(c0, v) for v in (iteration, stream))
    low, high = seed & 0xFFFFFFFF, seed >> 32
    for _ in range(10):
        p0, p1 = c0 * np.uint64(0xD2511F53), c2 * np.uint64(0xCD9E8D57)
        c0, c1 = (p1 >> np.uint64(32)) ^ c1 ^ np.uint64(low), p1 & mask
        c2, c3 = (p0 >> np.uint64(32)) ^ c3 ^ np.uint64(high), p0 & mask
        low, high = (low + 0x9E3779B9) & 0xFFFFFFFF, (high + 0xBB67AE85) & 0xFFFFFFFF
    out[...] = np.stack([c0, c1, c2, c3], axis=-1).reshape(slots, -1)[:, :numbers]


def uniform(out: np.ndarray, seed: int, iteration: int, stream: int, first_slot: int) -> Status:
    """53 bits from each pair of words."""
    slots, numbers = out.shape
    words = np.empty((slots, 2 * numbers), np.uint32)
    philox(words, seed, iteration, stream, first_slot)
    high, low = words[:, ::2].astype(np.uint64), words[:, 1::2].astype(np.uint64)
    out[...] = ((high << np.uint64(21)) ^ (low >> np.uint64(11))) * 2.0**-53


def normal(out: np.ndarray, seed: int, iteration: int, stream: int, first_slot: int) -> Status:
    """Box and Muller: the first word of a pair gives the radius, the second, as a signed number, the angle."""
    slots, numbers = out.shape
    words = np.empty((slots, numbers + numbers % 2), np.uint32)
    philox(words, seed, iteration, stream, first_slot)
    u = ((words[:, ::2] >> np.uint32(1)) + 0.5) * 2.0**-31
    radius, angle = np.sqrt(-2 * np.log(u)), 2 * np.pi * words[:, 1::2].view(np.int32) * 2.0**-32
    pairs = np.stack([radius * np.cos(angle), radius * np.sin(angle)], axis=-1)
    out[...] = pairs.reshape(slots, -1)[:, :numbers]
