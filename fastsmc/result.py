"""What a run leaves: particles, weights, evidence, history; predictions from them, and files."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from fastsmc import arrays, metrics, sources
from fastsmc.annealing import Target
from fastsmc.posterior import Posterior

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from fastsmc.moves import Outcome
    from fastsmc.start import State

MOVED = 0.01
"""Acceptance below which particles are taken to stand still."""


EARLIER = "earlier: "
"""Before what the result had warned of that a run started from."""
FEW = 0.05
"""An effective sample size below this share of the particles is low."""
FEWEST, FEWEST_SHARE = 2, 0.3
"""And so is one below this number, unless that is more than this share of them."""


class History(Mapping[str, np.ndarray]):
    """One row an iteration; ``history["ess"]`` or ``history.ess`` is a column.

    Columns: iteration, batch_size, likelihood_scale, temperature (of the points that are joining), ess (the smaller of
    after reweighting and after the moves), resampled, distinct_ancestors (P where nothing was resampled),
    distinct_roots (draws from the prior that have descendants), step_size, acceptance, energy_error (mean absolute;
    both NaN for moves that compute neither), log_evidence, evidence_variance (relative, from the genealogy; see
    `Result.log_evidence_error`), data_passes (data points evaluated per particle / N, so far), seconds (so far),
    diverged (particles that the last move found no place for), non_finite (particles lost to a density that is not
    finite).
    """

    def __init__(self, columns: Mapping[str, Any] | None = None) -> None:
        self._columns: dict[str, list] = {name: list(values) for name, values in (columns or {}).items()}

    def record(self, target: Target, outcome: Outcome, **row: Any) -> None:
        """Add an iteration: what its target and its last move say of themselves, and the other columns."""
        row |= {name: getattr(target, name) for name in ("batch_size", "likelihood_scale", "temperature")}
        row |= {name: getattr(outcome, name) for name in ("acceptance", "energy_error", "diverged")}
        self.append(**row)

    def append(self, **row: Any) -> None:
        """Add an iteration; a column that those before did not have is NaN there."""
        rows = len(self)
        for name, value in row.items():
            self._columns.setdefault(name, [math.nan] * rows).append(value)

    def copy(self) -> History:
        """A history that later iterations leave alone."""
        return History(self._columns)

    def with_last(self, **row: Any) -> History:
        """A copy whose newest row has other values."""
        return History(self._columns | {name: [*self._columns[name][:-1], value] for name, value in row.items()})

    @property
    def last(self) -> dict[str, Any]:
        """The newest row."""
        return {name: values[-1] for name, values in self._columns.items()}

    def __getitem__(self, name: str) -> np.ndarray:
        return np.asarray(self._columns[name])

    def __getattr__(self, name: str) -> np.ndarray:
        if name.startswith("_") or name not in self._columns:
            raise AttributeError(name)
        return self[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._columns)

    def __len__(self) -> int:
        """Number of iterations."""
        return len(next(iter(self._columns.values()), ()))


@dataclass(eq=False)
class Result:
    """Weighted particles of the posterior, or of the target that ``target`` names.

    Attributes
    ----------
    particles
        float32 [P, d], of the kind of the data that were given; torch tensors where these are on another device.
    log_weights
        float64 [P]; their exponentials sum to one.
    target
        The density that the particles represent.
    num_data
        Number of data points, N.
    history
        One row an iteration.
    warnings
        What a reader of the numbers must know, a sentence each.
    interrupted
        Whether Ctrl-C ended the run.
    precision_in_use
        The precision of the run's products: that of the posterior, or a higher one; None where it is not known.
    genealogy
        For each iteration the parent of every particle, int32 [P]: a row of the iteration before; for the first, of the
        particles that the run started with. Where nothing was resampled, every particle is its own. None where
        particles of several iterations are together, as persistent sampling and `recycle` have them.
    started_from
        ``"prior"``, ``"result"`` of an earlier run, or ``"particles"`` that were given, for which nothing corrects.
    settings
        What was run and where, by name; empty unless a sampler's ``run`` made the result.
    """

    particles: Any
    log_weights: Any
    posterior: Posterior
    target: Target
    num_data: int
    history: History
    warnings: list[str] = field(default_factory=list)
    interrupted: bool = False
    precision_in_use: str | None = None
    genealogy: Sequence[np.ndarray] | None = None
    started_from: str = "prior"
    settings: Mapping[str, Any] = field(default_factory=dict)
    state: State | None = field(default=None, repr=False)

    @classmethod
    def of(cls, state: State, num_data: int, like: Any) -> Result:
        """What a state of the sampler shows, copied, and that state itself."""
        cloud = state.cloud
        memory = cloud.memory
        back = memory.read(like, "x")[1] if arrays.device(like) == cloud.posterior.device else lambda view: view
        result = cls(
            back(memory.copy(cloud.particles)),
            back(memory.copy(memory.put(cloud.log_weights))),
            cloud.posterior,
            state.target,
            num_data,
            state.history.copy(),
            precision_in_use=cloud.posterior.precision_in_use,
            genealogy=tuple(state.genealogy) or None,
            started_from=state.start.origin,
            state=state,
        )
        judged = result._judge()
        earlier = (said for said in state.start.warnings if said not in judged)
        result.warnings = judged + [f"{EARLIER}{said.removeprefix(EARLIER)}" for said in earlier]
        return result

    def _judge(self) -> list[str]:
        found, count = [], len(self.log_weights)
        if not self.target.is_posterior(self.num_data):
            t = self.target
            found.append(
                f"the particles represent {t.batch_size:,} of {self.num_data:,} data points at likelihood scale "
                f"{t.likelihood_scale:.4g} and temperature {t.temperature:.4g}, not the full posterior"
            )
        if self.started_from == "particles":
            found.append(
                "the particles started where they were told to instead of at draws from the prior, and their weights "
                "do not correct for it: there is no log_evidence, and they are a sample of the posterior only as far "
                "as the moves made them forget where they started"
            )
        ancestors = self.history["distinct_ancestors"]
        collapsed = self.history["iteration"][ancestors == 1]
        if count > 1 and len(collapsed):
            found.append(
                f"the particles collapsed to one ancestor at {len(collapsed)} of {len(self.history)} iterations, "
                f"last at iteration {collapsed[-1]}; they are independent only as far as the moves since then made them"
            )
        if self.genealogy is not None:
            few = (self.history["ess"] < max(FEW * count, min(FEWEST, FEWEST_SHARE * count))) & (ancestors > 1)
            if few.any():
                lowest, last = self.history["ess"][few].min(), self.history["iteration"][few][-1]
                found.append(
                    f"the effective sample size of the {count} particles was low at {few.sum()} of {len(self.history)} "
                    f"iterations, {lowest:.3g} at the least, last at iteration {last}: so few of them said what came "
                    "after, and log_evidence"
                )
        loose = np.isnan(self.history["acceptance"]).sum()
        if loose:
            found.append(
                f"the moves of {loose} of {len(self.history)} iterations leave their target only approximately as it "
                "is, so that the particles and log_evidence are approximate"
            )
        still = np.count_nonzero(self.history["acceptance"] < MOVED)
        if still:
            found.append(
                f"fewer than one of {1 / MOVED:.0f} proposals was accepted at {still} of {len(self.history)} "
                "iterations: the step size was too large there, and the particles hardly moved"
            )
        stuck = np.count_nonzero(np.isnan(self.history["acceptance"]) & (self.history["diverged"] > count / 2))
        if stuck:
            found.append(
                f"more than half of the particles diverged at {stuck} of {len(self.history)} iterations and stayed "
                "where they were: the step size was too large there"
            )
        lost = int(self.history["non_finite"].sum())
        if lost:
            found.append(f"{lost} particles had a density that was not finite and got weight zero")
        return found

    @property
    def log_evidence(self) -> float | None:
        """Estimate of log p(y | x); None where the particles do not represent it, or started at given ones."""
        if self.started_from == "particles" or not self.target.is_posterior(self.num_data):
            return None
        return float(self.history["log_evidence"][-1])

    @property
    def log_evidence_error(self) -> float | None:
        """Standard error of ``log_evidence``, estimated from this one run; None where there is no evidence.

        The square root of the genealogical estimate of the relative variance (Lee and Whiteley, 2018), which supposes
        many more particles than resampling steps: a value near 1 means that most particles descend from one draw from
        the prior, and that the error can only be told from several runs, as `run_many` makes them. NaN where the
        genealogy tells nothing: of a single particle, of a single waste-free chain, of persistent sampling. The
        variance of a run that started from a result is added to that of the result.
        """
        if self.log_evidence is None:
            return None
        return math.sqrt(max(float(self.history["evidence_variance"][-1]), 0.0))

    @property
    def weights(self) -> np.ndarray:
        """float64 [P], summing to one."""
        return np.exp(arrays.on_host(self.log_weights, "log_weights"), dtype=np.float64)

    @property
    def ess(self) -> float:
        """Effective sample size of the weights."""
        return float(1 / np.sum(self.weights**2))

    def predict_proba(self, x: Any) -> Any:
        """Posterior mean of the class probabilities, [n, C]; of the outputs' probabilities for Bernoulli.

        x is of any source that `SMC.run` takes.
        """
        return self._as(x, self._mean(x))

    def predict(self, x: Any) -> Any:
        """The most probable class [n] (Bernoulli: 0 or 1), or the posterior mean of the outputs for regression."""
        return self._as(x, self.posterior.likelihood.decide(self._mean(x)))

    def pointwise(self, x: Any, y: Any, used: np.ndarray | None = None) -> np.ndarray:
        """Log-likelihood of every data point under every particle, or those of numbers ``used``: float64 [P, n]."""
        y = arrays.on_host(sources.table(y, "y"), "y")
        x = sources.Rows.of(sources.features(x))
        if y.shape[:1] != (len(x),):
            raise ValueError(f"y has shape {y.shape}; it must have {len(x)} rows, as x has")
        parts = [self._of(self.posterior.pointwise, host, y[rows], used=used) for rows, host in self._blocks(x)]
        return np.concatenate(parts, axis=1)

    def _mean(self, x: Any, function: Callable[[Any], Any] | None = None) -> np.ndarray:
        """Weighted mean over the particles of a function of the outputs, by default what is expected, [n, K]."""
        import torch

        function = function or self.posterior.likelihood.expectation
        weights, used = torch.from_numpy(self.weights), np.flatnonzero(self.weights > 0)

        def expectation(host: np.ndarray) -> torch.Tensor:
            outputs = torch.from_numpy(self._of(self.posterior.outputs, host, used=used))
            return torch.tensordot(weights[used], function(outputs).double(), 1)

        return torch.cat([expectation(host) for _, host in self._blocks(x)]).numpy()

    def _blocks(self, x: Any) -> Iterator[tuple[slice, np.ndarray]]:
        """Rows of data that are read at a time, whose outputs fit the cache: where they are, and what they hold."""
        rows = sources.Rows.of(sources.features(x))
        size = max(1, min(2**22 // (len(self.weights) * self.posterior.network.num_outputs), rows.block_size))
        for begin in range(0, len(rows), size):
            yield slice(begin, begin + size), rows[begin : begin + size].read()

    def _as(self, x: Any, answer: np.ndarray) -> Any:
        """An array of the kind of the data that it is about."""
        return arrays.kind_of(sources.like(sources.features(x)), "x")(answer)

    def _of(self, function: Callable[..., Any], *host: np.ndarray, used: np.ndarray | None = None) -> np.ndarray:
        """What a function makes of the particles, or some of them, and of arrays: on the host."""
        memory = self.posterior.memory
        particles = memory.read(self.particles, "particles")[0]
        particles = particles if used is None else particles[used]
        return memory.host(memory.read(function(particles, *map(memory.put, host)), "outputs")[0])

    @property
    def classifies(self) -> bool:
        """Whether predictions are probabilities of classes."""
        return self.posterior.likelihood.classifies

    def classify(self, x: Any, y: Any) -> tuple[np.ndarray, np.ndarray]:
        """Class probabilities [n, C] and true labels [n], on the host; each output of Bernoulli is a row, C = 2."""
        proba, y = self._mean(x), arrays.on_host(sources.table(y, "y"), "y")
        if self.posterior.likelihood.name == "bernoulli":
            return np.stack([1 - proba.ravel(), proba.ravel()], axis=1), y.ravel().astype(np.int64)
        return proba, y

    def evaluate(self, x: Any, y: Any) -> dict[str, float]:
        """Accuracy, negative log-likelihood and expected calibration error; for regression rmse and nll."""
        if not self.classifies:
            return self._evaluate_regression(x, arrays.on_host(sources.table(y, "y"), "y"))
        proba, y = self.classify(x, y)
        return {
            "accuracy": metrics.accuracy(proba, y),
            "nll": metrics.negative_log_likelihood(proba, y),
            "ece": metrics.expected_calibration_error(proba, y),
        }

    def _evaluate_regression(self, x: Any, y: np.ndarray) -> dict[str, float]:
        used = np.flatnonzero(self.weights > 0)
        log_weights = arrays.on_host(self.log_weights, "log_weights")[used, None]
        log_mean = np.logaddexp.reduce(log_weights + self.pointwise(x, y, used), axis=0)
        return {"rmse": metrics.rmse(self._mean(x), y), "nll": float(-np.mean(log_mean))}

    def plot(
        self, path: str | Path | None = None, x: Any = None, y: Any = None, trace: History | None = None
    ) -> Figure:
        """Draw the run: data schedule, ESS and ancestors, step size and acceptance, genealogy.

        Parameters
        ----------
        path
            Where to save the picture, in the format of its suffix.
        x, y
            Test data, for a reliability diagram, or for predictions against the truth.
        trace
            A `Trace` of the run, for accuracy and negative log-likelihood against time.
        """
        from fastsmc import plotting

        return plotting.plot_run(self, path, x, y, trace)

    def report(self, path: str | Path, x: Any = None, y: Any = None, **options: Any) -> None:
        """Write the run as one HTML file: `fastsmc.report.write`."""
        from fastsmc import report

        report.write(self, path, x, y, **options)

    def to_arviz(self, x: Any = None, y: Any = None, **options: Any) -> Any:
        """For ArviZ: `fastsmc.integrations.arviz.to_arviz`."""
        from fastsmc.integrations import arviz

        return arviz.to_arviz(self, x, y, **options)

    def save(self, path: str | Path) -> None:
        """Write a safetensors file, as a whole or not at all; `fastsmc.load` reads it."""
        from fastsmc import files

        files.save(self, path)

    def state_dicts(self) -> list[dict[str, Any]]:
        """Every particle as the ``state_dict`` of a torch module, with what was fixed: `fastsmc.export.state_dicts`."""
        from fastsmc import export

        return export.state_dicts(self)

    def to_onnx(self, path: str | Path) -> None:
        """Write what `predict_proba` computes, or the posterior mean, as ONNX: `fastsmc.export.to_onnx`."""
        from fastsmc import export

        export.to_onnx(self, path)
