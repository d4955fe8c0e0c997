"""A device without the hardware: an array that never moves to the host by itself.

``DeviceArray`` stands for ``cupy.ndarray``. It offers the part of CuPy's interface
that kernels may use and refuses every silent transfer: ``__array__``, conversion to
a Python number or bool, iteration, and arithmetic with a NumPy array. Only
:func:`to_device` and :func:`to_host`, called by a test, cross over.

``CUPY_NAMES`` is the other half of the contract: names that NumPy 2.0 and CuPy share.
All were looked up in the wheel of CuPy 14.2.0 (``dir(cupy)``, attribute by attribute)
and in https://docs.cupy.dev/en/latest/reference/comparison.html. Whoever needs
another name looks it up there and adds it.
"""

from __future__ import annotations

import functools
import operator
from collections.abc import Callable
from typing import Any

import numpy as np

__all__ = ["CUPY_METHODS", "CUPY_NAMES", "DeviceArray", "HostTransfer", "to_device", "to_host"]


def _names(text: str) -> frozenset[str]:
    return frozenset(text.split())


CUPY_NAMES = _names(
    """
    arange array asarray ascontiguousarray empty empty_like eye full full_like linspace ones
    ones_like tri tril triu zeros zeros_like
    bool_ complex128 float32 float64 int32 int64 intp uint8 uint16 finfo result_type
    inf nan newaxis pi
    broadcast_to concatenate copyto expand_dims flip moveaxis pad ravel repeat reshape roll split
    squeeze stack swapaxes tile transpose
    lib.stride_tricks.as_strided lib.stride_tricks.sliding_window_view
    add ceil clip cos cosh divide exp exp2 expm1 floor log log1p log2 maximum minimum multiply
    negative power reciprocal rint sin sinh sqrt square subtract tan tanh trunc
    all any argmax argmin argsort bincount count_nonzero cumprod cumsum max mean min prod sort sum
    add.at dot einsum matmul outer tensordot
    nonzero put_along_axis searchsorted take take_along_axis unravel_index where
    equal greater greater_equal iscomplexobj isfinite isinf isnan isrealobj less less_equal
    logical_and logical_not logical_or not_equal
    """
)

CUPY_METHODS = _names(
    """
    all any argmax argmin argsort astype clip copy cumprod cumsum diagonal dot fill max mean min
    nonzero prod ravel repeat reshape round sort squeeze sum swapaxes take trace transpose view
    """
)

_CREATION = _names("arange array asarray empty eye full linspace ones tri zeros result_type")
# CuPy's reductions and ufuncs do not take these.
_UNSUPPORTED_OPTIONS = frozenset({"where", "initial", "subok"})


class HostTransfer(RuntimeError):
    """A kernel moved data between host and device without saying so."""


class DeviceArray:
    """An array whose values only :func:`to_host` reads."""

    # Makes NumPy arrays and scalars defer to the operators below.
    __array_ufunc__ = None
    __hash__ = None  # type: ignore[assignment]
    __slots__ = ("_buffer",)

    _buffer: np.ndarray[Any, Any]

    def __init__(self, buffer: np.ndarray[Any, Any]) -> None:
        self._buffer = buffer

    def __array_namespace__(self, api_version: str | None = None) -> _Namespace:
        return _DEVICE_NAMESPACE

    def __repr__(self) -> str:
        return f"DeviceArray(shape={self.shape}, dtype={self.dtype})"

    def __len__(self) -> int:
        return len(self._buffer)

    def __getitem__(self, index: Any) -> DeviceArray:
        return _wrap(self._buffer[_unwrap(index)])

    def __setitem__(self, index: Any, value: Any) -> None:
        self._buffer[_unwrap(index)] = _unwrap(value)

    def __getattr__(self, name: str) -> Any:
        if name in CUPY_METHODS:
            return _on_device(f".{name}", getattr(self._buffer, name))
        raise AttributeError(f"a device array has no {name!r} (see CUPY_METHODS)")


def _refusal(operation: str) -> Callable[..., Any]:
    def refuse(self: DeviceArray, *args: Any, **kwargs: Any) -> Any:
        raise HostTransfer(f"{operation} would copy {self!r} to the host")

    return refuse


def _attribute(name: str) -> property:
    def get(self: DeviceArray) -> Any:
        return _wrap(getattr(self._buffer, name))

    return property(get)


def _operator(function: Callable[..., Any], *, reflected: bool = False) -> Callable[..., Any]:
    def apply(self: DeviceArray, *others: Any) -> Any:
        operands = (self._buffer, *map(_unwrap, others))
        return _wrap(function(*(reversed(operands) if reflected else operands)))

    return apply


def _in_place(function: Callable[..., Any]) -> Callable[..., Any]:
    def apply(self: DeviceArray, other: Any) -> DeviceArray:
        self._buffer = function(self._buffer, _unwrap(other))
        return self

    return apply


for _name in ("array", "bool", "float", "int", "complex", "index", "iter", "contains"):
    setattr(DeviceArray, f"__{_name}__", _refusal(f"__{_name}__"))
for _name in ("item", "tolist", "tobytes"):
    setattr(DeviceArray, _name, _refusal(_name))
for _name in _names("T mT shape ndim dtype size strides nbytes itemsize flags real imag"):
    setattr(DeviceArray, _name, _attribute(_name))
for _name in ("neg", "pos", "invert", "eq", "ne", "lt", "le", "gt", "ge"):
    setattr(DeviceArray, f"__{_name}__", _operator(getattr(operator, f"__{_name}__")))
for _name in _names("add sub mul truediv floordiv mod pow matmul and or xor"):
    _function = getattr(operator, f"__{_name}__")
    setattr(DeviceArray, f"__{_name}__", _operator(_function))
    setattr(DeviceArray, f"__r{_name}__", _operator(_function, reflected=True))
    setattr(DeviceArray, f"__i{_name}__", _in_place(getattr(operator, f"__i{_name}__")))


class _Namespace:
    """What ``namespace(x)`` gives a kernel: NumPy's functions under CuPy's names only."""

    def __init__(self, path: str, host: Any) -> None:
        self._path = path
        self._host = host

    def __getattr__(self, name: str) -> Any:
        path = f"{self._path}.{name}" if self._path else name
        if path not in CUPY_NAMES:
            if any(known.startswith(f"{path}.") for known in CUPY_NAMES):
                return _Namespace(path, getattr(self._host, name))
            raise AttributeError(f"xp.{path} is not known to exist in CuPy (see CUPY_NAMES)")
        value = getattr(self._host, name)
        if isinstance(value, type) or not callable(value):
            return value
        function = _on_device(path, value)
        for known in CUPY_NAMES:
            stem, _, method = known.rpartition(".")
            if stem == path:
                setattr(function, method, _on_device(known, getattr(value, method)))
        return function


def _on_device(path: str, function: Callable[..., Any]) -> Any:
    @functools.wraps(function, assigned=("__name__", "__doc__"), updated=())
    def call(*args: Any, **kwargs: Any) -> Any:
        if unsupported := _UNSUPPORTED_OPTIONS & kwargs.keys():
            raise TypeError(f"{path}: CuPy takes no {', '.join(sorted(unsupported))}")
        is_method = path.startswith(".")
        if not is_method and path not in _CREATION and not _holds_array((args, kwargs)):
            raise HostTransfer(f"xp.{path} without a device array; use math for scalars")
        host_kwargs = {name: _unwrap(value) for name, value in kwargs.items()}
        return _wrap(function(*map(_unwrap, args), **host_kwargs))

    return call


def _holds_array(value: Any) -> bool:
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, (list, tuple)):
        return any(map(_holds_array, value))
    return isinstance(value, DeviceArray)


def _unwrap(value: Any) -> Any:
    if isinstance(value, DeviceArray):
        return value._buffer
    if isinstance(value, np.ndarray):
        raise HostTransfer(f"a NumPy array of shape {value.shape} meets a device array")
    if isinstance(value, (list, tuple)):
        return type(value)(map(_unwrap, value))
    return value


def _wrap(value: Any) -> Any:
    if isinstance(value, (np.ndarray, np.generic)):
        return DeviceArray(np.asarray(value))
    if isinstance(value, (list, tuple)) and any(isinstance(v, np.ndarray) for v in value):
        return type(value)(map(_wrap, value))
    return value


_DEVICE_NAMESPACE = _Namespace("", np)


def to_device(tree: Any) -> Any:
    """Copy every NumPy array in nested lists, tuples and dicts to the device."""
    return _map_tree(np.ndarray, lambda array: DeviceArray(array.copy(order="K")), tree)


def to_host(tree: Any) -> Any:
    """Copy every device array in nested lists, tuples and dicts to the host."""
    return _map_tree(DeviceArray, lambda array: array._buffer.copy(order="K"), tree)


def _map_tree(kind: type, function: Callable[[Any], Any], tree: Any) -> Any:
    if isinstance(tree, kind):
        return function(tree)
    if isinstance(tree, dict):
        return {key: _map_tree(kind, function, value) for key, value in tree.items()}
    if isinstance(tree, tuple) and hasattr(tree, "_fields"):
        return type(tree)(*(_map_tree(kind, function, value) for value in tree))
    if isinstance(tree, (list, tuple)):
        return type(tree)(_map_tree(kind, function, value) for value in tree)
    return tree
