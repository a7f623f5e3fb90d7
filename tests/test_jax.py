"""The engine inside of JAX: the same numbers, one call for all that is mapped over, under jit, vmap and grad."""

import numpy as np
import pytest
from problems import Problem, as_exact_as
from processes import printed

import fastsmc as fs
from fastsmc import ops

jax = pytest.importorskip("jax")
pytest.importorskip("fastsmc._jax", reason="this package was built without its JAX module")

import jax.numpy as jnp  # noqa: E402

from fastsmc.integrations import jax as accelerated  # noqa: E402

ENGINES = {"cpu": "fastsmc"}
"""Names of the targets, by the engine that they are of."""
try:
    from fastsmc import _jax_cuda
except ImportError:
    _jax_cuda = None
if _jax_cuda is not None and _jax_cuda.device() == "cpu":  # the host twin, which computes where the CPU engine does
    ENGINES["cuda"] = "fastsmc_twin"
    for name, target in _jax_cuda.targets().items():
        jax.ffi.register_ffi_target(name.replace("fastsmc", "fastsmc_twin"), target, platform="cpu")


def calls_of(engine):
    """What makes the calls of an engine."""
    return lambda name, results: jax.ffi.ffi_call(f"{ENGINES[engine]}_{name}", results, vmap_method="expand_dims")


@pytest.fixture(params=ENGINES)
def engine(request, monkeypatch):
    """Whose calls are made."""
    monkeypatch.setattr(accelerated, "_call", calls_of(request.param))


every_engine = pytest.mark.usefixtures("engine")

AFTER_A_CALL = """
import jax, numpy as np, fastsmc as fs
from fastsmc.integrations.jax import log_likelihood

net = fs.MLP((64, 32, 10))
value = jax.vmap(log_likelihood(net, np.ones((500, 64)), np.zeros(500, int)))
value(np.ones((8, net.num_params), np.float32)).block_until_ready()
assert np.array_equal(fs.systematic(np.full(70_001, 5e-324), 0.5), np.arange(70_001))
"""
RNG = np.random.default_rng(0)
WEIGHTS = RNG.random((3, 20)).astype(np.float32)

every_scheme = pytest.mark.parametrize("scheme", ops.SCHEMES)


@pytest.fixture(params=[False, True], ids=["float32", "float64"])
def dtype(request):
    """JAX's default, and what it has with 64 bits."""
    with jax.enable_x64(request.param):
        yield np.float64 if request.param else np.float32


def uniforms(scheme, lead, samples):
    return RNG.random((*lead, samples) if ops.SCHEMES[scheme] else lead)


def calls(function, *arguments):
    """Shapes of the operands of the custom calls that a function makes."""
    found = []

    def walk(jaxpr):
        for equation in jaxpr.eqns:
            if equation.primitive.name == "ffi_call":
                found.append([var.aval.shape for var in equation.invars])
            for value in equation.params.values():
                if hasattr(value, "jaxpr"):
                    walk(value.jaxpr)

    walk(jax.make_jaxpr(function)(*arguments).jaxpr)
    return found


@every_engine
@every_scheme
@pytest.mark.parametrize("samples", [7, 20, 50])
def test_ancestors_are_those_of_the_plain_function(scheme, samples, dtype):
    weights, u = WEIGHTS.astype(dtype), uniforms(scheme, (3,), samples).astype(dtype)
    expected = fs.resample(weights, u, scheme, log=False, num_samples=samples)
    call = jax.jit(lambda w, u: accelerated.resample(w, u, scheme, log=False, num_samples=samples))
    found = call(weights, u)
    assert found.dtype == (np.int64 if dtype == np.float64 else np.int32)
    assert np.array_equal(found, expected)
    logs = np.log(weights)
    assert np.array_equal(
        accelerated.resample(logs, u, scheme, num_samples=samples), fs.resample(logs, u, scheme, num_samples=samples)
    )


@every_engine
@every_scheme
def test_what_is_mapped_over_is_one_call(scheme):
    u = uniforms(scheme, (3,), 20).astype(np.float32)
    function = getattr(accelerated, scheme)
    both = jax.vmap(function)
    expected = fs.resample(WEIGHTS, u, scheme, log=False)
    assert np.array_equal(both(WEIGHTS, u), expected)
    assert calls(both, WEIGHTS, u) == [[WEIGHTS.shape, u.shape]]
    for axes, arrays in (((None, 0), (WEIGHTS[0], u)), ((0, None), (WEIGHTS, u[0]))):
        mapped = jax.vmap(function, axes)
        rows = [np.broadcast_to(a, b.shape) for a, b in zip(arrays, (WEIGHTS, u), strict=True)]
        assert np.array_equal(mapped(*arrays), fs.resample(*rows, scheme, log=False))
        assert len(calls(mapped, *arrays)) == 1
    nested = jax.vmap(jax.vmap(function, (None, 0)), (0, None))  # all pairs
    for i, j in np.ndindex(3, 3):
        assert np.array_equal(nested(WEIGHTS, u)[i, j], fs.resample(WEIGHTS[i], u[j], scheme, log=False))


@every_engine
def test_log_weights_are_normalised(dtype):
    log_weights = np.log(WEIGHTS).astype(dtype)
    expected = fs.normalize_log_weights(log_weights)
    for found in (
        jax.jit(accelerated.normalize_log_weights)(log_weights),
        jax.vmap(accelerated.normalize_log_weights)(log_weights),
    ):
        assert all(map(np.array_equal, found, expected))


@every_engine
@pytest.mark.parametrize("kind", ["categorical", "bernoulli", "gaussian", "poisson"])
def test_densities_and_gradients_are_as_exact_as_torch(kind, dtype):
    problem = Problem(fs.MLP((6, 5, 3), "tanh"), 4, 30, kind, seed=1)
    value = accelerated.log_likelihood(problem.net, problem.x, problem.y, problem.likelihood)
    theta = problem.theta.astype(dtype)
    found = jax.vmap(jax.value_and_grad(value))(theta)
    assert all(part.dtype == dtype for part in found)
    for ours, truth, plain in zip(found, problem.truth()[:2], problem.by_torch()[:2], strict=True):
        as_exact_as(plain, ours, truth)
    np.testing.assert_allclose(jax.vmap(value)(theta), found[0], rtol=1e-7)
    np.testing.assert_allclose(jax.jit(value)(theta[0]), found[0][0], rtol=1e-6)
    scaled = jax.grad(lambda t: 2.5 * value(t) + t.sum())(theta[0])
    np.testing.assert_allclose(scaled, 2.5 * found[1][0] + 1, rtol=1e-5, atol=1e-5)


@every_engine
def test_all_particles_are_one_call_on_data_that_are_not_replicated():
    problem = Problem(fs.MLP((6, 5, 3)), 4, 30, "categorical", seed=1)
    value = accelerated.log_likelihood(problem.net, problem.x, problem.y)
    shapes = [[(4, problem.net.num_params), (1, 30, 6), (1, 30)]]
    assert calls(jax.vmap(value), problem.theta) == shapes
    assert calls(jax.vmap(jax.value_and_grad(value)), problem.theta) == shapes
    nested = jnp.reshape(problem.theta, (2, 2, -1))
    assert np.array_equal(jax.vmap(jax.vmap(value))(nested).ravel(), jax.vmap(value)(problem.theta))


@every_engine
def test_subnormal_weights_are_weights():
    with jax.enable_x64(True):
        weights = np.full(70_001, 5e-324)
        found = jax.jit(lambda w: accelerated.resample(w, 0.5, log=False))(weights)
        assert np.array_equal(found, np.arange(70_001))


def test_threads_that_a_call_starts_are_as_others():
    """XLA flushes subnormal numbers to zero, and threads take that over from the one that starts them."""
    printed(AFTER_A_CALL)


@every_engine
def test_data_are_what_they_were():
    """JAX reads arrays when it comes to it, so what is written to them in the meantime must not matter."""
    rng = np.random.default_rng(0)
    net, theta = fs.MLP((100, 1)), rng.standard_normal((3, 101)).astype(np.float32)
    x, y = rng.standard_normal((3000, 100)).astype(np.float32), np.zeros((3000, 1), np.float32)

    def density(x):
        return jax.vmap(accelerated.log_likelihood(net, x, y, fs.likelihoods.Gaussian(1.0)))

    before = density(x)(theta)
    for _ in range(50):
        later = x.copy()
        value = density(later)
        later[:] = 0
        assert np.array_equal(value(theta), before)


@every_engine
def test_it_lives_in_loops():
    problem = Problem(fs.MLP((6, 5, 3)), 4, 30, "categorical", seed=1)
    value = accelerated.log_likelihood(problem.net, problem.x, problem.y)

    @jax.jit
    def climb(theta):
        step = jax.vmap(lambda t: t + 0.01 * jax.grad(value)(t))
        return jax.lax.fori_loop(0, 20, lambda _, t: step(t), theta)

    before, after = (jax.vmap(value)(theta) for theta in (problem.theta, climb(problem.theta)))
    assert np.all(after > before)


@pytest.mark.parametrize(
    ("call", "sentence"),
    [
        (lambda: accelerated.systematic(np.array([0.5, np.nan]), 0.5), "a weight is negative, infinite or NaN"),
        (lambda: accelerated.systematic(np.zeros(3), 0.5), "a row of weights has only zeros"),
        (lambda: accelerated.resample(np.full(3, -np.inf), 0.5), "a row of log weights has only -inf"),
        (lambda: accelerated.systematic(np.ones(3), 1.0), r"a uniform number is not in \[0, 1\)"),
    ],
)
def test_values_that_are_refused(call, sentence):
    with pytest.raises(jax.errors.JaxRuntimeError, match=f"fastsmc: {sentence}"):
        call().block_until_ready()


def test_bad_labels_are_refused():
    value = accelerated.log_likelihood(fs.MLP((2, 3)), np.zeros((4, 2)), np.array([0, 1, 3, 2]))
    with pytest.raises(
        jax.errors.JaxRuntimeError, match=r"fastsmc: a label is not in \[0, outputs\), the first at entry 2"
    ):
        value(jnp.zeros(9)).block_until_ready()


def test_the_twin_spoils_what_it_refuses(monkeypatch):
    if "cuda" not in ENGINES:
        pytest.skip("this package was built without the host twin of the CUDA engine")
    monkeypatch.setattr(accelerated, "_call", calls_of("cuda"))
    assert np.array_equal(accelerated.systematic(np.array([0.5, np.nan]), 0.5), [-1, -1])
    assert np.all(np.isnan(accelerated.normalize_log_weights(np.full(3, -np.inf)).weights))
    value = accelerated.log_likelihood(fs.MLP((2, 3)), np.zeros((4, 2)), np.array([0, 1, 3, 2]))
    found, grad = jax.value_and_grad(value)(jnp.zeros(9))
    assert np.isnan(found) and np.all(np.isnan(grad))
    large = fs.MLP((784, 100, 10))
    value = accelerated.log_likelihood(large, np.zeros((4, 784)), np.zeros(4, int))
    with pytest.raises(jax.errors.JaxRuntimeError, match="fastsmc: a block of the GPU has no room for this network"):
        value(jnp.zeros(large.num_params)).block_until_ready()


@pytest.mark.gpu
def test_a_gpu_computes_what_the_cpu_does():
    if not {"cuda", "gpu"} & {device.platform for device in jax.devices()}:
        pytest.skip("JAX has no GPU")
    if _jax_cuda is None or _jax_cuda.device() != "cuda":
        pytest.skip("this package was built without the custom calls for GPUs")
    gpu, rng = jax.devices()[0], np.random.default_rng(1)
    problem = Problem(fs.MLP((6, 5, 3), "tanh"), 4, 30, "categorical", seed=1)
    value = accelerated.log_likelihood(problem.net, problem.x, problem.y)
    found = jax.jit(jax.vmap(jax.value_and_grad(value)))(jax.device_put(problem.theta, gpu))
    for ours, truth, plain in zip(found, problem.truth()[:2], problem.by_torch()[:2], strict=True):
        as_exact_as(plain, np.asarray(ours), truth)
    for n in (20, 5000, 100_000):
        weights, u = rng.random(n, np.float32), np.float32(0.3)
        ancestors = jax.jit(accelerated.systematic)(*(jax.device_put(array, gpu) for array in (weights, u)))
        assert np.array_equal(ancestors, fs.systematic(weights, u))
        ours = jax.jit(accelerated.normalize_log_weights)(jax.device_put(np.log(weights), gpu))
        assert all(map(np.array_equal, ours, fs.normalize_log_weights(np.log(weights))))


@pytest.mark.parametrize(
    ("call", "error", "sentence"),
    [
        (
            lambda: accelerated.systematic(np.arange(3), 0.5),
            TypeError,
            "weights has dtype int32; it must be float32 or",
        ),
        (lambda: accelerated.resample(WEIGHTS, 0.5), ValueError, r"u has shape \(\); with weights of shape \(3, 20\)"),
        (lambda: accelerated.resample(WEIGHTS[0], 0.5, "best"), ValueError, "scheme is 'best'; it must be one of"),
        (
            lambda: accelerated.log_likelihood(fs.MLP((2, 3)), np.zeros((4, 2)), np.zeros(4, int))(jnp.zeros(8)),
            ValueError,
            r"particle has shape \(8,\); this network needs \(9,\)",
        ),
        (
            lambda: accelerated.log_likelihood(fs.MLP((2, 3)), np.zeros((4, 3)), np.zeros(4, int)),
            ValueError,
            r"x has shape \(4, 3\) and y \(4,\); this network needs \[B, 2\]",
        ),
        (
            lambda: accelerated.normalize_log_weights(jnp.zeros((3, 0))),
            ValueError,
            r"log_weights has shape \(3, 0\); it must have at least one dimension and one entry",
        ),
        (
            lambda: accelerated.systematic(jnp.zeros(0), 0.5, num_samples=4),
            ValueError,
            r"weights has shape \(0,\); it must have at least one dimension and one entry",
        ),
        (lambda: accelerated.systematic(WEIGHTS[0], 0.5, num_samples=0), ValueError, "num_samples is 0; it must be at"),
        (lambda: move(num_steps=0), ValueError, "num_steps is 0; it must be at least 1"),
        (lambda: move(particles=jnp.zeros((2, 4))), ValueError, r"this network needs \[P, 9\] with P >= 1"),
        (lambda: move(particles=jnp.zeros((0, 9))), ValueError, r"particles has shape \(0, 9\); this network needs"),
        (
            lambda: move(momentum=jnp.zeros((2, 4))),
            ValueError,
            r"momentum has shape \(2, 4\); it must have \(2, 9\)",
        ),
        (lambda: move(grad=jnp.zeros((1, 9))), ValueError, r"grad has shape \(1, 9\); it must have \(2, 9\)"),
        (lambda: move(scale=jnp.ones(3)), ValueError, r"scale has shape \(3,\); it must have \(9,\) or \(\)"),
        (lambda: move(step_size=jnp.ones(2)), ValueError, r"step_size has shape \(2,\); it must have \(\)"),
    ],
)
def test_shapes_and_types_that_are_refused(call, error, sentence):
    with pytest.raises(error, match=sentence):
        call()


SMALL = fs.MLP((2, 3))


def move(num_steps=1, **changes):
    """A trajectory of two particles."""
    state = dict.fromkeys(("particles", "momentum", "grad"), jnp.zeros((2, 9)))
    numbers = {"prior_precision": 1.0, "scale": 1.0, "step_size": 0.1, "likelihood_scale": 1.0}
    run = accelerated.trajectory(SMALL, np.zeros((4, 2)), np.zeros(4, int), num_steps)
    return run(**{**state, **numbers, **changes})


def misshapen_calls():
    """Names of calls, what they return, operands that they refuse, and attributes."""
    network = {
        "layers": SMALL.layer_table.ravel(),
        "likelihood": np.int64(0),
        "noise": np.float64(1),
        "precision": np.int64(0),
        "density": np.int64(0),
    }
    plan = {"scheme": np.int64(0), "log": np.int64(1)}
    x, y, rows, one = jnp.zeros((4, 2)), jnp.zeros(4, int), jnp.zeros(9), jnp.zeros(())
    yield "normalize_log_weights", ((0,), (), ()), (jnp.zeros(0),), {}
    yield "normalize_log_weights", ((4,), (3,), ()), (jnp.zeros(4),), {}
    yield "resample", ((4,),), (jnp.zeros(0), one), plan
    yield "resample", ((4,),), (jnp.zeros((2, 4)), one), plan
    yield "log_likelihood", ((),), (jnp.zeros(8), x, y), network
    yield "log_likelihood", ((3,),), (jnp.zeros((2, 9)), x[None], y[None]), network
    yield "log_likelihood", ((),), (rows, x[:, :1], y), network
    yield "log_likelihood", ((),), (rows, x, y[:3]), network
    yield "log_likelihood_and_grad", ((), (8,)), (rows, x, y), network
    state, steps = jnp.zeros((2, 9)), {**network, "steps": np.int64(1)}
    for p, v, of_each, size, count in (
        (state[:, :4], state, (2,), one, 1),
        (state, state[:1], (2,), one, 1),
        (state, state, (1,), one, 1),
        (state, state, (2,), jnp.zeros(2), 1),
        (state, state, (2,), one, 0),
    ):
        results = (*[(2, 9)] * 3, *[of_each] * 3)
        yield "trajectory", results, (p, v, state, x, y, rows, rows, size, one), {**steps, "steps": np.int64(count)}


@pytest.mark.parametrize("of", ENGINES)
def test_calls_refuse_shapes_by_themselves(of):
    for name, shapes, operands, attributes in misshapen_calls():
        if name == "trajectory" and of != "cpu":
            continue
        dtype = jnp.int32 if name == "resample" else jnp.float32
        results = [jax.ShapeDtypeStruct(shape, dtype) for shape in shapes]
        with pytest.raises(jax.errors.JaxRuntimeError, match="fastsmc: "):
            jax.block_until_ready(calls_of(of)(name, results)(*operands, **attributes))
