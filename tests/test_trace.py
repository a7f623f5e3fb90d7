import numpy as np
import pytest

import fastsmc as fs


def run(likelihood, share=np.inf):
    rng = np.random.default_rng(1)
    x = rng.normal(size=(60, 3)).astype(np.float32)
    z = x @ rng.normal(size=(3, 2))
    y = z.argmax(axis=1) if likelihood == "categorical" else z
    trace, states = fs.Trace(x[40:], y[40:], share), []

    def follow(state):
        trace(state)
        states.append(state)

    smc = fs.SMC(fs.Posterior(fs.MLP([3, 2]), likelihood=likelihood), 8, fs.FullBatch(), fs.HMC(2), 4, seed=1)
    smc.run(x[:40], y[:40], progress=False, callback=follow)
    return trace, states, (x[40:], y[40:])


@pytest.mark.parametrize(("likelihood", "names"), [("categorical", ["accuracy", "nll", "ece"]), ("gaussian", ["rmse"])])
def test_a_trace_is_the_quality_of_every_state(likelihood, names):
    trace, states, test = run(likelihood)
    history = states[-1].history
    for name in ("iteration", "seconds", "data_passes"):
        np.testing.assert_array_equal(trace[name], history[name])
    for name in names:
        np.testing.assert_array_equal(trace[name], [state.evaluate(*test)[name] for state in states])
    assert len(trace) == 4 and trace.nll[-1] == states[-1].evaluate(*test)["nll"]


def test_a_trace_that_may_take_no_time_evaluates_once():
    trace, *_ = run("categorical", share=0.0)
    assert list(trace.iteration) == [0]
