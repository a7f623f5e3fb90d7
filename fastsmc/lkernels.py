"""L-kernels: the weight update that belongs to a move.

The weight of a particle that moves from theta to theta' under pi_t is multiplied by

    pi_t(theta') L(theta | theta') / (pi_t(theta) q(theta' | theta))

(Del Moral, Doucet and Jasra, 2006), where q is the proposal and L, the L-kernel, any density of the way back. The
change of target, pi_t(theta) / pi_{t-1}(theta), is the same for all and is applied before the move, where it may cause
resampling first; without resampling in between the product is the usual weight.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

import numpy as np

if TYPE_CHECKING:
    from fastsmc.cloud import Cloud, Proposal


class LKernel:
    """The weight update of a move: which proposals are taken, and what that does to the weights.

    ``exact`` says whether that keeps the particles weighted for their target, ``needs_all`` whether it takes the rows
    of all particles to weight one, which ranks that share them out do not have.
    """

    exact: ClassVar[bool] = True
    needs_all: ClassVar[bool] = False

    def accepted(self, log_ratio: np.ndarray, log_u: np.ndarray) -> np.ndarray:
        """Which proposals replace their particles, [P]; all of them, unless a kernel says otherwise."""
        return np.ones(log_ratio.shape, bool)

    def log_increment(self, cloud: Cloud, proposal: Proposal) -> np.ndarray:
        """Log weights to add, [P], of a cloud that has not moved yet; none, unless a kernel says otherwise."""
        return np.zeros_like(proposal.log_ratio)


class Reversible(LKernel):
    """L is the reversal of a move that leaves pi_t invariant: the ratio is one, and the move accepts or rejects."""

    def accepted(self, log_ratio: np.ndarray, log_u: np.ndarray) -> np.ndarray:
        """By Metropolis and Hastings."""
        return log_u < log_ratio  # never true for NaN


class ForwardProposal(LKernel):
    """L is the proposal with the momentum reversed; every proposal is taken and weighted by its energy error.

    ``log pi_t(theta') - log pi_t(theta) + log N(-v'; 0, I) - log N(v; 0, I)``, as Devlin, Horridge, Green and Maskell
    use it for the no-U-turn sampler within SMC.
    """

    def log_increment(self, cloud: Cloud, proposal: Proposal) -> np.ndarray:
        """Minus the energy error, [P]."""
        return proposal.log_ratio


class GaussianApproximation(LKernel):
    """L is a Gaussian approximation of the optimal one, for few weights and many particles; all proposals are taken.

    ``log pi_t(theta') - log pi_t(theta) + log N(-v'; m(theta'), C) - log N(v; 0, I)``, where all momenta are fresh. The
    optimal L is the law of the way back given ``theta'`` of particles as they were sampled (Del Moral, Doucet and
    Jasra, 2006), so that all count alike here, whatever their weights. It is approximated by the conditional of a
    Gaussian fitted to ``(theta', -v')`` over the particles (Green, Devlin, Moore, Jackson, Li and Maskell, 2022), for
    each of them to all the others: what is fitted to a particle itself favours it. The fit is in float64, with 1e-12 of
    every variance added, so that it always exists.

    It pays where steps are long; the energy error of short ones is hard to beat. Z_hat is only consistent, not
    unbiased: others that have ancestors in common with a particle favour it too. It is too high after steps of the
    annealing that leave few ancestors, so that schemes go with it that keep the effective sample size.

    A fit has 3 d (d + 1) / 2 numbers and wants four particles for each: `ValueError` if there are fewer. L is that of
    `ForwardProposal` where fewer are left: without those that diverged, with an energy error of 1000 or more, and with
    copies of one particle counted as the effective sample size counts them.
    """

    needs_all: ClassVar[bool] = True

    def log_increment(self, cloud: Cloud, proposal: Proposal) -> np.ndarray:
        """Minus the energy error, with the fit's density of the way back instead of the standard normal, [P]."""
        count, size = proposal.particles.shape
        needed = 6 * size * (size + 1)
        if count < needed:
            raise ValueError(
                f"lkernel is 'gaussian', but num_particles is {count}; it must be at least 6 * {size} * {size + 1} = "
                f"{needed} for {size} weights, or lkernel 'forward'"
            )
        increment, usable = proposal.log_ratio.copy(), np.abs(proposal.log_ratio) < 1000
        host = cloud.memory.host
        copies = np.unique(host(cloud.particles)[usable], axis=0, return_counts=True)[1]
        if copies.sum() ** 2 >= needed * max(np.sum(copies**2), 1):
            ends = host(proposal.particles), -host(proposal.momentum)
            there, back = (part[usable].astype(np.float64) for part in ends)
            increment[usable] += _log_conditional(there, back) + 0.5 * np.sum(back**2, axis=1)
        return increment


def _log_conditional(given: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Log density of each row of ``values`` given that of ``given``, under a Gaussian fitted to all other rows.

    Both are [n, d]; the result [n] lacks ``-d/2 log(2 pi)``. To leave a row out is to take ``n/(n-1) r r^T`` from the
    scatter matrix of the rows' deviations r from the mean.
    """
    n, size = given.shape
    rows = np.concatenate([given, values], axis=1)
    rows -= rows.mean(axis=0)
    scales = rows.std(axis=0)
    rows /= scales
    factor = np.linalg.cholesky(rows.T @ rows + 1e-12 * n * np.eye(2 * size))
    distances = n / (n - 1) * np.cumsum(np.linalg.solve(factor, rows.T) ** 2, axis=0)
    volumes = np.cumsum(np.log(np.diag(factor)))

    def log_density(columns: int) -> np.ndarray:
        distance, left = distances[columns - 1], 1 - distances[columns - 1]
        log_root_det = volumes[columns - 1] + 0.5 * np.log(left) - 0.5 * columns * np.log(n - 2)
        return -log_root_det - 0.5 * (n - 2) * n / (n - 1) * distance / left

    return log_density(2 * size) - log_density(size) - np.log(scales[size:]).sum()


class Unweighted(LKernel):
    """The ratio is taken for one, which holds only nearly; a proposal without a density is not taken."""

    exact: ClassVar[bool] = False

    def accepted(self, log_ratio: np.ndarray, log_u: np.ndarray) -> np.ndarray:
        """Those with a finite ratio."""
        return np.isfinite(log_ratio)


LKERNELS = {"forward": ForwardProposal, "gaussian": GaussianApproximation}
