"""The peer: tempered SMC by blackjax."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import ClassVar

import numpy as np

import fastsmc as fs
from bench.lenet import jax_log_likelihood
from bench.study.methods import Method, State, weighted
from bench.study.problems import Problem
from fastsmc.annealing import Target
from fastsmc.data import Dataset
from fastsmc.moves import Outcome
from fastsmc.progress import Stopwatch
from fastsmc.steps import StepSize


@dataclass(frozen=True, kw_only=True)
class BlackjaxTempering(Method):
    """blackjax's adaptive tempered SMC with HMC, jit-compiled before its clock starts; ends with moves at 1.

    Blackjax leaves the step size to its user: it is adapted by the rule of ours.
    """

    scheme: ClassVar[str] = "blackjax"
    move: ClassVar[str] = "hmc"
    needs: ClassVar[tuple[str, ...]] = ("jax", "blackjax")

    @property
    def label(self) -> str:
        return f"blackjax adaptive tempering, hmc{self.remark}"

    def sample(self, problem: Problem, dataset: Dataset, seed: int) -> Iterator[State]:
        import jax
        import jax.numpy as jnp
        from blackjax.mcmc import hmc
        from blackjax.smc import adaptive_tempered, resampling

        steps, post = problem.preset.num_steps, problem.posterior
        log_likelihood, precision = jax_log_likelihood(problem.net), jnp.asarray(post.prior_precision)
        rule = StepSize(fs.HMC(num_steps=steps))
        rule.value = rule.initial

        @jax.jit
        def advance(iteration, state, step_size, x, y):
            kernel = adaptive_tempered.build_kernel(
                lambda particle: -0.5 * jnp.sum(precision * particle**2),
                lambda particle: log_likelihood(particle, x, y),
                partial(hmc.build_kernel(), num_integration_steps=steps),
                hmc.init,
                resampling.systematic,
                fs.LikelihoodTempering().ess,
            )
            shared = {"step_size": step_size[None], "inverse_mass_matrix": jnp.ones((1, problem.net.num_params))}
            return kernel(jax.random.fold_in(jax.random.key(seed), iteration), state, 1, shared)

        x, y = jnp.asarray(dataset.x_train), jnp.asarray(dataset.y_train)
        state = adaptive_tempered.init(jnp.asarray(post.sample_prior(problem.preset.particles, seed)))
        state = state._replace(tempering_param=jnp.float32(0))
        compiled = advance.lower(np.int32(0), state, np.float32(rule.value), x, y).compile()

        clock, target, iteration = Stopwatch(), Target(0, len(x), temperature=0.0), 0
        while True:
            last = target.temperature == 1.0
            state, info = jax.block_until_ready(compiled(np.int32(iteration), state, np.float32(rule.value), x, y))
            acceptance = float(np.mean(info.update_info.acceptance_rate))
            health = {
                "iteration": iteration,
                "batch_size": len(x),
                "temperature": target.temperature,
                "ess": float(1 / np.sum(np.square(state.weights))),
                "distinct_ancestors": len(np.unique(info.ancestors)),
                "step_size": rule.value,
                "acceptance": acceptance,
            }
            rule.adapt(Outcome(np.zeros(1), acceptance, np.nan), target)
            previous, target = target, Target(0, len(x), temperature=float(state.tempering_param))
            if previous.temperature > 0:
                rule.rescale(previous, target)
            iteration += 1
            # a gradient at the start of the move, one a step, a likelihood to choose the temperature, one to weight
            passes = iteration * (steps + 3)
            with clock.paused():
                result = weighted(problem, np.asarray(state.particles), np.asarray(state.weights))
                note = [] if last else [f"the moves' temperature is {previous.temperature:.4g}, not 1"]
                yield State(clock.seconds(), passes, result.predict_proba, health, note)
            if last:
                return
