"""The kernels that are measured alone: which there are, and how large. No computing here.

The shapes are those of the networks in :mod:`bench.workloads`, of a vision transformer
(DeiT-Tiny, and a small one for 32 × 32 pixels) and of a U-Net.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from bench.workloads.kernels import LAYOUTS, Kernel
from bench.workloads.mlp import HARD_WEIGHT, TEMPERATURE

__all__ = [
    "KERNELS",
    "activation",
    "adam",
    "attention",
    "avg_pool2d",
    "batch_norm",
    "conv2d",
    "group_norm",
    "layer_norm",
    "linear",
    "max_pool2d",
    "softmax_kd",
    "upsample_nearest2d",
]

_PLAIN = LAYOUTS[:1]
_FEW_TERMS = 1e-6  # the tolerance where nothing long is summed
_WINOGRAD = 3e-5


def conv2d(
    batch: int, channels: int, size: int, filters: int, kernel_size: int, stride: int
) -> tuple[Kernel, ...]:
    """Return the three directions of a square convolution: N, C, H, K, R and the stride."""
    padding = (kernel_size - 1) // 2
    output_size = _windows(size, kernel_size, stride, padding)
    shapes = {
        "x": (batch, channels, size, size),
        "weight": (filters, channels, kernel_size, kernel_size),
        "bias": (filters,),
        "y": (batch, filters, output_size, output_size),
    }
    calls = {
        "forward": "x weight bias -> y",
        "backward_input": "dy weight -> dx",
        "backward_weight": "dy x -> dweight",
    }
    return _directions(
        "conv2d",
        _commas(batch, channels, size, filters, kernel_size, stride),
        shapes,
        calls,
        settings={
            "stride": stride,
            "padding": padding,
            "input_size": (size, size),
            "kernel_size": (kernel_size, kernel_size),
        },
        flop=dict.fromkeys(calls, 2 * math.prod(shapes["y"]) * math.prod(shapes["weight"][1:])),
        winograd_tolerance=_WINOGRAD if (kernel_size, stride) == (3, 1) else None,
    )


def activation(operation: str, *shape: int) -> tuple[Kernel, ...]:
    """Return the pair of ``relu``, whose backward takes the output, or of ``gelu``, ``silu``."""
    given = "y" if operation == "relu" else "x"
    calls = {"forward": "x -> y", "backward": f"dy {given} -> dx"}
    return _directions(
        operation,
        _commas(*shape),
        {"x": shape, "y": shape},
        calls,
        tolerance=_FEW_TERMS,
        layouts=_PLAIN,
    )


def batch_norm(*shape: int) -> tuple[Kernel, ...]:
    """Return the pair, with statistics of the batch."""
    return _directions(
        "batch_norm",
        _commas(*shape),
        {"x": shape, "y": shape}
        | dict.fromkeys(("weight", "bias", "mean", "var", "rstd"), shape[1:2]),
        {
            "forward": "x weight bias -> y mean var rstd",
            "backward": "dy x weight mean rstd -> dx dweight dbias",
        },
        settings={"running_mean": None, "running_var": None, "batch_statistics": True},
    )


def group_norm(*shape: int, num_groups: int) -> tuple[Kernel, ...]:
    """Return the pair."""
    return _directions(
        "group_norm",
        f"{_commas(*shape)},g{num_groups}",
        {"x": shape, "y": shape}
        | dict.fromkeys(("weight", "bias"), shape[1:2])
        | dict.fromkeys(("mean", "rstd"), (shape[0], num_groups)),
        {
            "forward": "x weight bias -> y mean rstd",
            "backward": "dy x weight mean rstd -> dx dweight dbias",
        },
        settings={"num_groups": num_groups},
    )


def layer_norm(*shape: int) -> tuple[Kernel, ...]:
    """Return the pair, over the last axis."""
    return _directions(
        "layer_norm",
        _commas(*shape),
        {"x": shape, "y": shape}
        | dict.fromkeys(("weight", "bias"), shape[-1:])
        | dict.fromkeys(("mean", "rstd"), shape[:-1]),
        {
            "forward": "x weight bias -> y mean rstd",
            "backward": "dy x weight mean rstd -> dx dweight dbias",
        },
        layouts=_PLAIN,
    )


def max_pool2d(
    *shape: int, kernel_size: int, stride: int, padding: int = 0, ceil_mode: bool = False
) -> tuple[Kernel, ...]:
    """Return the pair, for images (N, C, H, W)."""
    windows = [_windows(n, kernel_size, stride, padding, ceil_mode) for n in shape[2:]]
    pooled = (*shape[:2], *windows)
    label = f"{_commas(*shape)},k{kernel_size},s{stride}"
    label += f",p{padding}" * (padding > 0) + ",ceil" * ceil_mode
    return _directions(
        "max_pool2d",
        label,
        {"x": shape, "y": pooled, "indices": pooled},
        {"forward": "x -> y indices", "backward": "dy indices -> dx"},
        settings={
            "input_shape": shape,
            "kernel_size": kernel_size,
            "stride": stride,
            "padding": padding,
            "ceil_mode": ceil_mode,
        },
        tolerance=_FEW_TERMS,
    )


def avg_pool2d(*shape: int, kernel_size: int, stride: int) -> tuple[Kernel, ...]:
    """Return the pair, for images (N, C, H, W)."""
    pooled = (*shape[:2], *(_windows(n, kernel_size, stride, 0) for n in shape[2:]))
    return _directions(
        "avg_pool2d",
        f"{_commas(*shape)},k{kernel_size},s{stride}",
        {"x": shape, "y": pooled},
        {"forward": "x -> y", "backward": "dy -> dx"},
        settings={"input_shape": shape, "kernel_size": kernel_size, "stride": stride},
        tolerance=_FEW_TERMS,
    )


def upsample_nearest2d(*shape: int, scale_factor: int) -> tuple[Kernel, ...]:
    """Return the pair, for images (N, C, H, W)."""
    return _directions(
        "upsample_nearest2d",
        f"{_commas(*shape)},x{scale_factor}",
        {"x": shape, "y": (*shape[:2], *(n * scale_factor for n in shape[2:]))},
        {"forward": "x -> y", "backward": "dy -> dx"},
        settings={"scale_factor": scale_factor},
        tolerance=_FEW_TERMS,
    )


def attention(batch: int, heads: int, tokens: int, width: int) -> tuple[Kernel, ...]:
    """Return the pair for self-attention; ``width`` is that of a head."""
    shape = (batch, heads, tokens, width)
    product = 2 * math.prod(shape) * tokens
    return _directions(
        "attention",
        _commas(*shape),
        dict.fromkeys(("q", "k", "v", "y"), shape) | {"probabilities": (*shape[:3], tokens)},
        {"forward": "q k v -> y probabilities", "backward": "dy q k v probabilities -> dq dk dv"},
        settings={"scale": 1 / math.sqrt(width)},
        flop={"forward": 2 * product, "backward": 4 * product},
        layouts=_PLAIN,
    )


def linear(batch: int, in_features: int, out_features: int) -> tuple[Kernel, ...]:
    """Return the pair."""
    product = 2 * batch * in_features * out_features
    return _directions(
        "linear",
        _commas(batch, in_features, out_features),
        {
            "x": (batch, in_features),
            "weight": (out_features, in_features),
            "bias": (out_features,),
            "y": (batch, out_features),
        },
        {"forward": "x weight bias -> y", "backward": "dy x weight -> dx dweight dbias"},
        flop={"forward": product, "backward": 2 * product},
        layouts=_PLAIN,
    )


def softmax_kd(batch: int, classes: int) -> tuple[Kernel, ...]:
    """Return the pair of the distillation loss: a CE + (1 − a) T² KL, the mean over the batch."""
    rows = dict.fromkeys(("student_logits", "teacher_logits", "q", "s", "t"), (batch, classes))
    return _directions(
        "softmax_kd",
        _commas(batch, classes),
        rows | {"labels": (batch,)} | dict.fromkeys(("loss", "hard", "soft"), ()),
        {
            "forward": "student_logits teacher_logits labels -> loss hard soft q s t",
            "backward": "dloss q s t labels -> dstudent_logits",
        },
        settings={
            "temperature": TEMPERATURE,
            "hard_weight": HARD_WEIGHT,
            "soft_weight": (1 - HARD_WEIGHT) * TEMPERATURE**2,
        },
        tolerance=_FEW_TERMS,
        layouts=_PLAIN,
    )


def adam(parameters: int) -> tuple[Kernel, ...]:
    """Return the update of one flat array."""
    names = "param", "grad", "exp_avg", "exp_avg_sq"
    return _directions(
        "adam",
        _commas(parameters),
        dict.fromkeys(names, (parameters,)),
        {"update": f"{' '.join(names)} -> param exp_avg exp_avg_sq"},
        settings={
            "step": 7,
            "lr": 1e-3,
            "beta1": 0.9,
            "beta2": 0.999,
            "eps": 1e-8,
            "weight_decay": 0.0,
            "decoupled": False,
        },
        tolerance=_FEW_TERMS,
        layouts=_PLAIN,
    )


def _directions(
    operation: str,
    label: str,
    shapes: Mapping[str, tuple[int, ...]],
    calls: Mapping[str, str],
    *,
    flop: Mapping[str, int] | None = None,
    **options: Any,
) -> tuple[Kernel, ...]:
    """Return a kernel for every direction; a call is ``reads -> writes``."""
    kernels: list[Kernel] = []
    for direction, call in calls.items():
        reads, writes = (tuple(names.split()) for names in call.split("->"))
        special = {"flop": flop[direction]} if flop is not None else {}
        kernels.append(
            Kernel(
                operation,
                direction,
                label,
                shapes,
                reads,
                writes,
                forward=kernels[0] if kernels else None,
                **options | special,
            )
        )
    return tuple(kernels)


def _windows(size: int, kernel: int, stride: int, padding: int, ceil_mode: bool = False) -> int:
    """Return how many windows there are; in ``ceil_mode`` the last may hang over the edge."""
    room = size + 2 * padding - kernel
    count = (-(-room // stride) if ceil_mode else room // stride) + 1
    begins_beyond = (count - 1) * stride >= size + padding
    return count - begins_beyond


def _commas(*numbers: int) -> str:
    return ",".join(map(str, numbers))


_ACTIVATION = (64, 64, 32, 32)

KERNELS = (
    *conv2d(64, 3, 32, 64, 3, 1),
    *conv2d(64, 64, 32, 64, 3, 1),
    *conv2d(64, 128, 16, 128, 3, 1),
    *conv2d(16, 512, 4, 512, 3, 1),
    *conv2d(8, 3, 224, 64, 7, 2),
    *conv2d(8, 192, 28, 96, 1, 1),
    *conv2d(8, 64, 56, 192, 3, 1),
    *conv2d(8, 16, 28, 32, 5, 1),
    *linear(128, 1200, 1200),
    *attention(8, 3, 197, 64),
    *attention(64, 4, 65, 32),
    *batch_norm(64, 64, 32, 32),
    *group_norm(32, 64, 28, 28, num_groups=8),
    *layer_norm(8, 197, 192),
    *layer_norm(64, 65, 128),
    *activation("relu", *_ACTIVATION),
    *activation("gelu", *_ACTIVATION),
    *activation("silu", *_ACTIVATION),
    *max_pool2d(64, 64, 32, 32, kernel_size=2, stride=2),
    *max_pool2d(8, 192, 56, 56, kernel_size=3, stride=1, padding=1),
    *max_pool2d(8, 64, 112, 112, kernel_size=3, stride=2, ceil_mode=True),
    *avg_pool2d(8, 512, 14, 14, kernel_size=5, stride=3),
    *upsample_nearest2d(32, 64, 14, 14, scale_factor=2),
    *softmax_kd(128, 10),
    *softmax_kd(128, 1000),
    *adam(2_395_210),  # the teacher of bench.workloads.mlp
    *adam(14_728_266),  # VGG-16
)
