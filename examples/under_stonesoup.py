"""Stone Soup's particle filter with our resampler."""

from datetime import datetime, timedelta

import numpy as np
from stonesoup.models.measurement.linear import LinearGaussian
from stonesoup.models.transition.linear import RandomWalk
from stonesoup.predictor.particle import ParticlePredictor
from stonesoup.types.detection import Detection
from stonesoup.types.hypothesis import SingleHypothesis
from stonesoup.types.state import ParticleState, StateVectors
from stonesoup.updater.particle import ParticleUpdater

from fastsmc.integrations.stonesoup import SystematicResampler

np.random.seed(0)  # noqa: NPY002  (the library's generator)
start, size = datetime(2026, 1, 1), 10_000
observed = np.random.standard_normal(50).cumsum()  # noqa: NPY002
predictor, updater = ParticlePredictor(RandomWalk(1)), ParticleUpdater(LinearGaussian(1, (0,), np.array([[0.25]])))
updater.resampler = SystematicResampler()
state = ParticleState(StateVectors(np.zeros((1, size))), timestamp=start, weight=np.full(size, 1 / size))
exact = variance = 0.0
for second, y in enumerate(observed, 1):
    seen = Detection([[y]], start + timedelta(seconds=second))
    state = updater.update(SingleHypothesis(predictor.predict(state, seen.timestamp), seen))
    gain = (variance + 1) / (variance + 1.25)  # Kalman's
    exact, variance = exact + gain * (y - exact), gain * 0.25
print(f"mean of the last state {state.mean[0, 0]:.3f}, exact {exact:.3f}")
