"""What can be wrong with what f and grad return, and what to write instead."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from refkd.errors import suggest
from refkd.testing.problem import Problem
from refkd.testing.report import Verdict
from refkd.testing.structure import flatten

__all__ = ["Complaint", "gradient_complaint", "point_complaint", "value_complaint"]


_KINDS: dict[type, str] = {int: "i", float: "f", complex: "c"}


class Complaint(NamedTuple):
    """A verdict that stands before any comparison, and why."""

    verdict: Verdict
    message: str
    explanation: str = ""


def point_complaint(problem: Problem) -> Complaint | None:
    """Return what is wrong with the point: a parameter that is not finite."""
    for name, x in problem.given.items():
        if not np.all(np.isfinite(x)):
            index = _first_infinite(x)
            return Complaint(
                Verdict.NONFINITE,
                f"parameter {name} is {x[index]} at {list(index)}: there is no derivative there; "
                f"make it a constant of f, or choose another point",
            )
    return None


def value_complaint(value: Any) -> Complaint | None:
    """Return what is wrong with a value of f: no real scalar, or not finite."""
    several = isinstance(value, (tuple, list, Mapping)) or getattr(value, "shape", ()) != ()
    kind = getattr(getattr(value, "dtype", None), "kind", _KINDS.get(type(value), "O"))
    if several or kind not in "fiu":
        shape = f" of shape {value.shape}" if getattr(value, "shape", ()) != () else ""
        given = getattr(value, "dtype", type(value).__name__)
        advice = "return the loss itself"
        if several:
            advice = "check_vjp checks functions with arrays as outputs"
        elif kind == "c":
            advice = "for real arguments its value has no imaginary part"
        return Complaint(
            Verdict.SHAPE_DTYPE, f"f must return a real scalar, got {given}{shape}; {advice}"
        )
    if not np.isfinite(value):
        return Complaint(Verdict.NONFINITE, f"f is {value} at the given parameters")
    return None


def gradient_complaint(
    returned: Any, given: Mapping[str, NDArray[Any]], problem: Problem
) -> Complaint | None:
    """Return what is wrong with keys, shapes, dtypes or values of a gradient at ``given``."""
    if not isinstance(returned, Mapping):
        example = ", ".join(f"{name!r}: d{name}" for name in list(given)[:2])
        return Complaint(
            Verdict.SHAPE_DTYPE,
            f"{problem.names[1]} must return a mapping of parameter names to arrays, such as "
            f"{{{example}}}, got {type(returned).__name__}",
        )
    found = flatten(returned, problem.leaves)
    unknown = [name for name in found if name not in problem.leaves]
    missing = [name for name in given if found.get(name) is None]
    if unknown or missing:
        return Complaint(
            Verdict.SHAPE_DTYPE,
            f"{problem.names[1]} must return one array for each of {', '.join(sorted(given))}, "
            f"got {', '.join(_said(found)) or 'none'}"
            + "".join(suggest(name, missing) for name in unknown[:1]),
        )
    for name, x in given.items():
        gradient = found[name]
        dtype = getattr(gradient, "dtype", type(gradient).__name__)
        shape = np.shape(gradient)
        if not isinstance(gradient, (np.ndarray, np.generic)) or (shape, dtype) != (
            x.shape,
            x.dtype.newbyteorder("="),
        ):
            return Complaint(
                Verdict.SHAPE_DTYPE,
                f"the gradient of {name} must be {x.dtype} of shape {x.shape} like the "
                f"parameter, got {dtype} of shape {shape}{_remedy(dtype, x.dtype)}",
                _explain_shape(shape, x.shape),
            )
        if not np.all(np.isfinite(gradient)):
            index = _first_infinite(np.asarray(gradient))
            value = np.asarray(gradient)[index]
            return Complaint(
                Verdict.NONFINITE,
                f"the gradient of {name} ({x.dtype}) is {value} at {list(index)}",
            )
    return None


def _explain_shape(got: tuple[int, ...], expected: tuple[int, ...]) -> str:
    extra = len(got) - len(expected)
    if got == expected:
        return ""
    if got == expected[::-1]:
        return "a transpose is missing"
    if tuple(n for n in got if n > 1) == tuple(n for n in expected if n > 1):
        return "axes of length 1 too many or too few: keepdims?"
    if extra > 0 and got[extra:] == expected:
        axes = "axis" if extra == 1 else f"{extra} axes"
        return f"a sum over the first {axes}, the batch, is missing"
    if extra < 0 and expected[-extra:] == got:
        return "a sum over the batch that should not be, or one that lost its axes"
    if sorted(got) == sorted(expected):
        return "the axes are permuted"
    if extra == 0 and all(g in (1, e) for g, e in zip(got, expected, strict=True)):
        return "a sum with keepdims over an axis that the parameter has"
    return ""


def _remedy(got: Any, expected: np.dtype[Any]) -> str:
    floats = {np.dtype(np.float32), np.dtype(np.float64)}
    return f"; write .astype({expected})" if got in floats and got != expected else ""


def _said(found: Mapping[str, Any]) -> list[str]:
    return sorted(f"{name} = None" if g is None else name for name, g in found.items())


def _first_infinite(x: NDArray[Any]) -> tuple[int, ...]:
    return tuple(int(i) for i in np.argwhere(~np.isfinite(x))[0])
