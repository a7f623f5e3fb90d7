"""For posteriors: the log posterior of all particles at once, for any transform that asks for its gradient.

>>> log_posterior = log_posterior_of(posterior, num_data=len(x))
>>> transform = posteriors.sgmcmc.sghmc.build(log_posterior, lr=1e-2, temperature=1 / len(x))
>>> state = transform.init(torch.from_numpy(posterior.sample_prior(64)))
>>> state, log_likelihoods = transform.update(state, (x_batch, y_batch))
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from fastsmc.integrations import check_normal, in_kernels
from fastsmc.integrations.torch import log_likelihood
from fastsmc.posterior import Posterior


def log_posterior_of(
    posterior: Posterior, num_data: int
) -> Callable[[Tensor, tuple[Tensor, Tensor]], tuple[Tensor, Tensor]]:
    """The function of particles [P, d] and a batch (x, y) that posteriors takes.

    It returns the sum over particles, whose gradient is each particle's own, of the log posterior per datum: the mean
    log-likelihood of the batch, and the log prior over the number of data, up to a constant. Transforms of temperature
    1/N, as posteriors recommends, then sample the posterior. Beside the sum are the log-likelihoods of the batch, [P].

    Parameters
    ----------
    posterior
        Of a network and a likelihood that the kernels compute, with a normal prior of a known scale.
    num_data
        N.
    """
    in_kernels(posterior.network, posterior.likelihood, posterior.precision)
    check_normal("posterior has the prior", posterior.prior)
    precision = torch.from_numpy(posterior.prior_scales).to(torch.float32) ** -2

    def log_posterior(particles: Tensor, batch: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        x, y = batch
        of_batch = log_likelihood(posterior.network, x, y, posterior.likelihood, posterior.precision)(particles)
        log_prior = -0.5 * (precision.to(particles.device) * particles**2).sum(-1)
        return (of_batch / len(x) + log_prior / num_data).sum(), of_batch.detach()

    return log_posterior
