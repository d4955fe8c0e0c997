"""What rewritten networks that do not learn keep of their weights."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from refkd.dispatch import get_backend, use_backend
from refkd.errors import BackendUnavailable
from tests.backends.rewritten import network

try:
    get_backend("numba")
except BackendUnavailable as reason:
    pytest.skip(str(reason), allow_module_level=True)

import refkd_numba.settings
from refkd_numba import conv
from refkd_numba.fused.network import fuse, parts


@pytest.fixture(autouse=True)
def numba() -> Any:
    with use_backend("numba"):
        yield


def weights_of(layer: Any) -> list[Any]:
    """Return the packed weights that the units of a network keep."""
    units = getattr(layer, "units", None)
    inside = parts(layer) if units is None else [unit.layer for unit in units]
    kept = getattr(layer, "kept", None)
    made = [] if kept is None else kept.made.values()
    own = [value if isinstance(value, conv.Packed) else value[0] for value in made]
    return own + [weight for part in inside for weight in weights_of(part)]


@pytest.fixture
def packed(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The algorithms that weights are packed for to be kept, as it happens."""
    seen: list[str] = []
    prepare = conv.prepare

    def counted(weight: Any, g: Any, *allocate: Any) -> Any:
        seen.extend([conv.algorithm(g)] * len(allocate))
        return prepare(weight, g, *allocate)

    monkeypatch.setattr(conv, "prepare", counted)
    return seen


@pytest.mark.parametrize(("name", "count"), [("vgg", 3), ("cifar_resnet", 7)])
def test_weights_of_a_frozen_network_are_packed_once(
    name: str, count: int, packed: list[str]
) -> None:
    layer, params, state, images, _ = network(name)
    fused = fuse(layer, frozen=True)
    first = fused.infer(params, state, images)
    assert len(packed) == count
    np.testing.assert_array_equal(fused.infer(params, state, images), first)
    assert len(packed) == count
    # Other arrays are other weights, be they equal.
    key = next(key for key in params if params[key].ndim == 4)
    changed = fused.infer(params | {key: params[key] * 2}, state, images)
    assert len(packed) == count + 1
    assert len(weights_of(fused)) == count
    assert not np.array_equal(changed, first)


def test_a_weight_is_kept_once_for_each_algorithm(
    packed: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    layer, params, state, images, _ = network("vgg")
    fused = fuse(layer, frozen=True)
    for batch in (6, 1, 5, 2, 6, 3, 1):  # of a small batch another algorithm takes some layers
        fused.infer(params, state, images[:batch])
    assert len(weights_of(fused)) == len(packed) == packed.count("winograd") + 3
    monkeypatch.setattr(refkd_numba.settings, "winograd", False)
    before = len(packed)
    exactly = fused.infer(params, state, images)
    np.testing.assert_array_equal(exactly, fuse(layer).infer(params, state, images))
    assert {w.algorithm for w in weights_of(fused)} == {"winograd", "direct"}
    assert set(packed[before:]) <= {"direct"}


def test_what_is_kept_is_memory_of_its_own() -> None:
    # A weight of one of the pool's blocks would hold on to all of the block.
    layer, params, state, images, _ = network("vgg")
    fused = fuse(layer, frozen=True)
    fused.infer(params, state, images)
    for weight in weights_of(fused):
        owner = weight.panels if weight.panels.base is None else weight.panels.base
        assert type(owner) is np.ndarray
        assert owner.nbytes == weight.panels.nbytes


def test_other_statistics_are_folded_anew() -> None:
    layer, params, state, images, _ = network("vgg")
    fused = fuse(layer, frozen=True)
    fused.infer(params, state, images)
    key = next(key for key in state if key.endswith("running_var"))
    other = state | {key: state[key] * 4}
    np.testing.assert_allclose(
        fused.infer(params, other, images), layer.infer(params, other, images), rtol=1e-3, atol=1e-3
    )
