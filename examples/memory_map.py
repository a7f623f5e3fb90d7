"""Features in a file: they are read as they are needed, never as a whole."""

import tempfile
from pathlib import Path

import numpy as np

import fastsmc as fs

with tempfile.TemporaryDirectory() as folder:
    rng = np.random.default_rng(0)
    path = Path(folder) / "features.npy"
    written = np.lib.format.open_memmap(path, "w+", np.uint8, (20_000, 30))
    written[:] = rng.integers(0, 256, written.shape)
    y = (written[:, 0].astype(int) + written[:, 1] > 255).astype(np.int64)
    written.flush()

    x = np.load(path, mmap_mode="r")
    standardiser = fs.Standardiser().fit(x)  # one pass, a block at a time
    post = fs.Posterior(fs.MLP([30, 8, 2]), prior=fs.Normal(0.5))
    smc = fs.SMC(post, num_particles=8, annealing=fs.AdaptiveDataAnnealing(settle=5))
    result = smc.run(standardiser.transform(x), y)  # standardised as it is read
    print(result.evaluate(standardiser.transform(x[:2000]), y[:2000]))
