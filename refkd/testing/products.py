"""Checks of what is no gradient of a scalar: vector-Jacobian and Hessian-vector products, adjoints.

Each is reduced to the gradient of a scalar function, and judged as such.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from refkd.errors import ConfigError, check_positive
from refkd.testing.adapters import (
    cotangent_generator,
    cotangents_like,
    draw_cotangents,
    inner_product,
    is_floating,
)
from refkd.testing.complaints import gradient_complaint
from refkd.testing.gradcheck import run
from refkd.testing.problem import Problem, copy_in_layout
from refkd.testing.report import Comparison, GradReport, Verdict
from refkd.testing.structure import flatten, rebuild
from refkd.testing.tolerances import GRADIENT

__all__ = ["check_adjoint", "check_hvp", "check_vjp"]

_LINEAR = 1e5  # roundings that a linear map may be off by: what is not linear is off by far more


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
    problem = Problem("check_vjp", f, vjp, params)
    outputs, _ = problem.watched("f", problem.given)
    cotangents = _cotangents(outputs, rng)
    if not cotangents:
        return _no_output("f", outputs)

    def checked(chosen: Mapping[str, NDArray[np.float64]]) -> GradReport:
        zeros = {path: np.zeros_like(dy) for path, dy in cotangents.items()}
        product = _Product(vjp, problem, cotangents_like(outputs, {**zeros, **chosen}))

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
    problem = Problem("check_hvp", grad, hvp, params)
    leaves = problem.leaves
    returned, _ = problem.watched("f", problem.given)
    complaint = gradient_complaint(returned, problem.given, problem)
    if complaint is not None:
        return GradReport(complaint.verdict, complaint.message, calls=1)
    vectors = _cotangents(problem.given, rng)
    product = _Product(hvp, problem, cotangents_like(params, vectors))

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
    )
    return product.judged(report, "hvp writes into the vector")


def check_adjoint(
    forward: Callable[[Any], Any],
    adjoint: Callable[[Any], Any],
    x: NDArray[Any],
    *,
    rng: int | np.random.Generator = 0,
    tolerance: float = GRADIENT,
) -> GradReport:
    """Check that ``adjoint`` is the transpose of the linear map ``forward``.

    Parameters
    ----------
    forward : callable
        ``forward(x)`` is an array A x, or several.
    adjoint : callable
        ``adjoint(dy)`` is Aᵀ dy, of the shape and dtype of ``x``; ``dy`` mirrors the output.
    x : array, float64 or float32
        Gives shape, dtype and strides of the argument; its values are not used.
    rng : int or numpy.random.Generator
        Draws x and dy.
    tolerance : float
        Gap allowed between ⟨dy, A x⟩ and ⟨Aᵀ dy, x⟩, as a part of Σ|dy·A x| and in
        roundings of the dtype like that of :func:`check_grad`; a hundredth of it, as
        along any direction.

    Returns
    -------
    GradReport
        Of the method ``"adjoint"``; where the identity fails, of a gradient check that
        locates the column of A.

    Raises
    ------
    ConfigError
        If ``forward`` is not linear: then :func:`check_vjp` is the right check.

    Notes
    -----
    ⟨dy, A x⟩ = ⟨Aᵀ dy, x⟩ for all x and dy defines the transpose; no derivative is taken
    and nothing but rounding separates both sides. A convolution, a sum, a pooling by
    averages, padding, indexing and their backward passes are such pairs.

    Examples
    --------
    >>> import numpy as np
    >>> from refkd.testing import check_adjoint
    >>> check_adjoint(np.cumsum, lambda dy: np.cumsum(dy[::-1])[::-1], np.zeros(5)).ok
    True
    """
    rng = cotangent_generator(rng)
    check_positive("check_adjoint", "tolerance", tolerance)
    template = np.asarray(x)
    if not is_floating(template):
        raise ConfigError(f"check_adjoint: x must be a floating array, got {template.dtype}")

    def drawn() -> Any:
        values = copy_in_layout(template)
        values[...] = rng.standard_normal(template.shape)
        return values

    x, other = drawn(), drawn()
    argument = copy_in_layout(x)
    outputs = forward(argument)
    untouched = np.array_equal(argument, x)
    cotangents = _cotangents(outputs, rng)
    if not cotangents:
        return _no_output("forward", outputs)
    dy = cotangents_like(outputs, cotangents)
    size, numeric = _size(outputs, cotangents), float(inner_product(outputs, cotangents))
    # A copy, lest the next call write into the same output.
    parts = {path: y.copy() for path, y in _floats(outputs).items()}
    for path, y in _floats(forward(copy_in_layout(other))).items():
        parts[path] += y
    # Entry by entry: what is not linear might cancel in a sum.
    curved = _size(
        {path: y - parts[path] for path, y in _floats(forward(x + other)).items()}, cotangents
    )
    eps = float(np.finfo(template.dtype).eps)
    if curved > _LINEAR * eps * (size + _size(parts, cotangents)):
        raise ConfigError(
            f"check_adjoint: forward is not linear: Σ|dy·(A(x + u) − A x − A u)| is {curved:.3g}; "
            f"check_vjp checks functions that are not"
        )
    dx = adjoint(dy)
    untouched &= _equal(dy, cotangents)
    if untouched and np.shape(dx) == template.shape:
        terms = np.asarray(dx, dtype=np.float64) * x
        analytic, size = float(np.sum(terms)), max(size, float(np.sum(np.abs(terms))))
        gap = abs(analytic - numeric)
        allowed = tolerance / 100 * eps / float(np.finfo(np.float64).eps) * size
        if gap <= allowed and getattr(dx, "dtype", None) == template.dtype.newbyteorder("="):
            worst = Comparison("x", None, analytic, numeric, eps * size, gap / max(size, 1e-300))
            return GradReport(
                Verdict.PASS,
                "",
                worst,
                entries=template.size,
                method="adjoint",
                mode="directional",
                tolerance=tolerance,
                calls=4,
            )
    problem = Problem("check_adjoint", forward, adjoint, {"x": x})
    product = _Product(
        lambda dy, x: {"x": adjoint(dy)}, problem, cotangents_like(outputs, cotangents)
    )
    report = run(
        "check_adjoint",
        lambda x: inner_product(forward(x), cotangents),
        {"x": x},
        product,
        method="auto",
        mode="auto",
        rng=rng,
        tolerance=tolerance,
    )
    return product.judged(report, "adjoint writes into dy")


class _Product:
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
        floats = [x.dtype == np.float64 for x in _floats(params).values()]
        widened = all(floats) and any(x.dtype != np.float64 for x in given.values())
        kept = _floats(self._constant)
        fresh = {path: x.astype(np.float64) if widened else x.copy() for path, x in kept.items()}
        returned = self._function(rebuild(self._constant, fresh), **params)
        self._writes |= not _equal(fresh, kept)
        return returned

    def judged(self, report: GradReport, complaint: str) -> GradReport:
        """Return the report, which is no PASS where the constant was written into."""
        if not self._writes:
            return report
        if not report.ok:
            return replace(report, notes=(*report.notes, complaint))
        message = f"{complaint}; its caller's arrays change under its hands: work on copies"
        return replace(report, verdict=Verdict.MUTATED_INPUT, message=message)


def _cotangents(outputs: Any, rng: np.random.Generator) -> dict[str, NDArray[np.float64]]:
    """Draw cotangents that are the same in the dtype of their output and in float64."""
    leaves = flatten(outputs)
    return {
        path: dy.astype(leaves[path].dtype).astype(np.float64)
        for path, dy in draw_cotangents(outputs, rng).items()
    }


def _no_output(name: str, outputs: Any) -> GradReport:
    given = ", ".join(_kind(leaf) for leaf in flatten(outputs).values()) or "nothing"
    message = f"{name} must return a floating array, or several, got {given}"
    return GradReport(Verdict.SHAPE_DTYPE, message, calls=1)


def _floats(tree: Any) -> dict[str, Any]:
    return {path: x for path, x in flatten(tree).items() if is_floating(x)}


def _equal(tree: Any, expected: Mapping[str, NDArray[Any]]) -> bool:
    found = flatten(tree)
    return all(np.array_equal(found[path], x) for path, x in expected.items())


def _size(outputs: Any, cotangents: Mapping[str, NDArray[np.float64]]) -> float:
    leaves = flatten(outputs)
    return sum(float(np.sum(np.abs(leaves[path] * dy))) for path, dy in cotangents.items())


def _kind(leaf: Any) -> str:
    return f"an array of {leaf.dtype}" if hasattr(leaf, "dtype") else type(leaf).__name__
