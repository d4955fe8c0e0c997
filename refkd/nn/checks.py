"""Checks of hyperparameters that several layers share."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from refkd.errors import ConfigError, check_integer
from refkd.ops.window import as_pair

__all__ = [
    "as_children",
    "check_counts",
    "check_layer",
    "check_names",
    "check_switch",
    "set_pairs",
]


def check_counts(where: str, **counts: Any) -> None:
    """Raise ConfigError unless every one of ``counts`` is a positive integer."""
    for name, count in counts.items():
        check_integer(where, name, count, 1)


def check_switch(where: str, name: str, value: Any) -> None:
    """Raise ConfigError unless ``value`` is true or false."""
    if not isinstance(value, bool):
        raise ConfigError(f"{where}: {name} must be true or false, got {value!r}")


def check_layer(where: str, name: str, value: Any) -> None:
    """Raise ConfigError unless ``value`` is a layer, and not the class of one."""
    if not _is_layer(value):
        raise ConfigError(f"{where}: {name} must be a layer, got {value!r}")


def as_children(where: str, name: str, children: Any, *words: str) -> tuple[Any, ...]:
    """Return a sequence of tuples, of one string for each of ``words`` and a layer, as a tuple.

    Raises
    ------
    ConfigError
        If it is something else.
    """
    form = f"({', '.join(words)}, layer)"
    if not isinstance(children, Iterable):
        raise ConfigError(f"{where}: {name} must be a tuple of {form}, got {children!r}")
    given = tuple(children)
    for child in given:
        is_tuple = isinstance(child, (tuple, list)) and len(child) == len(words) + 1
        if not is_tuple or any(not isinstance(w, str) for w in child[:-1]):
            raise ConfigError(
                f"{where}: {name} must be a tuple of {form}, each a layer after "
                f"{len(words)} {'string' if len(words) == 1 else 'strings'}, got {child!r} in it"
            )
        check_layer(where, f"{child[0]!r} in {name}", child[-1])
    return tuple(map(tuple, given))


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


def _is_layer(value: Any) -> bool:
    return not isinstance(value, type) and callable(getattr(value, "forward", None))
