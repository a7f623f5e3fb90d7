"""For PyMC: kernels for ``pm.sample_smc`` with our weights and resampling, which evaluate all particles at once.

>>> pm.sample_smc(kernel=fastsmc.integrations.pymc.IMH)

Weights, resampling and the search for the next inverse temperature are ours; densities are PyMC's own graphs, compiled
for all particles at once where PyTensor can vectorise them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pymc as pm
import pytensor.tensor as pt
from pymc.pytensorf import compile, join_nonshared_inputs, make_shared_replacements
from pymc.smc import kernels
from pytensor.graph.replace import vectorize_graph

from fastsmc import ops


def systematic_resampling(weights: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Indices of weights [P], as many, by one number of the generator: PyMC's function."""
    return ops.systematic(weights, float(rng.random(1)[0]))


class BatchedLogp:
    """A compiled log density of one point [d] as one of points [P, d] too, in one call where it can be vectorised.

    ``reason`` says why it could not be; then points are evaluated one after the other. It is copied, pickled and asked
    for its shared variables as the compiled function is.
    """

    def __init__(self, one: Any, many: Any = None, reason: str = "") -> None:
        self._one, self._many, self.reason = one, many, reason

    @classmethod
    def of(cls, function: Any, model: pm.Model, variables: list[Any], value: Any) -> BatchedLogp:
        """Of a function that is compiled for one point of some variables, and the value that it computes."""
        if any(variable.dtype in kernels.discrete_types for variable in variables):
            return cls(function, reason="discrete variables are rounded one point after the other")
        start = model.initial_point()
        shared = make_shared_replacements(start, variables, model)
        (of_one,), point = join_nonshared_inputs(start, [value], variables, shared)
        points = pt.matrix("points", dtype=point.type.dtype)
        try:
            of_all = vectorize_graph(of_one, replace={point: points})
        except NotImplementedError as error:  # of an op that PyTensor knows no batches of
            return cls(function, reason=str(error))
        many = compile([points], of_all, on_unused_input="ignore")
        many.trust_input = True
        return cls(function, many)

    def __call__(self, points: np.ndarray) -> np.ndarray:
        """Log density of a point, or [P] of points [P, d]."""
        if points.ndim == 1:
            return self._one(points)
        if self._many is None:
            return np.array([self._one(point) for point in points]).reshape(len(points))
        return np.broadcast_to(self._many(points), len(points)).copy()

    def copy(self, swap: dict[Any, Any]) -> BatchedLogp:
        """With other shared variables."""
        copies = (f if f is None else f.copy(swap=_held(f, swap)) for f in (self._one, self._many))
        return BatchedLogp(*copies, self.reason)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)
        return getattr(self._one, name)


def _held(function: Any, swap: dict[Any, Any]) -> dict[Any, Any]:
    shared = set(function.get_shared())
    return {old: new for old, new in swap.items() if old in shared}


class _Weights(kernels.SMC_KERNEL):
    """Weights and resampling, behind a kernel of PyMC's in the order of classes."""

    def update_beta_and_weights(self) -> None:
        """Raise the inverse temperature as far as the effective sample size allows, and weight the particles."""
        self.iteration += 1
        rest, least = 1.0 - self.beta, self.threshold * self.draws
        low, high = (rest if self._weights(rest).ess >= least else 0.0), rest
        while high - low > 1e-6 * high:
            step = (low + high) / 2
            low, high = (step, high) if self._weights(step).ess >= least else (low, step)
        self.weights, log_sum, _ = self._weights(high)
        self.beta = 1.0 if high == rest else self.beta + high
        self.log_marginal_likelihood += float(log_sum) - np.log(self.draws)

    def _weights(self, step: float) -> ops.NormalizedWeights:
        return ops.normalize_log_weights(step * self.likelihood_logp)

    def resample(self) -> None:
        """Resample particles and what is known of them, by our systematic scheme."""
        self.resampling_indexes = systematic_resampling(self.weights, self.rng)
        for name in ("tempered_posterior", "prior_logp", "likelihood_logp"):
            setattr(self, name, getattr(self, name)[self.resampling_indexes])
        self.tempered_posterior_logp = self.prior_logp + self.likelihood_logp * self.beta


class _AllAtOnce:
    """Densities and moves of all particles at once, in front of a kernel of PyMC's in the order of classes."""

    def __init__(self, *arguments: Any, model: pm.Model | None = None, **options: Any) -> None:
        super().__init__(*arguments, model=model, **options)
        model = pm.modelcontext(model)
        for name, value in (("prior_logp_func", model.varlogp), ("likelihood_logp_func", model.datalogp)):
            setattr(self, name, BatchedLogp.of(getattr(self, name), model, self.variables, value))

    def mutate(self) -> None:
        """Metropolis-Hastings steps until they decorrelate the particles no further, all particles at once."""
        self.n_steps, old, found = 1, 2.0, []
        correlation = kernels.Pearson(self.tempered_posterior)
        while True:
            proposal, log_ratio = self._propose()
            likelihood, prior = self.likelihood_logp_func(proposal), self.prior_logp_func(proposal)
            log_density = prior + likelihood * self.beta
            log_ratio = log_ratio + log_density - self.tempered_posterior_logp
            accepted = np.log(self.rng.random(self.draws)) < log_ratio
            for mine, proposed in (
                (self.tempered_posterior, proposal),
                (self.tempered_posterior_logp, log_density),
                (self.prior_logp, prior),
                (self.likelihood_logp, likelihood),
            ):
                mine[accepted] = proposed[accepted]
            found.append(accepted)
            self.n_steps += 1
            now = correlation.get(self.tempered_posterior)
            if np.mean(old - now > self.correlation_threshold) <= 0.9:
                break
            old = now
        self._accepted(np.array(found))


class IMH(_AllAtOnce, kernels.IMH, _Weights):
    """Independent Metropolis-Hastings, as ``pm.smc.IMH``."""

    def _propose(self) -> tuple[np.ndarray, np.ndarray]:
        proposal = self.proposal_dist.rvs(size=self.draws, random_state=self.rng).reshape(self.draws, -1)
        proposal = proposal.astype(self.tempered_posterior.dtype)
        return proposal, self.proposal_dist.logpdf(self.tempered_posterior) - self.proposal_dist.logpdf(proposal)

    def _accepted(self, found: np.ndarray) -> None:
        self.acc_rate = found.mean()


class MH(_AllAtOnce, kernels.MH, _Weights):
    """Random-walk Metropolis-Hastings, as ``pm.smc.MH``."""

    def _propose(self) -> tuple[np.ndarray, float]:
        step = self.proposal_dist(num_draws=self.draws, rng=self.rng) * self.proposal_scales[:, None]
        return (self.tempered_posterior + step).astype(self.tempered_posterior.dtype), 0.0

    def _accepted(self, found: np.ndarray) -> None:
        self.chain_acc_rate = found.mean(axis=0)


def replacements() -> dict[Callable[..., np.ndarray], Callable[..., np.ndarray]]:
    """What `accelerate` replaces: the resampling of PyMC's own kernels."""
    return {kernels.systematic_resampling: systematic_resampling}
