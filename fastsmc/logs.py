"""The ``fastsmc`` logger: what a run does, for people and for machines.

A record of it has an attribute ``fastsmc``, a dict with ``event``: ``"start"`` (INFO; the settings of the run),
``"iteration"`` (DEBUG; the row of the history), ``"warning"`` (WARNING; once the run has ended), ``"error"`` and
``"end"`` (INFO). Nothing is written anywhere unless logging is configured to.
"""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any

LOGGER = logging.getLogger("fastsmc")
LOGGER.addHandler(logging.NullHandler())


def emit(level: int, event: str, message: str, **fields: Any) -> None:
    """Log an event with its fields."""
    if LOGGER.isEnabledFor(level):
        LOGGER.log(level, "%s", message, extra={"fastsmc": {"event": event, **fields}})


class JSONFormatter(logging.Formatter):
    """A record as one line of JSON: time (ISO 8601), level, message and the fields of its event."""

    def format(self, record: logging.LogRecord) -> str:
        """See `logging.Formatter`."""
        time = datetime.fromtimestamp(record.created).astimezone().isoformat(timespec="milliseconds")
        line = {"time": time, "level": record.levelname, "message": record.getMessage()}
        return json.dumps(plain(line | getattr(record, "fastsmc", {})))


@contextmanager
def written_to(path: str | Path | None) -> Iterator[None]:
    """Write every record to a file as it comes, a JSON object a line; to none if ``path`` is None."""
    if path is None:
        yield
        return
    handler, level = logging.FileHandler(path, mode="w", encoding="utf-8"), LOGGER.level
    handler.setFormatter(JSONFormatter())
    LOGGER.addHandler(handler)
    LOGGER.setLevel(logging.DEBUG)
    try:
        yield
    finally:
        LOGGER.setLevel(level)
        LOGGER.removeHandler(handler)
        handler.close()


def plain(value: Any) -> Any:
    """What JSON knows: arrays become lists, what is not finite null, and objects of other kinds their names."""
    if isinstance(value, dict):
        return {str(key): plain(item) for key, item in value.items()}
    if hasattr(value, "tolist"):
        value = value.tolist()
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value if value is None or isinstance(value, str | int | float) else str(value)
