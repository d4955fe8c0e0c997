"""Dropout's random bits: those of NumPy's generator, drawn in several places at once.

PCG64 is a linear congruential generator of 128 bits, s ← m s + i, of which any number of
steps is of that form too: so every thread begins where its part of the sequence does. Each
works on two parts in turn, since a step has to wait for the one before it.

References
----------
O'Neill: PCG: A Family of Simple Fast Space-Efficient Statistically Good Algorithms for Random
Number Generation, HMC-CS-2014-0905.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic
from numpy.typing import NDArray

from refkd_numba.buffers import empty
from refkd_numba.compile import device

__all__ = ["SPARE", "Draws", "draw", "least_kept"]

SPARE = 2
"""Numbers that :func:`draw` may write beyond those that were asked for."""

_MANY = 1 << 13  # numbers, for which it is worth to handle the generator's state
_MULTIPLIER = 0x2360ED051FC65DA44385DF649FCCF645
_STATES, _WORDS = (1 << 128) - 1, (1 << 64) - 1
_STATE, _INCREMENT, _LEFT, _NUMBER, _AFTER = 0, 2, 4, 5, 6  # and then state, left, number
_64, _63, _58, _32 = (np.uint64(n) for n in (64, 63, 58, 32))
_NOTHING = np.uint64(0)


def _jumps() -> NDArray[np.uint64]:
    """Return m and the factor of i of 1, 2, 4, ... steps, as halves."""
    rows, factor, summand = [], _MULTIPLIER, 1
    for _ in range(48):
        rows.append((factor >> 64, factor & _WORDS, summand >> 64, summand & _WORDS))
        factor, summand = factor * factor & _STATES, (factor + 1) * summand & _STATES
    return np.array(rows, np.uint64)


_JUMPS = _jumps()


class Draws:
    """The numbers that dropout draws in a step.

    A float32 of :meth:`numpy.random.Generator.random` is the upper 24 of 32 random bits,
    times 2⁻²⁴.

    Parameters
    ----------
    capacity : int

    Attributes
    ----------
    bits : uint32 array
        The bits, 32 for each number; or, as they are small in number, the float32 themselves.
    stream : uint64 array
        For :func:`draw`.
    """

    def __init__(self, capacity: int) -> None:
        self.bits = empty((capacity + SPARE,), np.uint32)
        self.stream = np.zeros(_AFTER + 4, np.uint64)
        self._state: Any = None

    def begin(self, rng: np.random.Generator, count: int) -> bool:
        """Draw so many numbers as float32, or return True: then bits are to be drawn."""
        if count < _MANY or type(rng.bit_generator) is not np.random.PCG64:
            rng.random(out=self.bits[:count].view(np.float32), dtype=np.float32)
            return False
        state: Any = rng.bit_generator.state
        self._state = state
        value, increment = state["state"]["state"], state["state"]["inc"]
        self.stream[:_AFTER] = (
            value >> 64, value & _WORDS, increment >> 64, increment & _WORDS,
            state["has_uint32"], state["uinteger"],
        )  # fmt: skip
        return True

    def end(self, rng: np.random.Generator) -> None:
        """Move the generator to where it would be had it drawn the bits itself."""
        state = self._state
        high, low, left, number = self.stream[_AFTER:].tolist()
        state["state"]["state"] = high << 64 | low
        state["has_uint32"], state["uinteger"] = left, number
        rng.bit_generator.state = state


def least_kept(p: float) -> int:
    """Return the least value of the upper 24 bits of a number that is at least p."""
    return math.ceil(float(np.float32(p)) * 2**24)


@intrinsic
def _affine(typing_context, s_high, s_low, a_high, a_low, b_high, b_low):
    """Return both halves of a s + b."""
    signature = types.UniTuple(types.uint64, 2)(*[types.uint64] * 6)

    def generate(context, builder, signature, arguments):
        wide, word = ir.IntType(128), ir.IntType(64)

        def join(high, low):
            shifted = builder.shl(builder.zext(high, wide), ir.Constant(wide, 64))
            return builder.or_(shifted, builder.zext(low, wide))

        s, a, b = (join(*arguments[i : i + 2]) for i in (0, 2, 4))
        result = builder.add(builder.mul(s, a), b)
        high = builder.trunc(builder.lshr(result, ir.Constant(wide, 64)), word)
        return cgutils.pack_array(builder, [high, builder.trunc(result, word)])

    return signature, generate


@device(inline=True)
def _step(high, low, stream):
    a_high, a_low = _JUMPS[0, 0], _JUMPS[0, 1]
    return _affine(high, low, a_high, a_low, stream[_INCREMENT], stream[_INCREMENT + 1])


@device
def _after(steps, stream):
    """Return the state after so many steps."""
    high, low = stream[_STATE], stream[_STATE + 1]
    i_high, i_low = stream[_INCREMENT], stream[_INCREMENT + 1]
    bit = 0
    while steps >> bit:
        if (steps >> bit) & 1:
            jump = _JUMPS[bit]
            b_high, b_low = _affine(i_high, i_low, jump[2], jump[3], _NOTHING, _NOTHING)
            high, low = _affine(high, low, jump[0], jump[1], b_high, b_low)
        bit += 1
    return high, low


@device(inline=True)
def _output(high, low):
    mixed, turn = high ^ low, high >> _58
    return (mixed >> turn) | (mixed << ((_64 - turn) & _63))


@device(inline=True)
def _store(word, bits, place):
    bits[place] = np.uint32(word)
    bits[place + 1] = np.uint32(word >> _32)


@device
def draw(bits, count, stream, thread, threads):
    """Draw a thread's part of ``count`` numbers; the last one writes the state that follows."""
    lead = np.int64(stream[_LEFT])  # a word is two numbers: the second may be left over
    words = (count - lead + 1) // 2
    begin, end = words * thread // threads, words * (thread + 1) // threads
    middle = (begin + end) // 2
    if thread == 0 and lead:
        bits[0] = np.uint32(stream[_NUMBER])
    high, low = _after(begin, stream)
    other_high, other_low = _after(middle, stream)
    first, second = bits[lead + 2 * begin :], bits[lead + 2 * middle :]
    for i in range(middle - begin):
        high, low = _step(high, low, stream)
        _store(_output(high, low), first, 2 * i)
        other_high, other_low = _step(other_high, other_low, stream)
        _store(_output(other_high, other_low), second, 2 * i)
    if middle - begin < end - middle:
        other_high, other_low = _step(other_high, other_low, stream)
        _store(_output(other_high, other_low), second, 2 * (middle - begin))
    if thread == threads - 1:
        stream[_AFTER], stream[_AFTER + 1] = other_high, other_low
        stream[_AFTER + 2] = np.uint64((count - lead) % 2)
        number = stream[_NUMBER]  # stays there when it has been used
        stream[_AFTER + 3] = _output(other_high, other_low) >> _32 if words else number
