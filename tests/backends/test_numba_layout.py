"""Memory layouts of the Numba backend: transposed there and back, in tiles and their remainders."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from refkd.dispatch import get_backend
from refkd.errors import BackendUnavailable

try:
    get_backend("numba")
except BackendUnavailable as reason:
    pytest.skip(str(reason), allow_module_level=True)

from refkd_numba import layout, team

SHAPES = st.tuples(st.integers(0, 3), st.integers(0, 40), st.integers(0, 12), st.integers(0, 12))
DTYPES = st.sampled_from(["float32", "float64", "int64", "uint8", "complex128"])


@settings(max_examples=80, deadline=None)
@given(SHAPES, DTYPES, st.sampled_from([1, 2, 3]))
def test_channels_go_last_and_come_back(shape: tuple[int, ...], dtype: str, threads: int) -> None:
    x = np.arange(np.prod(shape)).reshape(shape).astype(dtype)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(team, "worker_threads", lambda: threads)
        patch.setattr(layout, "_WORTH", -1)
        last = layout.channels_last(x)
        first = layout.channels_first(layout.as_images(last))
    np.testing.assert_array_equal(last, np.moveaxis(x, 1, -1), strict=True)
    np.testing.assert_array_equal(first, x, strict=True)
    assert last.flags.c_contiguous
    assert first.flags.c_contiguous


def test_what_lies_as_wished_is_not_copied() -> None:
    x = np.zeros((2, 3, 4, 5), np.float32)
    last = np.moveaxis(np.zeros((2, 4, 5, 3), np.float32), -1, 1)
    assert layout.channels_first(x) is x
    assert np.shares_memory(layout.channels_last(last), last)


@pytest.mark.parametrize("view", [lambda x: x[::-1], lambda x: x[:, ::2], lambda x: x.T])
def test_any_strides_do(view: Any) -> None:
    x = view(np.arange(4 * 6 * 8 * 10, dtype=np.float32).reshape(4, 6, 8, 10))
    np.testing.assert_array_equal(layout.channels_last(x), np.moveaxis(x, 1, -1))
    np.testing.assert_array_equal(layout.channels_first(x), x)
