"""Data-annealed Sequential Monte Carlo: anneal, reweight, resample, move.

Del Moral, Doucet and Jasra, "Sequential Monte Carlo samplers" (2006), over a sequence of targets that bring the data in
gradually, after Millard, Murphy, Green and Maskell (arXiv 2601.21983).
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import replace
from itertools import count, islice
from typing import Any

import numpy as np

from fastsmc.annealing import AdaptiveDataAnnealing, Annealing, Target
from fastsmc.batches import Data
from fastsmc.checks import check_kind
from fastsmc.cloud import Cloud, distinct
from fastsmc.moves import HMC, Draw, KineticLangevin, Move
from fastsmc.posterior import Posterior
from fastsmc.progress import Stopwatch
from fastsmc.result import Result
from fastsmc.sampler import Sampler
from fastsmc.sources import read
from fastsmc.start import State, as_start
from fastsmc.steps import SEARCH
from fastsmc.stochastic import SGHMC


def default_move(num_data: int) -> Move:
    """What a sampler does whose user names no move: exact moves, until their price is that of much data."""
    return KineticLangevin(num_steps=5, num_moves=2, precondition=True) if num_data <= 5000 else SGHMC()


class SMC(Sampler):
    """A sampler.

    Parameters
    ----------
    posterior
        Network, prior and likelihood.
    num_particles
        P.
    annealing
        Which data the targets use; `AdaptiveDataAnnealing` unless given.
    move
        How the particles move. Unless given it is exact up to 5,000 data points, `KineticLangevin`, and `SGHMC` where
        there are more, which is approximate but for small batches (see `default_move`).
    num_iterations
        At most so many targets; adaptive schemes may need fewer, and take as many as they need unless it is given.
    resampling
        ``"systematic"``, ``"stratified"``, ``"multinomial"`` or ``"residual"``.
    ess_threshold
        Resampling happens where the effective sample size is below this fraction of P.
    stratify
        Whether batches hold the classes in the proportions of all the data.
    backend, device
        Force an engine, a device such as ``"cuda"``; by default the best for the data, where they are.
    seed
        The run is a function of it.
    waste_free
        K: the length of chains of which every state becomes a particle (Dau and Chopin, "Waste-free sequential Monte
        Carlo", 2022). Every iteration resamples P/K particles, whatever the effective sample size, and moves them
        K - 1 times ``num_moves`` times. K must divide P, and the move must accept or reject. Momentum that a move keeps
        lasts along a chain. 1 is the standard algorithm, which keeps the last state only.
    distributed
        Whether the processes that torchrun has started, or that have initialised torch.distributed, share the particles
        out. All must make the same sampler and run it on the same data, in a machine of the same kind each. The result
        has the bits that one process computes where the likelihood is computed by kernels, is the same on all of them
        and holds all particles. What `iterate` yields has only the particles that are here, beside the weights of all.
        Ctrl-C ends all ranks without a result.
    """

    def __init__(
        self,
        posterior: Posterior,
        num_particles: int = 64,
        annealing: Annealing | None = None,
        move: Move | None = None,
        num_iterations: int | None = None,
        resampling: str = "systematic",
        ess_threshold: float = 0.5,
        stratify: bool = False,
        backend: str | None = None,
        device: str | None = None,
        seed: int = 0,
        waste_free: int = 1,
        distributed: bool = False,
    ) -> None:
        annealing = AdaptiveDataAnnealing() if annealing is None else annealing
        check_kind("annealing", annealing, Annealing, "fs.FullBatch()")
        move = HMC() if move is None and waste_free > 1 else move
        num_iterations = annealing.num_iterations if num_iterations is None else num_iterations
        super().__init__(posterior, num_particles, move, num_iterations, resampling, backend, device, seed, distributed)
        if not 0 <= ess_threshold <= 1:
            raise ValueError(f"ess_threshold is {ess_threshold!r}; it must lie between 0 and 1")
        if waste_free < 1 or num_particles % waste_free:
            raise ValueError(f"waste_free is {waste_free!r}; it must divide num_particles, {num_particles}")
        if waste_free > 1:
            self._check_reversible("waste-free SMC")
        if distributed and waste_free > 1:
            raise ValueError(f"waste_free is {waste_free!r}; it must be 1 where ranks share the particles out")
        if distributed and move is not None and move.backward_kernel(Target(0, sys.maxsize)).needs_all:
            raise ValueError(f"move is {move!r}, whose L-kernel needs all particles; ranks share them out")
        self.annealing = annealing
        self.ess_threshold = ess_threshold
        self.stratify = stratify
        self.waste_free = waste_free

    def move_for(self, num_data: int) -> Move:
        """The move that was named, or `default_move`."""
        return self.move or default_move(num_data)

    def iterate(self, x: Any, y: Any = None, *, weights: Any = None, initial: Any = None) -> Iterator[Result]:
        """Run one iteration at a time; each state is a `Result` that later iterations leave alone."""
        (x, y), start = read(x, y), as_start(initial, self.num_particles)
        posterior = self.posterior_for(x)
        data = Data(x, y, posterior, self.seed, self.stratify, weights=weights, first=start.num_data, ranks=self.ranks)
        state = start.begin(self, posterior, data)
        cloud, target, step, log_evidence = state.cloud, state.target, state.step, state.log_evidence
        history, genealogy, move, clock = state.history, state.genealogy, step.move, Stopwatch(state.seconds)
        result = None
        for number in islice(count(state.number), self.num_iterations and self.num_iterations - state.number):
            # anneal: the likelihood of the data that join, where the particles are
            iteration, previous = start.iteration + number, target
            target = self.annealing.next_target(number, self.num_iterations, data, previous, cloud)
            if target is None:
                return
            if result is not None:
                result.state = None  # which goes on
            target = replace(target, mean_weight=data.mean_weight)
            increment = cloud.observe(data, previous, target)

            # reweight
            evidence, lost = cloud.reweight(increment)
            log_evidence += evidence
            ess = cloud.ess

            # resample
            ancestors, chains = np.arange(self.num_particles), self.num_particles // self.waste_free
            resampled = self.waste_free > 1 or cloud.ess < self.ess_threshold * self.num_particles
            if resampled:
                cloud, ancestors = cloud.resample(chains, self.resampling, self.seed, iteration)

            # move; every state of a chain is kept, or the last
            step.prepare(cloud, data, previous, target, Draw(self.seed, SEARCH))
            states, draws = [], (Draw(self.seed, iteration, number) for number in count())
            for _ in range(max(self.waste_free - 1, 1)):
                if self.waste_free > 1:
                    states.append(cloud.copy())
                for _ in move.rounds(cloud, target):
                    step_size = step.at(target)
                    outcome = move(cloud, data, target, step_size, next(draws))
                    evidence, diverged = cloud.reweight(outcome.log_increment)
                    log_evidence += evidence
                    lost += diverged
                    step.adapt(outcome, target)
            cloud = Cloud.union([*states, cloud])
            genealogy.append(np.resize(ancestors, self.num_particles).astype(np.int32))

            history.record(
                target,
                outcome,
                iteration=iteration,
                ess=min(ess, cloud.ess),
                resampled=resampled,
                distinct_ancestors=distinct(ancestors),
                distinct_roots=cloud.distinct_roots,
                step_size=step_size,
                log_evidence=log_evidence,
                evidence_variance=start.evidence_variance + cloud.relative_variance(self.waste_free),
                data_passes=cloud.all_evaluations() / (len(data) * self.num_particles),
                seconds=clock.seconds(),
                non_finite=lost,
            )
            state = State(start, cloud, target, step, history, genealogy, number + 1)
            with clock.paused():
                yield (result := Result.of(state, len(data), data.like))
