"""TOML text into frozen dataclasses: every key known, every value of its type."""

from __future__ import annotations

import dataclasses
import reprlib
import tomllib
import types
import typing
from collections.abc import Mapping
from typing import Any, TypeVar

from refkd.errors import ConfigError, suggest

__all__ = ["from_table", "parse_toml"]

T = TypeVar("T")

_NAMES = {str: "text", int: "an integer", float: "a number", bool: "true or false"}
_EXACT_IN_FLOAT = 1 << 53


def parse_toml(text: str, where: str) -> dict[str, Any]:
    """Parse a TOML text whose integers fit in 64 bits, as TOML promises no more.

    Raises
    ------
    ConfigError
        If the text is no TOML.
    """
    try:
        table = tomllib.loads(text)
        _check_integers(table)
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{where}: not valid TOML: {error}") from error
    return table


def from_table(cls: type[T], table: Any, where: str) -> T:
    """Build the dataclass ``cls`` from a TOML table.

    Parameters
    ----------
    cls : type
        A dataclass whose fields are str, int, float, bool, tuples of these, dataclasses,
        ``dict[str, dataclass]``, ``dict[str, Any]``, or one of them or None.
    table : mapping
    where : str
        Path of the table in its file, for messages.

    Raises
    ------
    ConfigError
        If a key is unknown (with a suggestion) or missing, a value has another type, or
        the dataclass refuses it; the message begins with the path of the table.
    """
    if not isinstance(table, Mapping):
        raise ConfigError(f"{where}: expected a table, got {reprlib.repr(table)}")
    hints = typing.get_type_hints(cls)
    fields = {f.name: f for f in dataclasses.fields(cls)}  # type: ignore[arg-type]
    for key in table:
        if key not in fields:
            raise ConfigError(
                f"{where}: unknown key {key!r}, expected {', '.join(fields)}{suggest(key, fields)}"
            )
    missing = [
        name
        for name, f in fields.items()
        if name not in table
        and f.default is dataclasses.MISSING
        and f.default_factory is dataclasses.MISSING
    ]
    if missing:
        raise ConfigError(f"{where}: missing {', '.join(missing)}")
    values = {k: _convert(hints[k], v, f"{where}.{k}") for k, v in table.items()}
    try:
        return cls(**values)
    except ConfigError as error:
        raise ConfigError(f"{where}: {error}") from error


def _check_integers(value: Any) -> None:
    if isinstance(value, (dict, list)):
        for inner in value.values() if isinstance(value, dict) else value:
            _check_integers(inner)
    elif isinstance(value, int) and not -(1 << 63) <= value < 1 << 63:
        raise ValueError("an integer does not fit in 64 bits")


def _convert(hint: Any, value: Any, where: str) -> Any:
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):  # X | None: TOML has no null
        return _convert(next(a for a in arguments if a is not type(None)), value, where)
    if dataclasses.is_dataclass(hint):
        return from_table(typing.cast(type, hint), value, where)
    if origin is dict:
        if not isinstance(value, Mapping):
            raise ConfigError(f"{where}: expected a table, got {reprlib.repr(value)}")
        if arguments[1] is Any:
            return dict(value)
        return {k: _convert(arguments[1], v, f"{where}.{k}") for k, v in value.items()}
    if origin is tuple:
        if not isinstance(value, list):
            raise ConfigError(f"{where}: expected a list, got {reprlib.repr(value)}")
        return tuple(_convert(arguments[0], v, f"{where}[{i}]") for i, v in enumerate(value))
    if hint is float and type(value) is int and abs(value) < _EXACT_IN_FLOAT:
        return float(value)
    if type(value) is not hint:
        raise ConfigError(f"{where}: expected {_NAMES[hint]}, got {reprlib.repr(value)}")
    return value
