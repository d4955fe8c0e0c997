"""Is a gradient the derivative of its function? ``check_grad`` says, and where not, and why.

Here is the call; the order of the examination is in :mod:`refkd.testing.judge`. The
function as the checker calls it is in :mod:`~refkd.testing.problem`, the first calls in
:mod:`~refkd.testing.examine` with what they can find wrong in
:mod:`~refkd.testing.complaints`. Numeric derivatives are in
:mod:`~refkd.testing.derivatives` and :mod:`~refkd.testing.differences`, how far each is
to be believed in :mod:`~refkd.testing.references` and :mod:`~refkd.testing.rounding`. What
is compared is in :mod:`~refkd.testing.survey`, one comparison in
:mod:`~refkd.testing.compare`; kinks, the precision of the arrays as given and the
guesses in :mod:`~refkd.testing.kinks`, :mod:`~refkd.testing.precision` and
:mod:`~refkd.testing.explain`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from refkd.errors import ConfigError, check_choice, check_positive
from refkd.testing.adapters import Subject, adapt
from refkd.testing.judge import Settings, judge
from refkd.testing.problem import Problem
from refkd.testing.references import widest_float
from refkd.testing.report import GradReport

__all__ = ["check_grad", "run"]

_FULL_ENTRIES = 2000
_METHODS = ("auto", "complex", "longdouble", "ridders")
_MODES = ("auto", "full", "directional")


def check_grad(
    f: Callable[..., Any] | Subject,
    params: Mapping[str, Any] | None = None,
    grad: Callable[..., Mapping[str, Any]] | None = None,
    *,
    method: str = "auto",
    mode: str = "auto",
    rng: int | np.random.Generator = 0,
    tolerance: float | None = None,
) -> GradReport:
    """Compare ``grad`` with the numeric derivative of ``f`` at ``params``.

    Parameters
    ----------
    f : callable
        ``f(**params)`` is a real scalar; for the complex step it takes complex arrays
        too and is then a complex scalar. For arrays as outputs see
        :func:`refkd.testing.check_vjp`. Or what an adapter returned, which is all three.
    params : mapping
        Names to arrays, or to dicts, tuples, lists, named tuples and dataclasses of
        arrays. float64 and float32 arrays are differentiated. Whatever else is there
        (integers, Python floats, None ...) reaches ``f`` and ``grad`` unchanged, but a
        random generator, of which each call gets a copy in the same state. Tensors of
        PyTorch and arrays of CuPy are handed to :mod:`refkd.testing.adapters`.
    grad : callable
        ``grad(**params)`` is a mapping that mirrors ``params``, with a gradient of the
        shape and dtype of each differentiated array; the rest may be missing or None.
        For tensors of PyTorch it may be left out: autograd's gradient is judged.
    method : {"auto", "complex", "longdouble", "ridders"}
        ``"complex"``: the complex step, verified against real differences along random
        directions. ``"longdouble"`` and ``"ridders"``: extrapolated central differences
        with an error bar, in longdouble and in float64. ``"auto"``: the first of these
        that f allows; longdouble only up to 500 entries, for its matrix products are
        slow.
    mode : {"auto", "full", "directional"}
        ``"full"``: every entry. ``"directional"``: one random direction of all
        parameters together; on failure one for each, and bisection down to an entry.
        ``"auto"``: full up to 2,000 entries.
    rng : int or numpy.random.Generator
        Draws the directions.
    tolerance : float, optional
        Scaled error allowed, see :class:`~refkd.testing.report.Comparison`, and error
        bar allowed. By default 1e-12 for both with the complex step, 1e-12 and 1e-7
        with longdouble, 1e-7 for both with Ridders' differences. Along a direction a
        hundredth of it, because one wrong entry hides among many.

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
    rounding away: with inputs that are themselves rounded, nobody can know more. A gap
    beyond it of up to 1e-12 of the size of f and its slopes is NOISY_REFERENCE, since
    both derivatives may have cancelled.

    A complex step silently loses what passes through ``abs``, ``conj``, ``.real`` or a
    cast, and so would agree with a gradient that misses the same term. Hence the
    verification; and before an entry is called wrong, a real difference confirms it.

    The numeric derivative is that of f on contiguous float64 copies. Where the arrays
    are float32 or have other strides, the gradient of the arrays as given is judged
    too, against the gradient of the copies and with a tolerance in roundings of its own
    dtype.

    At a kink, such as a ReLU at 0, there is no derivative; any slope between the
    one-sided ones is accepted, and the verdict is KINK.

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
    if isinstance(f, Subject):
        f, params, grad = f
    if params is None:
        raise ConfigError("check_grad: params is missing; expected a mapping such as {'x': x}")
    adapted = adapt(f, params, grad)
    if adapted is not None:
        f, params, grad = adapted
    if grad is None:
        raise ConfigError(
            "check_grad: grad is missing (only PyTorch has a gradient of its own); pass a function "
            "such as lambda x: {'x': ...}"
        )
    return run(
        "check_grad", f, params, grad, method=method, mode=mode, rng=rng, tolerance=tolerance
    )


def run(
    where: str,
    f: Callable[..., Any],
    params: Mapping[str, Any],
    grad: Callable[..., Mapping[str, Any]],
    *,
    method: str,
    mode: str,
    rng: int | np.random.Generator,
    tolerance: float | None,
    names: tuple[str, str] = ("f", "grad"),
) -> GradReport:
    """Check like :func:`check_grad`, on NumPy arrays, in the name of ``where``."""
    check_choice(where, "method", method, _METHODS)
    check_choice(where, "mode", mode, _MODES)
    if tolerance is not None:
        check_positive(where, "tolerance", tolerance)
    if method == "longdouble" and widest_float() is None:
        raise ConfigError(f"{where}: longdouble is no wider than float64 here; use 'ridders'")
    problem = Problem(where, f, grad, params, names)
    if mode == "auto":
        mode = "full" if problem.entries <= _FULL_ENTRIES else "directional"
    seed = int(np.random.default_rng(rng).integers(2**32))
    with problem.seeds_restored():
        report = judge(problem, Settings(method, mode, tolerance, seed))
    return replace(report, calls=problem.calls)
