"""Random generators by purpose, so that no use of randomness disturbs another.

A generator is a function of the seed and of what it is for. Two students of one seed
start from the same weights and see the same batches whatever they are taught by,
which is what makes their difference a paired one.
"""

from __future__ import annotations

import enum
import zlib

import numpy as np

__all__ = ["Purpose", "generator"]


class Purpose(enum.IntEnum):
    """What a generator is for."""

    INIT = 0
    ORDER = 1
    DROPOUT = 2
    SUBSET = 3
    AUGMENT = 4


def generator(seed: int, purpose: Purpose, *key: int | str) -> np.random.Generator:
    """Return the generator of ``seed`` for one purpose, and one network, stage or epoch of it.

    Parameters
    ----------
    seed : int, >= 0
    purpose : Purpose
    *key : int or str
        Numbers, and names of networks: a teacher and a student of one seed draw
        independently of each other.
    """
    numbers = (zlib.crc32(k.encode()) if isinstance(k, str) else k for k in key)
    return np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(int(purpose), *numbers)))
