"""What samplers share: how a run is set up, followed, kept and interrupted."""

from __future__ import annotations

import inspect
import logging
import sys
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import closing
from datetime import datetime
from pathlib import Path
from typing import Any

from fastsmc import arrays, backends, environment, logs, ops
from fastsmc.annealing import Target
from fastsmc.checkpoint import Checkpoint, Keeper
from fastsmc.checks import check_kind, check_whole
from fastsmc.cloud import DegenerateError
from fastsmc.lkernels import Reversible
from fastsmc.moves import Move
from fastsmc.posterior import Posterior
from fastsmc.progress import Progress
from fastsmc.random import check_key
from fastsmc.ranks import ALONE, Ranks
from fastsmc.result import Result
from fastsmc.sources import read
from fastsmc.start import Resumption, as_start

INTERRUPTED = "the run was interrupted after"


class Sampler(ABC):
    """An algorithm that `iterate` defines, and `run` runs.

    The parameters are those of `SMC`.
    """

    def __init__(
        self,
        posterior: Posterior,
        num_particles: int,
        move: Move | None,
        num_iterations: int | None,
        resampling: str,
        backend: str | None,
        device: str | None,
        seed: int,
        distributed: bool = False,
    ) -> None:
        check_kind("posterior", posterior, Posterior, "fs.Posterior(network)")
        if move is not None:
            check_kind("move", move, Move, "fs.HMC()")
        check_whole("num_particles", num_particles)
        if num_iterations is not None:
            check_whole("num_iterations", num_iterations)
        if resampling not in ops.SCHEMES:
            raise ValueError(f"resampling is {resampling!r}; it must be one of {', '.join(ops.SCHEMES)}")
        check_key(seed)
        self.ranks = Ranks(num_particles) if distributed else ALONE  # who say which device is this rank's
        if device is not None:
            try:
                backends.choose(backend or posterior.backend, device)
            except ValueError as error:
                raise ValueError(f"device is {device!r}, but {error}") from None
        self.posterior = posterior if backend is None else posterior.on(backend)
        self.device = device
        self.num_particles = num_particles
        self.move = move
        self.num_iterations = num_iterations
        self.resampling = resampling
        self.seed = seed
        self.distributed = distributed

    def posterior_for(self, x: Any) -> Posterior:
        """The posterior on the device that was asked for, or on that of the data."""
        return self.posterior.on(device=self.device or arrays.device(x))

    def move_for(self, num_data: int) -> Move:
        """How the particles move, given so many data points."""
        return self.move

    def settings(self, x: Any) -> dict[str, Any]:
        """What a run is and where it runs, in words and numbers that JSON knows."""
        posterior = self.posterior_for(x)
        own = [name for name in inspect.signature(type(self)).parameters if hasattr(self, name)]
        return logs.plain(
            {
                "sampler": type(self).__name__,
                "num_data": len(x),
                **{name: getattr(posterior, name) for name in ("network", "prior", "likelihood")},
                **{name: getattr(self, name) for name in own if name != "posterior"},
                "move": self.move_for(len(x)),
                "ranks": self.ranks.count,
                **{name: getattr(posterior, name) for name in ("path", "precision", "precision_in_use", "device")},
                "backend": backends.describe(posterior.backend, posterior.device),
                "machine": environment.machine(),
                "versions": environment.versions(),
                "started": datetime.now().astimezone().isoformat(timespec="seconds"),
            }
        )

    def _check_reversible(self, why: str) -> None:
        """Refuse a move that does not leave its targets as they are."""
        if not isinstance(self.move.backward_kernel(Target(0, sys.maxsize)), Reversible):
            raise ValueError(
                f"move is {self.move!r}, which does not accept or reject; {why} needs one that leaves its target "
                "invariant, as HMC, MALA, RandomWalk and adjusted KineticLangevin do"
            )

    @abstractmethod
    def iterate(self, x: Any, y: Any = None, *, weights: Any = None, initial: Any = None) -> Iterator[Result]:
        """Run one iteration at a time; each state is a `Result` that later iterations leave alone."""

    def run(
        self,
        x: Any,
        y: Any = None,
        progress: bool = True,
        checkpoint: Checkpoint | str | Path | None = None,
        callback: Callable[[Result], None] | None = None,
        *,
        weights: Any = None,
        initial: Any = None,
    ) -> Result:
        """Sample; Ctrl-C returns what there is, and SIGTERM ends the process when a checkpoint has it.

        Parameters
        ----------
        x, y
            NumPy arrays, torch tensors or pandas tables [N, ...] and [N] or [N, outputs], row by row. A memory map x is
            read as it is needed, and never held as a whole: it may be larger than memory. So is a torch ``Dataset`` of
            pairs (x, y), which must give the same item whenever it is asked; y is None beside it. Of a ``DataLoader``
            the data set is taken, in its own order: batches, shuffling and collation are the sampler's affair. A
            ``TensorDataset`` is in memory.
        progress
            Show a line where there is a terminal or a notebook; the log has every iteration in any case (see `logs`).
        checkpoint
            A folder, which keeps the last two states of the run, every 30 seconds and at the end, for `fastsmc.resume`
            and `fastsmc.load`; or a `Checkpoint`, which says how often.
        callback
            Is given every state; its time does not count in ``history.seconds``. Where ranks share the particles out,
            it must be given on all of them or on none, and is called on all, with all the particles.
        weights
            [N], finite and not negative: the factor of each point's log-likelihood. Whole numbers repeat points: the
            target is the same, and so is the evidence. Points of weight zero are left out, also where N is counted.
        initial
            Where to start instead of at the prior. A `Result` of the same posterior, given the first of the data that
            are given here: its particles and weights represent these, the run brings in the others, and
            ``log_evidence`` is that of all; iterations are counted on. Particles [P, d], or trained networks, torch
            modules or what their ``state_dict`` returns: the particles start there (see `WarmStart`), and the result
            warns that nothing corrects for it.

        Raises
        ------
        DegenerateError
            If no particle has a finite density any more; its ``result`` is the last good state.
        RankError
            If another rank has died, or has not answered in time.
        """
        result: Result | None = None
        x, y = read(x, y)
        settings, keep, whole = self.settings(x), Keeper(checkpoint, self.ranks), False
        start = as_start(initial, self.num_particles)
        if isinstance(start, Resumption):
            result = start.result
        keep.begin(self, x, y, weights, start)
        states = self.iterate(x, y, weights=weights, initial=initial)
        what = f"{self.num_particles} particles on {len(x):,} data points"
        logs.emit(logging.INFO, "start", f"{settings['sampler']} begins: {what}", **settings)
        try:
            keep.listen()
            with Progress(self.num_iterations, progress and self.ranks.index == 0) as bar, closing(states):
                for result in states:
                    result.settings = settings
                    bar.update(result.history.last)
                    keep.offer(result)
                    if callback is not None:
                        result.particles = self.ranks.whole(result.particles)
                        callback(result)
            whole = True
            if result is not None and result.interrupted:  # behind its last iteration
                result.interrupted = False
                result.warnings = [said for said in result.warnings if not said.startswith(INTERRUPTED)]
        except KeyboardInterrupt:
            if result is None or self.ranks.count > 1:
                raise
            of = "" if self.num_iterations is None else f" of {self.num_iterations}"
            if not result.interrupted:  # nor was it before it went on from here
                result.warnings.append(f"{INTERRUPTED} {len(result.history)}{of} iterations")
            result.interrupted = True
        except DegenerateError as error:
            error.result = result
            logs.emit(logging.ERROR, "error", str(error))
            raise
        finally:
            keep.close(result if whole or self.ranks.count == 1 else None)
        result.particles, result.state = self.ranks.whole(result.particles), None
        for sentence in result.warnings:
            logs.emit(logging.WARNING, "warning", sentence)
        logs.emit(logging.INFO, "end", f"{settings['sampler']} ends: {len(result.history)} iterations")
        return result
