"""Errors people make in backward passes, planted: each is found, in the right parameter."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import pytest

from refkd import losses, ops
from refkd.testing import Verdict, check_grad

RNG = np.random.default_rng(20)
BATCH, CLASSES, T, ALPHA = 6, 6, 4.0, 0.3
X = RNG.standard_normal((BATCH, CLASSES))
PARAMS = {
    "weight": RNG.standard_normal((CLASSES, CLASSES)),
    "bias": RNG.standard_normal(CLASSES),
    "gain": RNG.uniform(0.5, 2, size=CLASSES),
}
TEACHER = 2 * RNG.standard_normal((BATCH, CLASSES))
LABELS = RNG.integers(CLASSES, size=BATCH)
OPTIONS: dict[str, Any] = {
    "temperature": T,
    "hard_weight": ALPHA,
    "soft_weight": (1 - ALPHA) * T * T,
}
EPS = 1e-5


def loss(weight: Any, bias: Any, gain: Any) -> Any:
    """A linear layer, a layer norm with a gain, and the distillation loss."""
    h = ops.linear_forward(X, weight, bias)
    centred = h - h.mean(axis=-1, keepdims=True)
    rstd = ((centred * centred).mean(axis=-1, keepdims=True) + EPS) ** -0.5
    logits = gain * centred * rstd
    return losses.softmax_kd_forward(logits, TEACHER, LABELS, **OPTIONS)[0]


class Backward(NamedTuple):
    """The pieces of the backward pass, each of which a mutation may replace."""

    soft_scale: float = 1.0
    hard_scale: float = 1.0
    mean_detached: bool = False
    rstd_detached: bool = False
    finish: Callable[[dict[str, Any]], dict[str, Any]] = lambda grads: grads

    def __call__(self, weight: Any, bias: Any, gain: Any) -> dict[str, Any]:
        h = ops.linear_forward(X, weight, bias)
        centred = h - h.mean(axis=-1, keepdims=True)
        rstd = ((centred * centred).mean(axis=-1, keepdims=True) + EPS) ** -0.5
        normal = centred * rstd
        _, _, _, q, s, t = losses.softmax_kd_forward(gain * normal, TEACHER, LABELS, **OPTIONS)
        options = {
            **OPTIONS,
            "hard_weight": ALPHA * self.hard_scale,
            "soft_weight": OPTIONS["soft_weight"] * self.soft_scale,
        }
        dlogits = losses.softmax_kd_backward(1.0, q, s, t, LABELS, **options)
        d = dlogits * gain
        dh = d
        if not self.mean_detached:
            dh = dh - d.mean(axis=-1, keepdims=True)
        if not self.rstd_detached:
            dh = dh - normal * (d * normal).mean(axis=-1, keepdims=True)
        _, dweight, dbias = ops.linear_backward(rstd * dh, X, weight)
        grads = {"weight": dweight, "bias": dbias, "gain": (dlogits * normal).sum(axis=0)}
        return self.finish(grads)


def changed(name: str, change: Callable[[Any], Any]) -> Backward:
    return Backward(finish=lambda grads: {**grads, name: change(grads[name])})


def one_entry_off(name: str, index: tuple[int, ...]) -> Backward:
    def change(gradient: Any) -> Any:
        gradient = gradient.copy()
        gradient[index] *= 1.01
        return gradient

    return changed(name, change)


# The mutation, and the parameters of which any may be called the worst.
EVERYWHERE = {"weight", "bias", "gain"}
UPSTREAM = {"weight", "bias"}
MUTATIONS: dict[str, tuple[Backward, set[str]]] = {
    "T² dropped": (Backward(soft_scale=1 / T**2), EVERYWHERE),
    "T for T²": (Backward(soft_scale=1 / T), EVERYWHERE),
    "hard term forgotten": (Backward(hard_scale=0.0), EVERYWHERE),
    "mean taken twice": (Backward(soft_scale=1 / BATCH, hard_scale=1 / BATCH), EVERYWHERE),
    "sum for mean": (Backward(soft_scale=BATCH, hard_scale=BATCH), EVERYWHERE),
    "sign": (Backward(soft_scale=-1, hard_scale=-1), EVERYWHERE),
    "mean detached": (Backward(mean_detached=True), UPSTREAM),
    "standard deviation detached": (Backward(rstd_detached=True), UPSTREAM),
    "square weight transposed": (changed("weight", np.transpose), {"weight"}),
    "weight negated": (changed("weight", np.negative), {"weight"}),
    "bias averaged over the batch": (changed("bias", lambda g: g / BATCH), {"bias"}),
    "bias shifted by one": (changed("bias", lambda g: np.roll(g, 1)), {"bias"}),
    "gain zero": (changed("gain", np.zeros_like), {"gain"}),
}


def test_the_unchanged_backward_passes() -> None:
    report = check_grad(loss, PARAMS, Backward())
    assert report.ok, str(report)
    assert report.entries == CLASSES * (CLASSES + 2)


@pytest.mark.parametrize("mode", ["full", "directional"])
@pytest.mark.parametrize("name", MUTATIONS)
def test_a_planted_error_is_found_in_its_parameter(name: str, mode: str) -> None:
    backward, parameters = MUTATIONS[name]
    report = check_grad(loss, PARAMS, backward, mode=mode)
    assert report.verdict is Verdict.WRONG_GRADIENT
    assert report.worst is not None
    assert report.worst.name in parameters
    assert report.worst.index is not None
    expected = Backward()(**PARAMS)[report.worst.name][report.worst.index]
    assert report.worst.numeric == pytest.approx(expected, rel=1e-10, abs=1e-14)


@pytest.mark.parametrize("mode", ["full", "directional"])
@pytest.mark.parametrize("name", PARAMS)
def test_every_single_entry_off_by_one_percent_is_located(name: str, mode: str) -> None:
    for index in np.ndindex(PARAMS[name].shape):
        report = check_grad(loss, PARAMS, one_entry_off(name, index), mode=mode)
        assert report.verdict is Verdict.WRONG_GRADIENT
        assert report.worst is not None
        assert (report.worst.name, report.worst.index) == (name, index)
