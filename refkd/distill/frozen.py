"""The logits of a frozen network, bit for bit the same in any company."""

from __future__ import annotations

import functools
from collections.abc import Hashable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from refkd.dispatch import Array, backend_of, current_backend, get_backend, namespace
from refkd.distill.heads import as_heads
from refkd.errors import ConfigError
from refkd.nn.layer import Layer
from refkd.threads import limit_blas_threads

__all__ = ["frozen_logits"]

_ROW_TILE = 32  # of which the row tiles of most BLAS kernels are divisors
_PROBES = 8


def frozen_logits(
    network: Layer,
    params: Mapping[str, Array],
    state: Mapping[str, Array],
    images: Array,
    *,
    block: int,
) -> Any:
    """Evaluate a frozen network so that a row's result does not depend on its neighbours.

    Parameters
    ----------
    network : Layer
    params, state : mapping of str to array
    images : array, shape (N, ...)
    block : int
        Rows of every matrix product, rounded up to a multiple of 32; those that hold no
        image are zero.

    Returns
    -------
    logits : array, shape (N, C), or a tuple of them, as the network returns
        Bit for bit the same for an image wherever it stands in ``images``; logits
        computed once and stored equal those computed during training.

    Raises
    ------
    ConfigError
        If the network looks at other images of the batch even in evaluation, as one that
        normalises by batch statistics and keeps no running ones does.

    Notes
    -----
    A matrix product sums in an order that depends on its shape and, with many BLAS
    kernels, on the row: every second group of six on AVX2, the remainder after groups
    of twelve; with several threads, on who computes it. So all products have one shape
    and one thread, and images stand in the rows that were found to sum as row 0 does.
    """
    with limit_blas_threads(1):
        return _in_blocks(network, params, state, images, -(-block // _ROW_TILE) * _ROW_TILE)


def _in_blocks(
    network: Layer,
    params: Mapping[str, Array],
    state: Mapping[str, Array],
    images: Array,
    block: int,
) -> Any:
    xp = namespace(images)
    selected, owner = current_backend(), backend_of(images)
    kernels = selected.name, selected.choices(), owner.choices()
    form = tuple(images.shape[1:]), images.dtype.name
    asked: tuple[Any, ...] = network, block, *form, owner.name, kernels
    alike = _rows_like_the_first(*asked)
    parts = []
    for start in range(0, max(1, images.shape[0]), len(alike)):
        part = images[start : start + len(alike)]
        places = _places(alike[: len(part)], images)
        if len(part) == block and part.flags.c_contiguous:
            rows = part
        else:
            rows = _among_zeros(part, places, block)
        outputs = network.infer(params, state, rows)
        parts.append([logits[places] for logits in as_heads(outputs)])
    heads = tuple(
        head[0] if len(head) == 1 else xp.concatenate(head) for head in zip(*parts, strict=True)
    )
    return heads if isinstance(outputs, tuple) else heads[0]


def _places(rows: NDArray[np.intp], images: Array) -> Any:
    """Return what selects these rows: a slice of the first ones, else an index.

    A slice needs nothing of the host, so that a step can be captured as a graph of a GPU, where
    as a rule all rows are alike.
    """
    if not len(rows) or rows[-1] == len(rows) - 1:
        return slice(len(rows))
    return backend_of(images).asarray(rows)


def _among_zeros(images: Array, places: Any, block: int) -> Array:
    """Return a block whose rows at ``places`` are the images, and zero elsewhere."""
    rows = namespace(images).zeros((block, *images.shape[1:]), images.dtype)
    rows[places] = images
    return rows


@functools.lru_cache(maxsize=64)
def _rows_like_the_first(
    network: Layer, block: int, shape: tuple[int, ...], dtype: str, owner: str, _kernels: Hashable
) -> NDArray[np.intp]:
    """Return the rows of a block in which an image has the same logits as in row 0.

    The last argument tells apart what is remembered: other kernels, of the selected backend or
    of the images', sum in another order.
    """
    backend = get_backend(owner)
    rng = np.random.default_rng(0)
    params, state = (
        {name: backend.asarray(array) for name, array in arrays.items()}
        for arrays in network.init(rng, dtype=np.dtype(dtype).type)
    )

    def heads_of(rows: Array) -> tuple[Array, ...]:
        return as_heads(network.infer(params, state, rows))

    alike = np.ones(block, bool)
    for _ in range(_PROBES):  # a few, because another order may round to the same bits
        image = rng.standard_normal(shape).astype(dtype)
        rows = backend.asarray(np.ascontiguousarray(np.broadcast_to(image, (block, *shape))))
        together = heads_of(rows)
        for logits in together:
            alike &= backend.to_numpy((logits == logits[0]).all(axis=1))
    rows[1:] = 0
    if any(bool((a[0] != b[0]).any()) for a, b in zip(heads_of(rows), together, strict=True)):
        raise ConfigError(
            "frozen_logits: in evaluation the network's logits for an image depend on the rest "
            "of the batch, so they cannot be computed apart (batch norm without running "
            "statistics?); keep running statistics, augment at random, or, in "
            "LogitDistillation, give exact=False"
        )
    return np.flatnonzero(alike)
