"""Section ``kernels``: single kernels, held against float64, then timed beside PyTorch's.

Rows that multiply are measured with TF32 and without; what PyTorch takes is the faster of its
memory formats, while refkd's images have the channels last, as its own kernels leave them, and its
weights are in C order, as its networks keep them.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any

import cupy
import torch
import torch.nn.functional as F

from bench.gpu.timing import Side, median_times, one_stream, precision
from bench.workloads import kernel_families as families
from bench.workloads import kernels_refkd, kernels_torch
from bench.workloads.kernels import Kernel
from refkd.dispatch import use_backend

__all__ = ["rows"]

_RING_BYTES = 1 << 28  # several times the level-2 cache
_MOST_COPIES = 16
_TF32_TOLERANCE = 3e-3
_TOLERANCES = {"softmax_kd_forward": 5e-6}  # the sums of a row's exponentials, not the loss alone
_POISONED_BLOCKS = 2
_CLASSES = 10
# What must be read a second time: sums over all of it come before the first result.
_READ_AGAIN = {"batch_norm_forward": ("x",), "batch_norm_backward": ("dy", "x")}

aten = torch.ops.aten

KERNELS = (
    *families.softmax_kd(32768, 1000),
    *families.softmax_kd(1 << 20, 10),
    *families.adam(64_000_000),
    *families.layer_norm(32768, 1024),
    *families.layer_norm(256, 197, 192),
    *families.batch_norm(256, 64, 56, 56),
    *families.batch_norm(256, 512, 7, 7),
    *families.group_norm(128, 128, 28, 28, num_groups=32),
    *families.activation("relu", 128, 64, 56, 56),
    *families.activation("gelu", 128, 64, 56, 56),
    *families.activation("silu", 128, 64, 56, 56),
    *families.max_pool2d(256, 64, 56, 56, kernel_size=2, stride=2),
    *families.max_pool2d(128, 64, 112, 112, kernel_size=3, stride=2, padding=1),
    *families.avg_pool2d(256, 256, 28, 28, kernel_size=2, stride=2),
    *families.upsample_nearest2d(128, 64, 28, 28, scale_factor=2),
    *families.linear(8192, 1024, 4096),
    *families.linear(128, 1200, 1200),
    *families.attention(128, 6, 197, 64),
    *families.attention(256, 4, 65, 32),
    *families.conv2d(256, 64, 32, 64, 3, 1),
    *families.conv2d(256, 128, 28, 128, 3, 1),
    *families.conv2d(256, 256, 14, 256, 3, 1),
    *families.conv2d(128, 512, 7, 512, 3, 1),
    *families.conv2d(128, 256, 28, 128, 1, 1),
    *families.conv2d(128, 3, 224, 64, 7, 2),
    *families.conv2d(256, 3, 32, 64, 3, 1),
)


def rows() -> dict[str, Callable[[], Iterator[dict[str, Any]]]]:
    """Return the rows by name, those first of which least is known: gradients of weights."""
    in_turn = sorted(KERNELS, key=lambda kernel: kernel.kernel != "conv2d_backward_weight")
    return {kernel.name: partial(_measure, kernel) for kernel in in_turn}


def _measure(kernel: Kernel) -> Iterator[dict[str, Any]]:
    """Verify a kernel and time it, with TF32 too where it multiplies."""
    with one_stream():
        yield from _measured(kernel)
    torch.cuda.empty_cache()  # of what graphs kept


def _measured(kernel: Kernel) -> Iterator[dict[str, Any]]:
    again = sum(4 * math.prod(kernel.shape_of(name)) for name in _READ_AGAIN.get(kernel.kernel, ()))
    yield {"gbyte": kernel.nbytes / 1e9, "gflop": kernel.flop / 1e9 or None}
    if again:
        yield {"gbyte_of_all_passes": (kernel.nbytes + again) / 1e9}
    count = max(2, min(_MOST_COPIES, -(-_RING_BYTES // kernel.nbytes)))
    sets = [_draw(kernel, seed) for seed in range(count)]
    exact = _exact(kernel, sets[0])
    with use_backend("cupy", strict=True):
        for tf32 in (False, True) if kernel.flop else (False,):
            precision(tf32)
            tolerance = _TOLERANCES.get(kernel.kernel, kernel.tolerance)
            tolerance = _TF32_TOLERANCE if tf32 else tolerance
            error = _error(kernel, sets[0], exact)
            suffix = "_tf32" if tf32 else ""
            yield {f"largest_error{suffix}": error}
            if not error <= tolerance:
                raise ArithmeticError(f"error {error:.2e} exceeds {tolerance:.0e} (tf32: {tf32})")
            yield {f"{name}{suffix}": value for name, value in _times(kernel, sets).items()}


def _times(kernel: Kernel, sets: list[dict[str, torch.Tensor]]) -> dict[str, Any]:
    sides = {"refkd": Side([_refkd_call(kernel, tensors) for tensors in sets], False)}
    for layout in _layouts(kernel, sets[0]):
        calls = [_torch_call(kernel, tensors, layout) for tensors in sets]
        sides[layout] = Side(calls, True)
    times = median_times(sides)
    own = times.pop("refkd")
    layout = min(times, key=lambda name: times[name].captured)
    peer = times[layout]
    return {
        "refkd_us": 1e6 * own.captured,
        "peer_us": 1e6 * peer.captured,
        "ratio": peer.captured / own.captured,
        "peer_layout": layout,
        "refkd_call_us": 1e6 * own.call,
        "peer_call_us": 1e6 * peer.call,
    }


def _layouts(kernel: Kernel, tensors: Mapping[str, torch.Tensor]) -> tuple[str, ...]:
    """Return the memory formats that PyTorch is measured with."""
    images = any(tensor.ndim == 4 for tensor in tensors.values()) and len(kernel.layouts) > 1
    if images and not kernel.kernel.startswith("group_norm"):  # which PyTorch would copy first
        return "channels_last", "contiguous"
    return ("contiguous",)


def _draw(kernel: Kernel, seed: int) -> dict[str, torch.Tensor]:
    generator = torch.Generator("cuda").manual_seed(seed)
    drawn = {}
    for name in kernel.drawn:
        shape = kernel.shape_of(name)
        if name == "labels":
            drawn[name] = torch.randint(_CLASSES, shape, device="cuda", generator=generator)
            continue
        tensor = torch.randn(shape, device="cuda", generator=generator)
        drawn[name] = tensor.square() if name == "exp_avg_sq" else tensor
    return drawn


def _refkd_call(kernel: Kernel, tensors: Mapping[str, torch.Tensor]) -> Callable[[], Any]:
    arrays = {}
    for name, tensor in tensors.items():
        if tensor.ndim == 4 and name != "weight" and "channels_last" in kernel.layouts:
            tensor = tensor.contiguous(memory_format=torch.channels_last)
        arrays[name] = cupy.from_dlpack(tensor.clone() if name in kernel.writes else tensor)
    return kernels_refkd._make(kernel, arrays)


def _torch_call(
    kernel: Kernel, tensors: Mapping[str, torch.Tensor], layout: str, dtype: Any = torch.float32
) -> Callable[[], Any]:
    given = {}
    for name, tensor in tensors.items():
        copy = name in kernel.writes or name == "student_logits"
        moved = tensor.to(dtype, copy=copy) if tensor.is_floating_point() else tensor
        if layout == "channels_last" and moved.ndim == 4:
            moved = moved.contiguous(memory_format=torch.channels_last)
        given[name] = moved
    maker = _ON_CUDA.get(kernel.kernel) or kernels_torch._MAKERS[kernel.kernel][0]
    call: Callable[[], Any] = _with_its_parameters(maker, {**kernel.settings, **given})
    return call


def _with_its_parameters(function: Callable[..., Any], known: Mapping[str, Any]) -> Any:
    return function(**{name: known[name] for name in inspect.signature(function).parameters})


def _exact(kernel: Kernel, tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return all that refkd's kernel is to compute, as PyTorch does in float64."""
    precision(False)
    torch.backends.cudnn.benchmark = False  # once is not worth a search
    call = _torch_call(kernel, tensors, "contiguous", torch.float64)
    output = call()
    if output is None:  # written in place
        return _written(kernel, call)
    outputs = (output,) if isinstance(output, torch.Tensor) else output
    names = kernels_torch._MAKERS[kernel.kernel][1]
    found = dict(zip(names, outputs, strict=True))
    if kernel.kernel in _BESIDES:
        given = {n: t.double() if t.is_floating_point() else t for n, t in tensors.items()}
        found |= _with_its_parameters(_BESIDES[kernel.kernel], {**kernel.settings, **given})
    assert set(found) == set(kernel.writes), kernel.name
    return {name: value.detach().reshape(kernel.shape_of(name)) for name, value in found.items()}


def _written(kernel: Kernel, call: Any) -> dict[str, torch.Tensor]:
    arrays = dict(zip(("param", "grad", "exp_avg", "exp_avg_sq"), call.args, strict=False))
    return {name: arrays[name][0] for name in kernel.writes}


def _error(
    kernel: Kernel, tensors: Mapping[str, torch.Tensor], exact: Mapping[str, torch.Tensor]
) -> float:
    """Return refkd's largest error, relative to an array's largest entry; memory holds NaN."""
    call = _refkd_call(kernel, tensors)
    poison = [
        cupy.full(kernel.shape_of(name), cupy.nan, cupy.float32)
        for name in (*kernel.reads, *kernel.writes)
        for _ in range(_POISONED_BLOCKS)
    ]
    del poison
    output = call()
    if output is None:
        known = dict(zip(kernel.reads, call.args, strict=False))
        named = {name: known[name] for name in kernel.writes}
    else:
        named = kernels_refkd._named(kernel, output)
    worst = 0.0
    for name, expected in exact.items():
        actual = torch.from_dlpack(named[name])
        if not expected.is_floating_point():
            worst = max(worst, 0.0 if torch.equal(actual, expected) else math.inf)
            continue
        scale = max(float(expected.abs().max()), math.ulp(0.0))
        gap = float((actual - expected).abs().max())
        worst = max(worst, gap / scale if gap == gap else math.inf)
    return worst


def _attention_backward(
    dy: torch.Tensor, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, scale: float
) -> Callable[[], Any]:
    inputs = [tensor.detach().requires_grad_() for tensor in (q, k, v)]
    y = F.scaled_dot_product_attention(*inputs, scale=scale)
    return partial(torch.autograd.grad, y, inputs, dy, retain_graph=True)


def _adam_update(
    param: torch.Tensor,
    grad: torch.Tensor,
    exp_avg: torch.Tensor,
    exp_avg_sq: torch.Tensor,
    step: int,
    lr: float,
    beta1: float,
    beta2: float,
    eps: float,
    weight_decay: float,
) -> Callable[[], Any]:
    steps = [torch.tensor(float(step), device=param.device)]
    arrays = [param], [grad], [exp_avg], [exp_avg_sq], [], steps
    settings = {"lr": lr, "beta1": beta1, "beta2": beta2, "eps": eps, "weight_decay": weight_decay}
    return partial(aten._fused_adam_, *arrays, **settings, amsgrad=False, maximize=False)


def _probabilities(q: torch.Tensor, k: torch.Tensor, scale: float) -> dict[str, torch.Tensor]:
    return {"probabilities": (q @ k.mT * scale).softmax(-1)}


def _variance(x: torch.Tensor) -> dict[str, torch.Tensor]:
    return {"var": x.transpose(0, 1).flatten(1).var(1, correction=0)}


def _distillation(
    student_logits: torch.Tensor,
    teacher_logits: torch.Tensor,
    labels: torch.Tensor,
    temperature: float,
) -> dict[str, torch.Tensor]:
    log_s = F.log_softmax(student_logits / temperature, 1)
    t = F.softmax(teacher_logits / temperature, 1)
    return {
        "hard": F.cross_entropy(student_logits, labels),
        "soft": F.kl_div(log_s, t, reduction="batchmean"),
        "q": F.softmax(student_logits, 1),
        "s": log_s.exp(),
        "t": t,
    }


# What refkd's kernels return and those of PyTorch that are timed do not.
_BESIDES: dict[str, Callable[..., dict[str, torch.Tensor]]] = {
    "attention_forward": _probabilities,
    "batch_norm_forward": _variance,
    "softmax_kd_forward": _distillation,
}

_ON_CUDA: dict[str, Callable[..., Any]] = {
    "attention_backward": _attention_backward,
    "adam_update": _adam_update,
}
