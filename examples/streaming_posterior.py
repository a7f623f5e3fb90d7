"""Data that arrive in parts: each run starts at the posterior of the data before."""

import numpy as np

import fastsmc as fs

rng = np.random.default_rng(0)
x = rng.standard_normal((600, 5)).astype(np.float32)
y = (x[:, 0] * x[:, 1] + 0.3 * rng.standard_normal(600) > 0).astype(np.int64)
x_test = rng.standard_normal((1000, 5)).astype(np.float32)
y_test = (x_test[:, 0] * x_test[:, 1] > 0).astype(np.int64)

post = fs.Posterior(fs.MLP([5, 16, 2], "tanh"), prior=fs.Normal(1.0))
smc = fs.SMC(post, num_particles=64, annealing=fs.AdaptiveDataAnnealing(start=50, settle=5))
result = None
for size in (200, 400, 600):
    result = smc.run(x[:size], y[:size], initial=result)  # the data of all earlier runs come first
    nll = result.evaluate(x_test, y_test)["nll"]
    print(f"{size} points: test NLL {nll:.3f}, log evidence of all of them {result.log_evidence:.1f}")
