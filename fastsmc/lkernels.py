"""L-kernels: the weight update that belongs to a move.

The weight of a particle that moves from theta to theta' under pi_t is multiplied by

    pi_t(theta') L(theta | theta') / (pi_t(theta) q(theta' | theta))

(Del Moral, Doucet and Jasra, 2006), where q is the proposal and L, the L-kernel, any density of the way back. The
change of target, pi_t(theta) / pi_{t-1}(theta), is the same for all and is applied before the move, where it may cause
resampling first; without resampling in between the product is the usual weight.
"""

from __future__ import annotations

import numpy as np


class Reversible:
    """L is the reversal of a move that leaves pi_t invariant: the ratio is one, and the move accepts or rejects."""

    @staticmethod
    def accepted(log_ratio: np.ndarray, log_u: np.ndarray) -> np.ndarray:
        """Metropolis-Hastings: which proposals replace their particles."""
        return log_u < log_ratio  # never true for NaN

    @staticmethod
    def log_increment(log_ratio: np.ndarray) -> np.ndarray:
        """Log weights to add, [P]."""
        return np.zeros_like(log_ratio)


class ForwardProposal:
    """L is the proposal with the momentum reversed; every proposal is taken and weighted by its energy error.

    ``log pi_t(theta') - log pi_t(theta) + log N(-v'; 0, I) - log N(v; 0, I)``, as Devlin, Horridge, Green and Maskell
    use it for the no-U-turn sampler within SMC.
    """

    @staticmethod
    def accepted(log_ratio: np.ndarray, log_u: np.ndarray) -> np.ndarray:
        """All of them."""
        return np.ones(log_ratio.shape, bool)

    @staticmethod
    def log_increment(log_ratio: np.ndarray) -> np.ndarray:
        """Log weights to add, [P]."""
        return log_ratio


class Unweighted:
    """The ratio is taken for one, which holds only nearly; a proposal without a density is not taken."""

    @staticmethod
    def accepted(log_ratio: np.ndarray, log_u: np.ndarray) -> np.ndarray:
        """Those with a finite ratio."""
        return np.isfinite(log_ratio)

    @staticmethod
    def log_increment(log_ratio: np.ndarray) -> np.ndarray:
        """Log weights to add, [P]."""
        return np.zeros_like(log_ratio)


LKernel = type[Reversible] | type[ForwardProposal] | type[Unweighted]
