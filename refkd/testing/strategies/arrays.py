"""Floating arrays that numerical code gets wrong: by their values, layout or byte order.

Logits and labels are in :mod:`refkd.testing.strategies.batches`, shapes of convolutions
and attention in the modules beside it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes
from numpy.typing import NDArray

from refkd.errors import check_choice
from refkd.testing.layouts import LAYOUTS
from refkd.testing.strategies._draw import chosen, noted, sampled, seeds

__all__ = ["BYTE_ORDERS", "DTYPES", "LAYOUT_NAMES", "VALUES", "arrays", "seeded_array"]

Shape = tuple[int, ...]
Values = Callable[[np.random.Generator, Shape, np.dtype[Any]], NDArray[Any]]

DTYPES = ("float64", "float32", "float16")
BYTE_ORDERS = ("native", "swapped")
LAYOUT_NAMES = ("C", *LAYOUTS)


def _normal(rng: np.random.Generator, shape: Shape, dtype: np.dtype[Any]) -> NDArray[Any]:
    return np.asarray(rng.standard_normal(shape))


def _ties(rng: np.random.Generator, shape: Shape, dtype: np.dtype[Any]) -> NDArray[Any]:
    return np.asarray(rng.integers(-1, 2, size=shape))


def _equal(rng: np.random.Generator, shape: Shape, dtype: np.dtype[Any]) -> NDArray[Any]:
    return np.full(shape, rng.standard_normal())


def _zeros(rng: np.random.Generator, shape: Shape, dtype: np.dtype[Any]) -> NDArray[Any]:
    return np.asarray(rng.choice([0.0, -0.0], size=shape))


def _subnormal(rng: np.random.Generator, shape: Shape, dtype: np.dtype[Any]) -> NDArray[Any]:
    # Written as bits: arithmetic would give zeros where the processor flushes subnormals.
    unsigned = np.dtype(f"u{dtype.itemsize}")
    sign = rng.integers(2, size=shape).astype(unsigned) << (8 * dtype.itemsize - 1)
    mantissa = rng.integers(1, 2 ** int(np.finfo(dtype).nmant), size=shape).astype(unsigned)
    return np.asarray(sign | mantissa, dtype=unsigned).view(dtype)


def _large(rng: np.random.Generator, shape: Shape, dtype: np.dtype[Any]) -> NDArray[Any]:
    return np.asarray(rng.uniform(-1e4, 1e4, size=shape))


def _near_overflow(rng: np.random.Generator, shape: Shape, dtype: np.dtype[Any]) -> NDArray[Any]:
    sign = rng.choice([-1.0, 1.0], size=shape)
    return np.asarray(sign * rng.uniform(0.5, 1, size=shape) * float(np.finfo(dtype).max))


VALUES: dict[str, Values] = {
    "normal": _normal,
    "ties": _ties,
    "equal": _equal,
    "zeros": _zeros,
    "subnormal": _subnormal,
    "large": _large,
    "near-overflow": _near_overflow,
}
"""Kinds of values: standard normal; −1, 0 and 1; one number everywhere; zeros of both signs;
subnormals of both signs; uniform in ±1e4; the upper half of the dtype's range, both signs."""


def seeded_array(
    shape: int | tuple[int, ...],
    dtype: str = "float64",
    *,
    values: str = "normal",
    layout: str = "C",
    byte_order: str = "native",
    seed: int = 0,
) -> NDArray[Any]:
    """Return the array that a failing example names.

    Parameters
    ----------
    shape : int or tuple of int
    dtype : {"float64", "float32", "float16"}
    values : str
        A key of :data:`VALUES`.
    layout : {"C", "transposed", "reversed", "strided", "read-only"}
        As in :data:`refkd.testing.layouts.LAYOUTS`; between the entries of a strided
        array is NaN.
    byte_order : {"native", "swapped"}
    seed : int
        For ``numpy.random.default_rng``.

    Returns
    -------
    array
        A fresh one. Layout and byte order do not change its values.

    Raises
    ------
    ConfigError
        If a name is not among those above.

    Examples
    --------
    >>> seeded_array((2, 3), values="ties", layout="transposed", seed=1)
    array([[ 0.,  0.,  1.],
           [ 1., -1., -1.]])
    """
    check_choice("seeded_array", "dtype", dtype, DTYPES)
    check_choice("seeded_array", "values", values, VALUES)
    check_choice("seeded_array", "byte_order", byte_order, BYTE_ORDERS)
    sizes = (shape,) if isinstance(shape, int) else tuple(shape)
    given = np.dtype(dtype)
    drawn = VALUES[values](np.random.default_rng(seed), sizes, given).astype(given)
    if byte_order == "swapped":
        drawn = drawn.astype(given.newbyteorder("S"))
    return laid_out("seeded_array", drawn, layout)


def laid_out(where: str, array: NDArray[Any], layout: str) -> NDArray[Any]:
    """Return ``array`` in a layout by name; ``"C"`` is itself."""
    check_choice(where, "layout", layout, LAYOUT_NAMES)
    return array if layout == "C" else LAYOUTS[layout](array)


def arrays(
    shape: int | tuple[int, ...] | st.SearchStrategy[tuple[int, ...]] | None = None,
    dtype: str | Iterable[str] = "float64",
    *,
    values: str | Iterable[str] = ("normal", "ties", "equal", "zeros", "subnormal", "large"),
    layouts: str | Iterable[str] = LAYOUT_NAMES,
    byte_orders: str | Iterable[str] = "native",
) -> st.SearchStrategy[NDArray[Any]]:
    """Return a strategy for floating arrays, shrinking to ``seeded_array((1,), seed=0)``.

    Parameters
    ----------
    shape : int, tuple of int, strategy of tuples, or None
        None draws one to four axes of one to five entries.
    dtype, values, layouts, byte_orders : str or several
        What to draw from, of the names that :func:`seeded_array` takes. The first of
        several is the simplest to shrink to. By default near-overflow values, on which
        most sums are infinite, and swapped bytes, a dtype not equal to its native one,
        are left out.

    Raises
    ------
    ConfigError
        If a name is unknown, or there is none.

    Examples
    --------
    >>> from hypothesis import given
    >>> from refkd.ops import softmax_forward
    >>> @given(arrays((3, 5), ["float32", "float64"]))
    ... def test_probabilities_sum_to_one(logits):
    ...     assert abs(softmax_forward(logits, axis=1).sum(axis=1) - 1).max() < 1e-6
    >>> test_probabilities_sum_to_one()
    """
    if shape is None:
        shape = array_shapes(max_dims=4, max_side=5)
    elif not isinstance(shape, st.SearchStrategy):
        shape = st.just((shape,) if isinstance(shape, int) else tuple(shape))
    names = {
        "dtype": chosen("arrays", "dtype", dtype, DTYPES),
        "values": chosen("arrays", "values", values, VALUES),
        "layout": chosen("arrays", "layouts", layouts, LAYOUT_NAMES),
        "byte_order": chosen("arrays", "byte_orders", byte_orders, BYTE_ORDERS),
    }
    return st.builds(noted(seeded_array), shape, **sampled(seeded_array, names), seed=seeds())
