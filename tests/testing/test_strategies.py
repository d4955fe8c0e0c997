"""What the strategies draw, how it shrinks, and what a person sees of a failing example."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import Phase, find, given, settings
from hypothesis import strategies as st

import refkd.testing.strategies as strategies
from refkd.errors import ConfigError, ShapeError
from refkd.losses import PRESETS, KDSpec, distillation_loss
from refkd.testing.layouts import LAYOUTS
from refkd.testing.pairs import PairCase, backward, check_pair, forward
from refkd.testing.strategies import (
    VALUES,
    AttentionShape,
    ConvGeometry,
    DrawnPair,
    arrays,
    attention_shapes,
    conv_geometries,
    distillation_batches,
    kd_specs,
    logits_and_labels,
    pair_cases,
    seeded_array,
    seeded_labels,
    temperatures,
)
from refkd.testing.tolerances import tolerance

LAYOUT_NAMES = ["C", *LAYOUTS]
QUIET = settings(database=None, deadline=None)


def minimal(strategy: st.SearchStrategy[Any], condition: Callable[[Any], bool]) -> Any:
    return find(strategy, condition, settings=settings(QUIET, max_examples=2000))


def found(strategy: st.SearchStrategy[Any], condition: Callable[[Any], bool]) -> Any:
    quick = settings(QUIET, max_examples=5000, phases=[Phase.generate])
    return find(strategy, condition, settings=quick)


def notes_of_failure(
    strategy: st.SearchStrategy[Any], condition: Callable[[Any], Any]
) -> list[str]:
    """Return what hypothesis adds to the failure of "no example meets the condition"."""

    @settings(QUIET, max_examples=2000)  # enough that one is drawn that meets the condition
    @given(strategy)
    def no_example(drawn: Any) -> None:
        if condition(drawn):
            raise ArithmeticError

    with pytest.raises(ArithmeticError) as error:
        no_example()
    return list(error.value.__notes__)


# Arrays


@pytest.mark.parametrize("dtype", ["float64", "float32", "float16"])
@pytest.mark.parametrize(
    ("values", "hold"),
    [
        ("normal", lambda x, info: np.unique(x).size > x.size / 2 and abs(x).max() < 6),
        ("ties", lambda x, info: set(x.flat) == {-1, 0, 1}),
        ("equal", lambda x, info: np.unique(x).size == 1 and x.flat[0] != 0),
        ("zeros", lambda x, info: not x.any() and 0 < np.signbit(x).sum() < x.size),
        (
            "subnormal",
            lambda x, info: (
                (x != 0).all() and abs(x).max() < info.tiny and 0 < np.signbit(x).sum() < x.size
            ),
        ),
        ("large", lambda x, info: 9e3 < abs(x).max() <= 1e4 and x.min() < 0 < x.max()),
        (
            "near-overflow",
            lambda x, info: np.isfinite(x).all() and abs(x).min() >= info.max / 2 and x.min() < 0,
        ),
    ],
)
def test_values_are_of_their_kind(values: str, hold: Callable[..., bool], dtype: str) -> None:
    for seed in range(20):
        x = seeded_array((20, 10), dtype, values=values, seed=seed)
        assert x.dtype == dtype
        assert x.shape == (20, 10)
        assert hold(x, np.finfo(dtype))


@given(arrays(dtype=["float64", "float32"], values=["zeros", "ties"], layouts="read-only"))
def test_an_array_is_drawn_as_asked(x: np.ndarray) -> None:
    assert 1 <= x.ndim <= 4
    assert all(1 <= n <= 5 for n in x.shape)
    assert x.dtype in ("float64", "float32")
    assert set(x.flat) <= {-1, 0, 1}
    assert not x.flags.writeable


@pytest.mark.parametrize("layout", LAYOUT_NAMES)
@pytest.mark.parametrize("byte_order", ["native", "swapped"])
@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_layout_and_byte_order_leave_the_values(layout: str, byte_order: str, dtype: str) -> None:
    for values in VALUES:
        plain = seeded_array((3, 4), dtype, values=values, seed=3)
        x = seeded_array((3, 4), dtype, values=values, layout=layout, byte_order=byte_order, seed=3)
        assert x.dtype.isnative == (byte_order == "native")
        assert x.dtype.newbyteorder("=") == dtype
        assert x.flags.writeable == (layout != "read-only")
        assert x.flags.c_contiguous == (layout in ("C", "read-only"))
        np.testing.assert_array_equal(x.astype(dtype, order="C").view("u1"), plain.view("u1"))


def test_what_lies_between_the_entries_of_a_strided_array_is_nan() -> None:
    x = seeded_array((3, 4), layout="strided")
    assert x.base is not None
    assert np.isnan(x.base).sum() == 4 * x.size - x.size


def test_one_seed_gives_one_array() -> None:
    np.testing.assert_array_equal(seeded_array(50, seed=7), seeded_array((50,), seed=7))
    assert (seeded_array(50, seed=7) != seeded_array(50, seed=8)).all()


@pytest.mark.parametrize(
    ("names", "condition"),
    [
        ({"dtype": ["float64", "float32"]}, lambda x: x.dtype == "float32"),
        ({"byte_orders": ["native", "swapped"]}, lambda x: not x.dtype.isnative),
        ({}, lambda x: not x.flags.writeable),
        ({}, lambda x: x.ndim > 1 and x.flags.f_contiguous and not x.flags.c_contiguous),
        ({}, lambda x: any(s < 0 for s in x.strides)),
        ({}, lambda x: x.strides[-1] == 2 * x.itemsize and x.shape[-1] > 1),
        ({}, lambda x: ((x != 0) & (abs(x) < 1e-300)).any()),
        ({}, lambda x: abs(x).max() > 1e3),
        ({}, lambda x: np.signbit(x).any() and not x.any()),
        ({"values": "near-overflow"}, lambda x: abs(x).max() > 1e307),
        ({"shape": st.just(())}, lambda x: x.shape == ()),
        ({"shape": (0, 3)}, lambda x: x.size == 0),
    ],
)
def test_every_kind_of_array_is_found(
    names: dict[str, Any], condition: Callable[[np.ndarray], bool]
) -> None:
    assert condition(found(arrays(**names), condition))


def test_a_layout_that_fails_shrinks_to_one_plain_entry() -> None:
    x = minimal(arrays(), lambda x: not x.flags.writeable)
    np.testing.assert_array_equal(x, seeded_array(1, layout="read-only", seed=0), strict=True)


def test_what_fails_always_shrinks_to_the_simplest() -> None:
    x = minimal(arrays(dtype=["float32", "float64"]), lambda x: True)
    np.testing.assert_array_equal(x, seeded_array(1, "float32", seed=0), strict=True)
    logits, labels = minimal(logits_and_labels(), lambda batch: True)
    np.testing.assert_array_equal(logits, seeded_array((1, 2), seed=0), strict=True)
    np.testing.assert_array_equal(labels, seeded_labels(1, 2, seed=0), strict=True)
    assert minimal(conv_geometries(), lambda g: True) == ConvGeometry(1, 1, 1, (1, 1), (1, 1))
    assert minimal(attention_shapes(), lambda a: True) == AttentionShape(1, 1, 1, 1, 1)
    assert minimal(temperatures(), lambda t: True) == 1.0
    assert minimal(pair_cases(), lambda drawn: True).seed == 0


def test_a_failing_example_shows_the_call_and_the_numbers() -> None:
    notes = notes_of_failure(arrays(), lambda x: ((x != 0) & (abs(x) < 1e-300)).any())
    (shown,) = [note for note in notes if note.startswith("seeded_array(")]
    call, _, numbers = shown.partition(" = ")
    assert call == "seeded_array((1,), values='subnormal', layout='C', seed=0)"
    # A reader who pastes the call gets the same array.
    np.testing.assert_allclose(eval(call), eval(numbers), rtol=1e-7)


@pytest.mark.parametrize("layout", ["transposed", "strided"])
def test_a_failing_example_names_the_layout(layout: str) -> None:
    notes = notes_of_failure(
        arrays((2, 3), layouts=["C", layout]), lambda x: not x.flags.c_contiguous
    )
    assert any(f", layout='{layout}', seed=0) = [[" in note for note in notes)


def test_a_large_failing_array_is_shown_as_a_call() -> None:
    notes = "\n".join(notes_of_failure(arrays((200, 300)), lambda x: x.size))
    call = r"seeded_array\(\s*\(200, 300\),.*\s*values='normal',.*\s*layout='C',.*\s*seed=0"
    assert re.search(f"drawn={call}", notes)
    assert len(notes) < 2000


def test_a_failing_batch_shows_calls() -> None:
    notes = "\n".join(notes_of_failure(logits_and_labels(), lambda batch: batch[1].size > 2))
    assert "seeded_array((3, 2), values='normal', layout='C', seed=0) = [[" in notes
    assert "seeded_labels(3, 2, dtype='int64', layout='C', seed=0) = [" in notes


def test_a_failing_pair_is_named() -> None:
    notes = "\n".join(notes_of_failure(pair_cases(), lambda drawn: drawn.case.pair == "linear"))
    assert "drawn=<linear: " in notes
    assert "; seed 0>" in notes


@settings(QUIET, max_examples=20)
@given(arrays((500, 500), values=VALUES, layouts=LAYOUT_NAMES))
def test_a_large_array_is_drawn_within_the_health_checks_of_hypothesis(x: np.ndarray) -> None:
    assert x.shape == (500, 500)


# Batches, temperatures, specs


@given(logits_and_labels(max_batch=4, max_classes=7, dtype=["float64", "float32"]))
def test_labels_are_classes_of_their_logits(batch: tuple[np.ndarray, np.ndarray]) -> None:
    logits, labels = batch
    size, classes = logits.shape
    assert logits.dtype in ("float64", "float32")
    assert 1 <= size <= 4
    assert 2 <= classes <= 7
    assert labels.shape == (size,)
    assert labels.dtype in ("int64", "int32", "uint8")
    assert all(0 <= label < classes for label in labels)


@pytest.mark.parametrize(
    "condition",
    [
        lambda logits, labels: labels.dtype == "uint8",
        lambda logits, labels: labels.dtype == "int32",
        lambda logits, labels: len(labels) == 6,
        lambda logits, labels: logits.shape[1] == 10,
        lambda logits, labels: labels.max() == logits.shape[1] - 1 == 9,
        lambda logits, labels: abs(logits).max() > 5e3,
        lambda logits, labels: len(labels) > 1 and not labels.flags.c_contiguous,
        lambda logits, labels: not logits.flags.c_contiguous and labels.flags.c_contiguous,
        lambda logits, labels: logits.shape == (1, 2),
    ],
)
def test_every_kind_of_batch_is_found(condition: Callable[..., bool]) -> None:
    logits, labels = found(logits_and_labels(), lambda batch: condition(*batch))
    assert condition(logits, labels)


NARROW = logits_and_labels(
    min_classes=120, max_classes=140, label_dtypes=["int8", "uint8"], max_batch=1
)


@given(NARROW)
def test_a_label_dtype_too_narrow_for_the_classes_is_not_drawn(
    batch: tuple[np.ndarray, np.ndarray],
) -> None:
    assert np.iinfo(batch[1].dtype).max >= batch[0].shape[1] - 1


def test_a_label_dtype_reaches_its_largest_value() -> None:
    assert seeded_labels(2000, 256, "uint8").max() == 255
    assert seeded_labels(2000, 128, "int8").max() == 127


def test_label_dtypes_are_drawn_up_to_the_classes_they_hold() -> None:
    assert found(NARROW, lambda batch: batch[1].dtype == "int8")[0].shape[1] <= 128
    assert found(NARROW, lambda batch: batch[0].shape[1] == 128)[1].dtype in ("int8", "uint8")
    with pytest.raises(ConfigError, match=r"none of the label_dtypes int8 holds 140 classes"):
        logits_and_labels(max_classes=140, label_dtypes="int8")


@given(distillation_batches(dtype=["float64", "float32"]), kd_specs())
def test_a_distillation_batch_fits_every_spec(
    batch: tuple[np.ndarray, np.ndarray, np.ndarray], spec: KDSpec
) -> None:
    student, teacher, labels = batch
    assert (student.shape, student.dtype) == (teacher.shape, teacher.dtype)
    assert not np.shares_memory(student, teacher)
    value, gradient = distillation_loss(student, teacher, labels, spec)
    assert np.isfinite(value)
    assert (gradient.shape, gradient.dtype) == (student.shape, student.dtype)


def test_students_with_and_without_their_teachers_logits_are_found() -> None:
    for equal in (True, False):
        student, teacher, _ = found(
            distillation_batches(), lambda b, e=equal: np.array_equal(b[0], b[1]) == e
        )
        assert np.array_equal(student, teacher) == equal


def test_teaching_and_hard_temperatures_are_among_the_first_hundred() -> None:
    drawn = set()

    @settings(QUIET, derandomize=True, max_examples=100)
    @given(temperatures())
    def collect(temperature: float) -> None:
        drawn.add(temperature)

    collect()
    assert {1.0, 2.0, 4.0, 20.0, 0.01, 100.0} < drawn
    assert all(isinstance(t, float) and 0.01 <= t <= 100 for t in drawn)
    assert len(drawn) > 20


@given(temperatures(3, 5))
def test_temperatures_keep_to_their_range(temperature: float) -> None:
    assert 3 <= temperature <= 5


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_is_drawn_with_its_own_parameters(name: str) -> None:
    spec = minimal(kd_specs(name, st.just(8.0)), lambda spec: True)
    assert spec.temperature == 8
    simplest = {"torchdistill": {}, "labml": {"soft_weight": 1.0, "hard_weight": 1.0}}
    for free in ("textbrewer", "googlenet-published", "googlenet-intended"):
        simplest[free] = simplest["labml"]
    assert spec == KDSpec.preset(name, temperature=8.0, **simplest.get(name, {"alpha": 0.5}))


@pytest.mark.parametrize(
    "condition",
    [
        *(
            lambda s, d=d: s.divergence == d
            for d in ("cross_entropy", "reverse_kl", "kl_without_log")
        ),
        *(
            lambda s, r=r: s.divergence == "reverse_kl" and s.reduction == r
            for r in ("sum", "mean")
        ),
        *(lambda s, a=a: s.alpha_weights == a and s.reduction == "sum" for a in ("hard", "soft")),
        lambda s: s.alpha_weights is None and not s.t_squared and s.soft_weight > 100,
        lambda s: s.hard_weight == 0 and s.soft_weight == 0,
        # The signatures of labml, deit, kd_lib and KLDivLoss's mean among all specs.
        lambda s: (s.reduction, s.t_squared, s.alpha) == ("mean", False, None),
        lambda s: (s.reduction, s.alpha_weights) == ("mean", "soft") and s.soft_weight == s.alpha,
        lambda s: s.soft_weight == 2 * (s.alpha or 9),
        lambda s: s.divergence == "mse_probabilities" and s.alpha == 0.9,
    ],
)
def test_every_kind_of_spec_is_found(condition: Callable[[KDSpec], bool]) -> None:
    assert condition(found(kd_specs(), condition))


# Geometries


@given(conv_geometries(max_batch=2, max_channels=5, max_size=7, max_kernel=4))
def test_a_convolution_has_as_many_outputs_as_places_for_its_kernel(g: ConvGeometry) -> None:
    for n, k, s, p, d, out in zip(
        g.input_size, g.kernel_size, g.stride, g.padding, g.dilation, g.output_size, strict=True
    ):
        places = [i for i in range(0, n + 2 * p, s) if i + d * (k - 1) < n + 2 * p]
        assert out == len(places) >= 1
    assert g.x_shape == (g.batch, g.in_channels, *g.input_size)
    assert g.y_shape == (g.batch, g.out_channels, *g.output_size)
    assert g.weight_shape == (g.out_channels, g.in_channels // g.groups, *g.kernel_size)
    assert g.bias_shape == (g.out_channels,)
    assert g.in_channels % g.groups == g.out_channels % g.groups == 0
    assert max(g.x_shape) <= 7
    assert max(g.in_channels, g.out_channels) <= 5
    assert g.batch <= 2
    assert max(g.kernel_size) <= 4
    assert (
        ConvGeometry(
            g.batch, g.in_channels, g.out_channels, g.input_size, g.kernel_size, **g.options
        )
        == g
    )


@pytest.mark.parametrize(
    "condition",
    [
        lambda g: 1 < g.groups == g.in_channels < g.out_channels,
        lambda g: 1 < g.groups < min(g.in_channels, g.out_channels),
        lambda g: (g.groups, g.in_channels, g.out_channels) == (2, 6, 4),
        lambda g: g.output_size == (1, 1) and g.kernel_size == g.input_size == (3, 3),
        lambda g: g.stride[0] != g.stride[1] and min(g.output_size) > 1,
        lambda g: g.dilation == (3, 3) and min(g.kernel_size) > 1,
        lambda g: g.padding == (2, 2) and g.input_size == (1, 1),
        lambda g: g.stride == (3, 3) and max(g.kernel_size) == 1,
        lambda g: g.batch > 1 and g.input_size[0] != g.input_size[1],
    ],
)
def test_every_kind_of_convolution_is_found(condition: Callable[[ConvGeometry], bool]) -> None:
    assert condition(found(conv_geometries(), condition))


def test_a_convolution_that_is_none_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"groups=2 must divide in_channels=3"):
        ConvGeometry(1, 3, 2, (3, 3), (1, 1), groups=2)
    with pytest.raises(ConfigError, match=r"groups=2 must divide .* out_channels=3"):
        ConvGeometry(1, 2, 3, (3, 3), (1, 1), groups=2)
    with pytest.raises(ShapeError, match=r"kernel_size=\(1, 3\) .* does not fit"):
        ConvGeometry(1, 1, 1, (4, 4), (1, 3), dilation=(1, 2))


@given(attention_shapes(max_length=5))
def test_every_query_may_attend_to_a_key(shape: AttentionShape) -> None:
    scores = (shape.batch, shape.heads, shape.query_length, shape.key_length)
    assert (*shape.query_shape[:3], shape.key_shape[2]) == scores
    assert shape.query_shape[3] == shape.key_shape[3] == shape.head_dim
    allowed = np.broadcast_to(True if shape.allowed is None else shape.allowed, scores)
    for b, h, i, j in np.ndindex(scores):
        expected = {
            "none": True,
            "causal": j <= i,
            "padding": shape.mask != "padding" or j < shape.key_lengths[b],
        }
        assert allowed[b, h, i, j] == expected[shape.mask]
    assert allowed.any(axis=-1).all()


@pytest.mark.parametrize(
    "condition",
    [
        lambda a: a.query_length < a.key_length and a.mask == "causal",
        lambda a: a.query_length > a.key_length and a.mask == "causal",
        lambda a: a.query_length == a.key_length == 6,
        lambda a: len(set(a.key_lengths)) == 3,
        lambda a: a.mask == "none" and a.head_dim == 5 and a.heads == 3,
    ],
)
def test_every_kind_of_attention_is_found(condition: Callable[[AttentionShape], bool]) -> None:
    assert condition(found(attention_shapes(), condition))


@given(attention_shapes(masks="padding"))
def test_only_the_masks_asked_for_are_drawn(shape: AttentionShape) -> None:
    assert shape.mask == "padding"


@pytest.mark.parametrize("lengths", [(), (1,), (0, 1), (1, 4), (1, 1, 1)])
def test_key_lengths_that_do_not_fit_are_refused(lengths: tuple[int, ...]) -> None:
    with pytest.raises(ConfigError, match=r"key_lengths must be 2 numbers from 1 to 3"):
        AttentionShape(2, 1, 1, 3, 1, "padding", lengths)


# The project's own pairs


def relaid(inputs: dict[str, Any], layout: str) -> dict[str, Any]:
    return {
        name: LAYOUTS[layout](value) if isinstance(value, np.ndarray) else value
        for name, value in inputs.items()
    }


def gradients(case: PairCase, inputs: dict[str, Any], cotangent: Any) -> tuple[Any, ...]:
    return backward(case, cotangent, inputs, forward(case, inputs))


@given(pair_cases(), st.sampled_from(sorted(LAYOUTS)))
def test_a_backward_is_the_derivative_of_its_forward_in_any_layout(
    drawn: DrawnPair, layout: str
) -> None:
    case, seed = drawn
    check_pair(case, seed).raise_if_failed()
    rng = case.generator(seed)
    inputs = case.inputs(rng)
    cotangent = np.asarray(rng.standard_normal(np.shape(forward(case, inputs)[0])))
    expected = gradients(case, inputs, cotangent)
    actual = gradients(case, relaid(inputs, layout), LAYOUTS[layout](cotangent))
    for a, e in zip(actual, expected, strict=True):
        assert (a is None) == (e is None)
        if e is not None:
            allowed = tolerance("float64", "reduction") * np.max(np.abs(e), initial=0)
            assert np.max(np.abs(a - e), initial=0) <= allowed


# Bad input


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: arrays(dtype="float46"), "arrays: dtype .* did you mean 'float64'"),
        (lambda: arrays(dtype="int64"), "arrays: dtype must be one of 'float64', 'float32'"),
        (lambda: arrays(values=["normal", "tie"]), "arrays: values .* did you mean 'ties'"),
        (lambda: arrays(layouts=[]), "arrays: layouts is empty, expected some of C, transposed"),
        (lambda: arrays(byte_orders="big"), "arrays: byte_orders must be one of 'native'"),
        (lambda: seeded_array(3, values="tie"), "seeded_array: values"),
        (lambda: seeded_array(3, layout="F"), "seeded_array: layout"),
        (lambda: seeded_array(3, "int8"), "seeded_array: dtype"),
        (lambda: seeded_array(3, byte_order="<"), "seeded_array: byte_order"),
        (lambda: seeded_labels(3, 257, "uint8"), "seeded_labels: dtype must be one of 'int64'"),
        (lambda: logits_and_labels(min_classes=0), "classes must go from at least 1"),
        (lambda: seeded_labels(3, 3, layout="F"), "seeded_labels: layout"),
        (lambda: logits_and_labels(max_batch=0), "batch must go from at least 1"),
        (lambda: distillation_batches(min_classes=11), "classes must .* got 11 to 10"),
        (lambda: logits_and_labels(label_dtypes="float64"), "logits_and_labels: label_dtypes"),
        (lambda: temperatures(0), "temperatures: min_value"),
        (lambda: temperatures(1, np.inf), "temperatures: max_value"),
        (lambda: temperatures(2, 1), "min_value 2 is greater than max_value 1"),
        (lambda: kd_specs("hinto"), "kd_specs: preset .* did you mean 'hinton'"),
        (lambda: conv_geometries(max_kernel=0), "conv_geometries: max_kernel"),
        (lambda: attention_shapes(masks="casual"), "did you mean 'causal'"),
        (lambda: AttentionShape(1, 1, 1, 1, 1, "mask"), "AttentionShape: mask"),
    ],
)
def test_bad_arguments_are_refused_where_they_are_given(
    make: Callable[[], Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        make()


def test_without_hypothesis_the_error_names_the_extra() -> None:
    code = (
        "import sys; sys.modules['hypothesis'] = None\n"
        "from refkd.errors import MissingExtra\n"
        "try:\n    import refkd.testing.strategies\n"
        "except MissingExtra as error:\n    print(error)"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert "refkd.testing.strategies needs hypothesis" in result.stdout
    assert "pip install 'refkd[testing]'" in result.stdout


def test_every_public_name_is_there() -> None:
    assert [name for name in strategies.__all__ if not hasattr(strategies, name)] == []
