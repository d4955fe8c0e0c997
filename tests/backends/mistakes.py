"""Arguments a caller may give by mistake, or because something else made them that way."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from tests.backends.calls import Call

__all__ = ["mistaken"]

_OF_ARRAYS: dict[str, Callable[[Any], Any]] = {
    "an axis more": lambda x: x[None],
    "an axis less": lambda x: x.reshape(-1) if x.ndim > 1 else x.reshape(()) if x.size == 1 else x,
    "an entry less": lambda x: x[..., :-1] if x.ndim else x,
    "a row less": lambda x: x[1:] if x.ndim else x,
    "a row more": lambda x: np.concatenate([x, x[:1]]) if x.ndim else x,
    "one entry": lambda x: x[(slice(1),) * x.ndim],
    "no entries": lambda x: x[..., :0] if x.ndim else x,
    "a number": lambda x: x.reshape(-1)[0] if x.size else x,
    "a Python number": lambda x: x.reshape(-1)[0].item() if x.size else x,
    "None": lambda x: None,
    "a list": lambda x: x.tolist(),
    "swapped bytes": lambda x: x.astype(x.dtype.newbyteorder()),
    "a subclass": lambda x: x.view(_Subclass),
}
_DTYPES = {
    "f": ("float16", "float32", "float64", "complex64", "complex128", "int64", "bool"),
    "i": ("int8", "uint8", "int16", "int32", "uint32", "uint64", "float32", "bool"),
    "u": ("int8", "uint16", "int64", "float16", "float64", "bool"),
    "b": ("uint8", "int64", "float32"),
}
_ENTRIES = (-(2**31), -1, 2, 5, 127, 2**31 - 1)
_OPTIONS = (
    *(0, 1, -1, 2, 3, 0.0, 0.5, -0.5, np.nan, np.inf, True, None, "mean"),
    *((), (1,), (1, 2), (2, 1, 1), np.float64(0.5), np.float32(0.5), np.int64(2)),
)


class _Subclass(np.ndarray):
    pass


def mistaken(call: Call) -> Iterator[Call]:
    """Yield the call with one argument other than it should be; some are right all the same."""
    for name, array in call.arrays.items():
        for words, change in _OF_ARRAYS.items():
            yield _changed(call, f"{name}: {words}", {name: change(array)})
        for dtype in _DTYPES[array.dtype.kind]:
            yield _changed(call, f"{name}: {dtype}", {name: array.astype(dtype)})
        for entry in _ENTRIES if array.dtype.kind == "i" and array.size else ():
            spoiled = array.copy()
            spoiled.reshape(-1)[-1] = entry
            yield _changed(call, f"{name}: ends with {entry}", {name: spoiled})
    for name in call.arguments.keys() - call.arrays.keys():
        for value in _OPTIONS:
            yield _changed(call, f"{name}: {value!r}", {name: value})


def _changed(call: Call, words: str, arguments: dict[str, Any]) -> Call:
    return Call(call.kernel, f"{call.label}; {words}", {**call.arguments, **arguments})
