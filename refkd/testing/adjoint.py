"""The check of a linear map and its transpose, which needs no derivative."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from refkd.errors import ConfigError, check_positive
from refkd.testing.adapters import (
    cotangent_generator,
    cotangents_like,
    inner_product,
    is_floating,
)
from refkd.testing.gradcheck import run
from refkd.testing.problem import Problem, copy_in_layout
from refkd.testing.products import (
    Product,
    equal,
    floats,
    no_output,
    representable_cotangents,
)
from refkd.testing.report import Comparison, GradReport, Verdict
from refkd.testing.structure import flatten
from refkd.testing.tolerances import GRADIENT

__all__ = ["check_adjoint"]

_LINEAR = 1e5  # roundings that a linear map may be off by: what is not linear is off by far more


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
    cotangents = representable_cotangents(outputs, rng)
    if not cotangents:
        return no_output("forward", outputs)
    dy = cotangents_like(outputs, cotangents)
    size, numeric = _size(outputs, cotangents), float(inner_product(outputs, cotangents))
    # A copy, lest the next call write into the same output.
    parts = {path: y.copy() for path, y in floats(outputs).items()}
    for path, y in floats(forward(copy_in_layout(other))).items():
        parts[path] += y
    # Entry by entry: what is not linear might cancel in a sum.
    curved = _size(
        {path: y - parts[path] for path, y in floats(forward(x + other)).items()}, cotangents
    )
    eps = float(np.finfo(template.dtype).eps)
    if curved > _LINEAR * eps * (size + _size(parts, cotangents)):
        raise ConfigError(
            f"check_adjoint: forward is not linear: Σ|dy·(A(x + u) − A x − A u)| is {curved:.3g}; "
            f"check_vjp checks functions that are not"
        )
    dx = adjoint(dy)
    untouched &= equal(dy, cotangents)
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
    names = ("forward", "adjoint")
    problem = Problem("check_adjoint", forward, adjoint, {"x": x}, names)
    product = Product(
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
        names=names,
    )
    return product.judged(report, "adjoint writes into dy")


def _size(outputs: Any, cotangents: Mapping[str, NDArray[np.float64]]) -> float:
    leaves = flatten(outputs)
    return sum(float(np.sum(np.abs(leaves[path] * dy))) for path, dy in cotangents.items())
