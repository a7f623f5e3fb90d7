"""Faults that are injected: the run goes on, or ends with one sentence and its last good state."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from processes import printed
from small_runs import data_of, posterior_of, sampler
from torch import nn

import fastsmc as fs
from fastsmc.checkpoint import LAST, RUN
from fastsmc.modules import TorchNetwork

linux = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="limits of Linux")


@pytest.mark.parametrize("place", ["x", "y"])
def test_data_with_nan_end_the_run_in_a_sentence(place):
    x, y = data_of("gaussian")
    {"x": x, "y": y}[place][7, 1] = np.nan
    with pytest.raises((ValueError, fs.DegenerateError), match=r"NaN|finite"):
        sampler("gaussian").run(x, y, progress=False)


DIVERGING = {
    "HMC": fs.HMC(3, step_size=1e3),
    "kinetic Langevin": fs.KineticLangevin(num_steps=2, step_size=1e3),
    "MALA": fs.MALA(num_moves=2, step_size=1e20),
    "random walk": fs.RandomWalk(step_size=1e30),
}


@pytest.mark.parametrize("move", DIVERGING)
def test_a_step_that_is_far_too_long_moves_nothing_and_the_result_says_so(move):
    result = sampler(move=DIVERGING[move]).run(*data_of(), progress=False)
    assert np.isfinite(result.particles).all() and np.isfinite(result.log_weights).all()
    assert any("the step size was too large there" in sentence for sentence in result.warnings)


def test_a_step_that_diverges_without_a_test_leaves_the_last_good_state():
    class Diverging(fs.Langevin):
        def __call__(self, cloud, data, target, step_size, draw):
            return super().__call__(cloud, data, target, 1e-3 if draw.iteration < 3 else 1e30, draw)

    with pytest.raises(fs.DegenerateError, match="the step size may be too large") as raised:
        sampler(move=Diverging(step_size=1.0)).run(*data_of(), progress=False)
    result = raised.value.result
    assert len(result.history) == 3
    assert np.isfinite(result.particles).all()


def test_stochastic_gradients_keep_their_step_within_what_is_stable():
    move = fs.SGHMC(num_steps=3, batch_size=5, step_size=1e15)
    result = sampler(move=move).run(*data_of(), progress=False)
    assert np.isfinite(result.particles).all() and np.isfinite(result.log_weights).all()


def residual():
    torch.manual_seed(0)
    net = fs.from_torch(nn.Sequential(nn.Linear(2, 8), nn.LayerNorm(8), nn.Tanh(), nn.Linear(8, 3)))
    return fs.Posterior(net, fs.Normal(0.5))


def host_error(pairs):
    return RuntimeError(f"DefaultCPUAllocator: can't allocate memory: you tried to allocate {64 * pairs} bytes.")


class Memory:
    """Room for so many samples in one call of a module; more raise an error."""

    def __init__(self, monkeypatch, samples, error=host_error):
        self.served, self.refused, call = [], [], TorchNetwork.call

        def limited(network, tensors, x):
            (self.refused if len(x) > samples else self.served).append(len(x))
            if len(x) > samples:
                raise error(len(x))
            return call(network, tensors, x)

        monkeypatch.setattr(TorchNetwork, "call", limited)


@pytest.mark.parametrize("error", [host_error, lambda _: MemoryError(), lambda _: torch.OutOfMemoryError("CUDA")])
def test_torch_goes_on_by_smaller_blocks_where_memory_is_short(monkeypatch, error):
    post, (x, y) = residual(), data_of(samples=12)
    theta = post.sample_prior(3)
    whole = (*post.log_likelihood_and_grad(theta, x, y), post.outputs(theta, x))
    memory, short = Memory(monkeypatch, 5, error), residual()
    for again in (False, True):
        tried = len(memory.refused)
        parts = (*short.log_likelihood_and_grad(theta, x, y), short.outputs(theta, x))
        assert all(np.allclose(part, all_of_it, atol=1e-4) for part, all_of_it in zip(parts, whole, strict=True))
        assert (len(memory.refused) == tried) is again  # what did not fit is not tried again
    assert max(memory.served) <= 5


def test_torch_without_memory_for_one_sample_says_so(monkeypatch):
    post, (x, y) = residual(), data_of()
    theta = post.sample_prior(6)
    post.log_likelihood(theta, x, y)  # which measures what a sample takes
    Memory(monkeypatch, 0)
    with pytest.raises(MemoryError, match=r"does not suffice for one sample of one particle, with [0-9,]+ bytes"):
        post.log_likelihood(theta, x, y)


def test_errors_of_a_module_that_are_not_of_memory_are_its_own(monkeypatch):
    post, (x, y) = residual(), data_of()
    Memory(monkeypatch, 5, lambda _: RuntimeError("shapes do not fit"))
    with pytest.raises(RuntimeError, match="shapes do not fit"):
        post.log_likelihood(post.sample_prior(6), x, y)


def test_a_run_without_memory_leaves_its_last_state(tmp_path):
    def full(result):
        if len(result.history) == 3:
            raise MemoryError("all is full")

    whole = sampler().run(*data_of(), progress=False)
    with pytest.raises(MemoryError, match="all is full"):
        sampler().run(*data_of(), False, tmp_path, full)
    assert len(fs.load(tmp_path / LAST).history) == 3
    assert np.array_equal(fs.resume(tmp_path, progress=False).particles, whole.particles)


LIMITED = """
import resource
def leave(bytes):
    used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + bytes, resource.RLIM_INFINITY))
"""

NO_SCRATCH = (
    LIMITED
    + """
import numpy as np
import fastsmc as fs
from fastsmc import ops
net, rng = fs.MLP([2, 3000, 3000, 2]), np.random.default_rng(0)
theta = np.ones((1, net.num_params), np.float32)
x, y, grad = np.ones((64, 2), np.float32), np.zeros(64, int), np.empty_like(theta)
weights, u = np.ones(4_000_000), rng.random(4_000_000)
ancestors = np.empty(u.shape, int)
from fastsmc import _cpu
def evaluate(): return _cpu.log_likelihood(net.layer_table, 0, 1.0, 0, theta, x, y, None, np.empty(1), grad)
def resample(): return _cpu.resample("multinomial", False, weights, u, ancestors)
for work in (evaluate, resample):
    leave(1 << 20)
    try:
        work()
    except MemoryError as error:
        print(error)
    leave(1 << 31)
    print(work())
"""
)


@linux
@pytest.mark.large
@pytest.mark.parametrize("threads", ["1", "2"])
def test_the_engine_without_memory_for_its_scratch_says_so_and_goes_on(threads):
    sentence = "there is not enough memory for what the engine keeps during a call"
    assert printed(NO_SCRATCH, OMP_NUM_THREADS=threads).splitlines() == [sentence, "None"] * 2


NO_THREADS = (
    LIMITED
    + """
import sys
import numpy as np
import fastsmc as fs
post = fs.Posterior(fs.MLP([64, 32, 10]))
theta = np.random.default_rng(0).standard_normal((1000, post.num_params), np.float32)
x, y = np.ones((300, 64), np.float32), np.zeros(300, int)
leave(int(sys.argv[1]) << 20)
grad = post.log_likelihood_and_grad(theta, x, y).grad
threads = sum(line.startswith("Threads") and int(line.split()[1]) for line in open("/proc/self/status"))
print(grad.sum(dtype=float))
print(threads)
"""
)


@linux
@pytest.mark.large
def test_the_engine_computes_with_the_threads_that_it_gets():
    """Of 500 threads that it may have, a gibibyte of address space has room for the stacks of fewer."""
    one, _ = printed(NO_THREADS, "1024", OMP_NUM_THREADS="1").split()
    some, threads = printed(NO_THREADS, "1024", OMP_NUM_THREADS="500", MALLOC_ARENA_MAX="1").split()
    assert some == one
    assert 2 < int(threads) < 400


STOPPED = """
import signal, sys, time
signal.signal(signal.SIGINT, signal.default_int_handler)  # jobs in the background may be born deaf to it
import numpy as np
import fastsmc as fs
from small_runs import data_of, posterior_of
slow = lambda result: time.sleep(0.1)
smc = fs.SMC(posterior_of(), 8, fs.FullBatch(), fs.HMC(3), 60)
result = smc.run(*data_of(), False, fs.Checkpoint(sys.argv[1], seconds=3600), slow)
print("interrupted" if result.interrupted else "whole")
sys.exit(7)
"""


def stop(folder, *signals):
    """Start a run, send it signals, and return its exit status and what it printed."""
    path = os.pathsep.join(filter(None, [str(Path(__file__).parent), os.environ.get("PYTHONPATH")]))
    run = subprocess.Popen(
        [sys.executable, "-c", STOPPED, folder], env={**os.environ, "PYTHONPATH": path},
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    while run.poll() is None and not (folder / LAST).exists():
        time.sleep(0.02)
    time.sleep(0.3)
    for number in signals:
        run.send_signal(number)
    printed, error = run.communicate(timeout=60)
    return run.returncode, printed.strip(), error


@linux
@pytest.mark.parametrize(
    ("signals", "status", "words"),
    [
        ([signal.SIGINT], 7, "interrupted"),
        ([signal.SIGTERM], -signal.SIGTERM, ""),
        ([signal.SIGTERM, signal.SIGTERM], -signal.SIGTERM, ""),
    ],
)
def test_signals_end_a_run_whose_state_is_kept(tmp_path, signals, status, words):
    assert stop(tmp_path / "run", *signals)[:2] == (status, words)
    kept = len(fs.load(tmp_path / "run" / LAST).history)
    assert 1 < kept < 60  # the state at the signal, not the one of the first iteration
    smc = fs.SMC(posterior_of(), 8, fs.FullBatch(), fs.HMC(3), 60)
    assert np.array_equal(
        fs.resume(tmp_path / "run", progress=False).particles, smc.run(*data_of(), progress=False).particles
    )


@linux
def test_two_interrupts_lose_no_state(tmp_path):
    stop(tmp_path / "run", signal.SIGINT, signal.SIGINT)
    assert (tmp_path / "run" / RUN).exists()
    assert not fs.resume(tmp_path / "run", progress=False).interrupted


def test_networks_of_more_layers_than_the_kernels_take_go_through_torch():
    deep = fs.from_torch(nn.Sequential(*(nn.Linear(2, 2) for _ in range(70))))
    post, (x, _) = fs.Posterior(deep), data_of()
    theta = post.sample_prior(2)
    assert post.path == "torch.func: the kernels take at most 64 layers"
    assert np.isfinite(post.log_likelihood_and_grad(theta, x, np.zeros(len(x), int)).grad).all()
