"""What constructors check of their arguments."""

from __future__ import annotations

from typing import Any


def check_whole(name: str, value: Any, low: int = 1, also: str = "") -> None:
    """Refuse what is no whole number, or less than ``low``."""
    whole = hasattr(value, "__index__") and not isinstance(value, bool)
    if not (whole and value >= low):
        raise ValueError(f"{name} is {value!r}; it must be {f'at least {low}' if whole else 'a whole number'}{also}")


def check_kind(name: str, value: Any, kind: type, example: str) -> None:
    """Refuse what is not of a kind, as a class or a name are not."""
    if not isinstance(value, kind):
        raise TypeError(f"{name} is {value!r}; it must be of the kind {kind.__name__}, as {example} is")
