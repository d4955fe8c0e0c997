"""Kernels and the backends that may override them. No kernel is defined here.

A function decorated with :func:`kernel` is its own reference implementation. A
call looks for an override by the type of its first array, and among the backends
that serve this type in the one selected with :func:`use_backend`. An
override that is missing or returns ``NotImplemented`` falls through to the
reference, here and nowhere else.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
import inspect
import itertools
import sys
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple, ParamSpec, TypeVar, overload

import numpy as np

from refkd.errors import BackendUnavailable, ConfigError, DtypeError, check_choice
from refkd.threads import limit_blas_threads

if TYPE_CHECKING:
    from importlib.metadata import EntryPoint

__all__ = [
    "Array",
    "Backend",
    "Kernel",
    "available_backends",
    "backend_of",
    "current_backend",
    "get_backend",
    "kernel",
    "namespace",
    "registered_kernels",
    "set_default_backend",
    "use_backend",
]

P = ParamSpec("P")
R = TypeVar("R")

# An array of any backend: NumPy's interface is the contract, not its type.
Array = Any


def namespace(x: Array) -> Any:
    """Return the array module of ``x``: the ``xp`` a kernel is written on.

    Raises
    ------
    DtypeError
        If ``x`` is no array.
    """
    if isinstance(x, (np.ndarray, np.generic)):
        return np
    if hasattr(x, "__array_namespace__"):
        return x.__array_namespace__()
    if type(x).__module__ == "cupy":  # CuPy 14 has no __array_namespace__
        return sys.modules["cupy"]
    raise DtypeError(
        f"expected an array, got {type(x).__name__}; "
        f"convert it first, for example with numpy.asarray"
    )


@dataclass(frozen=True)
class Kernel:
    """One registered kernel.

    Attributes
    ----------
    name : str
        The function's name, unique among all kernels.
    reference : callable
        The undecorated function.
    call : callable
        The dispatching function that the module exports.
    pair : str or None
        Name of the kernel that is its other direction.
    reason : str
        Why there is no pair; empty where there is one.
    """

    name: str
    reference: Callable[..., Any]
    call: Callable[..., Any]
    pair: str | None
    reason: str


@dataclass(frozen=True)
class Backend:
    """A provider of kernels for one array type.

    Attributes
    ----------
    name : str
        The name given to :func:`use_backend`.
    array_type : type
        The arrays its kernels take.
    asarray, to_numpy : callable
        Moves from and to NumPy.
    synchronize : callable
        Returns once all work queued on the device is done.
    kernels : mapping
        Overrides by kernel name. A signature must equal the reference's; an
        override returns ``NotImplemented`` for what it does not serve.
    compile_step : callable or None
        ``compile_step(objective, optimizer)`` returns a training step for the two (see
        :class:`refkd.train.step.TrainingStep`) that does what the kernels would, or
        None where it has none for them.
    blas_threads : int or None
        How many threads BLAS may take while the backend is selected; None limits nothing.
    prune_cache : callable or None
        Deletes what it keeps compiled on disk and has no use for any more; None where it
        keeps nothing.
    choices : callable
        Returns all that chooses between its kernels as it is set now, to be compared: what
        was found out about their rounding holds as long as this stays equal.
    error_factors : mapping
        By kernel name, how many times the error of the float32 reference an override may
        make whose algorithm is less accurate; the others keep to 4 times.
    unavailable_reason : str or None
        None where the backend works on this machine, else one line that a person
        can act on.
    """

    name: str
    array_type: type
    asarray: Callable[..., Array]
    to_numpy: Callable[[Array], Any]
    synchronize: Callable[[], None]
    kernels: Mapping[str, Callable[..., Any]] = field(default_factory=dict)
    compile_step: Callable[[Any, Any], Any] | None = None
    blas_threads: int | None = None
    prune_cache: Callable[[], None] | None = None
    choices: Callable[[], tuple[Hashable, ...]] = tuple
    error_factors: Mapping[str, float] = field(default_factory=dict)
    unavailable_reason: str | None = None


class _Selection(NamedTuple):
    backend: Backend
    strict: bool


_NUMPY = Backend("numpy", np.ndarray, np.asarray, np.asarray, lambda: None)
_BUILT_IN_MODULES = {"numba": "refkd_numba", "cupy": "refkd_cupy"}
_KERNEL_PACKAGES = ("refkd.ops", "refkd.losses")

_kernels: dict[str, Kernel] = {}
_loaded: dict[str, Backend] = {"numpy": _NUMPY}
_by_array_type: dict[type, Backend] = {}
_default: _Selection | None = None
_default_limit = ExitStack()
_scope: ContextVar[_Selection | None] = ContextVar("refkd_backend", default=None)


@overload
def kernel(function: Callable[P, R], /) -> Callable[P, R]: ...
@overload
def kernel(*, pair: None, reason: str) -> Callable[[Callable[P, R]], Callable[P, R]]: ...
def kernel(function: Any = None, /, *, pair: None = None, reason: str = "") -> Any:
    """Register a function as a kernel and give it dispatch.

    ``x_forward`` and ``x_backward`` belong together by name. A kernel without a
    pair says why: ``@kernel(pair=None, reason="...")``.

    Raises
    ------
    ConfigError
        If the name is taken, or a kernel without a pair gives no reason.
    """
    if function is None:
        return functools.partial(_register, pair=None, reason=reason)
    name = function.__name__
    stem, _, direction = name.rpartition("_")
    other = {"forward": "backward", "backward": "forward"}.get(direction)
    return _register(function, pair=other and f"{stem}_{other}", reason="")


def _register(function: Callable[..., Any], *, pair: str | None, reason: str) -> Any:
    name = function.__name__
    if pair is None and not reason:
        raise ConfigError(
            f"kernel {name}: a kernel is named *_forward or *_backward, or says why it has "
            f"no pair: @kernel(pair=None, reason='...')"
        )
    if name in _kernels and _kernels[name].reference.__module__ != function.__module__:
        raise ConfigError(
            f"kernel {name}: already registered by {_kernels[name].reference.__module__}"
        )
    call = _dispatching(name, function)
    _kernels[name] = Kernel(name, function, call, pair, reason)
    return call


def _dispatching(name: str, reference: Callable[..., Any]) -> Callable[..., Any]:
    current_scope, by_array_type, ndarray = _scope.get, _by_array_type, np.ndarray

    @functools.wraps(reference)
    def call(*args: Any, **kwargs: Any) -> Any:
        selection = current_scope() or _default
        # Most calls begin with a NumPy array: spare them the search.
        array_type = type(args[0]) if args else None
        if array_type is not ndarray:
            array_type = _first_array_type(itertools.chain(args, kwargs.values()))
        elif selection is None:
            return reference(*args, **kwargs)
        if selection is not None and selection.backend.array_type is array_type:
            backend: Backend | None = selection.backend
        else:
            backend = by_array_type.get(array_type) or _loaded_for(array_type)
        override = None if backend is None else backend.kernels.get(name)
        if override is not None:
            result = override(*args, **kwargs)
            if result is not NotImplemented:
                return result
        if selection is not None and selection.strict and selection.backend is not _NUMPY:
            raise BackendUnavailable(
                f"{name}: backend {selection.backend.name!r} has no kernel for these arguments "
                f"({_describe(args, kwargs)}) and strict=True forbids the reference"
            )
        return reference(*args, **kwargs)

    return call


def _loaded_for(array_type: type) -> Backend | None:
    """Return the backend of arrays whose package has its name, loaded now if need be."""
    if array_type is np.ndarray:
        return None
    _load_if_known(array_type.__module__.partition(".")[0])
    return _by_array_type.get(array_type)


@functools.cache
def _load_if_known(name: str) -> None:
    if name in _known_backends():
        with suppress(BackendUnavailable, ConfigError):
            get_backend(name)


def _first_array_type(args: Iterable[Any]) -> type:
    # Scalars (a loss cotangent of 1.0) and None (no labels) say nothing of the backend.
    for value in args:
        kind = type(value)
        if kind is list or kind is tuple:
            kind = type(value[0]) if value else kind
        if kind is np.ndarray or kind in _by_array_type:
            return kind
        # An array that no loaded backend serves must not reach the overrides for NumPy's.
        if hasattr(kind, "shape") and not issubclass(kind, (np.ndarray, np.generic)):
            return kind
    return np.ndarray


def _describe(args: tuple[Any, ...], kwargs: dict[str, Any]) -> str:
    def describe(value: Any) -> str:
        if hasattr(value, "dtype"):
            return f"{value.dtype} {tuple(value.shape)}"
        return type(value).__name__ if isinstance(value, (list, tuple)) else repr(value)

    return ", ".join([*map(describe, args), *(f"{k}={describe(v)}" for k, v in kwargs.items())])


def registered_kernels() -> dict[str, Kernel]:
    """Return every kernel by name: those of refkd and of any module imported so far."""
    for package in _KERNEL_PACKAGES:
        importlib.import_module(package)
    return dict(_kernels)


def available_backends() -> dict[str, str | None]:
    """Return every known backend with None, or the reason why it cannot be used here."""
    reasons: dict[str, str | None] = {}
    for name in _known_backends():
        try:
            get_backend(name)
        except (BackendUnavailable, ConfigError) as error:
            reasons[name] = str(error)
        else:
            reasons[name] = None
    return reasons


def get_backend(name: str) -> Backend:
    """Load a backend by name.

    Parameters
    ----------
    name : str
        ``"numpy"`` (the reference itself), ``"numba"``, ``"cupy"``, or an entry point
        of the group ``refkd.backends`` whose object is a :class:`Backend`.

    Raises
    ------
    ConfigError
        If no backend has that name, or one of its overrides does not have the
        reference's signature.
    BackendUnavailable
        If it cannot be used on this machine; the message says why.
    """
    if not isinstance(name, str):
        raise ConfigError(
            f"get_backend: expected the name of a backend, got {type(name).__name__}; one of "
            f"your own has its name from an entry point of the group refkd.backends"
        )
    if name in _loaded:
        return _loaded[name]
    known = _known_backends()
    check_choice("get_backend", "name", name, known)
    backend = known[name]()
    if backend.name != name:
        raise ConfigError(f"backend {name!r}: the object it loads is named {backend.name!r}")
    if backend.unavailable_reason is not None:
        raise BackendUnavailable(f"backend {name!r}: {backend.unavailable_reason}")
    _check_overrides(backend)
    if backend.array_type is not np.ndarray:
        _by_array_type[backend.array_type] = backend
    _loaded[name] = backend
    return backend


def _known_backends() -> dict[str, Callable[[], Backend]]:
    from importlib.metadata import entry_points  # takes as long to import as half of NumPy

    known: dict[str, Callable[[], Backend]] = {"numpy": lambda: _NUMPY}
    for name, module in _BUILT_IN_MODULES.items():
        known[name] = functools.partial(_load_built_in, name, module)
    for entry in entry_points(group="refkd.backends"):
        known.setdefault(entry.name, functools.partial(_load_entry_point, entry))
    return known


def _load_built_in(name: str, module: str) -> Backend:
    if importlib.util.find_spec(module) is None:
        raise BackendUnavailable(
            f"backend {name!r}: the package {module} is not part of this installation of refkd; "
            f"use the reference (numpy)"
        )
    backend: Backend = importlib.import_module(module).backend
    return backend


def _load_entry_point(entry: EntryPoint) -> Backend:
    try:
        backend = entry.load()
    except (Exception, SystemExit) as error:  # whatever a third party's module does meanwhile
        raise BackendUnavailable(
            f"backend {entry.name!r}: its entry point {entry.value} does not load "
            f"({type(error).__name__}: {error})"
        ) from error
    if not isinstance(backend, Backend):
        raise ConfigError(
            f"backend {entry.name!r}: entry point {entry.value} must name a "
            f"refkd.dispatch.Backend, got {type(backend).__name__}"
        )
    return backend


def _check_overrides(backend: Backend) -> None:
    kernels = registered_kernels()
    if not isinstance(backend.kernels, Mapping):
        raise ConfigError(
            f"backend {backend.name!r}: kernels must be a mapping of names to functions, got "
            f"{type(backend.kernels).__name__}"
        )
    for name, override in backend.kernels.items():
        if name not in kernels:
            check_choice(f"backend {backend.name!r}", "an overridden kernel", name, kernels)
        expected = _parameters(kernels[name].reference)
        given = _parameters(override)
        if given != expected:
            raise ConfigError(
                f"backend {backend.name!r}: {name} must have the reference's parameters "
                f"({expected}), got ({given})"
            )


def _parameters(function: Callable[..., Any]) -> str:
    try:
        parameters = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):  # it is no function, or none that says what it takes
        return f"unknown: {function!r}"
    signature = inspect.Signature([p.replace(annotation=p.empty) for p in parameters])
    return str(signature)[1:-1]


@contextmanager
def use_backend(name: str, *, strict: bool = False) -> Iterator[Backend]:
    """Within a ``with`` block, let backend ``name`` serve the kernels.

    Parameters
    ----------
    name : str
        See :func:`get_backend`. ``"numpy"`` selects the reference.
    strict : bool
        Raise instead of falling through to the reference: for conformance tests
        and benchmarks.

    Raises
    ------
    ConfigError, BackendUnavailable
        As :func:`get_backend`; in a strict scope also where the backend has no
        kernel for the arguments of a call.
    """
    backend = get_backend(name)
    token = _scope.set(_Selection(backend, strict))
    try:
        with limit_blas_threads(backend.blas_threads):
            yield backend
    finally:
        _scope.reset(token)


def set_default_backend(name: str) -> None:
    """Let backend ``name`` serve the kernels wherever no ``with use_backend`` says otherwise."""
    global _default
    backend = get_backend(name)
    _default_limit.close()
    _default_limit.enter_context(limit_blas_threads(backend.blas_threads))
    _default = _Selection(backend, strict=False)


def current_backend() -> Backend:
    """Return the backend that is selected here; the reference where none is."""
    selection = _scope.get() or _default
    return _NUMPY if selection is None else selection.backend


def backend_of(x: Array) -> Backend:
    """Return the backend whose arrays ``x`` is one of; the reference for those of NumPy."""
    return _by_array_type.get(type(x)) or _loaded_for(type(x)) or _NUMPY
