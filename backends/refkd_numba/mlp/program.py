"""A step as a program: what is done to which layer, one after another, and what is shared.

A part that is large is done by all threads, which wait for each other before the next one.
The others follow one another in one call of one thread.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from refkd_numba.microkernel import COLUMNS
from refkd_numba.mlp import kernels
from refkd_numba.mlp.room import Dense

__all__ = ["Program", "gradient_program", "step_program"]

_WORTH = 3 << 20  # products; below it a part is not worth a second thread
# In products: to copy a value, to draw one, to update a parameter; what one thread has to do.
_COPY, _DRAW, _UPDATE, _ALONE = 16, 40, 40, -1


class Program(NamedTuple):
    """Entries (operation, layer), and what makes one call: begin, end, for all threads or not."""

    entries: NDArray[np.int64]
    calls: list[tuple[int, int, bool]]


class _Part(NamedTuple):
    """Entries that do not wait for each other, and what they cost."""

    entries: list[tuple[int, int]]
    cost: int


def step_program(
    frozen: list[Dense], learning: list[Dense], examples: int, threads: int
) -> Program:
    """Return the program of a step.

    Parameters
    ----------
    frozen, learning : list of Dense
        The layers to evaluate, none where logits are stored; and those that learn.
    examples, threads : int
    """
    first = len(frozen)
    last = first + len(learning) - 1
    costs = [_products(dense, examples) for dense in learning]
    dropping = [i for i, dense in enumerate(learning) if dense.dropout > 0]
    drawn = sum(learning[i].outputs for i in dropping)
    parts = [
        _Part(
            [(kernels.DRAW, first + i) for i in dropping[-1:]] + [(kernels.PACK, first)],
            examples * (_DRAW * drawn + _COPY * learning[0].inputs),
        )
    ]
    parts += [
        _Part([(kernels.FORWARD, i)], _products(dense, examples)) for i, dense in enumerate(frozen)
    ]
    parts += [_Part([(kernels.FORWARD, first + i)], cost) for i, cost in enumerate(costs)]
    parts.append(_Part([(kernels.LOSS, last)], _ALONE))
    parts += [_Part([(kernels.BACKWARD, i)], costs[i - first]) for i in range(last, first, -1)]
    parts.append(_Part([(kernels.CHECK, first)], _ALONE))
    parameters = sum(dense.inputs * dense.outputs for dense in learning)
    updates = [(kernels.UPDATE, first + i) for i in range(len(learning))]
    parts.append(_Part(updates, sum(costs) + _UPDATE * parameters))
    return _in_calls(parts, threads)


def gradient_program(learning: list[Dense], first: int) -> Program:
    """Return the program that stores the gradients of the step before."""
    return _in_calls([_Part([(kernels.UPDATE, first + i) for i in range(len(learning))], 0)], 1)


def _products(dense: Dense, examples: int) -> int:
    return -(-examples // COLUMNS) * COLUMNS * dense.inputs * dense.outputs


def _in_calls(parts: list[_Part], threads: int) -> Program:
    entries: list[tuple[int, int]] = []
    calls: list[tuple[int, int, bool]] = []
    for part in parts:
        begin, end = len(entries), len(entries) + len(part.entries)
        worth = threads > 1 and part.cost > _WORTH
        if calls and not worth and not calls[-1][2]:
            begin = calls.pop()[0]
        calls.append((begin, end, worth))
        entries += part.entries
    return Program(np.array(entries), calls)
