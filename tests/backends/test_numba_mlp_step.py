"""The Numba backend's training step of multilayer perceptrons, against the reference's."""

from __future__ import annotations

import copy
import dataclasses
import itertools
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from refkd.data.dataset import Normalization, Split, to_batch
from refkd.dispatch import get_backend, use_backend
from refkd.distill import (
    Batch,
    LogitDistillation,
    Objective,
    Stage,
    Supervised,
    frozen_logits,
    select,
)
from refkd.errors import BackendUnavailable, ConfigError, DtypeError, NonFiniteError
from refkd.losses import KDSpec
from refkd.models import create
from refkd.nn import Conv2d, Dropout, Flatten, Linear, ReLU, Sequential, Tanh
from refkd.nn.layer import add_prefix
from refkd.train.loop import begin, train
from refkd.train.optim import SGD, Adam, AdamW
from refkd.train.schedule import Cosine
from refkd.train.step import EagerStep
from tests.backends.surroundings import surroundings
from tests.train.trainings import assert_same_bits, snapshot

try:
    numba = get_backend("numba")
except BackendUnavailable as reason:
    pytest.skip(str(reason), allow_module_level=True)

from refkd_numba import team
from refkd_numba.mlp import step as step_module
from refkd_numba.mlp.step import MLPStep

SPEC = KDSpec.preset("hinton", temperature=3.0, alpha=0.4)
# With the usual eps a first step is the sign of the gradient, and so of its rounding.
OPTIMIZERS = (
    SGD(0.1),
    SGD(0.1, weight_decay=0.05),
    SGD(0.05, momentum=0.9),
    SGD(0.05, momentum=0.8, nesterov=True, weight_decay=0.01),
    Adam(0.02, eps=0.1),
    Adam(0.02, betas=(0.5, 0.7), eps=0.1, weight_decay=0.05),
    AdamW(0.02, eps=0.1),
)
SPECS = st.builds(
    KDSpec,
    st.floats(0.3, 6),
    st.sampled_from([0.0, 0.3, 2.0]),
    st.sampled_from([0.0, 0.7]),
    t_squared=st.booleans(),
    reduction=st.sampled_from(["batchmean", "mean", "sum"]),
    divergence=st.sampled_from(["kl", "cross_entropy"]),
)


def network(*widths: int, dropout: float = 0.0) -> Sequential:
    return create(
        "mlp",
        in_features=widths[0],
        hidden=widths[1:-1],
        num_classes=widths[-1],
        dropout=dropout,
    )


@dataclasses.dataclass
class Start:
    """Where both steps begin."""

    params: dict[str, Any]
    moments: dict[str, Any]
    batches: list[Batch]

    def copy(self) -> Start:
        return copy.deepcopy(self)


def start(objective: Objective, optimizer: Any, rows: list[int], *, stored: bool = False) -> Start:
    """Draw parameters of all networks, and batches of the given sizes."""
    rng = np.random.default_rng(0)
    params: dict[str, Any] = {}
    for name, layer in objective.networks.items():
        params |= add_prefix(name, layer.init(rng)[0])
    learns = {k: v for k, v in params.items() if k.partition(".")[0] in objective.learns}
    shapes = [array.shape for array in select(params, objective.learns[0]).values()]
    features, classes = shapes[0][1], shapes[-1][0]
    batches = [
        Batch(
            rng.standard_normal((count, features)).astype(np.float32),
            rng.integers(classes, size=count),
            rng.standard_normal((count, classes)).astype(np.float32) if stored else None,
            max(rows),
            step=step,
        )
        for step, count in enumerate(rows)
    ]
    return Start(params, optimizer.init(learns), batches)


def take(step: Any, at: Start, *, lr: float = 0.03, seed: int = 1) -> list[dict[str, float]]:
    """Take one step for each batch; return the terms of all."""
    rng = np.random.default_rng(seed)
    with np.errstate(all="ignore"):
        return [
            step(at.params, {}, at.moments, batch, rng, lr=lr, where="here")[0]
            for batch in at.batches
        ]


def compiled(objective: Objective, optimizer: Any) -> MLPStep:
    step = numba.compile_step(objective, optimizer)
    assert type(step) is MLPStep
    return step


def assert_close(actual: Start, expected: Start, begun: Start) -> None:
    """Require the same movements, up to rounding of what moved."""
    for group in ("params", "moments"):
        for name, array in getattr(expected, group).items():
            moved = largest_difference(array, getattr(begun, group)[name])
            largest = np.abs(array[np.isfinite(array)]).max(initial=0)
            error = largest_difference(getattr(actual, group)[name], array)
            assert error <= 5e-5 * moved + 3e-7 * largest, name


def largest_difference(a: Any, b: Any) -> float:
    differ = a != b  # an infinite entry may stay what it is
    return float(np.abs(a[differ] - b[differ]).max(initial=0))


@st.composite
def problems(draw: st.DrawFn) -> tuple[Objective, Any, list[int], bool]:
    """Draw an objective, an optimiser, batch sizes, and whether teacher logits are stored."""
    width = st.integers(1, 40)
    features, classes = draw(st.integers(1, 50)), draw(st.integers(1, 20))
    dropout = draw(st.sampled_from([0.0, 0.0, 0.2, 0.5, 1.0]))
    learner = network(
        features, *draw(st.lists(width, max_size=3)), classes, dropout=dropout
    )  # fmt: skip
    rows = draw(st.lists(st.integers(1, 70), min_size=2, max_size=3))
    optimizer = draw(st.sampled_from(OPTIMIZERS))
    if draw(st.booleans()):
        smoothing = draw(st.sampled_from([0.0, 0.1, 1.0]))
        return Supervised(learner, draw(st.sampled_from(["student", "x"])), smoothing), (
            optimizer
        ), rows, False  # fmt: skip
    stored = draw(st.booleans())
    teacher = network(features, *draw(st.lists(width, max_size=2)), classes, dropout=0.3)
    objective = LogitDistillation(
        learner,
        None if stored and draw(st.booleans()) else teacher,
        draw(SPECS),
        student_eval_from=draw(st.sampled_from([None, 0, 1])),
        exact=draw(st.booleans()),
    )
    return objective, optimizer, rows, stored


@pytest.mark.parametrize("around", ["as it is", "three threads, poisoned memory"])
@settings(max_examples=60)
@given(problem=problems())
def test_steps_are_those_of_the_reference(around: str, problem: Any) -> None:
    objective, optimizer, rows, stored = problem
    begun = start(objective, optimizer, rows, stored=stored)
    expected, actual = begun.copy(), begun.copy()
    expected_terms = take(EagerStep(objective, optimizer), expected)
    with use_backend("numba"), surroundings("numba")[around]():
        terms = take(compiled(objective, optimizer), actual)
    spec = objective.spec if isinstance(objective, LogitDistillation) else SPEC
    # A divergence is a difference of logarithms, whose errors T² multiplies.
    scale = max(1.0, spec.effective_soft_weight)
    for a, b, rows_of_batch in zip(terms, expected_terms, rows, strict=True):
        assert list(a) == list(b)
        largest = max(map(abs, b.values()))
        summed = rows_of_batch if spec.reduction == "sum" else 1
        assert all(abs(a[k] - b[k]) <= 1e-5 * largest + 1e-6 * scale * summed for k in b)
        assert all(np.float32(value) == value for value in a.values())
    assert_close(actual, expected, begun)


def test_dropout_leaves_the_generator_where_the_reference_does() -> None:
    objective = Supervised(network(5, 7, 6, 3, dropout=0.4))
    states = []
    for step in (EagerStep(objective, SGD(0.1)), compiled(objective, SGD(0.1))):
        at, rng = start(objective, SGD(0.1), [9, 4]), np.random.default_rng(3)
        for batch in at.batches:
            step(at.params, {}, at.moments, batch, rng, lr=0.1, where="here")
        states.append(rng.bit_generator.state)
    assert states[0] == states[1]


@pytest.mark.parametrize("label", [-1, -2])
@pytest.mark.parametrize("width", [7, 3000])
def test_labels_that_count_from_the_end_draw_once(label: int, width: int) -> None:
    objective = Supervised(network(5, width, 3, dropout=0.5))
    begun = start(objective, SGD(0.1), [9, 4])
    begun.batches[0].labels[5] = label
    expected, actual = begun.copy(), begun.copy()
    found = []
    for step, at in (
        (EagerStep(objective, SGD(0.1)), expected),
        (compiled(objective, SGD(0.1)), actual),
    ):
        rng = np.random.default_rng(3)
        for batch in at.batches:
            terms, _ = step(at.params, {}, at.moments, batch, rng, lr=0.1, where="here")
            found.append((terms["loss"], rng.bit_generator.state))
    for (loss, state), (reference_loss, reference_state) in zip(found[2:], found[:2], strict=True):
        assert loss == pytest.approx(reference_loss, rel=1e-5)
        assert state == reference_state
    assert_close(actual, expected, begun)


def test_a_student_in_evaluation_draws_nothing() -> None:
    objective = LogitDistillation(network(5, 7, 3, dropout=0.4), None, SPEC, student_eval_from=2)
    step = compiled(objective, SGD(0.1))
    at, rng = start(objective, SGD(0.1), [9], stored=True), np.random.default_rng(3)
    begun = rng.bit_generator.state
    for epoch, moves in ((2, False), (1, True), (3, False)):
        rng.bit_generator.state = begun
        batch = at.batches[0]._replace(epoch=epoch)
        step(at.params, {}, at.moments, batch, rng, lr=0.1, where="here")
        assert (rng.bit_generator.state != begun) is moves


BIG = network(300, 400, 350, 10, dropout=0.3)


def test_large_products_are_shared_and_the_bits_do_not_depend_on_the_threads(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    objective = LogitDistillation(BIG, network(300, 500, 10), SPEC)
    results = []
    for threads in (1, 2, 3):
        at = start(objective, Adam(0.01), [64, 33])
        monkeypatch.setattr(team, "worker_threads", lambda threads=threads: threads)
        monkeypatch.setattr(step_module, "worker_threads", lambda threads=threads: threads)
        step = compiled(objective, Adam(0.01))
        terms = take(step, at)
        program = next(iter(step._programs.values()))
        assert any(worth for _, _, worth in program.calls) is (threads > 1)
        results.append((terms, at.params, at.moments))
    for other in results[1:]:
        np.testing.assert_equal(other, results[0])


def test_large_steps_are_those_of_the_reference() -> None:
    objective = LogitDistillation(BIG, network(300, 500, 10), SPEC)
    begun = start(objective, Adam(0.01, eps=0.1), [128, 100])
    expected, actual = begun.copy(), begun.copy()
    take(EagerStep(objective, Adam(0.01, eps=0.1)), expected)
    take(compiled(objective, Adam(0.01, eps=0.1)), actual)
    assert_close(actual, expected, begun)


NORMALIZATION = Normalization(1 / 255)


def split(rows: int = 90, logits: Any = None) -> Split:
    rng = np.random.default_rng(0)
    images = rng.integers(256, size=(rows, 1, 8, 8)).astype(np.uint8)
    return Split(images, rng.integers(10, size=rows), logits)


def stage(objective: Objective, **settings: Any) -> Stage:
    given: dict[str, Any] = {"epochs": 3, "batch_size": 32, "ema_decay": 0.9, **settings}
    return Stage(objective, Adam(0.01), Cosine(), **given)


STUDENT = network(64, 24, 16, 10, dropout=0.3)
TEACHER = network(64, 50, 50, 10, dropout=0.5)


@pytest.mark.parametrize("batch_size", [32, 20, 7])
def test_stored_and_live_logits_give_the_same_bits(batch_size: int) -> None:
    params, state = TEACHER.init(np.random.default_rng(5))
    images = to_batch(split().images, NORMALIZATION, np.float32)
    with use_backend("numba"):
        logits = frozen_logits(TEACHER, params, state, images, block=batch_size)
        trained = []
        for teacher, data, frozen, exact in (
            (TEACHER, split(), add_prefix("teacher", params), True),
            (TEACHER, split(), add_prefix("teacher", params), False),
            (None, split(logits=logits), {}, True),
        ):
            plan = stage(
                LogitDistillation(STUDENT, teacher, SPEC, exact=exact), batch_size=batch_size
            )
            progress = begin([plan], 5, frozen_params=frozen)
            train([plan], progress, data, normalization=NORMALIZATION)
            held = snapshot(progress)
            held["params"] = add_prefix("student", select(held["params"], "student"))
            trained.append(held)
    for other in trained[1:]:
        assert_same_bits(other, trained[0])


@pytest.mark.parametrize("stored", [True, False])
def test_the_teacher_s_parameters_are_needed_only_where_it_is_evaluated(
    stored: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    objective, optimizer = LogitDistillation(STUDENT, TEACHER, SPEC), Adam(0.01)
    at = start(objective, optimizer, [9, 5], stored=stored)
    expected = at.copy()
    terms = take(compiled(dataclasses.replace(objective, exact=True), optimizer), expected)
    if stored:
        at.params = add_prefix("student", select(at.params, "student"))
    step = compiled(objective, optimizer)

    def fail(*arguments: Any, **options: Any) -> None:
        raise AssertionError("the step was left to the kernels")

    monkeypatch.setattr(EagerStep, "__call__", fail)
    assert take(step, at) == terms
    for name, array in at.params.items():
        assert array.tobytes() == expected.params[name].tobytes(), name


class Interrupted(Exception):
    """Ends a training between two steps."""


@dataclasses.dataclass
class Interrupt:
    """A monitor that keeps a copy after some steps, and stops."""

    after: int
    steps: int = 0

    def after_step(self, progress: Any, steps_per_epoch: int) -> None:
        self.steps += 1
        if self.steps == self.after:
            raise Interrupted

    def after_epoch(self, progress: Any, record: Any) -> None: ...


@pytest.mark.parametrize("after", [1, 3, 4])
def test_a_resumed_training_continues_bit_for_bit_and_two_are_the_same(after: int) -> None:
    plan = stage(Supervised(STUDENT, label_smoothing=0.1))
    with use_backend("numba"):
        runs = [begin([plan], 7) for _ in range(3)]
        for progress in runs[:2]:
            train([plan], progress, split(), normalization=NORMALIZATION)
        with pytest.raises(Interrupted):
            train([plan], runs[2], split(), normalization=NORMALIZATION, monitor=Interrupt(after))
        resumed = copy.deepcopy(runs[2])
        train([plan], resumed, split(), normalization=NORMALIZATION)
    assert_same_bits(snapshot(runs[1]), snapshot(runs[0]))
    assert_same_bits(snapshot(resumed), snapshot(runs[0]))


def test_a_training_is_the_reference_training_up_to_rounding() -> None:
    plan = stage(LogitDistillation(STUDENT, TEACHER, SPEC), epochs=2)
    params, _ = TEACHER.init(np.random.default_rng(5))
    histories = []
    for backend in ("numpy", "numba"):
        with use_backend(backend):
            progress = begin([plan], 5, frozen_params=add_prefix("teacher", params))
            train([plan], progress, split(), normalization=NORMALIZATION)
        histories.append(progress.history)
    for a, b in zip(*histories, strict=True):
        assert a.keys() == b.keys()
        assert a == pytest.approx(b, rel=1e-4)


def message(step: Any, at: Start) -> str:
    """Take a step that must fail and write nothing; return what it says."""
    before = at.copy()
    with pytest.raises(NonFiniteError, match=r"^here: ") as caught:
        take(step, at)
    np.testing.assert_equal(at.params, before.params)
    np.testing.assert_equal(at.moments, before.moments)
    return str(caught.value)


def spoil_image(at: Start, value: float) -> None:
    at.batches[0].images[-1, 2] = value


def spoil_logits(at: Start, value: float) -> None:
    at.batches[0].teacher_logits[1, 1] = value


def spoil(name: str) -> Callable[[Start, float], None]:
    def spoil_parameter(at: Start, value: float) -> None:
        at.params[name].flat[-1] = value

    return spoil_parameter


SPOILS = [
    spoil_image,
    *map(spoil, ("student.fc1.weight", "student.fc2.bias", "student.fc3.weight")),
]


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, 1e36])
@pytest.mark.parametrize(
    ("objective", "spoils"),
    [
        (Supervised(network(6, 9, 8, 4)), SPOILS),
        (LogitDistillation(network(6, 9, 8, 4), None, SPEC), [*SPOILS, spoil_logits]),
        (
            LogitDistillation(network(6, 9, 8, 4), network(6, 5, 4), SPEC),
            [*SPOILS, spoil("teacher.fc1.weight"), spoil("teacher.fc2.bias")],
        ),
    ],
    ids=["supervised", "stored", "live"],
)
def test_what_is_not_finite_stops_both_steps_with_one_message(
    objective: Any, spoils: Any, value: float
) -> None:
    for spoiler, optimizer in itertools.product(spoils, (SGD(0.1, momentum=0.9), Adam(0.1))):
        stored = isinstance(objective, LogitDistillation) and objective.teacher is None
        at = start(objective, optimizer, [37], stored=stored)
        spoiler(at, value)
        eager, own = EagerStep(objective, optimizer), compiled(objective, optimizer)
        other, before = at.copy(), at.copy()
        stops = None
        try:
            take(eager, other)
        except NonFiniteError as error:
            stops = str(error)
        if stops is not None:
            assert message(own, at) == stops
            continue
        take(own, at)
        assert_close(at, other, before)


def test_a_gradient_that_overflows_is_named_and_one_that_nearly_does_is_not() -> None:
    linear = network(3, 4)
    for size, overflows in ((2e38, False), (3.3e38, True)):
        objective = LogitDistillation(linear, None, KDSpec(1.0, 1.5, 0.0))
        optimizer = SGD(1e-39)
        at = start(objective, optimizer, [20], stored=True)
        at.params["student.fc1.weight"][...] = 0
        at.batches[0].images[...] = size
        at.batches[0].labels[...] = 1
        other, before = at.copy(), at.copy()
        own, eager = compiled(objective, optimizer), EagerStep(objective, optimizer)
        if overflows:
            expected = message(eager, other)
            assert "the gradient of 'student.fc1.weight' holds NaN or infinity" in expected
            assert message(own, at) == expected
        else:
            take(eager, other, lr=1e-39)
            take(own, at, lr=1e-39)
            assert_close(at, other, before)


def test_after_a_doubtful_step_the_next_one_updates_again() -> None:
    objective, optimizer = Supervised(network(3, 4)), Adam(0.1, eps=0.1)
    begun = start(objective, optimizer, [5, 5, 5])
    begun.batches[1].images[...] = 1e25  # finite gradients, whose bound is not
    expected, actual = begun.copy(), begun.copy()
    take(EagerStep(objective, optimizer), expected)
    take(compiled(objective, optimizer), actual)
    assert int(actual.moments["step"]) == 3
    for name, array in expected.params.items():
        np.testing.assert_allclose(actual.params[name], array, rtol=1e-4, atol=1e-6)


def test_after_an_interrupted_doubtful_step_the_next_one_updates_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    objective, optimizer = Supervised(network(3, 4)), SGD(0.1, momentum=0.9)
    begun = start(objective, optimizer, [5])
    begun.batches[0].images[...] = 1e25
    expected, actual, step = begun.copy(), begun.copy(), compiled(objective, optimizer)

    def interrupt(*_: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(step_module, "gradient_program", interrupt)
        with pytest.raises(KeyboardInterrupt):
            take(step, actual)
    for state in (expected, actual):
        state.batches[0].images[...] = 1
    actual.params, actual.moments = begun.copy().params, begun.copy().moments
    take(step, actual)
    take(EagerStep(objective, optimizer), expected)
    for name, array in expected.params.items():
        np.testing.assert_allclose(actual.params[name], array, rtol=1e-4, atol=1e-6)


def test_arrays_in_the_place_of_others_are_the_ones_that_are_written() -> None:
    objective, optimizer = Supervised(network(5, 6, 3)), Adam(0.1)
    begun = start(objective, optimizer, [8])
    once, step = begun.copy(), compiled(objective, optimizer)
    take(step, once)
    for group in ("params", "moments"):
        for name in getattr(begun, group):
            at = begun.copy()
            take(step, at)
            old = getattr(at, group)[name]
            kept = old.copy()
            getattr(at, group)[name] = begun.copy().__dict__[group][name]
            take(step, at)
            np.testing.assert_array_equal(old, kept)


def test_labels_images_and_logits_come_in_any_layout() -> None:
    objective, optimizer = LogitDistillation(network(12, 6, 3), None, SPEC), SGD(0.1)
    begun = start(objective, optimizer, [10], stored=True)
    plain = begun.copy()
    (expected,) = take(compiled(objective, optimizer), plain)
    batch = begun.batches[0]
    assert batch.teacher_logits is not None
    for images, labels, logits in (
        (batch.images.reshape(10, 3, 2, 2), batch.labels.astype(np.uint8), batch.teacher_logits),
        (np.asfortranarray(batch.images), batch.labels.astype(np.int16), batch.teacher_logits),
        (np.repeat(batch.images, 2, axis=1)[:, ::2], np.repeat(batch.labels, 2)[::2],
         np.asfortranarray(batch.teacher_logits)),
    ):  # fmt: skip
        at = begun.copy()
        at.batches[0] = Batch(images, labels, logits, 10)
        (terms,) = take(compiled(objective, optimizer), at)
        assert terms == expected
        np.testing.assert_equal(at.params, plain.params)


def test_double_precision_is_left_to_the_kernels() -> None:
    objective, optimizer = Supervised(network(5, 6, 3, dropout=0.5)), Adam(0.1)
    begun = start(objective, optimizer, [8, 3])
    begun.params = {name: array.astype(np.float64) for name, array in begun.params.items()}
    begun.moments = optimizer.init(begun.params)
    begun.batches = [b._replace(images=b.images.astype(np.float64)) for b in begun.batches]
    expected, actual = begun.copy(), begun.copy()
    assert take(compiled(objective, optimizer), actual) == take(
        EagerStep(objective, optimizer), expected
    )
    np.testing.assert_equal(actual.params, expected.params)


def test_what_does_not_fit_ends_in_the_errors_of_the_reference() -> None:
    objective, optimizer = LogitDistillation(network(5, 6, 3), None, SPEC), SGD(0.1)
    begun = start(objective, optimizer, [8], stored=True)
    batch = begun.batches[0]
    assert batch.teacher_logits is not None
    for changed, error in (
        (batch._replace(images=batch.images.astype(np.float64)), DtypeError),
        (batch._replace(labels=batch.labels.astype(np.float32)), DtypeError),
        (batch._replace(teacher_logits=batch.teacher_logits.astype(np.float64)), DtypeError),
        (batch._replace(teacher_logits=None), ConfigError),
        (batch._replace(labels=batch.labels + 1), IndexError),
    ):
        at = begun.copy()
        at.batches[0] = changed
        with pytest.raises(error):
            take(compiled(objective, optimizer), at)
        np.testing.assert_equal(at.params, begun.params)


class OwnAdam(Adam):
    """An optimiser that may do anything."""


CONVOLUTIONAL = Sequential(
    (("conv", Conv2d(1, 2, 3)), ("flatten", Flatten()), ("fc1", Linear(72, 3)))
)
NOT_SERVED = {
    "several heads": (Supervised(STUDENT, head_weights=(1.0,)), Adam()),
    "a teacher that drops": (
        LogitDistillation(STUDENT, TEACHER, SPEC, teacher_mode="train"), Adam(),
    ),
    "heads of the teacher": (
        LogitDistillation(STUDENT, TEACHER, SPEC, head_weights=(1.0,)), Adam(),
    ),
    "another optimiser": (Supervised(STUDENT), OwnAdam()),
    "another activation": (
        Supervised(Sequential.numbered(Linear(4, 3), Tanh(), Linear(3, 2))), SGD(0.1),
    ),
    "dropout after the activation": (
        Supervised(Sequential.numbered(Linear(4, 3), ReLU(), Dropout(), Linear(3, 2))), SGD(0.1),
    ),
    "dropout of the logits": (
        Supervised(Sequential.numbered(Linear(4, 3), Dropout())), SGD(0.1),
    ),
    "an activation of the logits": (
        Supervised(Sequential.numbered(Linear(4, 3), ReLU())), SGD(0.1),
    ),
    "layers that do not fit": (
        Supervised(Sequential.numbered(Linear(4, 3), ReLU(), Linear(4, 2))), SGD(0.1),
    ),
    "no layers": (Supervised(Sequential(())), SGD(0.1)),
    "a network inside a network": (Supervised(Sequential.numbered(STUDENT)), SGD(0.1)),
    "a teacher of other classes": (
        LogitDistillation(STUDENT, network(64, 5, 9), SPEC), SGD(0.1),
    ),
    **{
        divergence: (
            LogitDistillation(STUDENT, None, dataclasses.replace(SPEC, divergence=divergence)),
            Adam(),
        )
        for divergence in ("reverse_kl", "mse_probabilities", "kl_without_log")
    },
}  # fmt: skip


@pytest.mark.parametrize("name", NOT_SERVED)
def test_other_objectives_have_no_such_step(name: str) -> None:
    objective, optimizer = NOT_SERVED[name]
    assert type(numba.compile_step(objective, optimizer)) is not MLPStep


def test_a_network_without_flatten_takes_rows_only() -> None:
    layers = Sequential.numbered(Linear(6, 5, bias=False), ReLU(), Linear(5, 3))
    objective, optimizer = Supervised(layers), SGD(0.1)
    begun = start(objective, optimizer, [8])
    expected, actual = begun.copy(), begun.copy()
    take(EagerStep(objective, optimizer), expected)
    take(compiled(objective, optimizer), actual)
    assert_close(actual, expected, begun)
    at = begun.copy()
    at.batches[0] = at.batches[0]._replace(images=at.batches[0].images.reshape(8, 2, 3))
    with pytest.raises(Exception, match="linear_forward"):
        take(compiled(objective, optimizer), at)
