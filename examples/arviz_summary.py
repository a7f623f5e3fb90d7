"""A result in ArviZ: summaries of parameters, and leave-one-out cross-validation of two models."""

import arviz as az
import numpy as np

import fastsmc as fs

rng = np.random.default_rng(0)
x = rng.standard_normal((100, 2))
y = 1 + 2 * x[:, 0] + 0.5 * rng.standard_normal(100)

results = {}
for name, widths in {"linear": [2, 1], "network": [2, 8, 1]}.items():
    post = fs.Posterior(fs.MLP(widths, "tanh"), likelihood=fs.Gaussian(noise=fs.HalfNormal(1.0)))
    run = fs.SMC(post, num_particles=64).run(x, y)
    print(f"{name}: log evidence {run.log_evidence:.1f} ± {run.log_evidence_error:.1f}")
    results[name] = run.to_arviz(x, y)

print(az.summary(results["linear"], kind="stats"))
print(az.compare(results))
