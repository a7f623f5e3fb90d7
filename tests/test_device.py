"""The sampler and the plain functions on arrays of a device: a GPU, or the host under Triton's interpreter."""

from contextlib import nullcontext, suppress

import numpy as np
import pytest
from problems import fewer_interpreted

import fastsmc as fs
from fastsmc import arrays, backends, sources
from fastsmc.batches import Data
from fastsmc.cloud import Cloud

torch = pytest.importorskip("torch")
engine = pytest.importorskip("fastsmc.kernels.engine")

pytestmark = [pytest.mark.triton] + [pytest.mark.gpu] * (not backends.INTERPRETED)


@pytest.fixture
def device(unmirrored, present):
    """Where Triton's kernels run here."""
    return backends.BACKENDS[present("triton")].device


@pytest.fixture
def tensor(device):
    return lambda array: torch.as_tensor(np.asarray(array), device=device)


@pytest.fixture
def problem():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(40, 3)).astype(np.float32)
    y = (x[:, 0] > 0).astype(np.int64)
    return fs.Posterior(fs.MLP([3, 4, 2], "tanh"), fs.Normal(1.0)), x, y


MOVES = {
    "hmc": fs.HMC(2, step_size=0.05),
    "mala": fs.MALA(step_size=0.05),
    "langevin": fs.Langevin(step_size=0.02),
    "walk": fs.RandomWalk(step_size=0.02),
    "kinetic": fs.KineticLangevin(2, step_size=0.05, precondition=True),
    "sghmc": fs.SGHMC(batch_size=10, num_steps=2, step_size=0.05),
    "weighted sghmc": fs.SGHMC(batch_size=10, num_steps=2, step_size=0.02, weighted=True),
}
SCHEMES = {
    "full": fs.FullBatch(),
    "mini": fs.MiniBatch(16),
    "data": fs.DataAnnealing(start=10),
    "smooth": fs.SmoothDataAnnealing(start=10, likelihood_scale="full"),
    "adaptive": fs.AdaptiveDataAnnealing(start=10),
    "tempering": fs.LikelihoodTempering(),
}


def places(device):
    return {"backend": "triton", "device": device}, {"backend": "cpu", "device": "cpu"}


def sample(problem, annealing, move, where, **options):
    posterior, x, y = problem
    smc = fs.SMC(posterior, 6, annealing, move, 4, ess_threshold=1.0, seed=1, **where, **options)
    return smc.run(x, y, progress=False)


def assert_same_run(ours, theirs):
    """Up to float32: a decision that a rounding error turns would show at once."""
    particles, log_weights = (arrays.on_host(getattr(ours, name), name) for name in ("particles", "log_weights"))
    np.testing.assert_allclose(particles, theirs.particles, atol=2e-4, rtol=1e-3)
    np.testing.assert_allclose(log_weights, theirs.log_weights, atol=1e-3)
    for column in ("ess", "distinct_ancestors", "distinct_roots", "batch_size", "temperature", "log_evidence"):
        np.testing.assert_allclose(ours.history[column], theirs.history[column], rtol=1e-3, atol=1e-3, err_msg=column)


@fewer_interpreted(["move"], MOVES, kept=lambda move: move not in ("hmc", "mala"))
def test_every_move_goes_the_same_way_as_on_the_cpu(device, problem, move):
    runs = [sample(problem, fs.DataAnnealing(start=20), MOVES[move], where) for where in places(device)]
    assert_same_run(*runs)


@fewer_interpreted(["scheme"], SCHEMES, kept=lambda scheme: scheme in ("smooth", "adaptive"))
def test_every_scheme_goes_the_same_way_as_on_the_cpu(device, problem, scheme):
    runs = [sample(problem, SCHEMES[scheme], MOVES["hmc"], where) for where in places(device)]
    assert_same_run(*runs)


@pytest.mark.parametrize("options", [{"waste_free": 3}, {"resampling": "residual"}, {"resampling": "multinomial"}])
def test_variants_go_the_same_way_as_on_the_cpu(device, problem, options):
    runs = [sample(problem, SCHEMES["tempering"], MOVES["hmc"], where, **options) for where in places(device)]
    assert_same_run(*runs)


def test_persistent_sampling_goes_the_same_way_as_on_the_cpu(device, problem):
    posterior, x, y = problem
    runs = [
        fs.PersistentSMC(posterior, 6, MOVES["hmc"], 3, seed=1, **where).run(x, y, progress=False)
        for where in places(device)
    ]
    assert_same_run(*runs)


def test_maps_weights_and_starts_go_the_same_way_as_on_the_cpu(device, problem, tmp_path, monkeypatch):
    posterior, x, y = problem
    x.tofile(tmp_path / "x.bin")
    mapped, weights = np.memmap(tmp_path / "x.bin", np.float32, "r", shape=x.shape)[:18], np.linspace(0, 2, 18)
    earlier = fs.SMC(posterior, 3, fs.FullBatch(), MOVES["mala"], 1).run(x[:9], y[:9], weights=weights[:9])
    monkeypatch.setattr(sources, "BLOCK", 9 * 4 * 3)
    runs = []
    for where in places(device):
        smc = fs.SMC(posterior, 3, fs.FullBatch(), MOVES["mala"], 1, seed=1, **where)
        runs.append(smc.run(mapped, y[:18], weights=weights, initial=earlier, progress=False))
    assert_same_run(*runs)
    networks = fs.WarmStart(np.zeros((1, posterior.num_params)), spread=0.5)
    ours, theirs = (networks.particles(posterior.on(**where), range(3), 0) for where in places(device))
    np.testing.assert_allclose(arrays.on_host(ours, "particles"), theirs, atol=1e-6)


def test_rows_of_a_run_are_on_the_device_and_columns_on_the_host(device, problem):
    posterior, x, y = problem
    posterior = posterior.on("triton", device)
    data, cloud = Data(x, y, posterior, 0), Cloud.from_prior(posterior, 4, 0, with_grad=True)
    for rows in (data.x, data.y, cloud.particles, cloud.grad):
        assert isinstance(rows, torch.Tensor)
        assert rows.device.type == device
    for column in (cloud.log_prior, cloud.log_weights, cloud.roots):
        assert isinstance(column, np.ndarray)


def test_what_a_run_leaves_predicts_and_is_saved(device, problem, tmp_path, tensor):
    posterior, x, y = problem
    result = fs.SMC(posterior, 6, fs.FullBatch(), MOVES["hmc"], 2, backend="triton").run(tensor(x), tensor(y))
    assert isinstance(result.particles, torch.Tensor)
    assert result.particles.device.type == device
    proba = result.predict_proba(tensor(x))
    assert isinstance(proba, torch.Tensor)
    assert proba.device.type == device
    result.save(tmp_path / "run.safetensors")
    loaded = fs.load(tmp_path / "run.safetensors")
    np.testing.assert_allclose(arrays.on_host(proba, "proba"), loaded.predict_proba(x), rtol=1e-4, atol=1e-6)
    assert result.evaluate(tensor(x), tensor(y)) == pytest.approx(loaded.evaluate(x, y), rel=1e-3)


class Elsewhere(torch.Tensor):
    """A tensor of a second card."""

    device, is_cuda = torch.device("cuda:1"), True

    def get_device(self):
        return 1


@pytest.mark.parametrize("current", [0, 1])
def test_every_op_launches_on_the_device_of_its_tensors(monkeypatch, current):
    entered = []
    monkeypatch.setattr(torch.cuda, "current_device", lambda: current)
    monkeypatch.setattr(torch.cuda, "device", lambda device: entered.append(str(device)) or nullcontext())
    ops, there = set(engine.__all__) - {"precision_in_use", "schemes"}, torch.zeros(1).as_subclass(Elsewhere)
    for op in ops:
        with suppress(TypeError):  # the other arguments are missing
            getattr(engine, op)(there)
    assert entered == (["cuda:1"] * len(ops) if current == 0 else [])


def test_plain_functions_give_tensors_where_theirs_are(device, tensor):
    log_weights = np.random.default_rng(1).standard_normal(9)
    result = fs.normalize_log_weights(tensor(log_weights), backend="triton")
    assert all(isinstance(part, torch.Tensor) and part.device.type == device for part in result)
    ancestors = fs.systematic(result.weights, 0.3, backend="triton")
    assert ancestors.dtype == torch.int64
    particles = tensor(np.arange(18.0).reshape(9, 2))
    permuted = fs.permute_ancestors(ancestors, backend="triton")
    expected = particles[permuted].clone()
    assert fs.gather_particles(particles, permuted, out=particles, backend="triton") is particles
    assert torch.equal(particles, expected)
    assert torch.equal(
        fs.offspring(ancestors, 9, backend="triton"), torch.bincount(ancestors.cpu(), minlength=9).to(device)
    )


def test_bad_values_are_found_unless_nobody_waits_for_them(device, tensor):
    bad = tensor([0.5, float("nan"), 1.0])
    with pytest.raises(ValueError, match=r"weights\[1\] is nan"):
        fs.systematic(bad, 0.5, backend="triton")
    fs.systematic(bad, 0.5, backend="triton", check=False)
    posterior = fs.Posterior(fs.MLP([3, 4, 2]))
    particles, x = tensor(np.zeros((2, 26), np.float32)), tensor(np.zeros((5, 3), np.float32))
    labels = tensor([0, 1, 2, 1, 0])
    with pytest.raises(ValueError, match=r"y\[2\] is 2; labels must lie in \[0, 2\)"):
        posterior.on("triton").log_likelihood(particles, x, labels)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")
def test_arrays_on_different_devices_are_refused(device, tensor):
    with pytest.raises(ValueError, match="u is on cpu; it must be on cuda:0, as the other arrays are"):
        fs.systematic(tensor(np.ones(3)), np.array(0.5))


def test_a_device_that_is_not_there_is_refused(problem):
    with pytest.raises(ValueError, match="device is 'xpu', but no backend reads arrays on xpu"):
        fs.SMC(problem[0], device="xpu")
