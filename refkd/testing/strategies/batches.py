"""Batches of logits with labels, and with a teacher's logits, as losses take them."""

from __future__ import annotations

import functools
from collections.abc import Iterable
from typing import Any

import numpy as np
from hypothesis import strategies as st
from numpy.typing import NDArray

from refkd.errors import ConfigError, check_choice
from refkd.testing.strategies._draw import check_sizes, chosen, noted, sampled, seeds
from refkd.testing.strategies.arrays import (
    DTYPES,
    LAYOUT_NAMES,
    VALUES,
    arrays,
    laid_out,
)

__all__ = ["distillation_batches", "logits_and_labels", "seeded_labels"]

Array = NDArray[Any]

_LABEL_DTYPES = ("int64", "int32", "int16", "int8", "uint8", "uint16", "uint32", "uint64")
_LOGITS = ("normal", "ties", "equal", "zeros", "large")


def seeded_labels(
    batch: int, classes: int, dtype: str = "int64", *, layout: str = "C", seed: int = 0
) -> Array:
    """Return the labels that a failing example names, uniform in [0, ``classes``).

    Parameters
    ----------
    batch, classes : int
    dtype : str
        An integer dtype that holds every class index.
    layout : {"C", "transposed", "reversed", "strided", "read-only"}
        Between the entries of a strided array is −1, or the largest unsigned integer.
    seed : int
        For ``numpy.random.default_rng``.

    Returns
    -------
    integer array, shape (batch,)

    Raises
    ------
    ConfigError
        If a name is unknown or ``dtype`` too narrow for the classes.

    Examples
    --------
    >>> seeded_labels(4, 10, "uint8", seed=0)
    array([8, 6, 5, 2], dtype=uint8)
    """
    check_choice("seeded_labels", "dtype", dtype, _holding(_LABEL_DTYPES, classes))
    drawn = np.random.default_rng(seed).integers(classes, size=batch)
    return laid_out("seeded_labels", drawn.astype(dtype), layout)


def logits_and_labels(
    *,
    max_batch: int = 6,
    min_classes: int = 2,
    max_classes: int = 10,
    dtype: str | Iterable[str] = "float64",
    label_dtypes: str | Iterable[str] = ("int64", "int32", "uint8"),
    values: str | Iterable[str] = _LOGITS,
    layouts: str | Iterable[str] = LAYOUT_NAMES,
) -> st.SearchStrategy[tuple[Array, Array]]:
    """Return a strategy for ``(logits, labels)``, shapes (B, C) and (B,).

    Parameters
    ----------
    max_batch : int
        B is 1 to this.
    min_classes, max_classes : int
        The range of C.
    dtype : str or several of {"float64", "float32", "float16"}
    label_dtypes : str or several integer dtypes
        One that is too narrow for C is not drawn with it.
    values : str or several keys of :data:`~refkd.testing.strategies.VALUES`
        Of the logits: by default normal, ties, one number everywhere, zeros, uniform
        in ±1e4.
    layouts : str or several of {"C", "transposed", "reversed", "strided", "read-only"}
        Drawn for each array by itself.

    Raises
    ------
    ConfigError
        If a range is empty, a name unknown, or no label dtype wide enough.

    Examples
    --------
    >>> from hypothesis import given
    >>> from refkd.losses import softmax_cross_entropy_forward
    >>> @given(logits_and_labels())
    ... def test_cross_entropy_is_not_negative(batch):
    ...     logits, labels = batch
    ...     assert softmax_cross_entropy_forward(logits, labels)[0] >= 0
    >>> test_cross_entropy_is_not_negative()
    """
    return _batches(
        "logits_and_labels",
        networks=1,
        batch=(1, max_batch),
        classes=(min_classes, max_classes),
        dtype=dtype,
        label_dtypes=label_dtypes,
        values=values,
        layouts=layouts,
    )


def distillation_batches(
    *,
    max_batch: int = 6,
    min_classes: int = 2,
    max_classes: int = 10,
    dtype: str | Iterable[str] = "float64",
    label_dtypes: str | Iterable[str] = ("int64", "int32", "uint8"),
    values: str | Iterable[str] = _LOGITS,
    layouts: str | Iterable[str] = LAYOUT_NAMES,
) -> st.SearchStrategy[tuple[Array, Array, Array]]:
    """Return a strategy for ``(student_logits, teacher_logits, labels)``.

    The two logits share shape (B, C) and dtype; their kinds of values, layouts and
    seeds are drawn independently, so that an example shrinks to equal logits where it
    fails for those too.

    Parameters
    ----------
    max_batch, min_classes, max_classes, dtype, label_dtypes, values, layouts
        As in :func:`logits_and_labels`.

    Raises
    ------
    ConfigError
        As :func:`logits_and_labels`.

    Examples
    --------
    >>> from hypothesis import given
    >>> from refkd.losses import distillation_loss
    >>> from refkd.testing.strategies import kd_specs
    >>> @given(distillation_batches(), kd_specs())
    ... def test_the_loss_is_finite(batch, spec):
    ...     value, gradient = distillation_loss(*batch, spec)
    ...     assert abs(value) < float("inf")
    >>> test_the_loss_is_finite()
    """
    return _batches(
        "distillation_batches",
        networks=2,
        batch=(1, max_batch),
        classes=(min_classes, max_classes),
        dtype=dtype,
        label_dtypes=label_dtypes,
        values=values,
        layouts=layouts,
    )


def _batches(
    where: str,
    *,
    networks: int,
    batch: tuple[int, int],
    classes: tuple[int, int],
    dtype: str | Iterable[str],
    label_dtypes: str | Iterable[str],
    values: str | Iterable[str],
    layouts: str | Iterable[str],
) -> st.SearchStrategy[Any]:
    check_sizes(where, batch=batch, classes=classes)
    dtypes = chosen(where, "dtype", dtype, DTYPES)
    kinds = chosen(where, "values", values, VALUES)
    placed = chosen(where, "layouts", layouts, LAYOUT_NAMES)
    indices = chosen(where, "label_dtypes", label_dtypes, _LABEL_DTYPES)
    if not _holding(indices, classes[1]):
        raise ConfigError(
            f"{where}: none of the label_dtypes {', '.join(indices)} holds {classes[1]} classes"
        )

    # Kept by shape, since building strategies takes longer than drawing from them.
    @functools.cache
    def of_one_shape(drawn: tuple[int, int, str]) -> st.SearchStrategy[Any]:
        size, count, floating = drawn
        logits = arrays((size, count), floating, values=kinds, layouts=placed)
        names = {"dtype": _holding(indices, count), "layout": placed}
        labels = st.builds(
            noted(seeded_labels),
            st.just(size),
            st.just(count),
            **sampled(seeded_labels, names),
            seed=seeds(),
        )
        return st.tuples(*networks * [logits], labels)

    shapes = st.tuples(st.integers(*batch), st.integers(*classes), st.sampled_from(dtypes))
    return shapes.flatmap(of_one_shape)


def _holding(dtypes: Iterable[str], classes: int) -> list[str]:
    return [dtype for dtype in dtypes if classes - 1 <= np.iinfo(dtype).max]
