"""Checks of hyperparameters that several layers share."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from refkd.errors import ConfigError
from refkd.ops.window import as_pair

__all__ = ["check_counts", "check_names", "set_pairs"]


def check_counts(where: str, **counts: Any) -> None:
    """Raise ConfigError unless every one of ``counts`` is a positive integer."""
    for name, count in counts.items():
        if not isinstance(count, int) or isinstance(count, bool) or count < 1:
            raise ConfigError(f"{where}: {name} must be a positive integer, got {count!r}")


def check_names(where: str, names: Sequence[str]) -> None:
    """Raise ConfigError unless ``names`` can be components of a path: unique, without dots."""
    if len(set(names)) < len(names) or any("." in n or not n for n in names):
        raise ConfigError(
            f"{where}: names must be unique, not empty and without dots, got {list(names)}"
        )


def set_pairs(layer: Any, **least: int) -> None:
    """Make the fields named in ``least`` of a frozen layer (vertical, horizontal) pairs.

    Raises
    ------
    ConfigError
        If a field is neither an integer nor a pair of them, or below its least value.
    """
    for name, bound in least.items():
        pair = as_pair(type(layer).__name__, name, getattr(layer, name), bound)
        object.__setattr__(layer, name, pair)
