"""Data-annealed Sequential Monte Carlo: anneal, reweight, resample, move.

Del Moral, Doucet and Jasra, "Sequential Monte Carlo samplers" (2006), over a sequence of targets that bring the data in
gradually, after Millard, Murphy, Green and Maskell (arXiv 2601.21983).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

from fastsmc import ops
from fastsmc.annealing import PRIOR, Annealing, SmoothDataAnnealing
from fastsmc.cloud import Cloud, Data, DegenerateError
from fastsmc.moves import HMC, Draw, Move, StepSize
from fastsmc.posterior import Posterior
from fastsmc.progress import Progress, Stopwatch
from fastsmc.result import Checkpoint, History, Result


class SMC:
    """A sampler.

    Parameters
    ----------
    posterior
        Network, prior and likelihood.
    num_particles
        P.
    annealing
        Which data the targets use; `SmoothDataAnnealing` unless given.
    move
        How the particles move; `HMC` unless given.
    num_iterations
        At most so many targets; adaptive schemes may need fewer.
    resampling
        ``"systematic"``, ``"stratified"``, ``"multinomial"`` or ``"residual"``.
    ess_threshold
        Resampling happens where the effective sample size is below this fraction of P.
    stratify
        Whether batches hold the classes in the proportions of all the data.
    backend, device
        Force an engine, a device; by default the best for the data.
    seed
        The run is a function of it.
    """

    def __init__(
        self,
        posterior: Posterior,
        num_particles: int = 64,
        annealing: Annealing | None = None,
        move: Move | None = None,
        num_iterations: int = 60,
        resampling: str = "systematic",
        ess_threshold: float = 0.5,
        stratify: bool = False,
        backend: str | None = None,
        device: str | None = None,
        seed: int = 0,
    ) -> None:
        for name, value in (("num_particles", num_particles), ("num_iterations", num_iterations)):
            if value < 1:
                raise ValueError(f"{name} is {value!r}; it must be at least 1")
        if resampling not in ops.SCHEMES:
            raise ValueError(f"resampling is {resampling!r}; it must be one of {', '.join(ops.SCHEMES)}")
        if not 0 <= ess_threshold <= 1:
            raise ValueError(f"ess_threshold is {ess_threshold!r}; it must lie between 0 and 1")
        if device not in (None, "cpu"):
            raise ValueError(f"device is {device!r}; this version samples on 'cpu'")
        if not 0 <= seed < 2**64:
            raise ValueError(f"seed is {seed!r}; it must be a whole number from 0 to 2**64 - 1")
        self.posterior = posterior if backend is None else posterior.on(backend)
        self.num_particles = num_particles
        self.annealing = SmoothDataAnnealing() if annealing is None else annealing
        self.move = HMC() if move is None else move
        self.num_iterations = num_iterations
        self.resampling = resampling
        self.ess_threshold = ess_threshold
        self.stratify = stratify
        self.seed = seed

    def iterate(self, x: Any, y: Any) -> Iterator[Result]:
        """Run one iteration at a time; each state is a `Result` that later iterations leave alone."""
        data = Data(x, y, self.posterior, self.seed, self.stratify)
        cloud = Cloud.from_prior(self.posterior, self.num_particles, self.seed, self.move.uses_gradient)
        target, history, log_evidence = self.annealing.initial_target(len(data)), History(), 0.0
        step, clock = StepSize(self.move), Stopwatch()
        cloud.observe(data, PRIOR, target)
        for iteration in range(self.num_iterations):
            # anneal: the likelihood of the data that join, where the particles are
            previous = target
            target = self.annealing.next_target(iteration, self.num_iterations, data, previous, cloud)
            if target is None:
                return
            density = cloud.log_density(previous)
            cloud.observe(data, previous, target)

            # reweight
            evidence, lost = cloud.reweight(cloud.log_density(target) - density)
            log_evidence += evidence
            ess = cloud.ess

            # resample
            ancestors = self.num_particles
            resampled = cloud.ess < self.ess_threshold * self.num_particles
            if resampled:
                ancestors = cloud.resample(self.resampling, self.seed, iteration)

            # move
            step.prepare(cloud, data, previous, target, Draw(self.seed, iteration, self.move.num_moves))
            for number in range(self.move.num_moves):
                step_size = step.value
                outcome = self.move(cloud, data, target, step_size, Draw(self.seed, iteration, number))
                evidence, diverged = cloud.reweight(outcome.log_increment)
                log_evidence += evidence
                lost += diverged
                step.adapt(outcome.acceptance, target)

            history.append(
                iteration=iteration,
                batch_size=target.batch_size,
                likelihood_scale=target.likelihood_scale,
                temperature=target.temperature,
                ess=min(ess, cloud.ess),
                resampled=resampled,
                distinct_ancestors=ancestors,
                distinct_roots=cloud.distinct_roots,
                step_size=step_size,
                acceptance=outcome.acceptance,
                energy_error=outcome.energy_error,
                log_evidence=log_evidence,
                evidence_variance=cloud.relative_variance,
                data_passes=cloud.evaluations / len(data),
                seconds=clock.seconds(),
                non_finite=lost,
            )
            with clock.paused():
                yield Result.of(cloud, target, len(data), history, like=x)

    def run(
        self,
        x: Any,
        y: Any,
        progress: bool = True,
        checkpoint: str | Path | None = None,
        callback: Callable[[Result], None] | None = None,
    ) -> Result:
        """Sample; Ctrl-C returns what there is.

        Parameters
        ----------
        x, y
            NumPy arrays or torch tensors [N, ...] and [N] or [N, outputs].
        progress
            Show a bar where there is a terminal.
        checkpoint
            A folder; the newest state is kept there as ``last.safetensors``, replaced as a whole.
        callback
            Is given every state; its time does not count in ``history.seconds``.

        Raises
        ------
        DegenerateError
            If no particle has a finite density any more; its ``result`` is the last good state.
        """
        result: Result | None = None
        keep = Checkpoint(checkpoint)
        try:
            with Progress(self.num_iterations, progress) as bar, closing(self.iterate(x, y)) as states:
                for result in states:
                    bar.update(result.history.last)
                    keep.offer(result)
                    if callback is not None:
                        callback(result)
        except KeyboardInterrupt:
            if result is None:
                raise
            result.interrupted = True
            result.warnings.append(
                f"the run was interrupted after {len(result.history)} of {self.num_iterations} iterations"
            )
        except DegenerateError as error:
            error.result = result
            raise
        finally:
            keep.close(result)
        return result
