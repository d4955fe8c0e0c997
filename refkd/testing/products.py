"""Checks of vector-Jacobian and Hessian-vector products: backward passes, second derivatives.

Each is reduced to the gradient of a scalar function, and judged as such.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from refkd.testing.adapters import (
    cotangent_generator,
    cotangents_like,
    draw_cotangents,
    inner_product,
    is_floating,
)
from refkd.testing.complaints import gradient_complaint
from refkd.testing.gradcheck import run
from refkd.testing.problem import Problem
from refkd.testing.report import GradReport, Verdict
from refkd.testing.structure import flatten, rebuild

__all__ = [
    "Product",
    "check_hvp",
    "check_vjp",
    "equal",
    "floats",
    "no_output",
    "representable_cotangents",
]


def check_vjp(
    f: Callable[..., Any],
    params: Mapping[str, Any],
    vjp: Callable[..., Mapping[str, Any]],
    *,
    method: str = "auto",
    mode: str = "auto",
    rng: int | np.random.Generator = 0,
    tolerance: float | None = None,
) -> GradReport:
    """Check that ``vjp`` is the transposed Jacobian of ``f`` times a cotangent: a backward pass.

    Parameters
    ----------
    f : callable
        ``f(**params)`` is an array, or a tuple, list, dict or dataclass of arrays;
        integer outputs, such as indices, have no cotangent.
    params : mapping
        As in :func:`check_grad`.
    vjp : callable
        ``vjp(cotangent, **params)`` is a mapping that mirrors ``params``. The cotangent
        mirrors the output of f in structure, shapes and dtypes, with None where there
        is none.
    method, mode, rng, tolerance
        As in :func:`check_grad`; ``rng`` draws the cotangent as well.

    Returns
    -------
    GradReport
        Of the gradient of ⟨cotangent, f⟩ for a standard normal cotangent. Where f has
        several outputs and the gradient is wrong, the notes say through which.

    Notes
    -----
    A cotangent of ones would hide a transposed or permuted Jacobian; a random one
    hides it with probability 0.

    Examples
    --------
    >>> import numpy as np
    >>> from refkd.testing import check_vjp
    >>> x, w = np.random.default_rng(0).normal(size=(2, 3, 3))
    >>> check_vjp(
    ...     lambda x, w: x @ w, {"x": x, "w": w}, lambda dy, x, w: {"x": dy @ w.T, "w": x.T @ dy}
    ... ).ok
    True
    """
    rng = cotangent_generator(rng)
    names = ("f", "vjp")
    problem = Problem("check_vjp", f, vjp, params, names)
    outputs, _ = problem.watched("f", problem.given)
    cotangents = representable_cotangents(outputs, rng)
    if not cotangents:
        return no_output("f", outputs)

    def checked(chosen: Mapping[str, NDArray[np.float64]]) -> GradReport:
        zeros = {path: np.zeros_like(dy) for path, dy in cotangents.items()}
        product = Product(vjp, problem, cotangents_like(outputs, {**zeros, **chosen}))

        def scalar(**params: Any) -> Any:
            return inner_product(f(**params), chosen)

        report = run(
            "check_vjp",
            scalar,
            params,
            product,
            method=method,
            mode=mode,
            rng=seed,
            tolerance=tolerance,
            names=names,
        )
        return product.judged(report, "vjp writes into the cotangent")

    seed = int(rng.integers(2**32))
    report = checked(cotangents)
    if report.verdict is not Verdict.WRONG_GRADIENT or len(cotangents) == 1:
        return report
    alone = {path: checked({path: dy}) for path, dy in cotangents.items()}
    calls = report.calls + sum(part.calls for part in alone.values())
    wrong = [path for path, part in alone.items() if part.verdict is Verdict.WRONG_GRADIENT]
    if not wrong:
        return replace(report, calls=calls)
    note = f"wrong through the output{'s' if len(wrong) > 1 else ''} {', '.join(wrong)} of f"
    return replace(report, calls=calls, notes=(*report.notes, note))


def check_hvp(
    grad: Callable[..., Mapping[str, Any]],
    params: Mapping[str, Any],
    hvp: Callable[..., Mapping[str, Any]],
    *,
    method: str = "auto",
    mode: str = "auto",
    rng: int | np.random.Generator = 0,
    tolerance: float | None = None,
) -> GradReport:
    """Check that ``hvp`` is the Hessian times a vector, the derivative of ``grad`` along it.

    Parameters
    ----------
    grad : callable
        ``grad(**params)`` is the gradient of a scalar function, a mapping that mirrors
        ``params``; check it first.
    params : mapping
        As in :func:`check_grad`.
    hvp : callable
        ``hvp(vector, **params)`` is the Hessian times ``vector``; both mirror
        ``params``, with None where nothing is differentiated.
    method, mode, rng, tolerance
        As in :func:`check_grad`; ``rng`` draws the vector as well.

    Returns
    -------
    GradReport

    Notes
    -----
    A Hessian is symmetric, so H v is the gradient of ⟨grad(x), v⟩, v held constant, and
    is checked as such: by differences (the complex step where grad is analytic) of the
    gradient itself.

    Examples
    --------
    >>> import numpy as np
    >>> from refkd.testing import check_hvp
    >>> x = np.array([0.3, -1.2])
    >>> check_hvp(
    ...     lambda x: {"x": np.cos(x)}, {"x": x}, lambda v, x: {"x": -np.sin(x) * v["x"]}
    ... ).ok
    True
    """
    rng = cotangent_generator(rng)
    names = ("grad", "hvp")
    problem = Problem("check_hvp", grad, hvp, params, names)
    # The gradient itself must be one before its derivative is of interest.
    first = Problem("check_hvp", hvp, grad, params, ("hvp", "grad"))
    returned, _ = first.watched("grad", first.given)
    complaint = gradient_complaint(returned, first.given, first)
    if complaint is not None:
        return GradReport(complaint.verdict, complaint.message, calls=1)
    leaves = problem.leaves
    vectors = representable_cotangents(problem.given, rng)
    product = Product(hvp, problem, cotangents_like(params, vectors))

    def scalar(**params: Any) -> Any:
        found = flatten(grad(**params), leaves)
        return sum(np.sum(found[path] * v) for path, v in vectors.items())

    report = run(
        "check_hvp",
        scalar,
        params,
        product,
        method=method,
        mode=mode,
        rng=rng,
        tolerance=tolerance,
        names=names,
    )
    return product.judged(report, "hvp writes into the vector")


class Product:
    """A product with a constant, as the gradient of a scalar function.

    The constant is copied for every call. It keeps its dtypes but where ``params`` that
    are float32 are given in float64: then all of it is float64.
    """

    def __init__(
        self, function: Callable[..., Mapping[str, Any]], problem: Problem, constant: Any
    ) -> None:
        self._function, self._problem, self._constant = function, problem, constant
        self._writes = False

    def __call__(self, **params: Any) -> Mapping[str, Any]:
        given = self._problem.given
        wide = all(x.dtype == np.float64 for x in floats(params).values())
        widened = wide and any(x.dtype != np.float64 for x in given.values())
        kept = floats(self._constant)
        fresh = {path: x.astype(np.float64) if widened else x.copy() for path, x in kept.items()}
        returned = self._function(rebuild(self._constant, fresh), **params)
        self._writes |= not equal(fresh, kept)
        return returned

    def judged(self, report: GradReport, complaint: str) -> GradReport:
        """Return the report, which is no PASS where the constant was written into."""
        if not self._writes:
            return report
        if not report.ok:
            return replace(report, notes=(*report.notes, complaint))
        message = f"{complaint}; its caller's array changes: let it work on a copy"
        return replace(report, verdict=Verdict.MUTATED_INPUT, message=message)


def representable_cotangents(
    outputs: Any, rng: np.random.Generator
) -> dict[str, NDArray[np.float64]]:
    """Draw cotangents that are the same in the dtype of their output and in float64."""
    leaves = flatten(outputs)
    return {
        path: dy.astype(leaves[path].dtype).astype(np.float64)
        for path, dy in draw_cotangents(outputs, rng).items()
    }


def no_output(name: str, outputs: Any) -> GradReport:
    """Report that the function ``name`` returns nothing to differentiate."""
    given = ", ".join(_kind(leaf) for leaf in flatten(outputs).values()) or "nothing"
    message = f"{name} must return a floating array, or several, got {given}"
    return GradReport(Verdict.SHAPE_DTYPE, message, calls=1)


def floats(tree: Any) -> dict[str, Any]:
    """Return the floating leaves of ``tree`` by path."""
    return {path: x for path, x in flatten(tree).items() if is_floating(x)}


def equal(tree: Any, expected: Mapping[str, NDArray[Any]]) -> bool:
    """Whether the leaves of ``tree`` are those expected."""
    found = flatten(tree)
    return all(np.array_equal(found[path], x) for path, x in expected.items())


def _kind(leaf: Any) -> str:
    return f"an array of {leaf.dtype}" if hasattr(leaf, "dtype") else type(leaf).__name__
