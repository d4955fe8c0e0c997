"""A layer with parameters, state, inputs and cotangents, and the check of its gradients."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from refkd.nn import Layer
from refkd.testing import check_grad


class LayerProblem:
    """What one seed draws for a layer; nothing in it is zero, one, or alike."""

    def __init__(
        self,
        layer: Layer,
        *shape: int,
        seed: int = 0,
        dtype: Any = np.float64,
        train: bool = True,
    ) -> None:
        self.layer, self.train = layer, train
        self.rng = np.random.default_rng(seed)
        self.params, self.state = layer.init(self.rng, dtype=dtype)
        for name, initial in self.params.items():
            self.params[name] = (initial + 0.3 * self.normal(*initial.shape)).astype(dtype)
        for name, initial in self.state.items():
            if name.endswith(("running_mean", "running_var")):
                moved = initial + self.rng.random(initial.shape)
                self.state[name] = moved.astype(dtype)
        self.x = self.normal(*shape).astype(dtype)
        self.y, self.cache = self.forward()
        self.dy = self.like(self.y)

    def normal(self, *shape: int) -> Any:
        return self.rng.standard_normal(shape)

    def like(self, y: Any) -> Any:
        """Draw a cotangent of the structure and dtype of ``y``."""
        if isinstance(y, tuple):
            return tuple(self.like(part) for part in y)
        return self.normal(*y.shape).astype(y.dtype)

    def features(self) -> dict[str, Any]:
        return dict(self.layer.features(self.cache))

    def tap(self, path: str) -> Any:
        return self.like(self.features()[path])

    def forward(self, params: Any = None, x: Any = None) -> Any:
        params, x = self.params if params is None else params, self.x if x is None else x
        return self.layer.forward(params, self.state, x, train=self.train)

    def backward(self, dy: Any, **options: Any) -> Any:
        return self.layer.backward(self.params, self.cache, dy, **options)


def inner_product(cotangent: Any, y: Any) -> Any:
    """Return Σ cotangent · y over arrays and tuples; None counts as zero."""
    if cotangent is None:
        return 0.0
    if isinstance(y, tuple):
        return sum(inner_product(c, part) for c, part in zip(cotangent, y, strict=True))
    return (cotangent * y).sum()


def assert_exact(
    problem: LayerProblem,
    dy: Any,
    taps: Mapping[str, Any] | None = None,
    *,
    mode: str = "directional",
) -> None:
    """Check parameters and input by the complex step, for cotangents at dy and all taps."""
    taps = taps or {}

    def f(x: Any, **params: Any) -> Any:
        y, cache = problem.forward(params, x)
        features = dict(problem.layer.features(cache))
        tapped = sum(inner_product(tap, features[path]) for path, tap in taps.items())
        return inner_product(dy, y) + tapped

    def grad(x: Any, **params: Any) -> Any:
        _, cache = problem.forward(params, x)
        dx, grads = problem.layer.backward(params, cache, dy, taps=taps)
        assert list(grads) == list(params)
        return {"x": np.zeros_like(x) if dx is None else dx, **grads}

    point = {"x": problem.x, **problem.params}
    report = check_grad(f, point, grad, method="complex", mode=mode)
    report.raise_if_failed()


def assert_same_arrays(actual: Mapping[str, Any], expected: Mapping[str, Any]) -> None:
    assert list(actual) == list(expected)
    for name, array in actual.items():
        np.testing.assert_array_equal(array, expected[name])
