"""Optimiser and averaging updates: the only kernels that write into their arguments.

Large arrays are walked in chunks that stay in cache: an update is a dozen simple
passes, and over a whole matrix each of them would go to main memory.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

from refkd.dispatch import Array, kernel, namespace
from refkd.errors import check_float_dtypes, check_same_shape

__all__ = ["adam_update", "ema_update", "sgd_update"]

_CHUNK = 32768  # 128 KiB of float32: five arrays of it fit a level-2 cache of 1 MiB
_REASON = "writes parameters in place; it is applied, not differentiated"


@kernel(pair=None, reason=_REASON)
def sgd_update(
    param: Array,
    grad: Array,
    momentum_buffer: Array,
    *,
    lr: float,
    momentum: float,
    nesterov: bool,
    weight_decay: float,
) -> None:
    """Apply one step of stochastic gradient descent to ``param`` and ``momentum_buffer``.

    Parameters
    ----------
    param, grad, momentum_buffer : array, any one shape
        The buffer is zero before the first step.
    lr, momentum, weight_decay : float
    nesterov : bool

    Raises
    ------
    ShapeError, DtypeError
        If the arrays do not fit together.

    Notes
    -----
    As ``torch.optim.SGD`` without dampening::

        g ← g + weight_decay · w
        b ← momentum · b + g
        w ← w − lr · (g + momentum · b   if nesterov else   b)

    With momentum 0 that is w ← w − lr · g, and b is neither read nor written.
    """
    _check("sgd_update", param=param, grad=grad, momentum_buffer=momentum_buffer)
    # In NumPy's float64 they would make float64 of what they multiply.
    lr, momentum, weight_decay = map(float, (lr, momentum, weight_decay))
    for w, g, b in _chunks(param, grad, momentum_buffer):
        if weight_decay:
            g = g + weight_decay * w
        if not momentum:
            w -= lr * g
            continue
        b *= momentum
        b += g
        w -= lr * (g + momentum * b if nesterov else b)


@kernel(pair=None, reason=_REASON)
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
) -> None:
    """Apply one step of Adam or AdamW to ``param`` and its two moment estimates.

    Parameters
    ----------
    param, grad, exp_avg, exp_avg_sq : array, any one shape
        The moments are zero before the first step.
    step : int, >= 1
        Number of this step.
    lr, beta1, beta2, eps, weight_decay : float
    decoupled : bool
        False adds the decay to the gradient (Adam), True shrinks the parameter (AdamW).

    Raises
    ------
    ShapeError, DtypeError
        If the arrays do not fit together.

    Notes
    -----
    As ``torch.optim.Adam`` and ``AdamW``::

        g ← g + weight_decay · w                      (Adam)
        w ← (1 − lr · weight_decay) · w               (AdamW)
        m ← β1 m + (1 − β1) g        v ← β2 v + (1 − β2) g²
        w ← w − lr/(1 − β1ᵏ) · m / (√v/c + ε)         c = √(1 − β2ᵏ), k = step

    where m/(√v/c + ε) = c m/(√v + c ε).

    References
    ----------
    Kingma, Ba: Adam, arXiv:1412.6980; Loshchilov, Hutter: Decoupled Weight Decay
    Regularization, arXiv:1711.05101.
    """
    _check("adam_update", param=param, grad=grad, exp_avg=exp_avg, exp_avg_sq=exp_avg_sq)
    xp = namespace(param)
    lr, beta1, beta2, eps, weight_decay = map(float, (lr, beta1, beta2, eps, weight_decay))
    # Both bias corrections are folded into the two scalars: a pass over memory less.
    correction = math.sqrt(1 - beta2**step)
    step_size = lr * correction / (1 - beta1**step)
    floor = eps * correction
    for w, g, m, v in _chunks(param, grad, exp_avg, exp_avg_sq):
        if decoupled:
            w *= 1 - lr * weight_decay
        elif weight_decay:
            g = g + weight_decay * w
        m *= beta1
        m += (1 - beta1) * g
        v *= beta2
        v += (1 - beta2) * (g * g)
        w -= step_size * (m / (xp.sqrt(v) + floor))


@kernel(pair=None, reason=_REASON)
def ema_update(average: Array, value: Array, *, decay: float) -> None:
    """Apply average ← decay · average + (1 − decay) · value, in place.

    Parameters
    ----------
    average, value : array, any one shape
    decay : float, in [0, 1]

    Raises
    ------
    ShapeError, DtypeError
        If the arrays do not fit together.
    """
    _check("ema_update", average=average, value=value)
    decay = float(decay)
    for a, x in _chunks(average, value):
        a *= decay
        a += (1 - decay) * x


def _chunks(*arrays: Array) -> Iterator[tuple[Array, ...]]:
    if arrays[0].size <= _CHUNK or not all(a.flags.c_contiguous for a in arrays):
        yield arrays  # a flat view of a strided array would be a copy, and lose the update
        return
    flat = [a.reshape(-1) for a in arrays]
    for start in range(0, flat[0].size, _CHUNK):
        yield tuple(a[start : start + _CHUNK] for a in flat)


def _check(where: str, **arrays: Array) -> None:
    check_float_dtypes(where, **arrays)
    check_same_shape(where, **arrays)
