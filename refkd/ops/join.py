"""Joining arrays along an axis and taking them apart again, each the other's backward.

They move entries and compute nothing, so these are plain functions and no kernels: there is
nothing that could be less accurate elsewhere.
"""

from __future__ import annotations

from collections.abc import Sequence

from refkd.dispatch import Array, namespace
from refkd.errors import ConfigError, ShapeError, check_axis, check_float_dtypes, check_integer

__all__ = ["concatenate_backward", "concatenate_forward", "split_backward", "split_forward"]


def concatenate_forward(xs: Sequence[Array], *, axis: int) -> Array:
    """Return the arrays one behind the other along ``axis``.

    Parameters
    ----------
    xs : sequence of arrays, at least one
        Of shapes that differ along ``axis`` only.
    axis : int

    Returns
    -------
    y : array
        As long along ``axis`` as all of them together.

    Raises
    ------
    ShapeError, DtypeError, ConfigError
        If there is no array, or they do not fit together.
    """
    return _joined("concatenate_forward", "xs", xs, axis)


def concatenate_backward(dy: Array, *, sizes: Sequence[int], axis: int) -> tuple[Array, ...]:
    """Backward of :func:`concatenate_forward`.

    Parameters
    ----------
    dy : array
    sizes : sequence of int
        How long along ``axis`` each of xs is.
    axis : int

    Returns
    -------
    dxs : tuple of arrays
        One for each of xs, none a view of dy.

    Raises
    ------
    ShapeError, DtypeError, ConfigError
        If the sizes do not sum to the length of dy.

    Notes
    -----
    Every entry of y is one entry of one x, whose cotangent it therefore carries.
    """
    return _parted("concatenate_backward", "dy", dy, sizes, axis)


def split_forward(x: Array, *, sizes: Sequence[int], axis: int) -> tuple[Array, ...]:
    """Return consecutive parts of an array along ``axis``.

    Parameters
    ----------
    x : array
    sizes : sequence of int, at least one
        How long each part is; they sum to the length of x along ``axis``.
    axis : int

    Returns
    -------
    ys : tuple of arrays
        None is a view of x.

    Raises
    ------
    ShapeError, DtypeError, ConfigError
        If the sizes do not sum to the length of x.
    """
    return _parted("split_forward", "x", x, sizes, axis)


def split_backward(dys: Sequence[Array], *, axis: int) -> Array:
    """Backward of :func:`split_forward`: dx is the cotangents of the parts, joined again.

    Parameters
    ----------
    dys : sequence of arrays
        One for every part; zeros for one that is not used.
    axis : int

    Returns
    -------
    dx : array

    Raises
    ------
    ShapeError, DtypeError, ConfigError
        If they do not fit together.
    """
    return _joined("split_backward", "dys", dys, axis)


def _joined(where: str, name: str, arrays: Sequence[Array], axis: int) -> Array:
    if not isinstance(arrays, (list, tuple)) or not arrays:
        given = "none" if isinstance(arrays, (list, tuple)) else type(arrays).__name__
        raise ConfigError(f"{where}: {name} must be a list of one or more arrays, got {given}")
    check_float_dtypes(where, **{f"{name}[{i}]": array for i, array in enumerate(arrays)})
    first = arrays[0]
    check_axis(where, axis, first.shape)
    position = axis % first.ndim
    others = [(*a.shape[:position], *a.shape[position + 1 :]) for a in arrays]
    if any(a.ndim != first.ndim for a in arrays) or len(set(others)) > 1:
        given = ", ".join(str(tuple(a.shape)) for a in arrays)
        raise ShapeError(
            f"{where}: {name} may differ in length along axis {axis} only, got {given}"
        )
    return namespace(first).concatenate(list(arrays), axis=position)


def _parted(
    where: str, name: str, array: Array, sizes: Sequence[int], axis: int
) -> tuple[Array, ...]:
    check_float_dtypes(where, **{name: array})
    check_axis(where, axis, array.shape)
    position = axis % array.ndim
    if not isinstance(sizes, (list, tuple)) or not sizes:
        raise ConfigError(f"{where}: sizes must be one or more integers >= 0, got {sizes!r}")
    for size in sizes:
        check_integer(where, "each of sizes", size, 0)
    if sum(sizes) != array.shape[position]:
        raise ShapeError(
            f"{where}: sizes {tuple(sizes)} must sum to the length of axis {axis} of "
            f"{name} {tuple(array.shape)}, got {sum(sizes)}"
        )
    parts, begin = [], 0
    for size in sizes:
        index = (*position * (slice(None),), slice(begin, begin + size))
        parts.append(array[index].copy(order="K"))
        begin += size
    return tuple(parts)
