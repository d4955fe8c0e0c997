"""Is a hand-written gradient the derivative of its function? ``check_grad`` says, and where not.

Here are the examination of the arguments, the choice of the numeric reference and the
verdict. The numeric derivatives are in :mod:`refkd.testing.derivatives`, their error
bars in :mod:`refkd.testing.references`, the comparison in :mod:`refkd.testing.compare`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from refkd.errors import ConfigError, DtypeError, check_choice, check_positive
from refkd.testing.compare import Comparer, worst_finding
from refkd.testing.references import (
    ComplexStep,
    NotAnalyticError,
    Problem,
    Reference,
    Richardson,
)
from refkd.testing.report import GradReport, Verdict
from refkd.testing.tolerances import GRADIENT

__all__ = ["check_grad"]

_FULL_ENTRIES = 2000
_EXPLANATIONS = {
    Verdict.PASS: "",
    Verdict.WRONG_GRADIENT: "the gradient of {place} is not the derivative of f",
    Verdict.NOISY_REFERENCE: (
        "at {place} nothing is shown: the gap, or the tolerance, lies within the numeric "
        "derivative's error bar or near the rounding of f; a looser tolerance may decide"
    ),
    Verdict.NONFINITE: "the numeric derivative at {place} is not finite",
}


def check_grad(
    f: Callable[..., Any],
    params: Mapping[str, Any],
    grad: Callable[..., Mapping[str, Any]],
    *,
    method: str = "auto",
    mode: str = "auto",
    rng: int | np.random.Generator = 0,
    tolerance: float = GRADIENT,
) -> GradReport:
    """Compare ``grad`` with the numeric derivative of ``f`` at ``params``.

    Parameters
    ----------
    f : callable
        ``f(**params)`` is a real scalar; for the complex step it takes complex arrays
        too and is then a complex scalar. A function with an array as output is checked
        through ``(output * cotangent).sum()`` with a random cotangent.
    params : mapping of str to array
        float64 and float32 arrays are the parameters; whatever else is in the mapping
        (integers, None ...) reaches ``f`` and ``grad`` unchanged. float32 parameters
        are judged on float64 copies; for the arrays as given, the gradient must be
        float32 and finite.
    grad : callable
        ``grad(**params)`` is a mapping with one array per parameter, of its shape and
        dtype.
    method : {"auto", "complex", "richardson"}
        ``"complex"``: the complex step, verified against real differences along random
        directions. ``"richardson"``: extrapolated central differences with an error bar.
        ``"auto"``: the first, or the second where the function is not analytic.
    mode : {"auto", "full", "directional"}
        ``"full"``: every entry. ``"directional"``: one random direction for each
        parameter, and bisection down to an entry on failure. ``"auto"``: full up to
        2,000 entries.
    rng : int or numpy.random.Generator
        Draws the directions.
    tolerance : float
        Scaled error allowed, see :class:`~refkd.testing.report.Comparison`; along a
        direction a hundredth of it, because one wrong entry hides among many.

    Returns
    -------
    GradReport

    Raises
    ------
    ConfigError, DtypeError
        If the arguments of ``check_grad`` itself make no sense. What is wrong with ``f``
        or ``grad`` is a verdict, and what they raise for real arrays passes through.

    Notes
    -----
    A gap between both derivatives is only called wrong where it exceeds the error bar.
    The complex step's bar is four times the change of both derivatives at points one
    rounding away, and at least 64 roundings of the size of f and its slopes: with
    inputs that are themselves rounded, nobody can know more. Between that and 1e-12 of
    this size a gap is NOISY_REFERENCE, since both derivatives may have cancelled.

    A complex step silently loses what passes through ``abs``, ``conj``, ``.real`` or a
    cast, and so would agree with a gradient that misses the same term. Hence the
    verification; and before an entry is called wrong, a real difference confirms it.

    Examples
    --------
    >>> import numpy as np
    >>> from refkd.testing import check_grad
    >>> report = check_grad(
    ...     lambda x: (x**3).sum(), {"x": np.array([1.0, 2.0])}, grad=lambda x: {"x": 3 * x**2}
    ... )
    >>> report.ok
    True
    """
    check_choice("check_grad", "method", method, ("auto", "complex", "richardson"))
    check_choice("check_grad", "mode", mode, ("auto", "full", "directional"))
    check_positive("check_grad", "tolerance", tolerance)
    rng = np.random.default_rng(rng)
    point, fixed = _split(params)
    entries = sum(x.size for x in point.values())
    if mode == "auto":
        mode = "full" if entries <= _FULL_ENTRIES else "directional"

    def stopped(verdict: Verdict, message: str) -> GradReport:
        return GradReport(verdict, message, None, 0, "none", mode, tolerance)

    value = f(**_copies(point), **fixed)
    complaint = _value_complaint(value)
    if complaint is not None:
        return stopped(*complaint)
    gradients: Mapping[str, Any] = {}
    for given in ({name: np.asarray(params[name]) for name in point}, point):
        gradients = grad(**_copies(given), **fixed)
        complaint = _gradient_complaint(gradients, given)
        if complaint is not None:
            return stopped(*complaint)
    problem = Problem(
        f=lambda p: f(**p, **fixed),
        grad=lambda p: grad(**_copies(p), **fixed),
        point=point,
        value=float(value),
        gradients={name: np.asarray(gradients[name]) for name in point},
    )

    def judged(reference: Reference) -> GradReport:
        comparer = Comparer(problem, reference, tolerance)
        findings = comparer.entries() if mode == "full" else comparer.directions(rng)
        if not findings:
            return GradReport(Verdict.PASS, "", None, 0, reference.method, mode, tolerance)
        verdict, worst = worst_finding(findings)
        message = _EXPLANATIONS[verdict].format(place=worst.place)
        return GradReport(verdict, message, worst, entries, reference.method, mode, tolerance)

    reason = ""
    with np.errstate(all="ignore"):
        if method != "richardson":
            try:
                reference = ComplexStep(problem)
                _verify(reference, problem, rng, joint=mode == "directional")
                return judged(reference)
            except NotAnalyticError as error:
                reason = str(error)
            if method == "complex":
                return stopped(Verdict.NOISY_REFERENCE, reason)
        report = judged(Richardson(problem))
    if not reason:
        return report
    judgement = f": {report.message}" if report.message else ""
    return replace(report, message=f"{reason}; judged by real differences{judgement}")


def _verify(
    reference: ComplexStep, problem: Problem, rng: np.random.Generator, *, joint: bool
) -> None:
    """Confirm the complex step along a random direction of each parameter, or of all at once."""
    directions = {
        name: rng.standard_normal(x.shape) * (float(np.max(np.abs(x))) or 1.0)
        for name, x in problem.point.items()
        if x.size > 0
    }
    parts = [directions] if joint else [{name: u} for name, u in directions.items()]
    for part in parts:
        reference.confirm(part, reference.derivative(part).value)


def _split(params: Mapping[str, Any]) -> tuple[dict[str, NDArray[np.float64]], dict[str, Any]]:
    """Return float64 copies of the floating parameters, and all the rest."""
    if not isinstance(params, Mapping):
        raise DtypeError(
            f"check_grad: params must be a mapping of names to arrays, got {type(params).__name__}"
        )
    point: dict[str, NDArray[np.float64]] = {}
    fixed: dict[str, Any] = {}
    for name, value in params.items():
        is_array = isinstance(value, (np.ndarray, np.generic))
        if is_array and value.dtype.kind not in "fc":
            fixed[name] = value
        elif is_array and value.dtype.name in ("float32", "float64"):
            point[name] = np.array(value, dtype=np.float64)
        elif is_array:
            raise DtypeError(
                f"check_grad: parameter {name} must be float64 or float32, got {value.dtype}"
            )
        else:
            fixed[name] = value
    if not point:
        raise ConfigError(
            f"check_grad: no parameter to differentiate; expected a float64 or float32 array "
            f"among {', '.join(params) or 'the (empty) params'}"
        )
    return point, fixed


def _copies(arrays: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
    return {name: np.array(x, order="K") for name, x in arrays.items()}


def _value_complaint(value: Any) -> tuple[Verdict, str] | None:
    kind = getattr(np.asarray(value).dtype, "kind", "O")
    if np.ndim(value) != 0 or kind not in "fiu":
        shape = f" of shape {np.shape(value)}" if np.ndim(value) else ""
        given = getattr(value, "dtype", type(value).__name__)
        return Verdict.SHAPE_DTYPE, (
            f"f must return a real scalar, got {given}{shape}; an array is checked through "
            f"(output * cotangent).sum() with a random cotangent"
        )
    if not np.isfinite(value):
        return Verdict.NONFINITE, f"f is {value} at the given parameters"
    return None


def _gradient_complaint(
    gradients: Any, given: Mapping[str, NDArray[Any]]
) -> tuple[Verdict, str] | None:
    if not isinstance(gradients, Mapping):
        return Verdict.SHAPE_DTYPE, (
            f"grad must return a mapping of parameter names to arrays, "
            f"got {type(gradients).__name__}"
        )
    if set(gradients) != set(given):
        return Verdict.SHAPE_DTYPE, (
            f"grad must return one array for each of {', '.join(sorted(given))}, "
            f"got {', '.join(sorted(map(str, gradients))) or 'none'}"
        )
    for name, x in given.items():
        gradient = gradients[name]
        dtype = getattr(gradient, "dtype", type(gradient).__name__)
        shape = np.shape(gradient)
        if not isinstance(gradient, (np.ndarray, np.generic)) or (shape, dtype) != (
            x.shape,
            x.dtype.newbyteorder("="),
        ):
            return Verdict.SHAPE_DTYPE, (
                f"the gradient of {name} must be {x.dtype} of shape {x.shape} like the "
                f"parameter, got {dtype} of shape {shape}"
            )
        if not np.all(np.isfinite(gradient)):
            index = tuple(int(i) for i in np.argwhere(~np.isfinite(gradient))[0])
            found = f"{np.asarray(gradient)[index]} at {list(index)}"
            return Verdict.NONFINITE, f"the gradient of {name} ({x.dtype}) is {found}"
    return None
