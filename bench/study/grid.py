"""The table of runs: data set x network x method x seed."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from functools import cached_property
from importlib.util import find_spec
from typing import Any

from bench.study.baselines import Ensemble, StochasticGradientHMC
from bench.study.methods import Annealed, Method
from bench.study.problems import PROBLEMS, Problem
from bench.study.tempered import BlackjaxTempering

MOVES = ("hmc", "kinetic", "mala", "langevin")
SMALL = 2000
"""Points of MNIST that tempering, which uses all its data at every temperature, can afford."""

METHODS: dict[str, tuple[Method, ...]] = {
    "digits": (
        *(Annealed("full", move) for move in MOVES),
        *(Annealed("mini", move, scale="full", start=200) for move in MOVES),
        *(Annealed("data", move, scale=scale) for scale in ("none", "full") for move in MOVES),
        *(Annealed("smooth", move, scale=scale) for scale in ("none", "full") for move in MOVES),
        *(Annealed("smooth", scale=scale, length=2) for scale in ("none", "full")),
        Annealed("smooth", "sghmc", scale="none", length=2),
        *(Annealed("adaptive", move) for move in (*MOVES, "sghmc")),
        *(Annealed("tempering", move) for move in MOVES),
        Ensemble(batch_size=64, learning_rate=3e-3),
        StochasticGradientHMC(batch_size=64, learning_rate=0.03),
        BlackjaxTempering(),
    ),
    "mnist": (
        Annealed("full"),
        Annealed("smooth", scale="full"),
        Annealed("smooth", scale="full", length=3, share=0.4),
        Annealed("adaptive", "sghmc"),
        Annealed("full", "sghmc", length=40, share=0.4),
        Ensemble(share=0.4, learning_rate=3e-3),
        StochasticGradientHMC(share=0.4, learning_rate=0.05),
        Annealed("smooth", "sghmc", scale="none", length=40, share=0.4),
        Annealed("data", scale="full"),
        *(Annealed(scheme, scale="none") for scheme in ("data", "smooth")),
        Annealed("smooth", "kinetic", scale="full"),
        Annealed("mini", scale="full", start=2000, length=5),
        Annealed("adaptive", "kinetic"),
        Annealed("tempering", "kinetic", subset=SMALL, share=0.3),
        BlackjaxTempering(subset=SMALL, share=0.3),
    ),
    # without blackjax: XLA's grouped convolutions took 8 s a gradient of 4 networks on 2,000 images; without HMC: an
    # iteration on all the data takes minutes, and after 446 s of it accuracy was 16 %
    "mnist-lenet": (
        Annealed("full", "sghmc", length=40, share=0.4),
        Annealed("adaptive", "sghmc"),
        *(Annealed(scheme, "sghmc", scale="none", length=40, share=0.4) for scheme in ("data", "smooth")),
        Annealed("tempering", "kinetic", subset=SMALL, share=0.2),
        Ensemble(share=0.4, learning_rate=3e-3),
        StochasticGradientHMC(share=0.4, learning_rate=0.05),
    ),
}
"""By the name of the problem. The learning rates of the baselines were the best of a few in runs of a few seconds."""


@dataclass(frozen=True)
class Run:
    """One cell of the table."""

    problem: Problem
    method: Method
    seed: int

    @property
    def name(self) -> str:
        return f"{self.problem.name}/{self.method.name}/{self.seed}"

    @property
    def file(self) -> str:
        return self.name.replace("/", "--") + ".json"

    @cached_property
    def settings(self) -> dict[str, Any]:
        """What its result depends on, as JSON gives it back."""
        method = {"kind": type(self.method).__name__, **asdict(self.method)}
        return json.loads(json.dumps({"problem": self.problem.settings(), "method": method, "seed": self.seed}))

    @property
    def budget(self) -> float:
        """Seconds."""
        return self.method.share * self.problem.budget

    def lacking(self) -> str:
        """The modules that it needs and that are not there."""
        return ", ".join(name for name in self.method.needs if find_spec(name) is None)

    def seconds(self, per_pass: float) -> float:
        """At most, given the seconds of a pass over the data."""
        return min(self.budget, per_pass * self.method.data_passes(self.problem))


def table(quick: bool, seeds: int) -> Iterator[Run]:
    """All runs, seed by seed: after the first there is a whole, if thin, table."""
    for seed in range(seeds):
        for problem in PROBLEMS:
            for method in METHODS[problem.name]:
                yield Run(problem.quick() if quick else problem, method, seed)


def chosen(run: Run, data: str, only: str) -> bool:
    """Whether a choice of data and a part of the name take a run."""
    return data in ("all", run.problem.data) and run.problem.opt_in in only and only in run.name
