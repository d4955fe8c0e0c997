"""Optimiser and averaging updates, each in one pass over the arrays it changes."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from refkd.dispatch import Array
from refkd_cupy import device
from refkd_cupy.layout import flat, same_layout
from refkd_cupy.operands import are_float32, is_number

__all__ = ["KERNELS", "adam_numbers"]


def sgd_update(
    param: Array,
    grad: Array,
    momentum_buffer: Array,
    *,
    lr: float,
    momentum: float,
    nesterov: bool,
    weight_decay: float,
) -> Any:
    arrays = (param, grad, momentum_buffer)
    if not (_fit(arrays) and all(map(is_number, (lr, momentum, weight_decay)))):
        return NotImplemented
    numbers = map(np.float32, map(float, (lr, momentum, weight_decay)))
    return _update("sgd_update", arrays, [*numbers, np.bool_(bool(nesterov))])


def adam_update(
    param: Array,
    grad: Array,
    exp_avg: Array,
    exp_avg_sq: Array,
    *,
    step: int,
    lr: float,
    beta1: float,
    beta2: float,
    eps: float,
    weight_decay: float,
    decoupled: bool,
) -> Any:
    arrays = (param, grad, exp_avg, exp_avg_sq)
    if not (
        _fit(arrays)
        and all(map(is_number, (step, lr, eps, weight_decay)))
        and all(is_number(beta) and 0 <= beta <= 1 for beta in (beta1, beta2))
    ):
        return NotImplemented
    numbers = adam_numbers(
        step=step,
        lr=lr,
        beta1=beta1,
        beta2=beta2,
        eps=eps,
        weight_decay=weight_decay,
        decoupled=decoupled,
    )
    return _update("adam_update", arrays, list(map(np.float32, numbers)), each=4)


def ema_update(average: Array, value: Array, *, decay: float) -> Any:
    if not (_fit((average, value)) and is_number(decay) and 0 <= decay <= 1):
        return NotImplemented
    return _update("ema_update", (average, value), [np.float32(decay), np.float32(1 - decay)])


def adam_numbers(
    *,
    step: int,
    lr: float,
    beta1: float,
    beta2: float,
    eps: float,
    weight_decay: float,
    decoupled: bool,
) -> list[float]:
    """Return the numbers that the kernel takes: as in the reference, corrections folded in."""
    correction = math.sqrt(1 - beta2**step)
    step_size = lr * correction / (1 - beta1**step)
    decay, shrink = (0.0, 1 - lr * weight_decay) if decoupled else (weight_decay, 1.0)
    moments = [beta1, 1 - beta1, beta2, 1 - beta2]
    return [float(n) for n in (*moments, step_size, eps * correction, decay, shrink)]


def _update(kernel: str, arrays: tuple[Array, ...], numbers: list[Any], *, each: int = 1) -> None:
    size = arrays[0].size
    grid, block = device.spread(size, each=each)
    device.launch("update", kernel, grid, block, [*map(flat, arrays), np.int64(size), *numbers])


def _fit(arrays: tuple[Array, ...]) -> bool:
    return are_float32(*arrays) and same_layout(*arrays)


KERNELS = {"adam_update": adam_update, "ema_update": ema_update, "sgd_update": sgd_update}
