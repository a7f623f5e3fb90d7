"""The particles, and all that is carried for each of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, NamedTuple

import numpy as np

from fastsmc import arrays, ops, random
from fastsmc.annealing import Target
from fastsmc.arrays import View
from fastsmc.batches import Batch, Data
from fastsmc.posterior import Posterior
from fastsmc.ranks import ALONE, Alone, group_size


class DegenerateError(RuntimeError):
    """Every particle has a density of zero or one that is not finite; ``result`` holds the last good state."""

    result = None


def _check_any_counts(log_weights: np.ndarray) -> None:
    """Raise DegenerateError where all particles have weight zero."""
    if np.all(np.isneginf(log_weights)):
        raise DegenerateError(
            f"all {len(log_weights)} particles have a density that is zero or not finite; "
            "the data may hold NaN, or the step size may be too large"
        )


class Proposal(NamedTuple):
    """Where every particle would go, what is known there, and the log ratio that accepts or weights it, [P].

    Rows are those of the particles that are here (see `fastsmc.ranks`), columns whole.
    ``information`` [d] and ``heat`` are of moves with noisy forces: the mean square of a data point's gradient, and the
    variance of the momentum where the data determine it, which is one if the noise is accounted for.
    """

    particles: View
    grad: View | None
    log_likelihood: np.ndarray | None
    log_prior: np.ndarray
    log_ratio: np.ndarray
    momentum: View | None = None
    information: np.ndarray | None = None
    heat: float = np.nan


ROWS = ("particles", "grad")
"""What belongs to a particle wherever it goes: d numbers each."""
COLUMNS = ("log_likelihood", "log_prior", "roots")
"""The same: one number each."""
NUMBERS = ("ess", "resamplings", "evaluations")
"""What a cloud has one of."""
MEMORY = 0.8
"""Share of the running estimate of the information that a new one leaves."""
BLOCK = 2**17
"""Numbers of a temporary that stays in the cache."""


def distinct(numbers: np.ndarray) -> int:
    """How many different numbers of particles there are."""
    return int(np.count_nonzero(np.bincount(numbers)))


@dataclass
class Cloud:
    """Weighted particles with the log-likelihood of the current batch, unscaled, its gradient, and the log prior.

    What has a row of d numbers for each particle is on the posterior's device, what has one number on the host. Where
    ranks share the particles out, rows are those of the particles that are here, and columns are whole.

    Attributes
    ----------
    particles, grad
        float32 [P, d]; ``grad`` is None where the move needs none.
    log_likelihood, log_prior, log_weights
        float64 [P]; the weights ``exp(log_weights)`` sum to one. The log-likelihood is None after moves that do not
        compute it.
    ess
        Effective sample size of the weights.
    roots
        int64 [P], for each particle the draw from the prior that it descends from.
    momentum
        float32 [P, d] for moves that keep it from one iteration to the next, None for others.
    """

    posterior: Posterior
    particles: View
    grad: View | None
    log_likelihood: np.ndarray | None
    log_prior: np.ndarray
    log_weights: np.ndarray
    ess: float
    roots: np.ndarray
    momentum: View | None = None
    information: np.ndarray | None = None
    """Running mean of the Fisher information of a data point about every weight, [d], where a move asks for it."""
    resamplings: int = 0
    evaluations: int = 0
    """Likelihoods of one data point under one particle that were computed here so far."""
    spare: tuple[View, ...] = ()
    """Memory of a trajectory: particles, gradient and momentum; pages are slow to come by."""
    previews: dict[tuple[int, int], np.ndarray] = field(default_factory=dict)
    """Log-likelihoods of rows, where the particles are."""
    ranks: Alone = ALONE
    """Who has which particles."""

    @classmethod
    def from_prior(cls, posterior: Posterior, num_particles: int, seed: int, with_grad: bool) -> Cloud:
        """Equally weighted draws from the prior, which have seen no data."""
        return cls.of(posterior, posterior.sample_prior(num_particles, seed), with_grad)

    @classmethod
    def of(cls, posterior: Posterior, particles: View, with_grad: bool, ranks: Alone = ALONE) -> Cloud:
        """Equally weighted particles, those of a rank, which have seen no data."""
        memory = posterior.memory
        (log_prior,) = ranks.gather(memory.host(posterior.log_prior(particles)))
        count = len(log_prior)
        return cls(
            posterior,
            particles,
            memory.zeros(particles.shape, np.float32) if with_grad else None,
            np.zeros(count),
            log_prior,
            np.full(count, -np.log(count)),
            float(count),
            np.arange(count),
            ranks=ranks,
        )

    def shared(self, ranks: Alone) -> Cloud:
        """The part of a rank in this cloud, which every rank has as a whole."""
        rows = {name: self.memory.copy(row[ranks.here]) for name, row in self._parts((*ROWS, "momentum")).items()}
        evaluations = 0 if ranks.index else self.evaluations
        return replace(self, **rows, evaluations=evaluations, spare=(), ranks=ranks)

    def stored(self) -> tuple[dict[str, np.ndarray], dict[str, float]]:
        """Copies, on the host, of what the next iteration depends on beside particles and weights: arrays, numbers."""
        rows, columns = self._parts((*ROWS[1:], "momentum")), self._parts((*COLUMNS, "information"))
        parts = {name: self.ranks.whole(self.memory.host(row)) for name, row in rows.items()} | columns
        numbers = {name: getattr(self, name) for name in NUMBERS} | {"evaluations": self.all_evaluations()}
        return {name: np.array(part) for name, part in parts.items()}, numbers

    @classmethod
    def restored(
        cls,
        posterior: Posterior,
        particles: np.ndarray,
        log_weights: np.ndarray,
        parts: Mapping[str, np.ndarray],
        numbers: Mapping[str, float],
    ) -> Cloud:
        """The cloud of particles, weights and what `stored` had returned."""
        put, own = posterior.memory.put, {name: np.array(part) for name, part in parts.items()}
        rows = {name: put(own.pop(name)) for name in (*ROWS[1:], "momentum") if name in own}
        absent = dict.fromkeys((*ROWS[1:], *COLUMNS))
        held = absent | own | rows | {"particles": put(np.array(particles)), "log_weights": np.array(log_weights)}
        return cls(posterior, **held, **numbers)

    def __len__(self) -> int:
        """Number of particles, P."""
        return len(self.log_weights)

    @property
    def memory(self) -> arrays.Memory:
        """Where the particles are."""
        return self.posterior.memory

    def all_evaluations(self) -> int:
        """Evaluations by all ranks."""
        return int(self.ranks.numbers(self.evaluations).sum())

    def sums(self, rows: View) -> View:
        """Sums of rows of neighbouring particles over the groups that they make up, float64 [groups, d]."""
        return self.memory.group_sums(rows, group_size(len(self)))

    def squares(self, rows: View) -> View:
        """The same of the squares of rows."""
        return self.sums(rows * rows)

    def total(self, sums: Sequence[View]) -> np.ndarray:
        """Sum over all particles, float64 [d], of `sums` of all that are here, in the order of the particles."""
        return self.memory.host(self.ranks.total(self.memory.concatenate(sums)))

    @np.errstate(invalid="ignore")  # zero times -inf
    def log_density(self, target: Target) -> np.ndarray:
        """Unnormalised log density of a target that uses the current batch, [P]."""
        return self.log_prior + target.power * self.log_likelihood

    def evaluate(self, particles: View, batch: Batch, with_grad: bool | None = None) -> tuple[np.ndarray, View | None]:
        """Log-likelihood of a batch, [P], with its gradient where this cloud carries one, unless it is said."""
        with_grad = self.grad is not None if with_grad is None else with_grad
        log_likelihood, grad = self.evaluate_some(particles, batch, with_grad)
        return self.ranks.gather(self.memory.host(log_likelihood))[0], grad

    def evaluate_some(self, particles: View, batch: Batch, with_grad: bool = True) -> tuple[View, View | None]:
        """Log-likelihood of a batch and its gradient for no more than the particles that are given, where they are.

        Nobody waits for a device: `Data` has checked the values.
        """
        self.evaluations += batch.size * len(particles)
        log_likelihood, grad, slope = 0.0, None, None
        for x, y, weights in batch.blocks():
            given = {"weights": weights, "check": False}
            if with_grad:
                value, slope = self.posterior.log_likelihood_and_grad(particles, x, y, **given)
            else:
                value = self.posterior.log_likelihood(particles, x, y, **given)
            log_likelihood += value
            if grad is None:
                grad = slope
            else:
                grad += slope
        return log_likelihood, grad

    def preview(self, data: Data, start: int, stop: int) -> np.ndarray:
        """Log-likelihood of some rows, where the particles are, [P]; no row is evaluated twice."""
        if (start, stop) not in self.previews:
            known = max((end for begin, end in self.previews if begin == start and end < stop), default=start)
            rest, _ = self.evaluate(self.particles, data.rows(known, stop), with_grad=False)
            self.previews[start, stop] = rest + self.previews.get((start, known), 0.0)
        return self.previews[start, stop]

    def likelihood(self, data: Data, target: Target) -> np.ndarray:
        """Log-likelihood of the batch of the current target, [P], evaluated if it is not known."""
        if self.log_likelihood is None:
            if target.weights is None:
                self.log_likelihood = self.preview(data, target.start, target.stop)
            else:
                self.log_likelihood, _ = self.evaluate(self.particles, data.batch(target), with_grad=False)
        return self.log_likelihood

    def know_gradient(self, data: Data, target: Target) -> None:
        """Carry the gradient of the log-likelihood from now on, evaluated if it is not known."""
        if self.grad is None:
            self.log_likelihood, self.grad = self.evaluate(self.particles, data.batch(target), with_grad=True)

    def learn(self, information: np.ndarray) -> None:
        """Take in an estimate of the information, [d]; one that is not finite is left out."""
        if np.isfinite(information).all():
            old = information if self.information is None else self.information
            self.information = MEMORY * old + (1 - MEMORY) * information

    def information_at(self, target: Target) -> np.ndarray:
        """Estimate of the Fisher information of a data point from the gradient where the particles are, [d].

        The variance of the gradient of a log density under it is the mean of minus its second derivative. Far from the
        target the gradients have a common part, which is no variance.
        """
        (count, width), size = self.particles.shape, group_size(len(self))
        weights = self.memory.put(np.exp(self.log_weights[self.ranks.here])[:, None])
        means, squares, step = [], [], max(1, BLOCK // (size * width)) * size
        for some in (slice(begin, begin + step) for begin in range(0, count, step)):
            slope = target.power * self.grad[some] + self.posterior.prior_slope(self.particles[some])
            slope[(weights[some] == 0).reshape(-1)] = 0  # and not whatever it is where a particle is lost
            weighted = weights[some] * slope
            means.append(self.sums(weighted))
            weighted *= slope
            squares.append(self.sums(weighted))
        mean, square = self.total(means), self.total(squares)
        return np.maximum(square - mean**2 - self.posterior.prior_precision, 0) / target.count

    def scale(self, target: Target) -> np.ndarray | None:
        """The weights' deviations under a target, were they independent and normal: float32 [d]; None if not known."""
        if self.information is None:
            return None
        return ((self.posterior.prior_precision + target.count * self.information) ** -0.5).astype(np.float32)

    def refresh(self, persistence: float, **key: int) -> View:
        """Mix the momentum with fresh normal numbers; a share ``persistence`` of it is kept, none of it at first."""
        if self.momentum is None:
            self.momentum, persistence = self.memory.zeros(self.particles.shape, np.float32), 0.0
        still = {"kick": 0.0, "drift": 0.0, "refresh": persistence, "first_slot": self.ranks.first}
        self.posterior.leapfrog(self.particles, self.momentum, self.momentum, **still, **key)
        return self.momentum

    def trajectory(
        self, batch: Batch, *, scale: np.ndarray | None, **plan: Any
    ) -> tuple[tuple[View, ...], ops.Trajectory]:
        """Where a leapfrog trajectory takes the particles here: particles, gradient and momentum there, and columns.

        It starts with the momentum that the particles have; with a fresh one where they have none.
        """
        memory = self.memory
        self.spare = self.spare or tuple(memory.empty(self.particles.shape, np.float32) for _ in range(3))
        particles, grad, momentum = self.spare
        particles[...], grad[...] = self.particles, self.grad
        if self.momentum is not None:
            momentum[...] = self.momentum
        plan |= {"scale": memory.put(scale), "refresh": 0.0 if self.momentum is None else None}
        plan |= {"first_slot": self.ranks.first, "check": False}
        if batch.streams:
            gradient = partial(self.evaluate_some, batch=batch)
            end = self.posterior.trajectory_by(gradient, particles, momentum, grad, **plan)
        else:
            self.evaluations += batch.size * len(particles) * plan["num_steps"]
            end = self.posterior.trajectory(particles, momentum, grad, batch.x, batch.y, weights=batch.weights, **plan)
        return self.spare, ops.Trajectory(*self.ranks.gather(*memory.hosts(end)))

    def adopt(self, proposal: Proposal, accepted: np.ndarray) -> None:
        """Become what a move proposes, but for particles not accepted [P]; those turn back, if momentum is kept."""
        stay_here, stay = (np.flatnonzero(~part) for part in (accepted[self.ranks.here], accepted))
        kept = {"particles": stay_here, "grad": stay_here, "log_likelihood": stay, "log_prior": stay}
        for name, places in kept.items():
            new, old = getattr(proposal, name), getattr(self, name)
            if new is not None and len(places):
                new[places] = old[places]
        if self.momentum is not None:
            proposal.momentum[stay_here] = -self.momentum[stay_here]
        self.previews = {}
        if self.spare:
            free = self.particles, self.grad, self.spare[2] if self.momentum is None else self.momentum
            self.spare = () if self.grad is None else free
        for name in kept:
            setattr(self, name, getattr(proposal, name))
        if self.momentum is not None:
            self.momentum = proposal.momentum

    @np.errstate(invalid="ignore")  # -inf less -inf: reweight knows what NaN is
    def observe(self, data: Data, previous: Target, target: Target) -> np.ndarray:
        """Go from one target's batch to the next's, and return what that adds to the particles' log densities, [P].

        Where points join, they alone are evaluated.
        """
        joining = target.joins(previous)
        start, share = joining or (target.start, 1.0)
        added = bool(joining) and target.power == previous.power
        before = 0.0 if added else previous.power * self.likelihood(data, previous)
        if share == 0 or start == target.stop:
            new = np.zeros(len(self))
        elif self.grad is None and (joining or target.weights is None):
            new = self.preview(data, start, target.stop)
        else:
            batch = data.rows(start, target.stop) if joining else data.batch(target)
            new, grad = self.evaluate(self.particles, batch)
            if joining and grad is not None:
                grad *= share
                grad += self.grad
            self.grad = grad
        if not joining:
            self.log_likelihood = new
        elif self.log_likelihood is not None:
            self.log_likelihood = self.log_likelihood + share * new
        return target.power * share * new if added else target.power * self.log_likelihood - before

    def reweight(self, increment: np.ndarray) -> tuple[float, int]:
        """Multiply the weights by ``exp(increment)``; a particle whose density is not finite gets weight zero.

        Returns the log of the mean increment under the old weights, which is the step of the evidence, and how many
        particles were lost.
        """
        with np.errstate(invalid="ignore"):
            log_weights = self.log_weights + increment
        bad = ~(log_weights < np.inf) | ~np.isfinite(self.log_prior)
        if self.log_likelihood is not None:
            bad |= ~np.isfinite(self.log_likelihood)
        lost = np.count_nonzero(bad & (self.log_weights > -np.inf))
        log_weights[bad] = -np.inf
        _check_any_counts(log_weights)
        _, log_sum, ess = ops.normalize_log_weights(log_weights, backend=self.posterior.host_backend)
        self.log_weights, self.ess = log_weights - log_sum, float(ess)
        return float(log_sum), lost

    @property
    def distinct_roots(self) -> int:
        """Draws from the prior that have descendants."""
        return distinct(self.roots)

    def relative_variance(self, chain_length: int = 1) -> float:
        """Estimate of the variance of Z_hat / Z from the genealogy (Lee and Whiteley, 2018).

        That of multinomial resampling, so rather too large for the other schemes. It is 1 where all particles descend
        from one root, and says no more than that. Waste-free SMC is the standard algorithm over its chains (Dau and
        Chopin, 2022), so that there the members of the genealogy are the chains, and as many draws from the prior make
        one root as a chain is long.
        """
        count = len(self.roots) // chain_length
        if count == 1:
            return np.nan
        families = np.bincount(self.roots // chain_length, weights=np.exp(self.log_weights), minlength=count)
        return float(1 - (count / (count - 1)) ** (self.resamplings + 1) * (1 - np.sum(families**2)))

    def log_conditional_ess(self, increment: np.ndarray) -> float:
        """Log of the conditional effective sample size of increments as a fraction of one, (sum W v)^2 / sum W v^2."""
        usable = np.where(increment < np.inf, increment, -np.inf)  # also where it is NaN
        powers = self.log_weights + np.multiply.outer((1, 2), usable)
        _check_any_counts(powers[0])
        first, second = ops.normalize_log_weights(powers, backend=self.posterior.host_backend).log_sum
        return float(2 * first - second)

    def resample(
        self, count: int, scheme: str, seed: int, iteration: int, keep: bool = False
    ) -> tuple[Cloud, np.ndarray]:
        """A cloud of ``count`` equally weighted draws of the particles, and the ancestor of each, [count].

        It is this one, moved in place, where as many are drawn as there are, unless ``keep``; else it has memory of
        its own, and no momentum, and one process must have it.
        """
        ancestors, on = self._ancestors(count, scheme, seed, iteration), {"backend": self.posterior.host_backend}
        drawn, columns, rows = self, self._parts(COLUMNS), self._parts(ROWS)
        if count == len(self) and not keep:
            ancestors = ops.permute_ancestors(ancestors, **on)
            columns, rows = [*columns.values()], [*(rows | self._parts(("momentum",))).values()]
            self._gather(columns, ancestors, columns)
            self._gather(rows, self.ranks.local(ancestors), rows)
            self.ranks.exchange(rows, ancestors)
        else:
            parts = columns | rows
            gathered = self._gather([*columns.values()], ancestors) + self._gather([*rows.values()], ancestors)
            drawn = replace(self, **dict(zip(parts, gathered, strict=True)), momentum=None, spare=())
        drawn.log_weights, drawn.ess = np.full(count, -np.log(count)), float(count)
        drawn.resamplings, drawn.previews = self.resamplings + 1, {}
        return drawn, ancestors

    def _gather(self, parts: Sequence[View], ancestors: np.ndarray, out: Sequence[View] | None = None) -> tuple:
        on_host = isinstance(parts[0], np.ndarray)
        backend = self.posterior.host_backend if on_host else self.posterior.backend
        ancestors = ancestors if on_host else self.memory.put(ancestors)
        return ops.gather_particles(parts, ancestors, out, backend=backend, check=on_host)

    def _ancestors(self, count: int, scheme: str, seed: int, iteration: int) -> np.ndarray:
        on = {"backend": self.posterior.host_backend}
        u = random.uniform((1, count), seed=seed, iteration=iteration, stream=random.Stream.RESAMPLING, **on)[0]
        return ops.resample(
            self.log_weights, u if ops.SCHEMES[scheme] else u[0], scheme=scheme, num_samples=count, **on
        )

    def _parts(self, names: Sequence[str]) -> dict[str, View]:
        """What there is of some names."""
        return {name: part for name in names if (part := getattr(self, name)) is not None}

    def copy(self) -> Cloud:
        """A cloud that moves of this one leave alone."""
        parts = {name: part.copy() for name, part in self._parts(COLUMNS).items()}
        parts |= {name: self.memory.copy(part) for name, part in self._parts(ROWS).items()}
        return replace(self, **parts, spare=(), previews={})

    @classmethod
    def union(cls, clouds: Sequence[Cloud]) -> Cloud:
        """All particles of several clouds, each cloud weighted by its size; the last one tells the work done so far.

        Of more than one, the momentum is left behind: draws of the prior have none.
        """
        if len(clouds) == 1:
            return clouds[0]
        last = clouds[-1]
        parts = {name: np.concatenate([getattr(c, name) for c in clouds]) for name in last._parts(COLUMNS)}
        parts |= {name: last.memory.concatenate([getattr(c, name) for c in clouds]) for name in last._parts(ROWS)}
        total = len(parts["particles"])
        log_weights = np.concatenate([c.log_weights + np.log(len(c) / total) for c in clouds])
        ess = float(ops.normalize_log_weights(log_weights, backend=last.posterior.host_backend).ess)
        return replace(last, **parts, log_weights=log_weights, ess=ess, momentum=None, previews={})
