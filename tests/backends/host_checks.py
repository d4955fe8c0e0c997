"""Calls of the CuPy backend's overrides on the host, checked as those of the conformance tests."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any
from unittest import mock

from refkd import dispatch
from refkd.dispatch import Backend
from tests.backends import cuda_host as host
from tests.backends.calls import Call, reference
from tests.backends.judge import check_accuracy, judge
from tests.backends.override import Override

__all__ = ["check_pair", "results", "serving"]

Arrays = Mapping[str, Any]


@contextmanager
def serving(backend: Backend) -> Iterator[None]:
    """Let a backend of launchers serve the kernels."""
    with mock.patch.dict(dispatch._loaded, {backend.name: backend}), host.on_the_host():
        yield


def results(backend: Backend, call: Call, layout: str = "C") -> list[Any]:
    """Return what a call comes to, which must be the backend's own doing."""
    override = Override(backend, call.kernel)
    assert override.runs_on(call), call
    return override.results(call, layout)


def check_pair(
    backend: Backend,
    pair: str,
    draw: Callable[[int], tuple[Arrays, Arrays]],
    outputs: tuple[str, ...],
    layout: str = "C",
    **options: Any,
) -> None:
    """Check both directions of a pair.

    ``draw(seed)`` returns the arguments of the forward, and what the backward takes besides and
    of the forward's ``outputs``. Only those keyword arguments go to the backward that are there.
    """
    forwards, backwards = [], []
    for seed in range(3):
        arguments, others = draw(seed)
        forward = Call(f"{pair}_forward", str(options), {**arguments, **options})
        saved = dict(zip(outputs, reference(forward), strict=True))
        kept = {k: v for k, v in {**arguments, **saved}.items() if k in _taken(pair)}
        own = {k: v for k, v in options.items() if k in _taken(pair)}
        forwards.append([forward])
        backwards.append([Call(f"{pair}_backward", str(options), {**kept, **own, **others})])
    for calls in (forwards, backwards):
        (judged,) = judge(calls)
        override = Override(backend, judged.call.kernel)
        assert override.runs_on(judged.call), judged.call
        check_accuracy(override, judged, layout)


def _taken(pair: str) -> list[str]:
    reference = dispatch.registered_kernels()[f"{pair}_backward"].reference
    return list(reference.__code__.co_varnames[: _count(reference)])


def _count(function: Any) -> int:
    return int(function.__code__.co_argcount + function.__code__.co_kwonlyargcount)
