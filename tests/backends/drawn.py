"""Cases drawn at random, of each kernel pair: sizes between those of the cases and large ones."""

from __future__ import annotations

import math
from collections.abc import Callable

from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes

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
from refkd.testing.strategies import attention_shapes, conv_geometries
from tests.ops.pool_geometries import geometries

__all__ = ["PAIRS", "drawn_cases"]

_SIZES = st.integers(1, 40)
_SHAPES = array_shapes(min_dims=1, max_dims=4, max_side=17)
_IMAGES = st.tuples(st.integers(1, 4), _SIZES, st.integers(1, 17), st.integers(1, 17))
_LABEL = "drawn"


def drawn_cases(pair: str) -> st.SearchStrategy[PairCase]:
    """Return a strategy for cases of a pair; the same sizes give a case of the same numbers."""
    return _DRAWN[pair]()


@st.composite
def _pointwise(draw: st.DrawFn, pair: str, **options: str) -> PairCase:
    return PairCase(pair, _LABEL, normal_like(3.0, x=draw(_SHAPES)), ("x",), options=options)


@st.composite
def _gelu(draw: st.DrawFn) -> PairCase:
    return draw(_pointwise("gelu", approximate=draw(st.sampled_from(("none", "tanh")))))


@st.composite
def _dropout(draw: st.DrawFn) -> PairCase:
    return dropout._case(_LABEL, draw(_SHAPES), draw(st.floats(0, 1, width=16)))


@st.composite
def _softmax(draw: st.DrawFn, pair: str) -> PairCase:
    shape = draw(_SHAPES)
    options = {
        "axis": draw(st.integers(-len(shape), len(shape) - 1)),
        "temperature": draw(st.sampled_from((1.0, 0.5, 7.0))),
    }
    return PairCase(pair, _LABEL, normal_like(3.0, x=shape), ("x",), options=options)


@st.composite
def _cross_entropy(draw: st.DrawFn) -> PairCase:
    kind = draw(st.sampled_from(("int64", "uint8", "int32", "distributions", "weights")))
    targets = {
        "distributions": cross_entropy._distributions,
        "weights": cross_entropy._weights,
    }.get(kind) or cross_entropy._indices(kind)
    shape = draw(_SHAPES)
    return cross_entropy._case(
        f"{_LABEL}, {kind}",
        cross_entropy._inputs(shape, targets),
        reduction=draw(st.sampled_from(cross_entropy._REDUCTIONS)),
        label_smoothing=draw(st.sampled_from((0.0, 0.1, 1.0))),
        smoothing=draw(st.sampled_from(("uniform", "others") if shape[-1] > 1 else ("uniform",))),
    )


@st.composite
def _kd(draw: st.DrawFn) -> PairCase:
    labels = draw(st.sampled_from((None, "int64", "uint8")))
    return kd._case(
        f"{_LABEL}, {labels} labels",
        kd._inputs(draw(_SIZES), draw(_SIZES), labels=labels),
        reduction=draw(st.sampled_from(("batchmean", "mean", "sum"))),
        temperature=draw(st.sampled_from((1.0, 0.5, 7.0))),
        hard_weight=0.0 if labels is None else draw(st.sampled_from((0.0, 0.3))),
        soft_weight=draw(st.sampled_from((0.0, 0.7))),
    )


@st.composite
def _kl(draw: st.DrawFn) -> PairCase:
    needed = draw(st.sampled_from(({}, {"need_dp": False}, {"need_dq": False})))
    gradients = (
        None if "need_dp" in needed else "p_logits",
        None if "need_dq" in needed else "q_logits",
    )
    return kl._case(
        _LABEL,
        kl._logits(*draw(_SHAPES)),
        gradients=gradients,
        backward_only=needed,
        **draw(_softened()),
    )


@st.composite
def _kl_without_log(draw: st.DrawFn) -> PairCase:
    return kl_without_log._case(_LABEL, kl_without_log._logits(*draw(_SHAPES)), **draw(_softened()))


def _softened() -> st.SearchStrategy[dict[str, object]]:
    return st.fixed_dictionaries(
        {
            "reduction": st.sampled_from(("batchmean", "mean", "sum", "none")),
            "temperature": st.sampled_from((1.0, 0.5, 7.0)),
        }
    )


@st.composite
def _mse(draw: st.DrawFn) -> PairCase:
    reduction = draw(st.sampled_from(("mean", "sum", "none")))
    return regression._case("mse", _LABEL, regression._both(*draw(_SHAPES)), reduction=reduction)


@st.composite
def _huber(draw: st.DrawFn) -> PairCase:
    delta = draw(st.sampled_from((1.0, 0.1, 10.0)))
    reduction = draw(st.sampled_from(("mean", "sum", "none")))
    inputs = regression._off_the_joint(delta, *draw(_SHAPES))
    return regression._case("huber", _LABEL, inputs, reduction=reduction, delta=delta)


@st.composite
def _batch_norm(draw: st.DrawFn) -> PairCase:
    shape = draw(array_shapes(min_dims=2, max_dims=4, max_side=17))
    running = draw(st.booleans()) or math.prod(shape) <= 2 * shape[1]
    inputs = batch_norm._inputs(*shape, running=running, mean=draw(st.sampled_from((0.5, 50.0))))
    return batch_norm._case(f"{_LABEL}, running {running}", inputs, running=running)


@st.composite
def _group_norm(draw: st.DrawFn) -> PairCase:
    each, groups = draw(st.tuples(st.integers(1, 9), st.integers(1, 9)))
    batch, *space = draw(array_shapes(min_dims=1, max_dims=3, max_side=13))
    if each * math.prod(space) < 3:
        each = 3  # the gradient of two values cancels to rounding
    inputs = group_norm._inputs(batch, each * groups, *space, mean=draw(st.sampled_from((0.5, 50))))
    return group_norm._case(_LABEL, inputs, groups)


@st.composite
def _layer_norm(draw: st.DrawFn) -> PairCase:
    *leading, width = draw(array_shapes(min_dims=1, max_dims=4, max_side=40))
    inputs = layer_norm._inputs(*leading[-2:], width + 2, mean=draw(st.sampled_from((0.5, 50.0))))
    return layer_norm._case(_LABEL, inputs)


@st.composite
def _linear(draw: st.DrawFn) -> PairCase:
    leading = draw(st.lists(st.integers(1, 13), max_size=3).map(tuple))
    features = draw(st.tuples(st.integers(1, 130), st.integers(1, 130)))
    bias, need_dx = draw(st.booleans()), draw(st.booleans())
    return linear._case(_LABEL, leading, features=features, bias=bias, need_dx=need_dx)


@st.composite
def _conv2d(draw: st.DrawFn) -> PairCase:
    few = conv_geometries(max_channels=6, max_size=9, max_kernel=5)
    many = conv_geometries(max_batch=5, max_channels=40, max_size=18)
    g = draw(few | many)
    return conv._case(
        _LABEL,
        g.x_shape,
        g.weight_shape,
        bias=draw(st.booleans()),
        need_dx=draw(st.booleans()),
        **g.options,
    )


@st.composite
def _max_pool(draw: st.DrawFn) -> PairCase:
    g = draw(geometries())
    return max_pool._case(_LABEL, _with_more_channels(draw, g.shape), **g.options)


@st.composite
def _avg_pool(draw: st.DrawFn) -> PairCase:
    g = draw(geometries(max_dilation=1))
    shape, counted = _with_more_channels(draw, g.shape), draw(st.booleans())
    return avg_pool._case(_LABEL, shape, count_include_pad=counted, **g.options_without_dilation)


def _with_more_channels(draw: st.DrawFn, shape: tuple[int, ...]) -> tuple[int, ...]:
    return (shape[0], draw(_SIZES), *shape[2:])


@st.composite
def _adaptive_pool(draw: st.DrawFn) -> PairCase:
    size = draw(st.tuples(st.integers(1, 9), st.integers(1, 9)))
    return adaptive_pool._case(_LABEL, draw(_IMAGES), size)


@st.composite
def _upsample(draw: st.DrawFn) -> PairCase:
    factors = draw(st.tuples(st.integers(1, 3), st.integers(1, 3)))
    return resample._case(_LABEL, draw(_IMAGES), factors)


@st.composite
def _shortcut(draw: st.DrawFn) -> PairCase:
    zeros = draw(st.tuples(st.integers(0, 20), st.integers(0, 20)))
    return shortcut._case(_LABEL, draw(_IMAGES), stride=draw(st.integers(1, 3)), zeros=zeros)


@st.composite
def _attention(draw: st.DrawFn) -> PairCase:
    s = draw(attention_shapes(max_length=40, max_head_dim=40, masks="none"))
    sizes = (s.batch, s.heads, s.query_length, s.key_length, s.head_dim, draw(_SIZES))
    return attention._case(_LABEL, attention._normal(*sizes), 1 / math.sqrt(s.head_dim))


_DRAWN: dict[str, Callable[[], st.SearchStrategy[PairCase]]] = {
    **{
        pair: lambda pair=pair: _pointwise(pair)  # type: ignore[misc]
        for pair in ("relu", "sigmoid", "tanh", "silu")
    },
    **{pair: lambda pair=pair: _softmax(pair) for pair in ("softmax", "log_softmax")},  # type: ignore[misc]
    "gelu": _gelu,
    "dropout": _dropout,
    "softmax_cross_entropy": _cross_entropy,
    "softmax_kd": _kd,
    "softmax_kl": _kl,
    "softmax_kl_without_log": _kl_without_log,
    "mse": _mse,
    "huber": _huber,
    "batch_norm": _batch_norm,
    "group_norm": _group_norm,
    "layer_norm": _layer_norm,
    "linear": _linear,
    "conv2d": _conv2d,
    "max_pool2d": _max_pool,
    "avg_pool2d": _avg_pool,
    "adaptive_avg_pool2d": _adaptive_pool,
    "upsample_nearest2d": _upsample,
    "padded_shortcut": _shortcut,
    "attention": _attention,
}

PAIRS = frozenset(_DRAWN)
"""The pairs of which cases are drawn."""
