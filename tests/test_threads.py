"""The engine's threads: one OpenMP runtime beside torch, and processes that fork."""

import platform
import sys

import pytest
from processes import printed

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")


@pytest.mark.parametrize("first", ["torch", "fastsmc._cpu"])
def test_one_openmp_runtime_whoever_is_imported_first(first):
    code = f"""
import importlib
for name in ({first!r}, "torch", "fastsmc._cpu"): importlib.import_module(name)
print(*{{line.split()[-1] for line in open("/proc/self/maps") if "gomp" in line or "iomp" in line}})
"""
    assert len(printed(code).split()) == 1


STARTED = """
import os, sys
import numpy as np
import torch
import fastsmc as fs
torch.set_num_threads(int(sys.argv[1]))  # which starts threads of torch's own
before = len(os.listdir("/proc/self/task"))
fs.normalize_log_weights(np.zeros(10**6))
print(len(os.listdir("/proc/self/task")) - before)
"""


@pytest.mark.parametrize("count", [1, 3])
def test_torchs_number_of_threads_is_the_engines(count):
    assert int(printed(STARTED, str(count), OMP_NUM_THREADS="1")) == count - 1


FLUSHED = """
import numpy as np
import torch
import fastsmc as fs
from fastsmc import ops, random
rng = np.random.default_rng(0)
net = fs.MLP((200, 200, 4))
theta = rng.normal(size=(64, net.num_params)).astype(np.float32) * np.float32(1e-20)
x, y = np.abs(rng.normal(size=(64, 200))).astype(np.float32) * np.float32(1e-21), rng.integers(0, 4, 64)
weights, few = rng.random(200_000) * 1e-310, rng.random(20) * 1e-310
ones = np.ones(net.num_params, np.float32)
lik = fs.Posterior(net).likelihood
def work():
    yield ops.systematic(weights, 0.3)
    yield ops.systematic(few, 0.3)
    yield ops.multinomial(weights, rng.random(1000) * 0 + 0.7)
    yield from ops.normalize_log_weights(np.append(np.linspace(-745, -700, 99_999), 0))
    yield ops.network_outputs(net, theta, x)
    yield from ops.log_likelihood_and_grad(net, lik, theta, x, y)
    state = [theta.copy(), theta * 0, theta.copy()]
    yield from ops.leapfrog(*state, precision=ones, kick=1e-20, drift=1e-20)
    yield from state
    yield from ops.trajectory(net, lik, *state, x, y, prior_precision=ones, step_size=1e-20, num_steps=2)
    yield from state
before = list(work())
assert torch.set_flush_denormal(True)
after = list(work())
assert np.float32(1e-30) * np.float32(1e-10) == 0  # as it was set
torch.set_flush_denormal(False)
print(*(np.array_equal(a, b) for a, b in zip(before, after, strict=True)))
"""


@pytest.mark.skipif(platform.machine() not in ("x86_64", "AMD64"), reason="torch flushes on x86 alone")
@pytest.mark.parametrize("threads", [1, 2])
def test_numbers_that_others_flush_to_zero_are_kept(threads):
    assert set(printed(FLUSHED, OMP_NUM_THREADS=str(threads)).split()) == {"True"}


FORK = """
import os, signal
import numpy as np
import fastsmc as fs
post = fs.Posterior(fs.MLP([784, 100, 10]))
theta, x, y = post.sample_prior(8), np.ones((300, 784), np.float32), np.zeros(300, int)
def work():
    state = theta.copy(), theta * 0, post.log_likelihood_and_grad(theta, x, y).grad
    post.trajectory(*state, x, y, step_size=0.01, num_steps=2, refresh=0.0)
    ancestors = fs.systematic(np.ones(10**6), 0.3)
    return [*state, ancestors, fs.normalize_log_weights(np.zeros(10**6)).weights]
before = work()
child = os.fork()
if child == 0:
    signal.alarm(60)  # a child that waits for threads that are not there is killed
    os._exit(0 if all(map(np.array_equal, before, work())) else 1)
print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), all(map(np.array_equal, before, work())))
"""


def test_a_forked_child_computes_the_same_bits():
    assert printed(FORK, OMP_NUM_THREADS="2").split() == ["0", "True"]


FORKED_PREDICTION = """
import os, signal
import numpy as np
import torch
import fastsmc as fs
from fastsmc.annealing import Target
from fastsmc.result import History
torch.set_num_threads(4)
posterior = fs.Posterior(fs.MLP([20, 10, 5]))
result = fs.Result(posterior.sample_prior(64), np.full(64, -np.log(64)), posterior, Target(0, 800), 800, History())
x, y = np.random.default_rng(0).standard_normal((800, 20), np.float32), np.arange(800) % 5
def work():
    return result.predict_proba(x), result.pointwise(x, y)
before = work()  # on torch's threads
child = os.fork()
if child == 0:
    signal.alarm(60)  # a child that waits for threads that are not there is killed
    os._exit(0 if all(map(np.array_equal, before, work())) and torch.get_num_threads() == 1 else 1)
print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), torch.get_num_threads())
"""


def test_a_forked_child_predicts():
    assert printed(FORKED_PREDICTION, OMP_NUM_THREADS="4").split() == ["0", "4"]


MEMORY = """
import resource, sys
import numpy as np
import fastsmc as fs
particles, samples = map(int, sys.argv[1:])
post = fs.Posterior(fs.MLP([784, 100, 10]))
post.log_likelihood_and_grad(post.sample_prior(2), np.ones((200, 784), np.float32), np.zeros(200, int))
theta, x, y = post.sample_prior(particles), np.ones((samples, 784), np.float32), np.zeros(samples, int)
def resident(): return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
before = resident()
grad = post.log_likelihood_and_grad(theta, x, y).grad
print(resident() - before - grad.nbytes)
"""


@pytest.mark.large
@pytest.mark.parametrize(("particles", "samples"), [("64", "2000"), ("512", "10000"), ("1", "60000")])
def test_a_gradient_needs_little_beside_its_result(particles, samples):
    """At most 64 MiB over parameters, gradient and data."""
    assert int(printed(MEMORY, particles, samples)) < 64 << 20
