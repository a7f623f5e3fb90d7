"""How good a run is on test data as it goes on."""

from __future__ import annotations

import math
import time
from typing import Any

from fastsmc.result import History, Result


class Trace(History):
    """A callback of a sampler's ``run`` that evaluates its states on test data; its time does not count in ``seconds``.

    Columns, as those of `History`: iteration, seconds, data_passes, and what `Result.evaluate` returns: accuracy, nll
    and ece, or rmse and nll.

    >>> trace = fs.Trace(x_test, y_test)
    >>> result = smc.run(x_train, y_train, callback=trace)
    >>> trace.accuracy, trace.seconds
    >>> result.plot("run.png", x_test, y_test, trace=trace)

    Parameters
    ----------
    x, y
        Test data, as `Result.evaluate` takes them.
    share
        States are left out while evaluating has taken more than this share of the run's seconds; none unless given.
    """

    def __init__(self, x: Any, y: Any, share: float = math.inf) -> None:
        super().__init__()
        self._x, self._y, self._share, self._spent = x, y, share, 0.0

    def __call__(self, state: Result) -> None:
        """Evaluate a state."""
        row, begin = state.history.last, time.perf_counter()
        if self._spent > self._share * row["seconds"]:
            return
        known = {name: row[name] for name in ("iteration", "seconds", "data_passes")}
        self.append(**known, **state.evaluate(self._x, self._y))
        self._spent += time.perf_counter() - begin
