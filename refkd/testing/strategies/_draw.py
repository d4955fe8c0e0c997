"""What several files of strategies share: seeds, checked choices, and the note on an array."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
from hypothesis import note
from hypothesis import strategies as st
from numpy.typing import NDArray

from refkd.errors import ConfigError, check_choice

__all__ = ["check_sizes", "chosen", "noted", "sampled", "seeds"]


def seeds() -> st.SearchStrategy[int]:
    """Return the strategy of seeds for ``numpy.random.default_rng``; shrinks to 0."""
    return st.integers(0, 2**32 - 1)


def chosen(where: str, name: str, given: str | Iterable[str], choices: Iterable[str]) -> list[str]:
    """Return one or several names as a list; ConfigError unless they are among ``choices``."""
    names = [given] if isinstance(given, str) else list(given)
    options = list(choices)
    if not names:
        raise ConfigError(f"{where}: {name} is empty, expected some of {', '.join(options)}")
    for each in names:
        check_choice(where, name, each, options)
    return names


def sampled(
    function: Callable[..., Any], names: dict[str, list[str]]
) -> dict[str, st.SearchStrategy[str]]:
    """Return a strategy for each keyword; none where it can only be the function's default."""
    accepted = inspect.signature(function).parameters
    return {
        name: st.sampled_from(values)
        for name, values in names.items()
        if values != [accepted[name].default]
    }


def check_sizes(where: str, **ranges: tuple[int, int]) -> None:
    """Raise ConfigError unless each (smallest, largest) is a range of sizes from 1 on."""
    for name, (smallest, largest) in ranges.items():
        if not 1 <= smallest <= largest:
            raise ConfigError(
                f"{where}: {name} must go from at least 1 to no less than that, "
                f"got {smallest} to {largest}"
            )


def noted(function: Callable[..., NDArray[Any]]) -> Callable[..., NDArray[Any]]:
    """Return ``function`` for ``st.builds``, with a note of each call and the numbers.

    Hypothesis prints an argument as the call that built it or by its repr, whichever is
    shorter, and the repr of a small array says nothing about its layout.
    """

    @functools.wraps(function)
    def call(*args: Any, **keywords: Any) -> NDArray[Any]:
        array = function(*args, **keywords)
        note(_Call(function.__name__, args, keywords, array))
        return array

    return call


class _Call:
    """A call and what it returned, put into words only when hypothesis shows the note."""

    def __init__(
        self, name: str, args: tuple[Any, ...], keywords: dict[str, Any], array: NDArray[Any]
    ) -> None:
        self.words = [repr(a) for a in args] + [f"{k}={v!r}" for k, v in keywords.items()]
        self.name, self.array = name, array

    def __repr__(self) -> str:
        numbers = np.array2string(self.array, threshold=16, edgeitems=2, separator=", ")
        return f"{self.name}({', '.join(self.words)}) = {numbers}"
