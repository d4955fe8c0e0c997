"""The kernels in refkd, on NumPy arrays."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from numpy.typing import NDArray

from bench.workloads import KERNELS
from bench.workloads.kernels import RingSide
from refkd.dispatch import set_default_backend
from refkd.ops.conv import conv2d_backward_input, conv2d_backward_weight, conv2d_forward

__all__ = ["open_side"]


def open_side(workload: str, mode: str, threads: int) -> RingSide:
    """Return refkd's side; ``mode`` is backend and layout: ``"numpy/channels_last"``."""
    backend, _, layout = mode.partition("/")
    if backend != "numpy":
        set_default_backend(backend)
    kernel = KERNELS[workload]
    options = {"stride": kernel.stride, "padding": kernel.padding}

    def make(arrays: dict[str, NDArray[Any]]) -> Callable[[], Any]:
        x, weight, bias, dy = (arrays[name] for name in ("x", "weight", "bias", "dy"))
        if kernel.direction == "forward":
            return partial(conv2d_forward, x, weight, bias, **options)
        if kernel.direction == "backward_input":
            return partial(
                conv2d_backward_input, dy, weight, input_size=(kernel.size,) * 2, **options
            )
        return partial(
            conv2d_backward_weight, dy, x, kernel_size=(kernel.kernel_size,) * 2, **options
        )

    return RingSide(kernel, layout, make)
