"""Every op of the engine from several threads of Python at once, for ThreadSanitizer to watch: see ``make tsan``.

OMP_NUM_THREADS must be 1. The barriers of libgomp are futexes that ThreadSanitizer does not know, so that with more
threads parallel regions may be reported; those are held to the same bits for any number of threads instead.
"""

import os
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from fastsmc import MLP, _cpu

THREADS, ROUNDS = 4, 5


def calls(seed):
    """Results of all functions that keep memory or decide something once, on arrays of this thread's own."""
    rng = np.random.default_rng(seed)
    net, P, B, n = MLP([5, 8, 3]), 3, 70, 9000
    theta, x = rng.standard_normal((P, net.num_params), np.float32), rng.standard_normal((B, 5), np.float32)
    y, value, grad, sums = rng.integers(0, 3, B), np.empty(P), np.empty_like(theta), np.empty((P, 3))
    _cpu.log_likelihood(net.layer_table, 0, 1.0, 0, theta, x, y, None, value, grad)
    outputs = np.empty((P, B, 3), np.float32)
    _cpu.network_outputs(net.layer_table, 0, theta, x, outputs)
    ones, v, end = np.ones(net.num_params, np.float32), np.zeros_like(theta), np.empty((P, 3))
    plan = (0.01, 2, 1.0, True, 0.0, 1, 2, 3, 4)
    _cpu.trajectory(net.layer_table, 0, 1.0, 0, theta, v, grad, x, y, None, ones, None, value, sums, end, *plan)
    w, u, a, counts = rng.random(n), rng.random(n), np.empty(n, np.int64), np.empty(n, np.int64)
    results = [value, grad, outputs, theta, v, end]
    for scheme in _cpu.schemes():
        _cpu.resample(scheme, False, w, np.array(u[0]) if scheme == "systematic" else u, a)
        results.append(a.copy())
    normalized, log_sum, ess = np.empty(n), np.empty(()), np.empty(())
    _cpu.normalize_log_weights(np.log(w), normalized, log_sum, ess)
    _cpu.offspring(a, counts)
    numbers = np.empty((4, n), np.float32)
    _cpu.normal(numbers, 1, 2, 3, 4)
    return [part.copy() for part in (*results, normalized, ess, counts, numbers)]


def main():
    if os.environ.get("OMP_NUM_THREADS") != "1":
        sys.exit("OMP_NUM_THREADS must be 1")
    with ThreadPoolExecutor(THREADS) as pool:
        found = list(pool.map(calls, [seed for seed in range(ROUNDS) for _ in range(THREADS)]))
    for k in range(0, len(found), THREADS):
        for other in found[k + 1 : k + THREADS]:
            assert all(map(np.array_equal, found[k], other)), "threads disagree"
    print(f"{len(found)} rounds of all ops on {THREADS} threads: no race, and the same bits")


if __name__ == "__main__":
    main()
