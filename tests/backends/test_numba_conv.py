"""The Numba backend's convolutions: each algorithm on its own, against float64."""

from __future__ import annotations

import inspect
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st

from refkd.dispatch import get_backend, registered_kernels, use_backend
from refkd.errors import BackendUnavailable
from refkd.ops import conv2d_backward, conv2d_backward_input, conv2d_forward
from refkd.testing.tolerances import tolerance

try:
    get_backend("numba")
except BackendUnavailable as reason:
    pytest.skip(str(reason), allow_module_level=True)

import refkd_numba.settings
from refkd_numba import conv
from refkd_numba.compile import compiled
from refkd_numba.conv import transforms
from refkd_numba.microkernel import COLUMNS, ROWS, tile

Sizes = tuple[int, int]
PAIRS = st.tuples(st.integers(1, 3), st.integers(1, 3))


@pytest.fixture(autouse=True)
def numba() -> Any:
    with use_backend("numba", strict=True):
        yield


@st.composite
def convolutions(draw: st.DrawFn) -> dict[str, Any]:
    """Draw shapes and options; the groups make it plain, grouped or depthwise."""
    groups = draw(st.sampled_from([1, 1, 1, 2, 3, 19]))
    per_group = 1 if groups == 19 else draw(st.integers(1, 40 if groups == 1 else 9))
    planes = st.tuples(st.integers(1, 17), st.integers(1, 17))
    kernels = st.tuples(st.integers(1, 4), st.integers(1, 4))
    filters = 1 if groups == 19 else draw(st.integers(1, 40 if groups == 1 else 9))
    return {
        "x": (draw(st.integers(1, 5)), groups * per_group, *draw(planes)),
        "weight": (groups * filters, per_group, *draw(kernels)),
        "stride": draw(PAIRS),
        "padding": draw(st.tuples(st.integers(0, 4), st.integers(0, 4))),
        "dilation": draw(PAIRS),
        "groups": groups,
        "bias": draw(st.booleans()),
        "layouts": draw(st.tuples(st.booleans(), st.booleans())),
    }  # fmt: skip


def in_layout(array: np.ndarray[Any, Any], channels_last: bool) -> np.ndarray[Any, Any]:
    return (
        np.ascontiguousarray(array.transpose(0, 2, 3, 1)).transpose(0, 3, 1, 2)
        if channels_last
        else array
    )


def results(call: dict[str, Any], dtype: str, kernels: Any) -> tuple[Any, ...]:
    """Return y, dx, dweight and dbias of a drawn convolution, and the options."""
    rng = np.random.default_rng(0)
    options = {name: call[name] for name in ("stride", "padding", "dilation", "groups")}
    x = in_layout(rng.standard_normal(call["x"]).astype("float32"), call["layouts"][0])
    weight = rng.standard_normal(call["weight"]).astype("float32")
    bias = rng.standard_normal(call["weight"][0]).astype("float32") if call["bias"] else None
    x, weight = x.astype(dtype), weight.astype(dtype)
    y = kernels("conv2d_forward")(
        x, weight, None if bias is None else bias.astype(dtype), **options
    )
    dy = in_layout(rng.standard_normal(y.shape).astype("float32"), call["layouts"][1]).astype(dtype)
    return (y, *kernels("conv2d_backward")(dy, x, weight, **options))


def reference(name: str) -> Any:
    def run(*args: Any, **kwargs: Any) -> Any:
        with use_backend("numpy"):
            return registered_kernels()[name].call(*args, **kwargs)

    return run


def dispatched(name: str) -> Any:
    return registered_kernels()[name].call


def fits(call: dict[str, Any]) -> bool:
    return all(
        n + 2 * z >= d * (k - 1) + 1
        for n, k, z, d in zip(
            call["x"][2:], call["weight"][2:], call["padding"], call["dilation"], strict=True
        )
    )


@settings(max_examples=60, deadline=None)
@given(call=convolutions())
def test_direct_convolution_is_as_accurate_as_the_reference(call: dict[str, Any]) -> None:
    assume(fits(call))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(refkd_numba.settings, "winograd", False)
        actual = results(call, "float32", dispatched)
    exact = results(call, "float64", reference)
    single = results({**call, "layouts": (False, False)}, "float32", reference)
    for a, e, s in zip(actual, exact, single, strict=True):
        assert (a.shape, a.dtype) == (e.shape, np.float32)
        allowed = 4 * np.abs(s - e).max() + tolerance("float32", "pointwise") * np.abs(e).max()
        assert np.abs(a - e).max() <= allowed


# Shapes beyond the least number of tiles and channels, odd ones among them.
WINOGRAD = [
    (9, 16, 32, 9, 11, (1, 1)),
    (3, 33, 17, 14, 21, (1, 1)),
    (2, 20, 50, 30, 13, (0, 2)),
    (40, 24, 16, 5, 3, (2, 1)),
    (1, 330, 16, 24, 24, (1, 0)),
]


@pytest.mark.parametrize(("batch", "inputs", "outputs", "height", "width", "padding"), WINOGRAD)
def test_winograd_keeps_its_bound(
    batch: int, inputs: int, outputs: int, height: int, width: int, padding: Sizes
) -> None:
    call = {
        "x": (batch, inputs, height, width),
        "weight": (outputs, inputs, 3, 3),
        **{"stride": (1, 1), "padding": padding, "dilation": (1, 1), "groups": 1},
        **{"bias": True, "layouts": (False, True)},
    }
    actual, exact = results(call, "float32", dispatched), results(call, "float64", reference)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(refkd_numba.settings, "winograd", False)
        strict = results(call, "float32", dispatched)
    for name, a, e, s in zip(("y", "dx", "dweight", "dbias"), actual, exact, strict, strict=True):
        error = np.abs(a - e).max() / np.abs(e).max()
        assert error < 3e-5
        assert np.abs(s - e).max() / np.abs(e).max() < 2e-6
        if name != "dbias":
            assert not np.array_equal(a, s)  # it was another algorithm


def test_the_winograd_formula_is_convolution() -> None:
    # Columns of the transforms, by what they make of unit vectors.
    def matrix(function: Any, size: int) -> Any:
        return np.array([function(*row) for row in np.eye(size, dtype=np.float32)]).T.astype(float)

    to_points = matrix(transforms.input_points, 6)
    of_weight = matrix(transforms.weight_points, 3)
    to_outputs = matrix(transforms.output_values, 6)
    for tap in range(3):
        through = to_outputs @ np.diag(of_weight[:, tap]) @ to_points
        expected = np.zeros((4, 6))
        expected[range(4), range(tap, tap + 4)] = 1
        np.testing.assert_allclose(through, expected, atol=1e-6)
    # The other two are their transposes.
    np.testing.assert_allclose(matrix(transforms.gradient_points, 4), to_outputs.T, atol=1e-7)
    np.testing.assert_allclose(matrix(transforms.weight_values, 6), of_weight.T, atol=1e-7)


@pytest.mark.parametrize("kernel", [1, 3, 5])
@pytest.mark.parametrize("strict", [False, True])
def test_an_image_gives_the_same_bits_in_any_batch(
    kernel: int, strict: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(refkd_numba.settings, "winograd", not strict)
    rng = np.random.default_rng(0)
    x = rng.standard_normal((7, 24, 24, 24)).astype(np.float32)
    weight = rng.standard_normal((40, 24, kernel, kernel)).astype(np.float32)
    together = conv2d_forward(x, weight, None, padding=kernel // 2)
    for n in range(7):
        alone = conv2d_forward(x[n : n + 1], weight, None, padding=kernel // 2)
        np.testing.assert_array_equal(alone[0], together[n])


def test_backward_input_is_the_adjoint_of_forward_with_any_padding() -> None:
    rng = np.random.default_rng(0)
    for padding, size in (((0, 3), (6, 4)), ((4, 0), (1, 9)), ((3, 3), (2, 2))):
        x = rng.standard_normal((3, 5, *size)).astype(np.float32)
        weight = rng.standard_normal((4, 5, 2, 3)).astype(np.float32)
        y = conv2d_forward(x, weight, None, padding=padding)
        dy = rng.standard_normal(y.shape).astype(np.float32)
        dx = conv2d_backward_input(dy, weight, input_size=size, padding=padding)
        there, back = np.vdot(dy.astype(float), y), np.vdot(dx.astype(float), x)
        assert abs(there - back) <= 1e-5 * np.linalg.norm(dy) * np.linalg.norm(y)


@pytest.mark.parametrize("place", [0, 4])
def test_a_weight_that_is_not_finite_reaches_the_padding(place: int) -> None:
    # Rows of taps in the padding are skipped, but 0 · ∞ is NaN in the reference.
    rng = np.random.default_rng(0)
    x = rng.standard_normal((2, 3, 2, 2)).astype(np.float32)
    weight = rng.standard_normal((5, 3, 5, 5)).astype(np.float32)
    weight[1, 2, place, 0] = np.inf
    actual = conv2d_forward(x, weight, None, padding=2)
    with np.errstate(invalid="ignore"):
        expected = reference("conv2d_forward")(x, weight, None, padding=2)
    np.testing.assert_array_equal(np.isnan(actual), np.isnan(expected))


@pytest.mark.parametrize("special", [np.nan, np.inf])
@pytest.mark.parametrize("groups", [1, 2, 4])
@pytest.mark.parametrize("padding", [0, 2])
def test_what_is_not_finite_comes_out_where_the_reference_has_it(
    padding: int, groups: int, special: float
) -> None:
    rng = np.random.default_rng(groups)
    options = {"padding": padding, "groups": groups}
    x = rng.standard_normal((2, 4, 5, 6)).astype(np.float32)
    weight = rng.standard_normal((4, 4 // groups, 3, 3)).astype(np.float32)
    dy = rng.standard_normal(conv2d_forward(x, weight, None, **options).shape).astype(np.float32)
    for array in (weight, dy, x):
        place = tuple(rng.integers(array.shape))
        finite, array[place] = array[place], special
        for name, arguments in (
            ("conv2d_forward", (x, weight, None)),
            ("conv2d_backward", (dy, x, weight)),
        ):
            with np.errstate(invalid="ignore"):
                expected = reference(name)(*arguments, **options)
                with use_backend("numba", strict=True):
                    actual = registered_kernels()[name].call(*arguments, **options)
            for a, e in zip(
                *((r if isinstance(r, tuple) else (r,)) for r in (actual, expected)), strict=True
            ):
                np.testing.assert_array_equal(np.isfinite(a), np.isfinite(e), err_msg=name)
        array[place] = finite


@compiled
def call_tile(rows, a, b, jumps, steps, c, add):
    size = 4
    tile(
        rows, a.ctypes.data, size * a.shape[1], size, size * steps, b.ctypes.data, size * COLUMNS,
        size * steps * COLUMNS, jumps, steps, c.ctypes.data, size * COLUMNS, add,
    )  # fmt: skip


@settings(max_examples=40, deadline=None)
@given(
    rows=st.integers(1, 2 * ROWS + 5),
    jumps=st.integers(1, 3),
    steps=st.integers(1, 30),
    add=st.booleans(),
)
@example(rows=ROWS, jumps=1, steps=1, add=True)
def test_a_tile_is_a_matrix_product(rows: int, jumps: int, steps: int, add: bool) -> None:
    rng = np.random.default_rng(0)
    a = rng.integers(-8, 8, (rows, jumps * steps)).astype(np.float32)
    b = rng.integers(-8, 8, (jumps * steps, COLUMNS)).astype(np.float32)
    c = np.full((rows + 1, COLUMNS), 5, np.float32)
    call_tile(rows, a, b, jumps, steps, c, int(add))
    np.testing.assert_array_equal(c[:rows], a @ b + 5 * add)  # integers: no rounding
    assert (c[rows] == 5).all()


def test_weights_packed_before_give_what_they_give_packed_now() -> None:
    rng = np.random.default_rng(0)
    for shape, groups in (((18, 20, 3, 3), 1), ((18, 20, 5, 2), 1), ((20, 1, 3, 3), 20)):
        x = rng.standard_normal((4, 20, 12, 12)).astype(np.float32)
        weight = rng.standard_normal(shape).astype(np.float32)
        g = conv.sizes((x, weight), x.shape, shape, 1, 1, 1, groups)
        assert g is not None
        now = conv.forward(x, weight, None, g, relu=True)
        packed = conv.prepare(weight, g)
        np.testing.assert_array_equal(
            conv.forward(x, weight, None, g, relu=True, prepared=packed), now
        )
        plain = conv.forward(x, weight, None, g)
        np.testing.assert_array_equal(now, np.maximum(plain, 0))


def test_the_gradients_of_a_sum_over_many_pixels_are_sums_of_short_ones() -> None:
    # One float32 chain over 200,000 equal terms would be off by a thousandth.
    x = np.full((50, 1, 64, 64), 0.1, np.float32)
    dy = np.ones((50, 1, 64, 64), np.float32)
    _, dweight, dbias = conv2d_backward(dy, x, np.ones((1, 1, 1, 1), np.float32), need_dx=False)
    exact = np.float64(np.float32(0.1)) * x.size
    assert abs(dweight[0, 0, 0, 0] - exact) <= 1e-5 * exact
    assert dbias[0] == x.size


@pytest.mark.parametrize("option", ["stride", "dilation"])
@pytest.mark.parametrize("kernel", ["conv2d_forward", "avg_pool2d_forward", "max_pool2d_forward"])
def test_numbers_that_64_bits_do_not_hold_are_left_to_the_reference(
    kernel: str, option: str
) -> None:
    x, weight = np.ones((1, 2, 5, 5), np.float32), np.ones((3, 2, 1, 1), np.float32)
    arguments = (x, weight, None) if kernel.startswith("conv") else (x,)
    options = {} if kernel.startswith("conv") else {"kernel_size": 1}
    override = get_backend("numba").kernels[kernel]
    if option in inspect.signature(override).parameters:
        assert override(*arguments, **options, **{option: 2**70}) is NotImplemented
