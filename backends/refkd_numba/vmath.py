"""exp, log, tanh, the normal distribution, sums and maxima in float32, for LLVM to vectorise.

Numba's own are calls to a C library, one per number. These are polynomials without a
branch: a loop over them runs in whole vectors. All pass NaN on. The errors stated are the
largest over all float32 arguments, in units in the last place (ulp), as compiled for a
processor that fuses products with sums; tests/backends/test_numba_vmath.py tries them all
(``REFKD_STRIDE=1 python -m pytest tests/backends/test_numba_vmath.py -m slow -s``).
The polynomials are minimax fits whose own error is well below a rounding.
"""

from __future__ import annotations

from typing import Any

import numba
import numpy as np

from refkd_numba.compile import device

__all__ = [
    "dot",
    "elementwise",
    "exp",
    "exp_nonpositive",
    "largest",
    "log",
    "normal_tail",
    "sigmoid_tails",
    "tanh",
    "total",
]

_SUMMANDS = 512  # in float32
_ALL_BUT_SIGN, _LEAST_KEY = np.int32(0x7FFFFFFF), np.int32(-0x7F800001)  # the key of −∞

# Products are fused with sums, but sums stay in the order they are written in. Whatever of
# this is inlined into a kernel keeps to that, however free the kernel itself is: here a
# few steps undo each other but for the rounding, which is what they are there to find.
elementwise: Any = numba.njit(
    nogil=True, error_model="numpy", fastmath={"contract"}, forceinline=True
)

_ONE = np.float32(1)
_LOG2_E = np.float32(1.44269504)
# log 2 in two parts; the first has so few digits that its product with a power is exact.
_LN2_HIGH, _LN2_LOW = np.float32(0.693359375), np.float32(-2.12194440e-4)
# 1.5 · 2²³: added to a float32, it leaves the nearest integer in the last bits.
_SHIFT, _SHIFT_BITS = np.float32(12582912), np.int32(0x4B400000)

_EXP_LARGEST, _EXP_SMALLEST = np.float32(89), np.float32(-104)  # ∞ and 0 beyond
_EXP_SPARE = 32  # doublings kept back, so that a subnormal result is rounded once
_EXP_SPARE_SCALE = np.float32(2.0**-32)
# (exp(r) − 1 − r) / r² for |r| <= log(2)/2; of exp(r), relative 3.1e-9.
_E2, _E3, _E4, _E5, _E6 = map(
    np.float32, (0.49999994, 0.16666521, 0.04166839, 0.008368745, 0.001381454)
)

_SQRT_HALF_BITS = np.int32(0x3F3504F3)
_SMALLEST_NORMAL = np.float32(2.0**-126)
_2_TO_23 = np.float32(2.0**23)
_INFINITY, _NAN, _ZERO = np.float32(np.inf), np.float32(np.nan), np.float32(0)
# (log(1 + x) − x) / x² for √½ <= 1 + x <= √2; of log(1 + x), relative 4.1e-9.
_L2, _L3, _L4, _L5, _L6, _L7, _L8, _L9, _L10 = map(
    np.float32,
    (
        -0.49999988, 0.33333325, -0.25001583, 0.20001973, -0.16609083, 0.14181826,
        -0.13242988, 0.12904432, -0.07621777,
    ),
)  # fmt: skip

_TANH_SMALL, _TWO = np.float32(0.625), np.float32(2)
# (tanh(x)/x − 1)/x² in x² for |x| <= 0.625; of tanh(x), relative 4.4e-9.
_T1, _T3, _T5, _T7, _T9 = map(
    np.float32, (-0.3333328, 0.13331442, -0.053739715, 0.020639086, -0.005704987)
)

_TAIL_LARGEST = np.float32(14.5)  # its density is 0
_MINUS_HALF = np.float32(-0.5)
# exp(x²/2) Φ(−x) for 0 <= x <= 14.5; relative 5.9e-9.
_NP0, _NP1, _NP2, _NP3, _NP4 = map(
    np.float32, (0.5, 0.438295, 0.18323518, 0.040633246, 0.0041163126)
)
_NQ1, _NQ2, _NQ3, _NQ4, _NQ5 = map(
    np.float32, (1.674475, 1.2025033, 0.46947077, 0.10185889, 0.010317946)
)


@elementwise
def exp(x):
    """Return exp(x), to 1.03 ulp; of x beyond the range of float32 too, 0 or infinity."""
    x = _EXP_LARGEST if x > _EXP_LARGEST else x
    x = _EXP_SMALLEST if x < _EXP_SMALLEST else x
    y, power = _exp_parts(x)
    half = power >> 1
    return y * _power_of_2(half) * _power_of_2(power - half)


@elementwise
def exp_nonpositive(x):
    """Return exp(x) for x <= 0, to 1.03 ulp, in fewer steps."""
    x = _EXP_SMALLEST if x < _EXP_SMALLEST else x
    y, power = _exp_parts(x)
    return y * _power_of_2(power + _EXP_SPARE) * _EXP_SPARE_SCALE


@elementwise
def _exp_parts(x):
    """Return y and k, exp(x) = y·2ᵏ."""
    shifted = x * _LOG2_E + _SHIFT
    k = shifted - _SHIFT
    r = x - k * _LN2_HIGH
    r = r - k * _LN2_LOW
    p = (((_E6 * r + _E5) * r + _E4) * r + _E3) * r + _E2
    return (p * r) * r + r + _ONE, np.int32(np.float32(shifted).view(np.int32) - _SHIFT_BITS)


@elementwise
def _power_of_2(k):
    return np.int32((k + 127) << 23).view(np.float32)


@elementwise
def log(x):
    """Return log(x), to 0.87 ulp; −∞ at 0, NaN below."""
    subnormal = x < _SMALLEST_NORMAL
    scaled = x * _2_TO_23 if subnormal else x
    # The bits above those of √½ are the power of 2, and the rest makes 1 + f in [√½, √2).
    bits = np.int32(np.float32(scaled).view(np.int32) - _SQRT_HALF_BITS)
    power = np.int32(bits >> 23)
    f = np.int32((bits & 0x007FFFFF) + _SQRT_HALF_BITS).view(np.float32) - _ONE
    k = np.float32(np.int32(power - 23) if subnormal else power)
    p = ((((((((_L10 * f + _L9) * f + _L8) * f + _L7) * f + _L6) * f + _L5) * f + _L4) * f + _L3)
         * f + _L2)  # fmt: skip
    y = k * _LN2_LOW + (p * f) * f
    y = k * _LN2_HIGH + (y + f)
    y = y if x < _INFINITY else x  # NaN and ∞ remain
    y = y if x > _ZERO else -_INFINITY if x == _ZERO else _NAN
    return y


@elementwise
def tanh(x):
    """Return tanh(x), to 1.47 ulp."""
    a = abs(x)
    e = exp_nonpositive(-(a + a))
    large = _ONE - _TWO * (e / (_ONE + e))
    s = x * x
    p = (((_T9 * s + _T7) * s + _T5) * s + _T3) * s + _T1
    small = x * (p * s + _ONE)  # so that −0 stays
    return small if a < _TANH_SMALL else -large if x < _ZERO else large


@elementwise
def sigmoid_tails(x):
    """Return σ(x) and σ(−x), to 2.83 ulp each."""
    e = exp_nonpositive(-abs(x))
    large = _ONE / (_ONE + e)
    small = e * large
    negative = x < _ZERO
    return small if negative else large, large if negative else small


@elementwise
def normal_tail(x):
    """Return Φ(−|x|), to 3.8 ulp, and exp(−x²/2), to 0.72 ulp.

    Each may be wrong by x²/2 ulp more: x² is rounded before it becomes an exponent.
    """
    a = abs(x)
    density = exp_nonpositive(_MINUS_HALF * (a * a))
    a = _TAIL_LARGEST if a > _TAIL_LARGEST else a
    p = (((_NP4 * a + _NP3) * a + _NP2) * a + _NP1) * a + _NP0
    q = ((((_NQ5 * a + _NQ4) * a + _NQ3) * a + _NQ2) * a + _NQ1) * a + _ONE
    return density * (p / q), density


@device(inline=True, counted=False)
def largest(x):
    """Return the largest of x, or anything where there is a NaN among them."""
    # Whole numbers in the order of the floats: a maximum of floats does not vectorise,
    # because it would have to say what becomes of NaN.
    key = _LEAST_KEY
    for i in range(x.size):
        bits = np.float32(x[i]).view(np.int32)
        bits = np.int32(bits ^ ((bits >> 31) & _ALL_BUT_SIGN))
        key = bits if bits > key else key
    return np.int32(key ^ ((key >> 31) & _ALL_BUT_SIGN)).view(np.float32)


@device(inline=True, counted=False)
def total(x):
    """Return the sum of x in float64; of many entries the error does not grow."""
    if x.size <= _SUMMANDS:
        return np.float64(_subtotal(x))
    result = 0.0
    for first in range(0, x.size, _SUMMANDS):
        result += _subtotal(x[first : first + _SUMMANDS])
    return result


@device(inline=True, counted=False)
def _subtotal(x):
    result = _ZERO
    for i in range(x.size):
        result += x[i]
    return result


@device(inline=True, counted=False)
def dot(x, y):
    """Return Σ x·y in float64, as :func:`total`."""
    if x.size <= _SUMMANDS:
        return np.float64(_subtotal_of_products(x, y))
    result = 0.0
    for first in range(0, x.size, _SUMMANDS):
        part = slice(first, first + _SUMMANDS)
        result += _subtotal_of_products(x[part], y[part])
    return result


@device(inline=True, counted=False)
def _subtotal_of_products(x, y):
    result = _ZERO
    for i in range(x.size):
        result += x[i] * y[i]
    return result
