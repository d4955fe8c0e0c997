"""Cases for :mod:`refkd.losses.cross_entropy`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from refkd.testing.cases._draw import Inputs
from refkd.testing.pairs import PairCase

__all__ = ["CASES"]

_REDUCTIONS = ("mean", "sum", "none")
_SMOOTHED = {"label_smoothing": 0.1}

Targets = Callable[[np.random.Generator, tuple[int, ...]], Any]


def _indices(dtype: str = "int64") -> Targets:
    return lambda rng, shape: np.asarray(rng.integers(shape[-1], size=shape[:-1])).astype(dtype)


def _distributions(rng: np.random.Generator, shape: tuple[int, ...]) -> Any:
    return rng.dirichlet(np.ones(shape[-1]), size=shape[:-1])


def _weights(rng: np.random.Generator, shape: tuple[int, ...]) -> Any:
    return rng.uniform(0, 2, size=shape)


def _one_hot(rng: np.random.Generator, shape: tuple[int, ...]) -> Any:
    return np.eye(shape[-1])[_indices()(rng, shape)]


def _inputs(shape: tuple[int, ...], targets: Targets, scale: float = 2.0) -> Inputs:
    def inputs(rng: np.random.Generator) -> dict[str, Any]:
        logits = scale * rng.standard_normal(shape)
        return {"logits": logits, "targets": targets(rng, shape)}

    return inputs


def _case(label: str, inputs: Inputs, **options: object) -> PairCase:
    return PairCase(
        "softmax_cross_entropy",
        label,
        inputs,
        ("logits",),
        outputs=("loss", "log_q"),
        options=options,
    )


_INDICES = _inputs((4, 5), _indices())
_SOFT = _inputs((4, 5), _distributions)

CASES = (
    *(_case(f"indices, {r}", _INDICES, reduction=r) for r in _REDUCTIONS),
    *(_case(f"distributions, {r}", _SOFT, reduction=r) for r in _REDUCTIONS),
    *(
        _case(f"{kind}, smoothing {s}, {r}", inputs, smoothing=s, reduction=r, **_SMOOTHED)
        for kind, inputs in (("indices", _INDICES), ("distributions", _SOFT))
        for s in ("uniform", "others")
        for r in _REDUCTIONS
    ),
    _case("all mass smoothed, uniform", _INDICES, label_smoothing=1.0),
    _case("all mass smoothed, others", _INDICES, label_smoothing=1.0, smoothing="others"),
    _case("one-hot distributions", _inputs((4, 5), _one_hot)),
    _case("targets that do not sum to 1", _inputs((4, 5), _weights)),
    _case("targets that do not sum to 1, smoothed", _inputs((4, 5), _weights), **_SMOOTHED),
    _case("target of zeros", _inputs((4, 5), lambda rng, shape: np.zeros(shape))),
    _case("int32 labels", _inputs((4, 5), _indices("int32"))),
    _case("uint8 labels", _inputs((4, 5), _indices("uint8"))),
    _case("one example without a batch axis", _inputs((5,), _indices())),
    _case("one example without a batch axis, none", _inputs((5,), _indices()), reduction="none"),
    _case("3-D logits", _inputs((2, 3, 4), _indices())),
    _case("3-D logits, none", _inputs((2, 3, 4), _distributions), reduction="none"),
    _case("4-D logits", _inputs((2, 2, 2, 3), _indices()), reduction="sum"),
    _case("batch of one", _inputs((1, 6), _indices())),
    _case("one class", _inputs((4, 1), _indices())),
    _case("one class, smoothed", _inputs((4, 1), _indices()), **_SMOOTHED),
    _case("two classes, others", _inputs((4, 2), _indices()), smoothing="others", **_SMOOTHED),
    _case("logits of 1e4", _inputs((4, 5), _indices(), scale=1e4)),
    _case("logits of 1e4, smoothed", _inputs((4, 5), _indices(), scale=1e4), **_SMOOTHED),
)
