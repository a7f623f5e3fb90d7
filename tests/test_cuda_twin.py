"""What the host twin of the CUDA engine says of its kernels: they depend on no order that a device does not keep."""

import numpy as np
import pytest

import fastsmc as fs
from fastsmc import ops, random
from fastsmc.likelihoods import LIKELIHOODS

_cuda = pytest.importorskip("fastsmc._cuda", reason="this package was built without the CUDA engine")
if _cuda.device() != "cpu":
    pytest.skip("the CUDA engine is that of a device", allow_module_level=True)

NAMES = {"seed": 3, "iteration": 1, "stream": 2, "first_slot": 7}


def weights(n):
    rng = np.random.default_rng(n)
    return (4 * rng.standard_normal((2, n))).astype(np.float32)


def normalised(n):
    return fs.normalize_log_weights(weights(n), backend="cuda")


def resampled(n, scheme):
    u = np.random.default_rng(1).random((2, n) if ops.SCHEMES[scheme] else 2)
    ancestors = fs.resample(weights(n), u, scheme, backend="cuda")
    return ancestors, fs.offspring(ancestors, n, backend="cuda"), fs.permute_ancestors(ancestors, backend="cuda")


def adapted(n, scheme):
    u = np.random.default_rng(1).random((2, n) if ops.SCHEMES[scheme] else 2)
    log_weights = weights(n) * [[1.0], [0.01]]  # one row is resampled, one is not
    return fs.adaptive_resample(log_weights, u, scheme=scheme, backend="cuda")


def gathered(n):
    particles = np.random.default_rng(2).standard_normal((n, 3))
    ancestors = fs.permute_ancestors(np.arange(n) // 3 * 2, backend="cuda")
    apart = fs.gather_particles(particles, ancestors, backend="cuda")
    return apart, fs.gather_particles(particles, ancestors, particles, backend="cuda")


def stepped(dim):
    theta, v, grad = np.random.default_rng(3).standard_normal((3, 2, dim), np.float32)
    how = {"precision": np.ones(dim, np.float32), "kick": 0.1, "drift": 0.2, "refresh": 0.5}
    return *ops.leapfrog(theta, v, grad, **how, **NAMES, backend="cuda"), theta, v


def drawn(kind):
    return (getattr(random, kind)((3, 1500), **NAMES, backend="cuda"),)


def network(kind, samples):
    rng = np.random.default_rng(4)
    post = fs.Posterior(fs.MLP((20, 17, 3), "gelu"), likelihood=kind, precision="high", backend="cuda")
    theta, v = 0.2 * rng.standard_normal((2, 2, post.network.num_params), np.float32)
    x, y = rng.standard_normal((samples, 20), np.float32), rng.integers(0, 3, samples)
    if kind != "categorical":
        y = np.round(rng.random((samples, 3), np.float32), 0 if kind == "poisson" else 7)
    value, grad = post.log_likelihood_and_grad(theta, x, y)
    outputs = post.outputs(theta, x)
    return value, grad.copy(), outputs, *post.trajectory(theta, v, grad, x, y, step_size=0.01, num_steps=2), theta, v


# one block for a row; parts of it
EVERYTHING = {
    **{f"weights of {n}": lambda n=n: normalised(n) for n in (100, 4000, 9000)},
    **{f"{s} of {n}": lambda n=n, s=s: resampled(n, s) for n in (100, 4000, 9000) for s in ops.SCHEMES},
    **{f"a {s} step of {n}": lambda n=n, s=s: adapted(n, s) for n in (100, 4000, 9000) for s in ops.SCHEMES},
    **{f"{n} gathered": lambda n=n: gathered(n) for n in (10, 5000)},
    **{f"a step of {dim}": lambda dim=dim: stepped(dim) for dim in (10, 3000)},
    **{kind: lambda kind=kind: drawn(kind) for kind in ("philox", "uniform", "normal")},
    **{f"{kind} network": lambda kind=kind: network(kind, 100) for kind in LIKELIHOODS},
    "network of slices": lambda: network("categorical", 4096 + 50),
}


def test_more_blocks_than_a_device_has_are_refused():
    with pytest.raises(ValueError, match=r"an op needs more than the 2\^31 - 1 blocks that a device has"):
        _cuda.philox(None, lambda size: None, 2**50, 4, None, 1, 2, 3, 4)


def test_scratch_memory_does_not_grow_with_the_batch():
    def taken(samples):
        sizes = []

        def memory(size):
            sizes.append(size)
            if len(sizes) == 2:  # of the values and the gradients, before anything is computed
                raise MemoryError
            return 16

        network = (fs.MLP((2, 2)).layer_table, 0, 1.0, 0)
        with pytest.raises(MemoryError):
            _cuda.log_likelihood(None, memory, *network, 5, samples, None, None, None, None, None, 16, None)
        return sizes

    assert taken(10**6) == taken(10**9)


@pytest.fixture
def backwards():
    yield lambda: _cuda.run_backwards(True)
    _cuda.run_backwards(False)


@pytest.mark.parametrize("name", EVERYTHING)
def test_the_order_of_threads_and_blocks_changes_no_bit(name, backwards):
    forwards = [np.array(part) for part in EVERYTHING[name]()]
    backwards()
    assert all(map(np.array_equal, EVERYTHING[name](), forwards))
