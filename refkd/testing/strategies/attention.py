"""Shapes and masks of multi-head attention: sizes, no numbers."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from hypothesis import strategies as st
from numpy.typing import NDArray

from refkd.errors import ConfigError, check_choice
from refkd.testing.strategies._draw import check_sizes, chosen

__all__ = ["AttentionShape", "attention_shapes"]

_MASKS = ("none", "causal", "padding")


@dataclass(frozen=True)
class AttentionShape:
    """The sizes of a multi-head attention, and which keys a query may attend to.

    Attributes
    ----------
    batch, heads, query_length, key_length, head_dim : int
    mask : {"none", "causal", "padding"}
    key_lengths : tuple of int
        For ``"padding"``: of each example the number of keys that are not padding, at
        least 1; otherwise empty.

    Raises
    ------
    ConfigError
        If ``mask`` is unknown or ``key_lengths`` does not fit.
    """

    batch: int
    heads: int
    query_length: int
    key_length: int
    head_dim: int
    mask: str = "none"
    key_lengths: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        check_choice("AttentionShape", "mask", self.mask, _MASKS)
        expected = self.batch if self.mask == "padding" else 0
        in_range = all(1 <= length <= self.key_length for length in self.key_lengths)
        if len(self.key_lengths) != expected or not in_range:
            raise ConfigError(
                f"AttentionShape: key_lengths must be {expected} numbers from 1 to "
                f"{self.key_length} for batch={self.batch} and mask={self.mask!r}, "
                f"got {self.key_lengths}"
            )

    @property
    def query_shape(self) -> tuple[int, int, int, int]:
        """(batch, heads, query_length, head_dim), also of the output."""
        return (self.batch, self.heads, self.query_length, self.head_dim)

    @property
    def key_shape(self) -> tuple[int, int, int, int]:
        """(batch, heads, key_length, head_dim), also of the values."""
        return (self.batch, self.heads, self.key_length, self.head_dim)

    @property
    def allowed(self) -> NDArray[np.bool_] | None:
        """True where a query may attend to a key; every query may to at least one.

        None without a mask. Causal: shape (query_length, key_length), query i to the
        keys up to i, as PyTorch aligns unequal lengths. Padding: shape (batch, 1, 1,
        key_length).
        """
        if self.mask == "none":
            return None
        if self.mask == "causal":
            return np.tri(self.query_length, self.key_length, dtype=bool)
        present = np.arange(self.key_length) < np.array(self.key_lengths)[:, None]
        return present[:, None, None, :]


def attention_shapes(
    *,
    max_batch: int = 3,
    max_heads: int = 3,
    max_length: int = 6,
    max_head_dim: int = 5,
    masks: str | Iterable[str] = _MASKS,
) -> st.SearchStrategy[AttentionShape]:
    """Return a strategy for attention: self and cross, masked or not, down to one of each.

    Parameters
    ----------
    max_batch, max_heads, max_length, max_head_dim : int
        The largest sizes; lengths of queries and keys are equal in half of them.
    masks : str or several of {"none", "causal", "padding"}

    Raises
    ------
    ConfigError
        If a maximum is below 1 or a mask unknown.

    Examples
    --------
    >>> AttentionShape(2, 4, 3, 3, 8, "padding", (1, 3)).allowed[:, 0, 0]
    array([[ True, False, False],
           [ True,  True,  True]])
    """
    check_sizes(
        "attention_shapes",
        max_batch=(1, max_batch),
        max_heads=(1, max_heads),
        max_length=(1, max_length),
        max_head_dim=(1, max_head_dim),
    )
    return _attention_shape(
        max_batch,
        max_heads,
        max_length,
        max_head_dim,
        chosen("attention_shapes", "masks", masks, _MASKS),
    )


@st.composite
def _attention_shape(
    draw: st.DrawFn,
    max_batch: int,
    max_heads: int,
    max_length: int,
    max_head_dim: int,
    masks: list[str],
) -> AttentionShape:
    batch = draw(st.integers(1, max_batch))
    key_length = draw(st.integers(1, max_length))
    mask = draw(st.sampled_from(masks))
    lengths = st.tuples(*batch * [st.integers(1, key_length)])
    return AttentionShape(
        batch,
        draw(st.integers(1, max_heads)),
        draw(st.just(key_length) | st.integers(1, max_length)),
        key_length,
        draw(st.integers(1, max_head_dim)),
        mask,
        draw(lengths) if mask == "padding" else (),
    )
