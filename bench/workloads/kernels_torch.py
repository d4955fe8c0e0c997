"""The kernels in PyTorch, as its layers and its autograd call them.

A function here has the name of refkd's kernel, takes of the kernel's arrays and settings
those that it names, and returns the call. What a backward needs from the forward it makes
itself, outside of the call.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from bench.workloads import KERNELS
from bench.workloads.kernels import Call, Kernel, RingSide
from bench.workloads.loop_torch import distillation_loss

__all__ = ["open_side"]

aten = torch.ops.aten
_EPS = 1e-5
_MAKERS: dict[str, tuple[Callable[..., Call], tuple[str, ...]]] = {}


def open_side(workload: str, mode: str, threads: int) -> RingSide:
    """Return PyTorch's side; ``mode`` is the memory format."""
    torch.set_num_threads(threads)
    kernel = KERNELS[workload]
    return RingSide(kernel, mode, partial(_make, kernel), partial(_named, kernel))


def _make(kernel: Kernel, arrays: dict[str, NDArray[Any]]) -> Call:
    maker, _ = _MAKERS[kernel.kernel]
    # from_numpy keeps the strides, which are what PyTorch knows a memory format by.
    tensors = {name: torch.from_numpy(array) for name, array in arrays.items()}
    known = {**kernel.settings, **tensors}
    return maker(**{name: known[name] for name in inspect.signature(maker).parameters})


def _named(kernel: Kernel, output: Any) -> dict[str, NDArray[Any]]:
    _, names = _MAKERS[kernel.kernel]
    outputs = (output,) if isinstance(output, Tensor) else output
    return {  # reshaped, as the statistics of layer norm have an axis more
        name: value.numpy().reshape(kernel.shape_of(name))
        for name, value in zip(names, outputs, strict=True)
    }


def _returning(*names: str) -> Callable[[Callable[..., Call]], Callable[..., Call]]:
    """Register a function and the names of what its call returns."""

    def register(maker: Callable[..., Call]) -> Callable[..., Call]:
        _MAKERS[maker.__name__] = maker, names
        return maker

    return register


@_returning("y")
def conv2d_forward(x: Tensor, weight: Tensor, bias: Tensor, stride: int, padding: int) -> Call:
    return partial(F.conv2d, x, weight, bias, stride, padding)


@_returning("dx")
def conv2d_backward_input(dy: Tensor, x: Tensor, weight: Tensor, stride: int, padding: int) -> Call:
    return partial(_conv2d_backward, dy, x, weight, [stride] * 2, [padding] * 2, 0)


@_returning("dweight")
def conv2d_backward_weight(
    dy: Tensor, x: Tensor, weight: Tensor, stride: int, padding: int
) -> Call:
    return partial(_conv2d_backward, dy, x, weight, [stride] * 2, [padding] * 2, 1)


def _conv2d_backward(
    dy: Tensor, x: Tensor, weight: Tensor, stride: list[int], padding: list[int], wanted: int
) -> Tensor:
    mask = [i == wanted for i in range(3)]
    settings = [weight.shape[0]], stride, padding, [1, 1], False, [0, 0], 1, mask
    gradient: Tensor = aten.convolution_backward(dy, x, weight, *settings)[wanted]
    return gradient


@_returning("y")
def linear_forward(x: Tensor, weight: Tensor, bias: Tensor) -> Call:
    return partial(F.linear, x, weight, bias)


@_returning("dx", "dweight", "dbias")
def linear_backward(dy: Tensor, x: Tensor, weight: Tensor) -> Call:
    return lambda: (dy.mm(weight), dy.t().mm(x), dy.sum(0))


@_returning("y")
def attention_forward(q: Tensor, k: Tensor, v: Tensor, scale: float) -> Call:
    return partial(F.scaled_dot_product_attention, q, k, v, scale=scale)


@_returning("dq", "dk", "dv")
def attention_backward(dy: Tensor, q: Tensor, k: Tensor, v: Tensor, scale: float) -> Call:
    # What scaled_dot_product_attention chooses on a CPU.
    y, log_sums = aten._scaled_dot_product_flash_attention_for_cpu(q, k, v, scale=scale)
    backward = aten._scaled_dot_product_flash_attention_for_cpu_backward
    return partial(backward, dy, q, k, v, y, log_sums, 0.0, False, scale=scale)


@_returning("y", "mean", "rstd")
def batch_norm_forward(x: Tensor, weight: Tensor, bias: Tensor) -> Call:
    return partial(aten.native_batch_norm, x, weight, bias, None, None, True, 0.1, _EPS)


@_returning("dx", "dweight", "dbias")
def batch_norm_backward(dy: Tensor, x: Tensor, weight: Tensor, bias: Tensor) -> Call:
    _, *statistics = batch_norm_forward(x, weight, bias)()
    settings = None, None, *statistics, True, _EPS, [True] * 3
    return partial(aten.native_batch_norm_backward, dy, x, weight, *settings)


@_returning("y", "mean", "rstd")
def group_norm_forward(x: Tensor, weight: Tensor, bias: Tensor, num_groups: int) -> Call:
    sizes = _group_norm_sizes(x)
    return partial(aten.native_group_norm, x, weight, bias, *sizes, num_groups, _EPS)


@_returning("dx", "dweight", "dbias")
def group_norm_backward(
    dy: Tensor, x: Tensor, weight: Tensor, bias: Tensor, num_groups: int
) -> Call:
    _, *statistics = group_norm_forward(x, weight, bias, num_groups)()
    settings = *statistics, weight, *_group_norm_sizes(x), num_groups, [True] * 3
    return partial(aten.native_group_norm_backward, dy, x, *settings)


def _group_norm_sizes(x: Tensor) -> tuple[int, int, int]:
    return x.shape[0], x.shape[1], x[0, 0].numel()


@_returning("y", "mean", "rstd")
def layer_norm_forward(x: Tensor, weight: Tensor, bias: Tensor) -> Call:
    return partial(aten.native_layer_norm, x, list(weight.shape), weight, bias, _EPS)


@_returning("dx", "dweight", "dbias")
def layer_norm_backward(dy: Tensor, x: Tensor, weight: Tensor, bias: Tensor) -> Call:
    _, *statistics = layer_norm_forward(x, weight, bias)()
    settings = list(weight.shape), *statistics, weight, bias, [True] * 3
    return partial(aten.native_layer_norm_backward, dy, x, *settings)


@_returning("y")
def relu_forward(x: Tensor) -> Call:
    return partial(F.relu, x)


@_returning("dx")
def relu_backward(dy: Tensor, x: Tensor) -> Call:
    return partial(aten.threshold_backward, dy, F.relu(x), 0)


@_returning("y")
def gelu_forward(x: Tensor) -> Call:
    return partial(F.gelu, x)


@_returning("dx")
def gelu_backward(dy: Tensor, x: Tensor) -> Call:
    return partial(aten.gelu_backward, dy, x)


@_returning("y")
def silu_forward(x: Tensor) -> Call:
    return partial(F.silu, x)


@_returning("dx")
def silu_backward(dy: Tensor, x: Tensor) -> Call:
    return partial(aten.silu_backward, dy, x)


@_returning("y", "indices")
def max_pool2d_forward(
    x: Tensor, kernel_size: int, stride: int, padding: int, ceil_mode: bool
) -> Call:
    windows = [kernel_size] * 2, [stride] * 2, [padding] * 2, [1, 1], ceil_mode
    return partial(aten.max_pool2d_with_indices, x, *windows)


@_returning("dx")
def max_pool2d_backward(
    dy: Tensor, x: Tensor, kernel_size: int, stride: int, padding: int, ceil_mode: bool
) -> Call:
    windows = [kernel_size] * 2, [stride] * 2, [padding] * 2, [1, 1], ceil_mode
    _, indices = aten.max_pool2d_with_indices(x, *windows)
    return partial(aten.max_pool2d_with_indices_backward, dy, x, *windows, indices)


@_returning("y")
def avg_pool2d_forward(x: Tensor, kernel_size: int, stride: int) -> Call:
    return partial(F.avg_pool2d, x, kernel_size, stride)


@_returning("dx")
def avg_pool2d_backward(dy: Tensor, x: Tensor, kernel_size: int, stride: int) -> Call:
    windows = [kernel_size] * 2, [stride] * 2, [0, 0], False, True, None
    return partial(aten.avg_pool2d_backward, dy, x, *windows)


@_returning("y")
def upsample_nearest2d_forward(x: Tensor, scale_factor: int) -> Call:
    return partial(F.interpolate, x, scale_factor=scale_factor, mode="nearest")


@_returning("dx")
def upsample_nearest2d_backward(dy: Tensor, x: Tensor, scale_factor: int) -> Call:
    scales = [float(scale_factor)] * 2
    sizes = list(dy.shape[2:]), list(x.shape)
    return partial(aten.upsample_nearest2d_backward, dy, *sizes, *scales)


@_returning("loss")
def softmax_kd_forward(
    student_logits: Tensor,
    teacher_logits: Tensor,
    labels: Tensor,
    temperature: float,
    hard_weight: float,
) -> Call:
    arrays = student_logits, teacher_logits, labels
    return partial(distillation_loss, *arrays, temperature, hard_weight)


@_returning("dstudent_logits")
def softmax_kd_backward(
    dloss: Tensor,
    student_logits: Tensor,
    teacher_logits: Tensor,
    labels: Tensor,
    temperature: float,
    hard_weight: float,
) -> Call:
    z = student_logits.requires_grad_()
    loss = softmax_kd_forward(z, teacher_logits, labels, temperature, hard_weight)()
    return partial(torch.autograd.grad, loss, z, dloss, retain_graph=True)


@_returning()  # in place
def adam_update(
    param: Tensor,
    grad: Tensor,
    exp_avg: Tensor,
    exp_avg_sq: Tensor,
    step: int,
    lr: float,
    beta1: float,
    beta2: float,
    eps: float,
    weight_decay: float,
) -> Call:
    arrays = [param], [grad], [exp_avg], [exp_avg_sq], [], [torch.tensor(float(step))]
    settings = {"lr": lr, "beta1": beta1, "beta2": beta2, "eps": eps, "weight_decay": weight_decay}
    return partial(aten._fused_adam_, *arrays, **settings, amsgrad=False, maximize=False)
