"""The kernels in PyTorch, as its layers and its autograd call them."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from numpy.typing import NDArray

from bench.workloads import KERNELS
from bench.workloads.kernels import RingSide

__all__ = ["open_side"]


def open_side(workload: str, mode: str, threads: int) -> RingSide:
    """Return PyTorch's side; ``mode`` is the memory format."""
    torch.set_num_threads(threads)
    kernel = KERNELS[workload]
    pair = [kernel.stride] * 2, [kernel.padding] * 2

    def make(arrays: dict[str, NDArray[Any]]) -> Callable[[], Any]:
        # from_numpy keeps the strides, which are what PyTorch knows a memory format by.
        x, weight, bias, dy = (
            torch.from_numpy(arrays[name]) for name in ("x", "weight", "bias", "dy")
        )
        if kernel.direction == "forward":
            return partial(F.conv2d, x, weight, bias, *pair)
        wanted = 0 if kernel.direction == "backward_input" else 1
        mask = [i == wanted for i in range(3)]
        backward = torch.ops.aten.convolution_backward
        settings = [kernel.filters], *pair, [1, 1], False, [0, 0], 1, mask
        return lambda: backward(dy, x, weight, *settings)[wanted]

    return RingSide(kernel, mode, make, torch.Tensor.numpy)
