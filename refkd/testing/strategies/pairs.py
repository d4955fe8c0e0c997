"""The project's own kernel pairs as a space of examples: a case, and a seed for its inputs."""

from __future__ import annotations

from typing import NamedTuple

from hypothesis import strategies as st

from refkd.testing.pairs import PairCase, all_cases
from refkd.testing.strategies._draw import seeds

__all__ = ["DrawnPair", "pair_cases"]


class DrawnPair(NamedTuple):
    """A case and the seed of its inputs.

    Attributes
    ----------
    case : PairCase
    seed : int
    """

    case: PairCase
    seed: int

    def __repr__(self) -> str:
        """``<linear: 3-D input, no bias; seed 0>``: a case prints as functions otherwise."""
        return f"<{self.case}; seed {self.seed}>"


@st.composite
def pair_cases(draw: st.DrawFn) -> DrawnPair:
    """Return a strategy for every case of every registered kernel pair, at any seed.

    Examples
    --------
    >>> from hypothesis import given
    >>> from refkd.testing.pairs import check_pair
    >>> @given(pair_cases())
    ... def test_a_backward_is_the_derivative_of_its_forward(drawn):
    ...     check_pair(drawn.case, drawn.seed).raise_if_failed()
    """
    return DrawnPair(draw(st.sampled_from(all_cases())), draw(seeds()))
