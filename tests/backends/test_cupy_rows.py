"""Losses of more rows than the cases of conformance have: on the host, against float64."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from refkd.dispatch import registered_kernels
from tests.backends import cuda_host as host

pytestmark = pytest.mark.skipif(host.compiler() is None, reason="the emulation needs g++")

KERNELS = host.host_backend("cross_entropy", "kd").kernels
modules = host.launchers("kd", "rows")
KD = {"temperature": 3.0, "hard_weight": 0.4, "soft_weight": 0.6}


@pytest.fixture(autouse=True)
def on_the_host() -> Iterator[None]:
    with host.on_the_host():
        yield


@pytest.fixture(params=[False, True], ids=["at once", "in parts"])
def in_parts(request: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    if request.param:
        for module in modules.values():
            monkeypatch.setattr(module, "AT_ONCE", 100)


def both(kernel: str, *arrays: Any, **options: Any) -> Iterator[tuple[Any, Any]]:
    """Yield each result of the override, and the reference's in float64."""
    exact = [a.astype("d") if a.dtype.kind == "f" else a for a in arrays]
    expected = registered_kernels()[kernel].reference(*exact, **options)
    return zip(KERNELS[kernel](*map(host.asarray, arrays), **options), expected, strict=True)


@pytest.mark.parametrize("scale", [1.0, 30.0])
@pytest.mark.parametrize("classes", [1, 7, 10, 15, 16, 17, 100])
@pytest.mark.usefixtures("in_parts")
def test_distillation_of_many_rows(classes: int, scale: float) -> None:
    rng = np.random.default_rng(classes)
    z, v = (scale * rng.standard_normal((301, classes)).astype("f") for _ in range(2))
    labels = rng.integers(classes, size=301)
    for actual, expected in both("softmax_kd_forward", z, v, labels, **KD):
        np.testing.assert_allclose(actual, expected, rtol=2e-5, atol=1e-6)


@pytest.mark.parametrize("classes", [10, 40])
def test_distillation_of_rows_with_nan_and_labels_of_no_class(classes: int) -> None:
    rng = np.random.default_rng(0)
    z, v = (rng.standard_normal((150, classes)).astype("f") for _ in range(2))
    z[3, 5], v[149, 2] = np.nan, np.nan
    for actual, expected in both("softmax_kd_forward", z, v, np.zeros(150, int), **KD):
        np.testing.assert_allclose(actual, expected, rtol=2e-5, atol=1e-6)
    labels = np.zeros(150, int)
    labels[70] = classes
    given = map(host.asarray, (z[20:140], v[20:140], labels[20:140]))
    loss, hard, soft, *_ = KERNELS["softmax_kd_forward"](*given, **KD)
    assert [np.isnan(term) for term in (loss, hard, soft)] == [True, True, False]


@pytest.mark.usefixtures("in_parts")
def test_cross_entropy_of_many_rows() -> None:
    rng = np.random.default_rng(0)
    z, labels = rng.standard_normal((301, 10)).astype("f"), rng.integers(10, size=301)
    for actual, expected in both("softmax_cross_entropy_forward", z, labels):
        np.testing.assert_allclose(actual, expected, rtol=2e-6)
