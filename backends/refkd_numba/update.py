"""Optimiser and averaging updates, each in one pass over the arrays it changes."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from refkd.dispatch import Array
from refkd_numba.compile import compiled, device
from refkd_numba.layout import flat, same_layout
from refkd_numba.operands import is_number
from refkd_numba.team import share, span
from refkd_numba.vmath import elementwise

__all__ = ["KERNELS", "adam", "sgd"]

_WORTH = 1 << 16
_FLOATS = (np.dtype(np.float32), np.dtype(np.float64))


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
    if not (_fit(arrays, written=(0, 2)) and _are_numbers(lr, momentum, weight_decay)):
        return NotImplemented
    share(
        _sgd, *map(flat, arrays), float(lr), float(momentum), bool(nesterov), float(weight_decay),
        worth=param.size > _WORTH,
    )  # fmt: skip
    return None


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
        _fit(arrays, written=(0, 2, 3))
        and _are_numbers(step, lr, eps, weight_decay)
        and _are_fractions(beta1, beta2)
    ):
        return NotImplemented
    # As in the reference, both bias corrections are folded into two numbers.
    correction = math.sqrt(1 - beta2**step)
    step_size = float(lr * correction / (1 - beta1**step))
    decay, shrink = (0.0, 1 - lr * weight_decay) if decoupled else (weight_decay, 1.0)
    share(
        _adam, *map(flat, arrays), float(beta1), float(1 - beta1), float(beta2), float(1 - beta2),
        step_size, float(eps * correction), float(decay), float(shrink),
        worth=param.size > _WORTH,
    )  # fmt: skip
    return None


def ema_update(average: Array, value: Array, *, decay: float) -> Any:
    if not (_fit((average, value), written=(0,)) and _are_fractions(decay)):
        return NotImplemented
    share(
        _ema, flat(average), flat(value), float(decay), float(1 - decay),
        worth=average.size > _WORTH,
    )  # fmt: skip
    return None


def _fit(arrays: tuple[Array, ...], written: tuple[int, ...]) -> bool:
    first = arrays[0]
    return (
        all(type(a) is np.ndarray and a.dtype == first.dtype for a in arrays)
        and first.dtype in _FLOATS
        and all(arrays[i].flags.writeable for i in written)
        and first.size > 0
        and same_layout(*arrays)
    )


def _are_numbers(*values: Any) -> bool:
    return all(map(is_number, values))


def _are_fractions(*values: Any) -> bool:
    return all(is_number(value) and 0 <= value <= 1 for value in values)


@compiled
def _sgd(param, grad, momentum_buffer, lr, momentum, nesterov, decay, thread, threads):
    part = span(param.size, thread, threads)
    sgd(param[part], grad[part], momentum_buffer[part], lr, momentum, nesterov, decay)


@compiled
def _adam(
    param, grad, exp_avg, exp_avg_sq, beta1, rest1, beta2, rest2, step_size, floor, decay, shrink,
    thread, threads,
):  # fmt: skip
    part = span(param.size, thread, threads)
    adam(
        param[part], grad[part], exp_avg[part], exp_avg_sq[part],
        beta1, rest1, beta2, rest2, step_size, floor, decay, shrink,
    )  # fmt: skip


@compiled
def _ema(average, value, decay, rest, thread, threads):
    """Write average = decay · average + rest · value."""
    part = span(average.size, thread, threads)
    average, value = average[part], value[part]
    decay, rest = average.dtype.type(decay), average.dtype.type(rest)
    for i in range(average.size):
        average[i] = _mixed(decay, average[i], rest, value[i])


@device
def sgd(param, grad, momentum_buffer, lr, momentum, nesterov, decay):
    """Take a step of SGD; all arrays flat, all numbers float64.

    g ← g + decay · w, b ← momentum · b + g, w ← w − lr · (g + momentum · b if nesterov else b).
    """
    kind = param.dtype.type
    has_momentum = momentum != 0
    lr, momentum, decay = kind(lr), kind(momentum), kind(decay)
    if not has_momentum:
        for i in range(param.size):
            param[i] = _minus(param[i], lr, _plus(grad[i], decay, param[i]))
        return
    for i in range(param.size):
        g = _plus(grad[i], decay, param[i])
        b = _plus(g, momentum, momentum_buffer[i])
        momentum_buffer[i] = b
        param[i] = _minus(param[i], lr, _plus(g, momentum, b) if nesterov else b)


@device
def adam(
    param, grad, exp_avg, exp_avg_sq, beta1, rest1, beta2, rest2, step_size, floor, decay, shrink
):
    """Take a step of Adam; all arrays flat, all numbers float64.

    w ← shrink · w, g ← g + decay · w, m ← β1 m + rest1 · g, v ← β2 v + rest2 · g²,
    w ← w − step_size · m / (√v + floor).
    """
    kind = param.dtype.type
    beta1, rest1, beta2, rest2 = kind(beta1), kind(rest1), kind(beta2), kind(rest2)
    step_size, floor, decay, shrink = kind(step_size), kind(floor), kind(decay), kind(shrink)
    for i in range(param.size):
        w, m, v = _adam_step(
            param[i], grad[i], exp_avg[i], exp_avg_sq[i],
            beta1, rest1, beta2, rest2, step_size, floor, decay, shrink,
        )  # fmt: skip
        param[i], exp_avg[i], exp_avg_sq[i] = w, m, v


@elementwise
def _adam_step(w, g, m, v, beta1, rest1, beta2, rest2, step_size, floor, decay, shrink):
    g = _plus(g, decay, w)
    m = _mixed(beta1, m, rest1, g)
    v = _mixed(beta2, v, rest2, g * g)
    return _minus(shrink * w, step_size, m / (np.sqrt(v) + floor)), m, v


@elementwise
def _mixed(a, x, b, y):
    return a * x + b * y


@elementwise
def _plus(x, factor, y):
    """Return x + factor · y; without a factor even an infinite y does not count."""
    return x + factor * y if factor != 0 else x


@elementwise
def _minus(x, factor, y):
    return x - factor * y


KERNELS = {"adam_update": adam_update, "ema_update": ema_update, "sgd_update": sgd_update}
