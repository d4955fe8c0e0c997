"""The kernels in refkd, on NumPy arrays."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from functools import partial
from typing import Any

from numpy.typing import NDArray

from bench.workloads import KERNELS
from bench.workloads.kernels import Call, Kernel, RingSide
from refkd.dispatch import registered_kernels, set_default_backend

__all__ = ["open_side"]


def open_side(workload: str, mode: str, threads: int) -> RingSide:
    """Return refkd's side; ``mode`` is backend and layout: ``"numpy/channels_last"``."""
    backend, _, layout = mode.partition("/")
    if backend != "numpy":
        set_default_backend(backend)
    kernel = KERNELS[workload]
    return RingSide(kernel, layout, partial(_make, kernel), partial(_named, kernel))


def _make(kernel: Kernel, arrays: Mapping[str, Any]) -> Call:
    """Return the call, after one of the forward where it reads what that returns."""
    if not set(kernel.reads) <= set(arrays) and kernel.forward is not None:
        arrays = {**arrays, **_named(kernel.forward, _make(kernel.forward, arrays)())}
    call = registered_kernels()[kernel.kernel].call
    known = {**kernel.settings, **{name: arrays[name] for name in kernel.reads}}
    positional, by_name = [], {}
    for name, parameter in inspect.signature(call).parameters.items():
        if parameter.kind is parameter.KEYWORD_ONLY:
            by_name |= {name: known[name]} if name in known else {}
        else:
            positional.append(known[name])
    return partial(call, *positional, **by_name)


def _named(kernel: Kernel, output: Any) -> dict[str, NDArray[Any]]:
    outputs = output if isinstance(output, tuple) else (output,)
    return dict(zip(kernel.writes, outputs, strict=True))
