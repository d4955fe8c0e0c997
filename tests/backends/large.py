"""Cases large enough to be shared by threads, to fill vectors, and to leave remainders of both."""

from __future__ import annotations

import math

import numpy as np

from refkd.testing.cases import (
    adaptive_pool,
    attention,
    avg_pool,
    batch_norm,
    conv,
    cross_entropy,
    dropout,
    group_norm,
    kd,
    kl,
    kl_without_log,
    layer_norm,
    linear,
    max_pool,
    regression,
    resample,
    shortcut,
)
from refkd.testing.cases._draw import normal_like
from refkd.testing.pairs import PairCase

__all__ = ["LARGE"]

_SHAPES = ((67, 1021), (3, 37, 29, 31), (100_003,))
_IMAGES = ((5, 37, 29, 31), (4, 64, 32, 32))


def _pointwise() -> list[PairCase]:
    pairs: dict[str, list[dict[str, str]]] = {
        **{pair: [{}] for pair in ("relu", "sigmoid", "tanh", "silu")},
        "gelu": [{"approximate": "none"}, {"approximate": "tanh"}],
    }
    return [
        PairCase(
            pair, f"large {shape}, {options}", normal_like(3.0, x=shape), ("x",), options=options
        )
        for pair, choices in pairs.items()
        for options in choices
        for shape in _SHAPES
    ] + [dropout._case(f"large {shape}", shape, 0.4) for shape in _SHAPES]


def _softmax() -> list[PairCase]:
    layouts = [((67, 1021), -1), ((301, 10), -1), ((1021, 67), 0), ((3, 37, 29, 31), 1)]
    return [
        PairCase(
            pair,
            f"large {shape}, axis {axis}",
            normal_like(3.0, x=shape),
            ("x",),
            options={"axis": axis, "temperature": 2.0},
        )
        for pair in ("softmax", "log_softmax")
        for shape, axis in layouts
    ]


def _losses() -> list[PairCase]:
    found = []
    for shape in ((129, 10), (70, 100), (67, 1021)):
        label = f"large {shape}"
        indices = cross_entropy._inputs(shape, cross_entropy._indices())
        soft = cross_entropy._inputs(shape, cross_entropy._distributions)
        found += [
            cross_entropy._case(f"{label}, indices", indices),
            cross_entropy._case(f"{label}, smoothed", indices, **cross_entropy._SMOOTHED),
            cross_entropy._case(f"{label}, distributions", soft),
            kl._case(label, kl._logits(*shape), temperature=4.0),
            kl_without_log._case(label, kl_without_log._logits(*shape), temperature=5.0),
            kd._case(label, kd._inputs(*shape)),
            kd._case(f"{label}, no labels", kd._inputs(*shape, labels=None), hard_weight=0.0),
        ]
    for shape in _SHAPES:
        found += [
            regression._case("mse", f"large {shape}", regression._both(*shape)),
            regression._case("huber", f"large {shape}", regression._off_the_joint(1.0, *shape)),
        ]
    return found


def _norms() -> list[PairCase]:
    shapes = ((259, 300), (5, 37, 29, 31), (4, 64, 32, 32), (3, 1, 200, 200), (2, 130, 7, 7))
    found = [
        case
        for shape in shapes
        for case in (
            batch_norm._case(f"large {shape}", batch_norm._inputs(*shape)),
            batch_norm._case(
                f"large {shape}, running statistics",
                batch_norm._inputs(*shape, running=True),
                running=True,
            ),
            group_norm._case(f"large {shape}, one group", group_norm._inputs(*shape), 1),
            group_norm._case(f"large {shape}, channels", group_norm._inputs(*shape), shape[1]),
            layer_norm._case(f"large {shape}", layer_norm._inputs(*shape)),
        )
    ]
    far = (64, 20, 10, 10)
    return [
        *found,
        group_norm._case("large, 8 groups", group_norm._inputs(6, 64, 16, 16), 8),
        batch_norm._case("large, mean of 1e3", batch_norm._inputs(*far, mean=1e3)),
        group_norm._case("large, mean of 1e3", group_norm._inputs(*far, mean=1e3), 4),
        layer_norm._case("large, mean of 1e3", layer_norm._inputs(400, 197, mean=1e3)),
        *(layer_norm._case(f"large, {n} a row", layer_norm._inputs(60, n)) for n in (700, 1100)),
    ]


def _attention() -> list[PairCase]:
    sizes = (
        *((2, 4, 65, 65, 32, 32), (1, 3, 197, 197, 64, 64), (3, 2, 33, 100, 40, 24)),
        (4, 2, 65, 45, 100, 128),
    )
    return [
        attention._case(f"large {size}", attention._normal(*size), 1 / math.sqrt(size[4]))
        for size in sizes
    ]


def _linear() -> list[PairCase]:
    sizes = (((128,), (784, 20)), ((33,), (20, 10)), ((3, 70), (129, 259)), ((400,), (1200, 100)))
    return [
        linear._case(f"large {leading}, {features}", leading, features=features, bias=bias)
        for leading, features in sizes
        for bias in (True, False)
    ] + [linear._case("large, dx not needed", (129,), features=(300, 70), need_dx=False)]


def _convolutions() -> list[PairCase]:
    case = conv._case
    return [
        case("large: 3x3 of 64 channels", (3, 64, 17, 16), (64, 64, 3, 3), padding=1),
        case("large: 3x3 of 37 channels", (2, 37, 19, 23), (41, 37, 3, 3), padding=1),
        case("large: 3x3 unpadded", (2, 32, 18, 18), (32, 32, 3, 3)),
        case("large: 3x3 on 4x4", (9, 96, 4, 4), (80, 96, 3, 3), padding=1),
        case("large: 3x3, stride 2", (3, 40, 15, 18), (33, 40, 3, 3), padding=1, stride=2),
        case("large: 3x3 of 3 channels", (4, 3, 32, 32), (64, 3, 3, 3), padding=1),
        case("large: 5x5", (3, 17, 14, 14), (35, 17, 5, 5), padding=2),
        case("large: 7x7, stride 2", (2, 3, 57, 56), (64, 3, 7, 7), padding=3, stride=2),
        case("large: 11x11, stride 4", (2, 3, 67, 67), (20, 3, 11, 11), padding=2, stride=4),
        case("large: 1x1", (3, 70, 13, 14), (100, 70, 1, 1)),
        case("large: 1x1, no bias", (3, 64, 14, 14), (32, 64, 1, 1), bias=False),
        case("large: 1x1, stride 2", (3, 48, 15, 14), (40, 48, 1, 1), stride=2),
        case("large: 1x1 to one channel", (3, 48, 15, 14), (1, 48, 1, 1)),
        case("large: depthwise", (3, 70, 15, 14), (70, 1, 3, 3), padding=1, groups=70),
        case("large: depthwise, stride 2", (2, 64, 15, 14), (64, 1, 3, 3), stride=2, groups=64),
        case("large: two groups", (2, 48, 13, 12), (64, 24, 3, 3), padding=1, groups=2),
        case("large: dilation 2", (2, 24, 16, 15), (32, 24, 3, 3), padding=2, dilation=2),
        case("large: 1x7", (2, 24, 17, 17), (32, 24, 1, 7), padding=(0, 3)),
        case("large: patches", (2, 3, 64, 64), (96, 3, 16, 16), stride=16),
        case("large: 2x2, stride 2", (2, 32, 14, 14), (64, 32, 2, 2), stride=2),
        case("large: dx not needed", (2, 33, 14, 14), (34, 33, 3, 3), padding=1, need_dx=False),
        case("large: classifier", (7, 64, 4, 4), (50, 64, 4, 4)),
    ]


def _pools() -> list[PairCase]:
    halves = {"kernel_size": 2, "stride": 2}
    overlap = {"kernel_size": 3, "stride": 2}
    same = {"kernel_size": 3, "stride": 1, "padding": 1}
    found = []
    for shape in _IMAGES:
        for options in (halves, overlap, {**overlap, "ceil_mode": True}, same):
            label = f"large {shape}, {options}"
            found += [
                max_pool._case(label, shape, **options),
                avg_pool._case(label, shape, **options),
                avg_pool._case(f"{label}, not counted", shape, count_include_pad=False, **options),
            ]
        found += [
            max_pool._case(f"large {shape}, dilation 2", shape, **overlap, dilation=2),
            avg_pool._case(f"large {shape}, 5x5, stride 3", shape, kernel_size=5, stride=3),
            resample._case(f"large {shape}", shape, 2),
            resample._case(f"large {shape}, unequal pair", shape, (1, 3)),
            shortcut._case(f"large {shape}", shape, zeros=(16, 17)),
            shortcut._case(f"large {shape}, stride 1", shape, stride=1, zeros=(3, 0)),
            *(adaptive_pool._case(f"large {shape}, {n}", shape, n) for n in (1, (4, 3), 7)),
        ]
    # Few different values, as after a rounding: the first of equal maxima counts.
    ties = _IMAGES[0]
    return [
        *found,
        PairCase(
            "max_pool2d",
            "large, ties",
            lambda rng: {"x": rng.integers(0, 3, ties).astype(np.float64)},
            ("x",),
            outputs=("y", "indices"),
            options=overlap,
            backward_only={"input_shape": ties},
        ),
    ]


LARGE: tuple[PairCase, ...] = (
    *_pointwise(),
    *_softmax(),
    *_losses(),
    *_norms(),
    *_attention(),
    *_linear(),
    *_convolutions(),
    *_pools(),
)
