"""Every scheme that ends at the posterior, with its number of iterations, for a few dozen data points."""

import fastsmc as fs

SCHEMES = {
    "full batch": (fs.FullBatch(), 4),
    "data annealing": (fs.DataAnnealing(start=3), 8),
    "data annealing, scaled": (fs.DataAnnealing(start=3, likelihood_scale="full"), 8),
    "smooth": (fs.SmoothDataAnnealing(start=2, likelihood_scale="none"), 8),
    "smooth, scaled": (fs.SmoothDataAnnealing(start=4, likelihood_scale="full"), 8),
    "smooth, linear": (fs.SmoothDataAnnealing(start=2, ramp="linear", likelihood_scale="none"), 8),
    "smooth, cosine": (fs.SmoothDataAnnealing(start=2, ramp="cosine", likelihood_scale="none"), 8),
    "tempering": (fs.LikelihoodTempering([0.05, 0.2, 0.5, 1.0]), 8),
    "adaptive tempering": (fs.LikelihoodTempering(ess=0.7), 30),
    "adaptive data annealing": (fs.AdaptiveDataAnnealing(start=3, ess=0.7, settle=5), 200),
    "adaptive data annealing, over bridges": (fs.AdaptiveDataAnnealing(start=3, ess=0.9, growth=1.0, settle=5), 200),
}
