"""The CuPy backend's products, run on the host: every tile and way to multiply, against float64."""

from __future__ import annotations

import ctypes
import itertools
import math
from collections.abc import Iterator
from functools import partial
from types import SimpleNamespace
from typing import Any
from unittest import mock

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from refkd.dispatch import registered_kernels
from refkd.testing.strategies import ConvGeometry, conv_geometries
from refkd.testing.tolerances import tolerance
from refkd_cupy import source
from tests.backends import cuda_host as host
from tests.backends.calls import LAYOUTS
from tests.backends.judge import in_bits
from tests.backends.ways import TF32_ROUNDING
from tests.backends.ways import forced as forced_products

pytestmark = pytest.mark.skipif(host.compiler() is None, reason="the emulation needs g++")

conv, linear, sums, settings_ = host.launchers("conv", "linear", "sums", "settings").values()

FMA, THREE_TERMS, TF32 = STEMS = ("conv_fma", "conv_tensor", "conv_tf32")
GATHER_TILES = conv.GATHER_TILES[4]
WEIGHT_TILES = conv.WEIGHT_TILES[4, 4]
forced = partial(forced_products, conv)


@pytest.fixture(autouse=True)
def on_the_host() -> Iterator[None]:
    with host.on_the_host():
        yield


def arrays(g: ConvGeometry, seed: int = 0, channels_last: bool = True) -> dict[str, Any]:
    """Draw x, weight, bias and dy."""
    rng = np.random.default_rng(seed)
    shapes = {"x": g.x_shape, "weight": g.weight_shape, "bias": g.weight_shape[:1], "dy": g.y_shape}
    drawn = {name: rng.standard_normal(shape).astype("f") for name, shape in shapes.items()}
    for name in ("x", "dy") if channels_last else ():
        stored = np.ascontiguousarray(drawn[name].transpose(0, 2, 3, 1))
        drawn[name] = stored.transpose(0, 3, 1, 2)
    return drawn


def on_device(a: dict[str, Any]) -> dict[str, Any]:
    return {name: host.asarray(np.ascontiguousarray(x.transpose(0, 2, 3, 1))).transpose(0, 3, 1, 2)
            if name in ("x", "dy") else host.asarray(x) for name, x in a.items()}  # fmt: skip


def results(kernels: Any, a: dict[str, Any], g: ConvGeometry) -> tuple[Any, ...]:
    """Return y, dx, dweight and dbias."""
    y = kernels("conv2d_forward")(a["x"], a["weight"], a["bias"], **g.options)
    return (y, *kernels("conv2d_backward")(a["dy"], a["x"], a["weight"], **g.options))


def reference(name: str) -> Any:
    return registered_kernels()[name].reference


def check(g: ConvGeometry, stem: str, seed: int = 0) -> None:
    """Check all directions of a convolution against the reference in float64."""
    a = arrays(g, seed)
    actual = results(conv.KERNELS.__getitem__, on_device(a), g)
    exact = results(reference, {name: x.astype("d") for name, x in a.items()}, g)
    rough = [results(reference, arrays(g, seed + k), g) for k in range(3)]
    precise = [
        results(reference, {n: x.astype("d") for n, x in arrays(g, seed + k).items()}, g)
        for k in range(3)
    ]
    for i, (got, e) in enumerate(zip(actual, exact, strict=True)):
        assert (got.shape, got.dtype) == (e.shape, np.float32)
        wrong = max(np.abs(r[i] - p[i]).max() for r, p in zip(rough, precise, strict=True))
        allowed = 4 * wrong + tolerance("float32", "pointwise") * np.abs(e).max()
        if stem == TF32 and i < 3:
            allowed = 4 * TF32_ROUNDING * np.abs(e).max()
        assert np.abs(got - e).max() <= allowed, (g, stem, ("y", "dx", "dweight", "dbias")[i])


@settings(max_examples=40, deadline=None, derandomize=True, database=None)
@given(
    g=conv_geometries(max_batch=3, max_channels=9, max_size=9, max_kernel=4)
    | conv_geometries(max_batch=4, max_channels=40, max_size=12),
    stem=st.sampled_from(STEMS),
    gather=st.sampled_from(GATHER_TILES),
    weight=st.sampled_from(WEIGHT_TILES),
    parts=st.integers(1, 4) | st.just(9),
)
def test_any_convolution_is_right_by_any_tile(
    g: ConvGeometry, stem: str, gather: Any, weight: Any, parts: int
) -> None:
    with forced(stem, gather, weight, parts):
        check(g, stem)


# Pixels and channels that fill tiles, and are one more or fewer, with vectors and without.
EDGES = [
    (1, 63, 64, (8, 8)),
    (1, 64, 65, (5, 13)),
    (1, 68, 60, (9, 7)),
    (2, 16, 128, (8, 8)),
    (1, 17, 129, (1, 127)),
    (1, 20, 132, (3, 43)),
    (1, 128, 32, (16, 8)),
    (1, 132, 28, (1, 128)),
    (3, 4, 36, (7, 6)),
]


@pytest.mark.parametrize("stem", STEMS)
@pytest.mark.parametrize(("batch", "inputs", "outputs", "size"), EDGES)
def test_sizes_at_the_edges_of_tiles(
    batch: int, inputs: int, outputs: int, size: tuple[int, int], stem: str
) -> None:
    tiles = itertools.cycle(WEIGHT_TILES)
    for gather, weight in zip(GATHER_TILES, tiles):  # noqa: B905 (one is endless)
        with forced(stem, gather, weight, 2):
            check(ConvGeometry(batch, inputs, outputs, size, (1, 1)), stem)


@pytest.mark.parametrize("kernel_size", [(3, 3), (1, 2)])
@pytest.mark.parametrize("stride", [(1, 1), (2, 3), (4, 1)])
@pytest.mark.parametrize("dilation", [(1, 1), (2, 3), (4, 6)])
def test_any_remainder_of_stride_and_dilation(
    kernel_size: Any, stride: tuple[int, int], dilation: tuple[int, int]
) -> None:
    g = ConvGeometry(2, 8, 8, (11, 14), kernel_size, stride, (3, 1), dilation)
    for parts in (1, 3):
        with forced(FMA, GATHER_TILES[3], WEIGHT_TILES[2], parts):
            check(g, FMA)


@pytest.mark.parametrize("groups", [2, 3, 7])
def test_groups_stay_apart(groups: int) -> None:
    for each in (1, 3, 4):
        for stem in STEMS:
            with forced(stem, GATHER_TILES[2], WEIGHT_TILES[0], 1):
                g = ConvGeometry(2, groups * 4, groups * each, (6, 5), (3, 2), groups=groups)
                check(g, stem)


@pytest.mark.parametrize("multiple", [1, 3])
def test_depthwise_convolutions(multiple: int) -> None:
    channels = 35
    g = ConvGeometry(
        3, channels, multiple * channels, (9, 8), (3, 2), (2, 1), (1, 2), (1, 2), groups=channels
    )
    check(g, FMA)
    with mock.patch.object(conv.conv_depthwise, "_PIXELS_OF_PART", 16):
        check(g, FMA)


def test_three_terms_are_as_accurate_as_float32_where_sums_are_long() -> None:
    g = ConvGeometry(2, 128, 16, (9, 9), (3, 3), padding=(1, 1))
    a = arrays(g)
    a["x"], a["weight"] = np.abs(a["x"]), np.abs(a["weight"])  # nothing cancels
    exact = results(reference, {name: x.astype("d") for name, x in a.items()}, g)
    errors = {}
    for stem in STEMS:
        with forced(stem, GATHER_TILES[1], WEIGHT_TILES[1], 1):
            y = conv.KERNELS["conv2d_forward"](
                *(on_device(a)[name] for name in ("x", "weight", "bias")), **g.options
            )
        errors[stem] = np.abs(y / exact[0] - 1).max()
    assert errors[THREE_TERMS] <= errors[FMA] < 1e-5
    assert 1e-5 < errors[TF32] < TF32_ROUNDING


def test_tf32_is_used_where_it_is_asked_for() -> None:
    assert conv._stem(1000) == THREE_TERMS
    assert conv._stem(conv._FEW_TERMS) == FMA
    with mock.patch.object(conv.settings, "three_terms", False):
        assert conv._stem(1000) == FMA
    with mock.patch.object(conv.settings, "tf32", True):
        assert conv._stem(1000) == conv._stem(1) == TF32
        with mock.patch.object(host.host_device, "supports_tensor_cores", return_value=False):
            assert conv._stem(1000) == FMA


@pytest.mark.parametrize("stem", STEMS)
@pytest.mark.parametrize("name", ["x", "weight", "dy"])
def test_what_is_not_finite_reaches_what_depends_on_it(stem: str, name: str) -> None:
    g = ConvGeometry(2, 8, 12, (6, 7), (3, 3), (2, 1), (1, 1))
    for special in (np.nan, np.float32(np.inf)):
        a = arrays(g)
        a[name] = a[name].copy(order="K")
        a[name][1, 3, 2, 2] = special
        with forced(stem, GATHER_TILES[3], WEIGHT_TILES[2], 1), np.errstate(invalid="ignore"):
            actual = results(conv.KERNELS.__getitem__, on_device(a), g)
            expected = results(reference, a, g)
        for got, e in zip(actual, expected, strict=True):
            if name == "weight":  # zeros of the padding are multiplied by it, or are not
                assert np.isfinite(e)[~np.isfinite(got)].sum() <= e.size // 4
                assert not np.any(np.isfinite(got) & ~np.isfinite(e))
            else:
                np.testing.assert_array_equal(np.isfinite(got), np.isfinite(e))


def test_a_canonical_nan_is_not_lost_in_a_rounding() -> None:
    # Adding half a unit to 0x7fffffff makes −0 of it.
    g = ConvGeometry(1, 4, 4, (2, 2), (1, 1))
    a = arrays(g)
    for bits in (0x7FFFFFFF, 0xFFFFFFFF, 0x7FC00000):
        a["x"][0, 0, 0, 0] = np.uint32(bits).view(np.float32)
        for stem in STEMS:
            with forced(stem, GATHER_TILES[3], WEIGHT_TILES[2], 1):
                y, _, dweight, _ = results(conv.KERNELS.__getitem__, on_device(a), g)
            assert np.isnan(y[0, :, 0, 0]).all()
            assert np.isfinite(y[0, :, 1]).all()
            assert np.isnan(dweight[:, 0]).all()


@pytest.mark.parametrize("kernel_size", [(1, 1), (3, 2)])
def test_the_bits_are_the_same_at_any_address(kernel_size: tuple[int, int]) -> None:
    g = ConvGeometry(3, 72, 8, kernel_size, kernel_size)  # y is of one pixel, both layouts are one
    a = {name: x.astype("f") for name, x in arrays(g).items()}
    found = []
    for layout in ("C", "odd address"):
        moved = {name: LAYOUTS[layout](x, host.asarray) for name, x in a.items()}
        found.append(in_bits(list(results(conv.KERNELS.__getitem__, moved, g))))
    assert found[0] == found[1]


def test_sums_over_pixels_are_never_long() -> None:
    g = ConvGeometry(1, 4, 4, (70, 71), (1, 1))
    assert g.y_shape[2] * g.y_shape[3] > conv.DEPTH * conv._MOST_STEPS
    with forced(THREE_TERMS, GATHER_TILES[0], WEIGHT_TILES[0], 1):
        check(g, THREE_TERMS)


@pytest.mark.parametrize("stem", STEMS)
def test_the_choice_fills_the_device_and_leaves_few_columns_idle(stem: str) -> None:
    def choice(rows: int, columns: int, steps: int, entries: int | None = None) -> Any:
        size = rows * columns if entries is None else entries
        limits = 9, 132, 227 * 1024
        return conv.tile_and_parts.__wrapped__(
            stem, GATHER_TILES, rows, columns, 1, steps, size, *limits
        )

    assert choice(1 << 18, 512, 100) == (GATHER_TILES[0], 1)
    assert choice(1 << 18, 32, 100)[0].columns == 32
    assert choice(1 << 18, 192, 100)[0].columns == 64
    tile, parts = choice(256, 128, 1000)
    assert tile.blocks(256, 128) * parts > 64
    assert choice(256, 128, 3)[1] == 1
    assert choice(256, 128, 1000, 1 << 24)[1] < parts / 2


@pytest.mark.parametrize("stem", STEMS)
def test_a_tile_fits_the_shared_memory_of_the_device(stem: str) -> None:
    g = ConvGeometry(2, 64, 128, (9, 9), (3, 3))
    for kibibytes in (48, 64, 227):
        asked: list[int] = []
        with (
            mock.patch.object(host.host_device, "shared_limit", return_value=kibibytes * 1024),
            mock.patch.object(host.host_device, "multiprocessors", return_value=1),
            mock.patch.object(conv, "_stem", return_value=stem),
            mock.patch.object(
                host.host_device,
                "launch",
                side_effect=lambda *_, shared=0, asked=asked: asked.append(shared),
            ),
        ):
            results(conv.KERNELS.__getitem__, on_device(arrays(g)), g)
        assert 0 < max(asked) <= kibibytes * 1024 - 1024


@pytest.mark.parametrize(("kibibytes", "taps"), [(48, 1184), (64, 2048)])
def test_a_kernel_of_more_taps_than_shared_memory_holds_is_left_to_the_reference(
    kibibytes: int, taps: int
) -> None:
    def served(taps: int) -> bool:
        x = SimpleNamespace(dtype=np.dtype("f"), size=1, shape=(1, 1, 1, taps))
        return conv.sizes((x,), x.shape, x.shape, 1, 0, 1, 1) is not None

    limit = mock.patch.object(conv.device, "shared_limit", return_value=kibibytes * 1024)
    with limit, mock.patch.object(conv.device, "is_array", return_value=True):
        assert served(taps)
        assert not served(taps + 1)


def test_sums_that_take_much_memory_are_made_of_half_the_batch_at_a_time() -> None:
    g = ConvGeometry(5, 4, 8, (9, 9), (2, 2))
    parts: list[int] = []
    weight_sums = conv._weight_sums

    def noted(*arguments: Any) -> Any:
        found = weight_sums(*arguments)
        parts.append(len(found[0]))
        return found

    with (
        forced(FMA, GATHER_TILES[2], WEIGHT_TILES[2], 1),
        mock.patch.multiple(conv, _MOST_STEPS=2, _MANY_PARTS=4, _MOST_SUMS=5 * 8 * 16),
        mock.patch.object(conv, "_weight_sums", noted),
    ):
        check(g, FMA)
    assert parts == [4, 2, 4, 2, 2]  # of 2, 1, 2, then 3 = 1 + 2 and 5 = 2 + 3 images


def test_what_the_kernels_cannot_count_is_left_to_the_reference() -> None:
    x = SimpleNamespace(dtype=np.dtype("f"), size=1, shape=(1 << 16, 1, 1 << 8, 1 << 8))
    with mock.patch.object(conv.device, "is_array", return_value=True):
        assert conv.sizes((x,), x.shape, (1, 1, 1, 1), 1, 0, 1, 1) is None
        assert conv.sizes((x,), (1, 1, 8, 8), (1, 1, 1, 1), 1, 0, 1, 1) is not None
        assert conv.sizes((x,), (1, 1, 8, 8), (1, 1, 1, 1), 1, 0, 2**31 - 1, 1) is None


@pytest.mark.parametrize(
    ("x_shape", "outputs"),
    [((1, 1, 1, 1), 32 * 65535), ((1, 1, 65535, 4096), 1)],
    ids=["weights to pack", "sums over pixels"],
)
def test_a_grid_is_no_larger_than_a_device_takes(x_shape: tuple[int, ...], outputs: int) -> None:
    x = SimpleNamespace(dtype=np.dtype("f"), size=1, shape=x_shape)
    more = (*x_shape[:3], x_shape[3] + 1) if outputs == 1 else x_shape
    with mock.patch.object(conv.device, "is_array", return_value=True):
        assert conv.sizes((x,), x_shape, (outputs, 1, 1, 1), 1, 0, 1, 1) is not None
        assert conv.sizes((x,), more, (outputs + 1, 1, 1, 1), 1, 0, 1, 1) is None


@pytest.mark.parametrize("kernel", ["conv2d_forward", "conv2d_backward"])
@pytest.mark.parametrize("given", [None, 1.5, [[1.0]], np.float32(1)], ids=str)
def test_what_is_no_array_is_left_to_the_reference(kernel: str, given: Any) -> None:
    a = on_device(arrays(ConvGeometry(1, 2, 2, (3, 3), (2, 2))))
    for name in ("x", "weight"):
        changed = {**a, name: given}
        names = ("x", "weight", "bias") if kernel == "conv2d_forward" else ("dy", "x", "weight")
        assert conv.KERNELS[kernel](*(changed[n] for n in names)) is NotImplemented


# Mistakes in the templates, each of which the emulation must see
MISTAKES = [
    ("  __syncthreads();  // tile t is there for all, and nobody reads tile t − 1 any more\n", ""),
    ("cp_async_wait<STAGES - 2>();", "cp_async_wait<STAGES - 1>();"),
    ("note(0);\n  __syncthreads();", "note(0);"),
    ("if ((t + STAGES) % TOGETHER == 0) note(t + STAGES);", ""),
    ("if (pixel < 0) return;", ""),
    ("pixel < all_pixels\n            ?", "true ?"),
    ("if (splits > 1) bias = nullptr;", ""),
    ("  __syncthreads();\n\n  auto copy", "\n  auto copy"),
    ("if (++tap == taps) tap = 0, channel += DEPTH;", "++tap;"),
]  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_in_the_products_is_seen(mistake: tuple[str, str]) -> None:
    geometries = [
        ConvGeometry(3, 20, 36, (7, 9), (3, 3), (2, 1), (1, 1)),
        ConvGeometry(1, 5, 3, (6, 5), (2, 2)),
        ConvGeometry(1, 32, 4, (4, 5), (2, 2)),
    ]
    text = source.text
    assert mistake[0] in text(FMA)

    def mutated(stem: str) -> str:
        return text(stem).replace(*mistake)

    def try_all() -> None:
        for g, parts, _ in itertools.product(geometries, (1, 2), range(4)):
            with forced(FMA, GATHER_TILES[2], WEIGHT_TILES[2], parts):
                check(g, FMA)

    with (
        mock.patch.object(source, "text", mutated),
        pytest.raises(AssertionError),  # KernelError is one
    ):
        try_all()


@pytest.mark.parametrize(("rows", "inputs", "outputs"), [(5, 7, 3), (130, 100, 68), (33, 129, 10)])
@pytest.mark.parametrize("least", [0, math.inf])
def test_a_linear_map_is_right_as_a_convolution_too(
    rows: int, inputs: int, outputs: int, least: float
) -> None:
    rng = np.random.default_rng(0)
    x, weight, bias, dy = (
        rng.standard_normal(shape).astype("f")
        for shape in ((rows, inputs), (outputs, inputs), (outputs,), (rows, outputs))
    )
    expected = (x @ weight.T + bias, dy @ weight, dy.T @ x, dy.sum(axis=0))
    with mock.patch.object(linear.settings, "three_terms_from", least):
        moved = [host.asarray(a) for a in (x, weight, bias, dy)]
        y = linear.linear_forward(*moved[:3])
        gradients = linear.linear_backward(moved[3], *moved[:2])
        alone = linear.linear_backward(moved[3], *moved[:2], need_dx=False)
    for a, e in zip((y, *gradients), expected, strict=True):
        assert (a.shape, a.dtype) == (e.shape, e.dtype)
        assert np.abs(a - e).max() <= tolerance("float32", "reduction") * np.abs(e).max()
    assert alone[0] is None
    np.testing.assert_array_equal(alone[1], gradients[1])


@pytest.mark.parametrize("rows", [1, 7, 127, 128, 129, 1000])
@pytest.mark.parametrize("columns", [1, 31, 32, 33, 68])
def test_sums_of_columns(rows: int, columns: int) -> None:
    x = np.random.default_rng(0).standard_normal((rows, columns)).astype("f")
    expected = x.sum(axis=0, dtype="d")
    allowed = tolerance("float32", "reduction") * np.abs(x).sum(axis=0, dtype="d").max()
    for least in (1, 256):
        with mock.patch.object(sums, "_ROWS_OF_PART", least):
            assert np.abs(sums.column_sums(host.asarray(x)) - expected).max() <= allowed


@pytest.mark.parametrize("columns", [1, 4, 5, 64])
def test_a_bias_is_added_to_every_row(columns: int) -> None:
    rng = np.random.default_rng(0)
    y, bias = rng.standard_normal((9, columns)).astype("f"), rng.standard_normal(columns)
    written, given_bias = host.asarray(y), host.asarray(bias.astype("f"))
    sums.add_bias(written, given_bias)
    np.testing.assert_array_equal(written, y + given_bias)


class FakeBlas:
    """cuBLAS as its documentation has it, over the host's memory: matrices lie by columns."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, Any]] = []

    def __getattr__(self, name: str) -> Any:
        if "gemm" in name:
            dtype = np.dtype("f" if name.startswith("cublasS") else "d")
            product = self._batched if "Batched" in name else self._product
            return lambda *arguments: product(dtype, *arguments)

        def noted(*arguments: Any) -> int:
            self.calls.append((name, arguments[1:]))
            return 0

        return noted

    def _product(self, dtype, handle, op_a, op_b, m, n, k, alpha, a, lda, b, ldb, beta, c, ldc):  # type: ignore[no-untyped-def]
        self._batched(
            dtype, handle, op_a, op_b, m, n, k, alpha, a, lda, 0, b, ldb, 0, beta, c, ldc, 0, 1
        )
        return 0

    def _batched(
        self, dtype, handle, op_a, op_b, m, n, k, alpha, a, lda, step_a, b, ldb, step_b, beta, c,
        ldc, step_c, count,
    ):  # type: ignore[no-untyped-def]  # fmt: skip
        for i in range(count):
            first = self._by_columns(dtype, a, i * step_a, (k, m) if op_a else (m, k), lda)
            second = self._by_columns(dtype, b, i * step_b, (n, k) if op_b else (k, n), ldb)
            out = self._by_columns(dtype, c, i * step_c, (m, n), ldc)
            product = (first.T if op_a else first) @ (second.T if op_b else second)
            old = beta._obj.value * out if beta._obj.value else 0
            out[...] = alpha._obj.value * product + old
        return 0

    @staticmethod
    def _by_columns(dtype: Any, address: int, start: int, shape: Any, leading: int) -> Any:
        assert leading >= max(1, shape[0])
        kind = ctypes.c_float if dtype == "f" else ctypes.c_double
        memory = (kind * (leading * shape[1])).from_address(address + start * dtype.itemsize)
        return np.frombuffer(memory, dtype).reshape(shape[1], leading).T[: shape[0]]


@pytest.fixture
def blas() -> Iterator[Any]:
    module = host.launchers("blas")["blas"]
    fake = FakeBlas()
    handle = module._Handle.__new__(module._Handle)
    handle.value, handle.workspaces, handle.stream, handle.tf32 = None, {}, None, None
    with (
        mock.patch.object(module, "_library", return_value=fake),
        mock.patch.dict(module._handles, {0: handle}),
    ):
        module.fake = fake
        yield module


class OnDevice(np.ndarray):  # type: ignore[type-arg]
    device = SimpleNamespace(id=0)


@pytest.mark.parametrize("dtype", ["f", "d"])
@pytest.mark.parametrize("batch", [(), (3,)])
@pytest.mark.parametrize("transpose_a", [False, True])
@pytest.mark.parametrize("transpose_b", [False, True])
def test_cublas_is_asked_for_the_product_of_rows(
    blas: Any, dtype: str, batch: tuple[int, ...], transpose_a: bool, transpose_b: bool
) -> None:
    rng = np.random.default_rng(0)
    for beta, (m, n, k) in itertools.product((0.0, 1.0, 0.5), [(2, 3, 4), (1, 1, 1), (5, 2, 1)]):
        a = rng.standard_normal((*batch, *((k, m) if transpose_a else (m, k)))).astype(dtype)
        b = rng.standard_normal((*batch, *((n, k) if transpose_b else (k, n)))).astype(dtype)
        out = rng.standard_normal((*batch, m, n)).astype(dtype).view(OnDevice)
        left, right = (
            x.swapaxes(-1, -2) if flag else x for x, flag in ((a, transpose_a), (b, transpose_b))
        )
        expected = left @ right + beta * out
        blas.gemm(a, b, out, transpose_a=transpose_a, transpose_b=transpose_b, beta=beta)
        np.testing.assert_allclose(out, expected, rtol=1e-5, atol=1e-5)


def test_a_stream_gets_its_workspace_again_whenever_it_is_chosen(blas: Any) -> None:
    a, out = np.ones((2, 2), "f"), np.zeros((2, 2), "f").view(OnDevice)
    for stream in (1, 1, 2, 1):
        with mock.patch.object(blas.device, "stream", lambda stream=stream: stream):
            blas.gemm(a, a, out)
    chosen = [c for c in blas.fake.calls if c[0] != "cublasSetMathMode"]
    assert [name for name, _ in chosen] == 3 * ["cublasSetStream_v2", "cublasSetWorkspace_v2"]
    assert [arguments[0] for _, arguments in chosen[::2]] == [1, 2, 1]
    workspaces = [arguments[0] for _, arguments in chosen[1::2]]
    assert workspaces[0] == workspaces[2] != workspaces[1]


def test_the_settings_choose_the_precision_of_products(blas: Any) -> None:
    a, out = np.ones((2, 2), "f"), np.zeros((2, 2), "f").view(OnDevice)
    for tf32 in (False, False, True, False):
        with mock.patch.object(blas.settings, "tf32", tf32):
            blas.gemm(a, a, out)
    modes = [arguments[0] for name, arguments in blas.fake.calls if name == "cublasSetMathMode"]
    assert modes == [0, 3, 0]


def test_an_error_of_cublas_has_its_name(blas: Any) -> None:
    library = SimpleNamespace(cublasGetStatusName=lambda status: b"CUBLAS_STATUS_NOT_SUPPORTED")
    with (
        mock.patch.object(blas, "_library", return_value=library),
        pytest.raises(RuntimeError, match="cublasSgemm_v2: CUBLAS_STATUS_NOT_SUPPORTED"),
    ):
        blas.check("cublasSgemm_v2", 15)
    blas.check("cublasSgemm_v2", 0)


class FakeBlasLt:
    """What is asked of cuBLASLt, over the host's memory: matrices lie by columns."""

    def __init__(self) -> None:
        self.objects: list[Any] = [None]
        self.heuristics = 0
        self.count = 1

    def _make(self, pointer: Any, made: Any) -> int:
        self.objects.append(made)
        pointer._obj.value = len(self.objects) - 1
        return 0

    def __getattr__(self, name: str) -> Any:
        if name.endswith("Create"):
            return lambda pointer, *arguments: self._make(pointer, {"created": arguments})
        if name.endswith("SetAttribute"):
            return self._set
        assert name == "cublasLtMatmulPreferenceDestroy"
        return lambda preference: 0

    def _set(self, made: Any, attribute: int, value: Any, size: int) -> int:
        assert ctypes.sizeof(value._obj) == size
        self.objects[made.value][attribute] = value._obj.value
        return 0

    def cublasLtMatmulAlgoGetHeuristic(self, *arguments: Any) -> int:
        preference, asked, result, count = self.objects[arguments[6].value], *arguments[7:]
        assert preference == {"created": (), 1: 32 << 20, 3: 6, 5: 16, 6: 16, 7: 16, 8: 16}
        assert asked == 1
        self.heuristics += 1
        result._obj.workspace = 77
        count._obj.value = self.count
        return 0

    def cublasLtMatmul(self, handle, product, alpha, a, a_layout, b, b_layout, beta, c, c_layout, d, d_layout, algorithm, workspace, size, stream):  # type: ignore[no-untyped-def]  # fmt: skip  # noqa: E501
        asked = self.objects[product.value]
        assert (asked[3], asked[7], asked["created"]) == (1, 4, (68, 0))
        assert (alpha._obj.value, beta._obj.value, c) == (1, 0, d)
        assert (algorithm._obj.workspace, size) == (77, 32 << 20)
        assert workspace
        matrices = [
            FakeBlas._by_columns(np.dtype("f"), address, 0, shape[1:3], shape[3])
            for address, shape in (
                (at, self.objects[layout.value]["created"])
                for at, layout in ((a, a_layout), (b, b_layout), (d, d_layout))
            )
        ]
        kind = ctypes.c_float * matrices[2].shape[0]
        bias = np.frombuffer(kind.from_address(asked[8]), np.float32)
        matrices[2][...] = matrices[0].T @ matrices[1] + bias[:, None]
        return 0


class DeviceArray:
    """An array that is none of NumPy's, over one that is."""

    device = SimpleNamespace(id=0)

    def __init__(self, x: Any) -> None:
        self.x, self.shape, self.ctypes = x, x.shape, x.ctypes


@pytest.fixture
def blas_lt(blas: Any) -> Iterator[Any]:
    module = host.launchers("blas_lt")["blas_lt"]
    fake = FakeBlasLt()
    module._plan.cache_clear()
    module._handle.cache_clear()
    with mock.patch.object(module, "_library", return_value=fake):
        module.fake = fake
        yield module
    module._plan.cache_clear()
    module._handle.cache_clear()


def of_linear(rows: int = 5, inputs: int = 3, outputs: int = 4) -> list[Any]:
    """Return x, weight, bias and memory for a result."""
    rng = np.random.default_rng(0)
    shapes = ((rows, inputs), (outputs, inputs), (outputs,), (rows, outputs))
    return [host.asarray(rng.standard_normal(shape).astype("f")) for shape in shapes]


def test_cublaslt_is_asked_for_a_linear_map(blas_lt: Any) -> None:
    for _ in range(2):
        x, weight, bias, out = of_linear()
        assert blas_lt.affine(*map(DeviceArray, (x, weight, bias, out)))
        np.testing.assert_allclose(out, x @ weight.T + bias, rtol=1e-5)
    assert blas_lt.fake.heuristics == 1


def test_where_cublaslt_does_not_serve_nothing_is_done(blas_lt: Any) -> None:
    arrays = of_linear()
    assert not blas_lt.affine(*arrays)  # of the host
    on_device = list(map(DeviceArray, arrays))
    blas_lt.fake.count = 0
    assert not blas_lt.affine(*on_device)
    with mock.patch.object(blas_lt.settings, "cublas_lt", False):
        assert not blas_lt.affine(*on_device)
    with mock.patch.object(blas_lt, "_library", return_value=None):
        assert not blas_lt.affine(*on_device)
