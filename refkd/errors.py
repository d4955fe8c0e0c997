"""The errors refkd raises, and the checks that raise them.

Every message says which function and argument, what was expected and what was
given. The kinds also derive from the built-in a reader would catch
(``ValueError``, ``TypeError``, ``ImportError`` ...), and the command line maps
each kind to an exit code.
"""

from __future__ import annotations

import difflib
import importlib
import inspect
import math
import numbers
from collections.abc import Callable, Iterable
from types import ModuleType
from typing import Any

__all__ = [
    "BackendUnavailable",
    "CheckpointError",
    "ConfigError",
    "DataError",
    "DtypeError",
    "MissingExtra",
    "NonFiniteError",
    "RefkdError",
    "ShapeError",
    "check_arguments",
    "check_axis",
    "check_choice",
    "check_float_dtypes",
    "check_integer",
    "check_non_negative",
    "check_positive",
    "check_same_shape",
    "check_unit_interval",
    "import_extra",
    "suggest",
]


class RefkdError(Exception):
    """Base of everything refkd raises on purpose."""


class ShapeError(RefkdError, ValueError):
    """Array shapes do not fit together."""


class DtypeError(RefkdError, TypeError):
    """An argument is no array, or arrays have dtypes that do not fit together."""


class ConfigError(RefkdError, ValueError):
    """A hyperparameter, recipe key or command-line value makes no sense."""


class DataError(RefkdError, ValueError):
    """A data file or a batch is missing, truncated, corrupt or out of range."""


class CheckpointError(RefkdError, ValueError):
    """A checkpoint is missing, corrupt, unwritable, or belongs to another model."""


class BackendUnavailable(RefkdError, ImportError):
    """A backend cannot be used here; the message says why and what to install."""


class MissingExtra(RefkdError, ImportError):
    """An optional package is not installed; the message names the extra."""


class NonFiniteError(RefkdError, FloatingPointError):
    """Training met NaN or infinity; raised before the update is applied."""


# By NumPy's type characters: asking a dtype for its name costs more than a small kernel.
_FLOAT32, _FLOAT64, _COMPLEX128 = "f", "d", "D"


def check_float_dtypes(where: str, **arrays: Any) -> None:
    """Require one floating dtype: all float32, or float64 and complex128 mixed.

    Parameters
    ----------
    where : str
        The calling function, for the message.
    **arrays : array or None
        Arguments by name; None is skipped.

    Raises
    ------
    DtypeError
        If an argument is no array, is not floating, or dtypes are mixed.
    """
    seen: set[str] = set()
    for name, array in arrays.items():
        if array is None:
            continue
        character = getattr(getattr(array, "dtype", None), "char", None)
        if character is None:  # a torch tensor has a dtype, of another kind
            raise DtypeError(
                f"{where}: {name} must be an array, got {type(array).__name__}; "
                f"convert it first, for example with numpy.asarray"
            )
        seen.add(character)
    if not (seen <= {_FLOAT32} or seen <= {_FLOAT64, _COMPLEX128}):
        given = ", ".join(f"{n} {a.dtype.name}" for n, a in arrays.items() if a is not None)
        raise DtypeError(
            f"{where}: expected all float32 or all float64 "
            f"(complex128 may stand for float64), got {given}"
        )


def check_same_shape(where: str, **arrays: Any) -> None:
    """Raise ShapeError unless all given arrays have one shape."""
    if len({tuple(a.shape) for a in arrays.values()}) > 1:
        given = ", ".join(f"{n} {tuple(a.shape)}" for n, a in arrays.items())
        raise ShapeError(f"{where}: expected equal shapes, got {given}")


def check_choice(where: str, name: str, value: object, choices: Iterable[str]) -> None:
    """Raise ConfigError, with the closest match, unless ``value`` is one of ``choices``."""
    options = list(choices)
    if value not in options:
        raise ConfigError(
            f"{where}: {name} must be one of {', '.join(map(repr, options))}, got {value!r}"
            f"{suggest(value, options)}"
        )


def check_positive(where: str, name: str, value: Any) -> None:
    """Raise ConfigError unless ``value`` is a finite real number above zero."""
    if not _is_real(value) or not value > 0:
        raise ConfigError(f"{where}: {name} must be a finite number > 0, got {value!r}")


def check_non_negative(where: str, name: str, value: Any) -> None:
    """Raise ConfigError unless ``value`` is a finite real number from zero up."""
    if not _is_real(value) or not value >= 0:
        raise ConfigError(f"{where}: {name} must be a finite number >= 0, got {value!r}")


def check_integer(where: str, name: str, value: Any, least: int) -> None:
    """Raise ConfigError unless ``value`` is an integer, and not a bool, from ``least`` up."""
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise ConfigError(f"{where}: {name} must be an integer >= {least}, got {value!r}")


def check_axis(where: str, axis: Any, shape: tuple[int, ...]) -> None:
    """Raise ConfigError unless ``axis`` is an integer, ShapeError unless ``shape`` has it."""
    if not isinstance(axis, int) or isinstance(axis, bool):
        raise ConfigError(f"{where}: axis must be an integer, got {axis!r}")
    if not -len(shape) <= axis < len(shape):
        raise ShapeError(f"{where}: axis {axis} is out of range for shape {tuple(shape)}")


def check_unit_interval(where: str, name: str, value: Any) -> None:
    """Raise ConfigError unless ``value`` is a number in [0, 1]."""
    if not _is_real(value) or not 0 <= value <= 1:
        raise ConfigError(f"{where}: {name} must be a number in [0, 1], got {value!r}")


def _is_real(value: Any) -> bool:
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        return False
    try:
        return math.isfinite(value)
    except OverflowError:  # an int that no float holds
        return False


def check_arguments(
    where: str, kind: str, function: Callable[..., Any], given: Iterable[str]
) -> None:
    """Raise ConfigError if ``given`` are not arguments of ``function``, or one is missing.

    Parameters
    ----------
    where : str
        What is called, for the message.
    kind : str
        What an argument is called there: "hyperparameter", "parameter".
    function : callable
    given : iterable of str
        Names of the keyword arguments.
    """
    accepted = inspect.signature(function).parameters
    names = list(given)
    for name in names:
        if name not in accepted:
            raise ConfigError(
                f"{where}: unknown {kind} {name!r}, expected {', '.join(accepted)}"
                f"{suggest(name, accepted)}"
            )
    missing = [k for k, p in accepted.items() if p.default is p.empty and k not in names]
    if missing:
        raise ConfigError(
            f"{where}: missing {kind} {', '.join(missing)}, expected {', '.join(accepted)}"
        )


def suggest(value: object, options: Iterable[str]) -> str:
    """``"; did you mean 'x'?"`` where an option is close to ``value``, else ``""``."""
    close = difflib.get_close_matches(str(value), list(options), n=1)
    return f"; did you mean {close[0]!r}?" if close else ""


def import_extra(module: str, extra: str, purpose: str) -> ModuleType:
    """Import an optional package, or say which extra of refkd brings it.

    Raises
    ------
    MissingExtra
        If ``module`` cannot be imported.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise MissingExtra(
            f"{purpose} needs {module.partition('.')[0]} ({error}); "
            f"install it with: pip install 'refkd[{extra}]'"
        ) from error
