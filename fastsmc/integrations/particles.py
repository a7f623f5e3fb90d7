"""For particles: its resampling schemes by our engines, Bayesian networks as static models, and HMC moves for them.

Importing this module registers ``fastsmc_systematic``, ``fastsmc_stratified``, ``fastsmc_multinomial`` and
``fastsmc_residual``; ``particles.SMC(..., resampling="fastsmc_systematic")`` uses them. Random numbers are NumPy's
global ones, as particles' own.

>>> model = BayesianNetwork(fs.MLP([64, 32, 10]), x, y)
>>> moves = smc_samplers.MCMCSequenceWF(mcmc=HMC(model), len_chain=5)
>>> particles.SMC(fk=smc_samplers.AdaptiveTempering(model, len_chain=5, move=moves), N=100).run()
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from particles import distributions, smc_samplers
from particles import resampling as rs

from fastsmc import ops
from fastsmc.likelihoods import Likelihood
from fastsmc.networks import Network
from fastsmc.posterior import Posterior
from fastsmc.priors import Prior


def _register(scheme: str) -> Callable[..., np.ndarray]:
    def ancestors(W: np.ndarray, M: int) -> np.ndarray:
        u = np.random.rand(M) if ops.SCHEMES[scheme] else np.random.rand()  # noqa: NPY002  (the library's generator)
        return ops.resample(W, u, scheme, log=False, num_samples=M)

    ancestors.__name__ = ancestors.__qualname__ = f"fastsmc_{scheme}"
    ancestors.__doc__ = f"{scheme.capitalize()} resampling by fastsmc: M ancestors of weights W, int64."
    return rs.resampling_scheme(ancestors)


systematic, stratified, multinomial, residual = map(_register, ops.SCHEMES)


class PriorOf(distributions.ProbDist):
    """The prior of a posterior's particles [N, d]."""

    def __init__(self, posterior: Posterior) -> None:
        self.posterior = posterior

    @property
    def dim(self) -> int:
        """Numbers of a draw, d."""
        return self.posterior.num_params

    def rvs(self, size: int | None = None) -> np.ndarray:
        """Draws [size, d]."""
        seed = np.random.randint(2**31)  # noqa: NPY002
        return self.posterior.sample_prior(1 if size is None else size, seed)

    def logpdf(self, x: np.ndarray) -> np.ndarray:
        """Of draws [N, d], [N]."""
        return self.posterior.log_prior(x.astype(np.float32))


class BayesianNetwork(smc_samplers.StaticModel):
    """A Bayesian network as a static model, for IBIS, tempering and adaptive tempering.

    The parameter ``theta["weights"]`` holds the particles of `fastsmc.Posterior`, [N, d], with the scales that are
    sampled. All particles, and all data that a density needs, are evaluated in one call.

    Parameters
    ----------
    network, prior, likelihood, precision, backend
        As for `fastsmc.Posterior`.
    x, y
        The data in the order in which IBIS brings them in.
    """

    def __init__(
        self,
        network: Network,
        x: Any,
        y: Any,
        prior: Prior | Mapping[str, Prior] | None = None,
        likelihood: str | Likelihood | Callable[[Any, Any], Any] = "categorical",
        precision: str = "highest",
        backend: str | None = None,
    ) -> None:
        self.posterior = Posterior(network, prior, likelihood, precision, backend)
        self.x, self.rows = np.asarray(x), len(x)
        super().__init__(data=np.asarray(y), prior=distributions.StructDist({"weights": PriorOf(self.posterior)}))

    def logpyt(self, theta: np.ndarray, t: int) -> np.ndarray:
        """Log-likelihood of datum t, [N]."""
        self.rows = t + 1
        return self._log_likelihood(theta, t, t + 1)

    def loglik(self, theta: np.ndarray, t: int | None = None) -> np.ndarray:
        """Log-likelihood of the data up to t, or of all, [N]."""
        self.rows = self.T if t is None else t + 1
        return self._log_likelihood(theta, 0, self.rows)

    def batch(self) -> tuple[np.ndarray, np.ndarray]:
        """The data of the density that was asked for last."""
        return self.x[: self.rows], self.data[: self.rows]

    def _log_likelihood(self, theta: np.ndarray, begin: int, end: int) -> np.ndarray:
        if begin == end:
            return np.zeros(len(theta))
        particles = theta["weights"].astype(np.float32)
        found = self.posterior.log_likelihood(particles, self.x[begin:end], self.data[begin:end])
        return np.nan_to_num(found, nan=-np.inf)


class HMC(smc_samplers.ArrayMCMC):
    """Hamiltonian moves of all particles of a `BayesianNetwork` by our trajectories, for any ``MCMCSequence``.

    They leave invariant what particles moves under: the posterior of the data so far in IBIS, a tempered one in
    tempering. Steps are in units of the weights' deviations over the particles, and their size follows the acceptance.

    Parameters
    ----------
    model
        Whose particles are moved.
    num_steps
        Leapfrog steps of a trajectory.
    step_size
        Of the first trajectory.
    target_acceptance
        What the step size is adapted to.
    """

    def __init__(
        self, model: BayesianNetwork, num_steps: int = 10, step_size: float = 0.1, target_acceptance: float = 0.8
    ) -> None:
        self.model, self.num_steps, self.step_size = model, num_steps, step_size
        self.target_acceptance = target_acceptance

    def calibrate(self, W: np.ndarray, x: Any) -> None:
        """Take the deviations of the weights over weighted particles for units."""
        theta = x.theta["weights"]
        mean = W @ theta
        x.shared["scale"] = np.sqrt(np.maximum(W @ (theta - mean) ** 2, 1e-12)).astype(np.float32)

    def step(self, x: Any, target: Callable[[Any], None] | None = None) -> float:
        """Move particles in place, with what is known of their densities; returns the mean acceptance."""
        model, posterior = self.model, self.model.posterior
        exponent = _exponent(x)
        batch = model.batch()
        theta = x.theta["weights"].astype(np.float32)
        momentum = np.random.standard_normal(theta.shape).astype(np.float32)  # noqa: NPY002
        start, grad = posterior.log_likelihood_and_grad(theta, *batch)
        before = exponent * start + posterior.log_prior(theta)
        plan = {"step_size": self.step_size, "num_steps": self.num_steps, "scale": x.shared.get("scale")}
        end = posterior.trajectory(theta, momentum, grad, *batch, likelihood_scale=exponent, **plan)
        log_prior = posterior.log_prior_from_energy(end.prior_energy)
        after = exponent * end.log_likelihood + log_prior
        log_ratio = after - before + end.kinetic_before - end.kinetic_after
        acceptance = np.exp(np.minimum(np.nan_to_num(log_ratio, nan=-np.inf), 0))
        accepted = np.random.rand(len(theta)) < acceptance  # noqa: NPY002
        x.theta["weights"][accepted] = theta[accepted]
        known = {"lpost": after, "lprior": log_prior, "llik": end.log_likelihood}
        for name in known.keys() & x.dict_fields.keys():
            getattr(x, name)[accepted] = known[name][accepted]
        mean = float(acceptance.mean())
        self.step_size *= np.exp(mean - self.target_acceptance)
        return mean


def _exponent(x: Any) -> float:
    """To which particles raises the likelihood: what it says itself of densities where it tempers, else one."""
    if "llik" not in x.dict_fields:
        return 1.0
    known = np.isfinite(x.llik) & np.isfinite(x.lpost)
    likelihood = x.llik[known]
    square = likelihood @ likelihood
    return float((x.lpost - x.lprior)[known] @ likelihood / square) if square > 0 else 1.0


def replacements() -> dict[Callable[..., np.ndarray], Callable[..., np.ndarray]]:
    """What `accelerate` replaces: the resampling schemes, by whatever name they are called."""
    return {rs.rs_funcs[scheme]: globals()[scheme] for scheme in ops.SCHEMES}
