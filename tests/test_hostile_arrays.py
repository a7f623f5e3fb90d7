"""What is refused, with one sentence that names the argument, the value found and what would be right."""

import json

import numpy as np
import pytest
from foreign import Exchanged

import fastsmc as fs
from fastsmc import backends

NAN, INF = np.nan, np.inf
W = np.array([1.0, 2.0, 3.0])
A = np.array([0, 0, 2])
P = np.zeros((3, 2))


def read_only():
    array = np.zeros((3, 2))
    array.flags.writeable = False
    return array


def long_row():
    return np.broadcast_to(np.float32(1), 2**31)


# (what is called, the exception, parts of its sentence)
REFUSED = [
    (
        lambda **b: fs.systematic([1.0, NAN], 0.5, **b),
        ValueError,
        "weights[1] is nan; weights must be non-negative",
    ),
    (
        lambda **b: fs.systematic([-1.0, 1.0], 0.5, **b),
        ValueError,
        "weights[0] is -1.0; weights must be non-negative",
    ),
    (lambda **b: fs.systematic([1.0, INF], 0.5, **b), ValueError, "weights[1] is inf; weights must be"),
    (
        lambda **b: fs.systematic(np.zeros(3), 0.5, **b),
        ValueError,
        "weights has only zeros; weights must have",
    ),
    (
        lambda **b: fs.systematic(np.array([[1.0], [-0.0]]), [0.5, 0.5], **b),
        ValueError,
        "weights[1] has only zeros",
    ),
    (
        lambda **b: fs.multinomial(np.array([W, [1, 2, NAN]]), np.zeros((2, 4)), **b),
        ValueError,
        "weights[1, 2] is nan",
    ),
    (lambda **b: fs.systematic([], 0.5, **b), ValueError, "weights has shape (0,)"),
    (lambda **b: fs.systematic(np.ones((2, 0)), [0.5, 0.5], **b), ValueError, "weights has shape (2, 0)"),
    (lambda **b: fs.systematic(1.0, 0.5, **b), ValueError, "weights has shape ()"),
    (lambda **b: fs.systematic(long_row(), 0.5, **b), ValueError, "fewer than 2^31"),
    (
        lambda **b: fs.systematic([1, 2], 0.5, **b),
        TypeError,
        "weights has dtype int64; it must be float32 or float64",
    ),
    (lambda **b: fs.systematic(W.astype(np.float16), 0.5, **b), TypeError, "weights has dtype float16"),
    (lambda **b: fs.systematic(W.astype(np.complex128), 0.5, **b), TypeError, "weights has dtype complex128"),
    (lambda **b: fs.systematic(W.astype(object), 0.5, **b), TypeError, "weights has dtype object"),
    (lambda **b: fs.systematic(W.astype(">f8"), 0.5, **b), TypeError, "weights has dtype >f8"),
    (lambda **b: fs.systematic(["a"], 0.5, **b), TypeError, "weights has dtype"),
    (lambda **b: fs.systematic(W, 1.0, **b), ValueError, "u is 1.0; it must lie in [0, 1)"),
    (lambda **b: fs.systematic(W, -1e-9, **b), ValueError, "u is -1e-09; it must lie in [0, 1)"),
    (lambda **b: fs.systematic(W, NAN, **b), ValueError, "u is nan; it must lie in [0, 1)"),
    (lambda **b: fs.stratified(W, [0.1, 1.5], **b), ValueError, "u[1] is 1.5; it must lie in [0, 1)"),
    (lambda **b: fs.residual(W, [0.1, 0.2, INF], **b), ValueError, "u[2] is inf"),
    (lambda **b: fs.systematic(W, [0.5], **b), ValueError, "u has shape (1,); systematic needs ()"),
    (
        lambda **b: fs.systematic(np.ones((2, 3)), 0.5, **b),
        ValueError,
        "u has shape (); systematic needs (2,)",
    ),
    (lambda **b: fs.stratified(W, 0.5, **b), ValueError, "u has shape (); stratified needs (M,) with M >= 1"),
    (lambda **b: fs.multinomial(np.ones((2, 3)), [0.5], **b), ValueError, "multinomial needs (2, M)"),
    (
        lambda **b: fs.multinomial(W, np.array([], float), **b),
        ValueError,
        "multinomial needs (M,) with M >= 1",
    ),
    (lambda **b: fs.systematic(W, np.float16(0.5), **b), TypeError, "u has dtype float16"),
    (lambda **b: fs.systematic(W, 0.5, 0, **b), ValueError, "num_samples is 0; it must be at least 1"),
    (lambda **b: fs.systematic(W, 0.5, 2**31, **b), ValueError, "less than 2^31"),
    (lambda **b: fs.systematic(W, 0.5, 2.5, **b), TypeError, "num_samples is 2.5; it must be an integer"),
    (
        lambda **b: fs.residual(W, [0.5, 0.5], 3, **b),
        ValueError,
        "num_samples is 3, but the rows of u have 2 numbers",
    ),
    (
        lambda **b: fs.resample(W, 0.5, "best", **b),
        ValueError,
        "scheme is 'best'; it must be one of 'systematic', ",
    ),
    (
        lambda **b: fs.resample([NAN, 0.0], 0.5, **b),
        ValueError,
        "log_weights[0] is nan; log weights must be numbers",
    ),
    (lambda **b: fs.resample([0.0, INF], 0.5, **b), ValueError, "log_weights[1] is inf"),
    (lambda **b: fs.resample([-INF, -INF], 0.5, **b), ValueError, "log_weights has only -inf; at least one"),
    (lambda **b: fs.normalize_log_weights([NAN], **b), ValueError, "log_weights[0] is nan"),
    (lambda **b: fs.normalize_log_weights([INF, 0.0], **b), ValueError, "log_weights[0] is inf"),
    (lambda **b: fs.normalize_log_weights([[0.0], [-INF]], **b), ValueError, "log_weights[1] has only -inf"),
    (lambda **b: fs.normalize_log_weights([], **b), ValueError, "log_weights has shape (0,)"),
    (lambda **b: fs.normalize_log_weights([1], **b), TypeError, "log_weights has dtype int64"),
    (lambda **b: fs.offspring([0, 3], 3, **b), ValueError, "a[1] is 3; ancestors must lie in [0, 3)"),
    (
        lambda **b: fs.offspring([[0], [-1]], 3, **b),
        ValueError,
        "a[1, 0] is -1; ancestors must lie in [0, 3)",
    ),
    (lambda **b: fs.offspring([0.5], 3, **b), TypeError, "a has dtype float64; it must be an integer type"),
    (lambda **b: fs.offspring([True], 3, **b), TypeError, "a has dtype bool"),
    (lambda **b: fs.offspring([0], 0, **b), ValueError, "num_particles is 0; it must be at least 1"),
    (lambda **b: fs.adaptive_resample([NAN, 0.0], 0.5, **b), ValueError, "log_weights[0] is nan"),
    (lambda **b: fs.adaptive_resample([-INF], 0.5, **b), ValueError, "log_weights has only -inf"),
    (lambda **b: fs.adaptive_resample([0.0, 1.0], 1.0, **b), ValueError, "u is 1.0; it must lie in [0, 1)"),
    (lambda **b: fs.adaptive_resample([0.0, 1.0], [0.5], **b), ValueError, "u has shape (1,); systematic needs ()"),
    (
        lambda **b: fs.adaptive_resample([0.0, 1.0], [0.5], scheme="residual", **b),
        ValueError,
        "u has shape (1,); residual needs (2,)",
    ),
    (
        lambda **b: fs.adaptive_resample([0.0, 1.0], 0.5, threshold=NAN, **b),
        ValueError,
        "threshold is nan; it must be 0 or a positive number",
    ),
    (lambda **b: fs.adaptive_resample([0.0], 0.5, scheme="soft", **b), ValueError, "scheme is 'soft'"),
    (lambda **b: fs.permute_ancestors([0, 2], **b), ValueError, "a[1] is 2; ancestors must lie in [0, 2)"),
    (lambda **b: fs.permute_ancestors(np.zeros(0, int), **b), ValueError, "a has shape (0,)"),
    (lambda **b: fs.gather_particles(P, [3], **b), ValueError, "a[0] is 3; ancestors must lie in [0, 3)"),
    (
        lambda **b: fs.gather_particles(P, np.zeros((2, 2), int), **b),
        ValueError,
        "a has shape (2, 2); it must be [M]",
    ),
    (lambda **b: fs.gather_particles(1.0, A, **b), ValueError, "particles have shape ()"),
    (lambda **b: fs.gather_particles(np.array([{}] * 3), A, **b), TypeError, "particles hold Python objects"),
    (lambda **b: fs.gather_particles(P, A, np.zeros((3, 1)), **b), ValueError, "out has shape (3, 1)"),
    (
        lambda **b: fs.gather_particles(P, A, np.zeros((3, 2), "f4"), **b),
        ValueError,
        "dtype float32; it must have",
    ),
    (
        lambda **b: fs.gather_particles(P, A, read_only(), **b),
        ValueError,
        "out is read-only; it must be writeable",
    ),
    (
        lambda **b: fs.gather_particles(P, A, np.zeros((2, 3)).T, **b),
        ValueError,
        "out is not a C-contiguous array",
    ),
    (
        lambda **b: fs.gather_particles(P, A, [[0.0] * 2] * 3, **b),
        ValueError,
        "out is not a C-contiguous array",
    ),
    (
        lambda **b: fs.gather_particles((P, P), A, P, **b),
        ValueError,
        "out must be a tuple or list of 2 arrays",
    ),
    (
        lambda **b: fs.gather_particles(P, [1, 0, 2], P, **b),
        ValueError,
        "permute_ancestors(a) can go in place",
    ),
]


@pytest.mark.parametrize(("call", "error", "sentence"), REFUSED, ids=range(len(REFUSED)))
def test_refused_in_one_sentence(backend, call, error, sentence):
    with pytest.raises(error) as raised:
        call(backend=backend)
    assert sentence in str(raised.value)
    assert "\n" not in str(raised.value)


def test_in_place_needs_as_many_ancestors_as_particles(backend):
    state = np.zeros(6)
    with pytest.raises(ValueError, match="a has 2 entries; to gather in place there must be one for each of 3"):
        fs.gather_particles(state[:3], [0, 1], state[:2], backend=backend)
    with pytest.raises(ValueError, match="out overlaps particles"):
        fs.gather_particles(state[:3], [0, 1, 2], state[1:4], backend=backend)


def test_ancestors_are_not_where_particles_go(backend):
    memory, state = np.zeros(9, np.int64), np.full(8, 10**15)
    with pytest.raises(ValueError, match="a overlaps out; each must have memory of its own"):
        fs.gather_particles(state, memory[:8], memory[1:], backend=backend)


def test_a_refused_gather_writes_nothing(backend):
    out = np.full((3, 2), 7.0)
    with pytest.raises(ValueError, match="ancestors must lie"):
        fs.gather_particles(P, [0, 1, -1], out, backend=backend)
    assert np.array_equal(out, np.full((3, 2), 7.0))


def test_a_bad_entry_is_found_wherever_it_stands(backend):
    for n in (1, 8, 9, 1030, 16390, 40_000):
        for i in {0, n // 2, n - 1}:
            weights = np.ones(n, np.float32)
            weights[i] = -1
            with pytest.raises(ValueError, match=rf"weights\[{i}\] is -1.0"):
                fs.systematic(weights, 0.5, backend=backend)
            u = np.full(n, 0.5)
            u[[i, n - 1]] = 1.5
            with pytest.raises(ValueError, match=rf"u\[{i}\] is 1.5; it must lie in"):
                fs.resample(np.ones(n), u, "multinomial", False, backend=backend)


def test_backends_are_refused_with_their_reason(monkeypatch):
    with pytest.raises(ValueError, match="backend is 'gpu'; it must be one of 'reference', 'cpu', 'triton', 'cuda'"):
        fs.systematic(W, 0.5, backend="gpu")
    backends._choose.cache_clear()
    monkeypatch.setitem(backends.BACKENDS, "cuda", backends.Backend("cuda", "cuda", None, "there is no nvcc"))
    with pytest.raises(ValueError, match="backend is 'cuda', but there is no nvcc; available here: 'reference', 'cpu'"):
        fs.systematic(W, 0.5, backend="cuda")
    backends._choose.cache_clear()
    monkeypatch.setenv("FASTSMC_BACKEND", "gpu")
    with pytest.raises(ValueError, match="FASTSMC_BACKEND is 'gpu'"):
        fs.systematic(W, 0.5)
    backends._choose.cache_clear()
    monkeypatch.setenv("FASTSMC_BACKEND", "reference")
    assert backends.choose().ops.__name__ == "fastsmc.reference"
    backends._choose.cache_clear()


def test_a_device_that_no_engine_reads_is_named():
    torch = pytest.importorskip("torch")
    with pytest.raises(ValueError, match="no backend reads arrays on meta: no backend of this version serves meta"):
        fs.systematic(torch.ones(3, device="meta"), 0.5)
    with pytest.raises(ValueError, match="u is on meta; it must be on the cpu, as the other arrays are"):
        fs.systematic(torch.ones(3), torch.ones((), device="meta"))
    with pytest.raises(ValueError, match="backend is 'cpu', which reads arrays on cpu, not on meta"):
        fs.systematic(torch.ones(3, device="meta"), 0.5, backend="cpu")


@pytest.mark.skipif(backends.BACKENDS["triton"].available()[0], reason="there is one")
def test_without_a_device_the_reasons_are_given():
    with pytest.raises(ValueError, match="no backend reads arrays on cuda:0: triton: torch finds no CUDA device"):
        backends.choose(None, "cuda:0")


def test_strides_and_read_only_inputs_are_read(backend):
    wide = np.arange(1.0, 13.0).reshape(3, 4)
    for strided in (wide[:, 1], wide[::-1, 0], wide.T[0]):
        strided.flags.writeable = False
        plain = fs.systematic(strided.copy(), 0.5, 9, backend=backend)
        assert np.array_equal(fs.systematic(strided, 0.5, 9, backend=backend), plain)
    raw = bytearray(8 * 3 + 1)
    unaligned = np.frombuffer(raw, np.float64, 3, offset=1)
    unaligned[:] = W
    assert np.array_equal(fs.systematic(unaligned, 0.5, backend=backend), fs.systematic(W, 0.5, backend=backend))


def test_integers_of_every_width_are_ancestors(backend):
    for dtype in "bBhHiIlL":
        assert np.array_equal(fs.offspring(A.astype(dtype), 3, backend=backend), [2, 0, 1])


def test_torch_tensors_come_back_as_torch_tensors(backend):
    torch = pytest.importorskip("torch")
    weights = torch.tensor([1.0, 2.0, 3.0], requires_grad=True)
    ancestors = fs.systematic(weights, torch.tensor(0.5), 6, backend=backend)
    assert torch.equal(ancestors, torch.tensor([0, 1, 1, 2, 2, 2]))
    result = fs.normalize_log_weights(weights.double(), backend=backend)
    assert all(isinstance(part, torch.Tensor) and part.dtype == torch.float64 for part in result)
    assert result.ess.shape == ()
    state = torch.arange(6, dtype=torch.bfloat16).reshape(3, 2)
    pick = torch.tensor([2, 2, 0])
    assert torch.equal(fs.gather_particles(state, pick, backend=backend), state[pick])
    out = torch.zeros(3, 2)
    particles = torch.rand(3, 2)
    assert fs.gather_particles(particles, pick, out, backend=backend) is out
    assert torch.equal(out, particles[pick])
    with pytest.raises(TypeError, match=r"weights has dtype torch.bfloat16; it must be float32 or float64"):
        fs.systematic(state[0], 0.5, backend=backend)
    with pytest.raises(ValueError, match="out is not a C-contiguous array"):
        fs.gather_particles(particles, pick, torch.zeros(2, 3).T, backend=backend)


class Foreign(Exchanged):
    """An array with an array namespace."""

    def __array_namespace__(self):
        class Namespace:
            asarray = Foreign

        return Namespace


def test_arrays_of_other_libraries_come_back_as_their_own(backend):
    ancestors = fs.systematic(Foreign(W), Foreign(0.5), 6, backend=backend)
    assert isinstance(ancestors, Foreign)
    assert json.dumps(ancestors.array.tolist()) == "[0, 1, 1, 2, 2, 2]"


def test_unsupported_extension_calls_do_not_reach_memory():
    """The extension refuses what fastsmc.ops would have refused, rather than reading beyond an array."""
    cpu = backends.choose("cpu").ops
    out = np.zeros(3, np.int64)
    for bad in [
        lambda: cpu.resample("systematic", False, W.astype(int), np.array(0.5), out),
        lambda: cpu.resample("systematic", False, np.ones(6)[::2], np.array(0.5), out),
        lambda: cpu.resample("multinomial", False, W, np.zeros(2), out),
        lambda: cpu.offspring(A, np.zeros(3)),
        lambda: cpu.permute_ancestors(A, np.zeros(2, np.int64)),
        lambda: cpu.gather_particles(P, A, np.zeros(5)),
        lambda: cpu.normalize_log_weights(W, np.zeros(2), np.zeros(()), np.zeros(())),
    ]:
        with pytest.raises(TypeError):
            bad()
    with pytest.raises(ValueError, match="unknown scheme"):
        cpu.resample("best", False, W, np.array(0.5), out)
