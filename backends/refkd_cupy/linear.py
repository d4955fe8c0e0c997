"""The linear map: products by cuBLAS, or as those of a convolution whose kernel is one pixel."""

from __future__ import annotations

from typing import Any

import numpy as np

from refkd.dispatch import Array
from refkd.ops.im2col import ConvSizes
from refkd_cupy import conv, device, settings
from refkd_cupy.alignment import at_vectors
from refkd_cupy.blas_lt import affine
from refkd_cupy.layout import rows
from refkd_cupy.sums import add_bias, column_sums

__all__ = ["KERNELS"]

_FLOAT32 = np.dtype(np.float32)
_MOST_ENTRIES = 2**31 - 1


def linear_forward(x: Array, weight: Array, bias: Array | None) -> Any:
    if not _fit(x, weight) or (
        bias is not None and not (_is_float32(bias) and bias.shape == weight.shape[:1])
    ):
        return NotImplemented
    examples, matrix = at_vectors(rows(x)), at_vectors(device.dense(weight))
    vector = None if bias is None else at_vectors(device.dense(bias))
    g = _as_convolution(examples, matrix)
    if g is not None:
        y = conv.forward(_as_pixels(examples), _as_kernel(matrix), vector, g)
        return y.reshape(*x.shape[:-1], weight.shape[0])
    y = device.empty((*x.shape[:-1], weight.shape[0]))
    flat = y.reshape(len(examples), weight.shape[0])
    if vector is None or not affine(examples, matrix, vector, flat):
        device.gemm(examples, matrix, flat, transpose_b=True)
        if vector is not None:
            add_bias(flat, vector)
    return y


def linear_backward(dy: Array, x: Array, weight: Array, *, need_dx: bool = True) -> Any:
    if not (_fit(x, weight) and _is_float32(dy) and dy.shape == (*x.shape[:-1], weight.shape[0])):
        return NotImplemented
    gradient, examples = at_vectors(rows(dy)), at_vectors(rows(x))
    matrix = at_vectors(device.dense(weight))
    g = _as_convolution(examples, matrix)
    if g is not None:
        pixels = _as_pixels(gradient)
        dweight, dbias = conv.backward_weight(pixels, _as_pixels(examples), g, need_dbias=True)
        dx = (
            conv.backward_input(pixels, _as_kernel(matrix), g).reshape(x.shape) if need_dx else None
        )
        return dx, dweight.reshape(weight.shape), dbias
    dweight = device.empty(weight.shape)
    device.gemm(gradient, examples, dweight, transpose_a=True)
    dbias = column_sums(gradient)
    if not need_dx:
        return None, dweight, dbias
    dx = device.empty(x.shape)
    device.gemm(gradient, matrix, dx.reshape(examples.shape))
    return dx, dweight, dbias


def _fit(x: Array, weight: Array) -> bool:
    return (
        _is_float32(x)
        and _is_float32(weight)
        and weight.ndim == 2
        and x.ndim > 0
        and x.shape[-1] == weight.shape[1]
        and x.size > 0
        and weight.size > 0
        and x.size // x.shape[-1] <= _MOST_ENTRIES
    )


def _is_float32(array: Array) -> bool:
    return device.is_array(array) and array.dtype == _FLOAT32


def _as_convolution(x: Array, weight: Array) -> ConvSizes | None:
    """Return the sizes of the convolution that is this map, or None where cuBLAS makes it."""
    if settings.tf32 or len(x) * weight.size < settings.three_terms_from:
        return None
    if not (settings.three_terms and device.supports_tensor_cores()):
        return None
    images, kernel = _as_pixels(x).transpose(0, 3, 1, 2), _as_kernel(weight)
    return conv.sizes((images, kernel), images.shape, kernel.shape, 1, 0, 1, 1)


def _as_pixels(x: Array) -> Array:
    return x.reshape(x.shape[0], 1, 1, x.shape[1])


def _as_kernel(weight: Array) -> Array:
    return weight.reshape(*weight.shape, 1, 1)


KERNELS = {"linear_backward": linear_backward, "linear_forward": linear_forward}
