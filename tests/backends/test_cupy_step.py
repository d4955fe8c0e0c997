"""Captured training steps, recorded and played on the host: bit for bit what the kernels do."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any
from unittest import mock

import numpy as np
import pytest

import refkd_cupy
from refkd import dispatch
from refkd.distill import Batch, LogitDistillation, frozen, select
from refkd.distill.objective import StepResult
from refkd.errors import ConfigError, NonFiniteError, ShapeError
from refkd.losses import (
    KDSpec,
    softmax_cross_entropy_backward,
    softmax_cross_entropy_forward,
    softmax_kd_backward,
    softmax_kd_forward,
)
from refkd.models import create
from refkd.nn.layer import Layer, add_prefix
from refkd.ops import silu_forward
from refkd.train.optim import SGD, Adam, AdamW
from refkd.train.step import EagerStep
from tests.backends import cuda_host as host

pytestmark = pytest.mark.skipif(host.compiler() is None, reason="the emulation needs g++")

BACKEND = host.host_backend(*refkd_cupy._MODULES)
step_module, graph_module = host.launchers("step", "graph").values()

OPTIMIZERS = (
    SGD(0.1),
    SGD(0.05, momentum=0.8, nesterov=True, weight_decay=0.01),
    Adam(0.02, weight_decay=0.05),
    AdamW(0.02),
)


@pytest.fixture(autouse=True)
def on_the_host() -> Iterator[None]:
    with mock.patch.dict(dispatch._loaded, {BACKEND.name: BACKEND}), host.on_the_host():
        yield


def network(*widths: int, dropout: float = 0.0) -> Any:
    return create(
        "mlp",
        in_features=widths[0],
        hidden=widths[1:-1],
        num_classes=widths[-1],
        dropout=dropout,
    )


@dataclasses.dataclass(frozen=True)
class Distillation:
    """A teacher's logits and the loss, with no arithmetic but that of kernels."""

    student: Any
    teacher: Any
    learns = ("student",)

    @property
    def networks(self) -> dict[str, Any]:
        return {"student": self.student, "teacher": self.teacher}

    def value_and_grad(self, params: Any, state: Any, batch: Batch, rng: Any) -> StepResult:
        own, frozen = select(params, "student"), select(params, "teacher")
        targets = self.teacher.infer(frozen, {}, batch.images)
        logits, cache = self.student.forward(own, {}, batch.images, train=True, rng=rng)
        options = {"temperature": 3.0, "hard_weight": 0.4, "soft_weight": 5.4}
        *terms, q, s, t = softmax_kd_forward(logits, targets, batch.labels, **options)
        dlogits = softmax_kd_backward(1.0, q, s, t, batch.labels, **options)
        _, grads = self.student.backward(own, cache, dlogits, need_dx=False)
        named = dict(zip(("loss", "hard", "soft"), terms, strict=True))
        return StepResult(named, add_prefix("student", grads), dict(state))


@dataclasses.dataclass(frozen=True)
class Classification:
    """Cross-entropy with the labels, likewise."""

    student: Any
    learns = ("student",)

    @property
    def networks(self) -> dict[str, Any]:
        return {"student": self.student}

    def value_and_grad(self, params: Any, state: Any, batch: Batch, rng: Any) -> StepResult:
        own = select(params, "student")
        logits, cache = self.student.forward(own, {}, batch.images, train=True, rng=rng)
        loss, log_q = softmax_cross_entropy_forward(logits, batch.labels)
        dlogits = softmax_cross_entropy_backward(1.0, log_q, batch.labels)
        _, grads = self.student.backward(own, cache, dlogits, need_dx=False)
        return StepResult({"loss": loss}, add_prefix("student", grads), dict(state))


@dataclasses.dataclass(frozen=True)
class Counting(Classification):
    """With a state that each step changes, and one that none does."""

    def value_and_grad(self, params: Any, state: Any, batch: Batch, rng: Any) -> StepResult:
        result = super().value_and_grad(params, state, batch, rng)
        seen = silu_forward(state["student.seen"])
        return result._replace(state={**state, "student.seen": seen})


def distillation(dropout: float = 0.0) -> Distillation:
    return Distillation(network(9, 8, 5, dropout=dropout), network(9, 12, 5))


@dataclasses.dataclass
class Start:
    params: dict[str, Any]
    moments: dict[str, Any]
    batches: list[Batch]


def start(objective: Any, optimizer: Any, rows: list[int]) -> Start:
    rng = np.random.default_rng(0)
    params: dict[str, Any] = {}
    for name, layer in objective.networks.items():
        params |= add_prefix(name, layer.init(rng)[0])
    params = {name: host.asarray(array) for name, array in params.items()}
    learns = {k: v for k, v in params.items() if k.partition(".")[0] in objective.learns}
    moments = {
        name: host.asarray(array) if array.ndim else array
        for name, array in optimizer.init(learns).items()
    }
    batches = [
        Batch(
            host.asarray(rng.standard_normal((count, 9)).astype("f")),
            host.asarray(rng.integers(5, size=count)),
            None,
            max(rows),
            step=step,
        )
        for step, count in enumerate(rows)
    ]
    return Start(params, moments, batches)


def take(step: Any, at: Start, *, lr: float = 0.03, state: Any = None) -> list[dict[str, float]]:
    rng = np.random.default_rng(1)
    with dispatch.use_backend(BACKEND.name):
        return [
            step(at.params, state or {}, at.moments, batch, rng, lr=lr, where="here")[0]
            for batch in at.batches
        ]


def assert_equal(one: Start, other: Start) -> None:
    for a, b in ((one.params, other.params), (one.moments, other.moments)):
        assert a.keys() == b.keys()
        for name, array in a.items():
            np.testing.assert_array_equal(array, b[name], name)


@pytest.mark.parametrize("optimizer", OPTIMIZERS, ids=str)
@pytest.mark.parametrize("objective", [distillation(), Classification(network(9, 8, 5))], ids=type)
def test_a_captured_step_does_what_the_kernels_do(objective: Any, optimizer: Any) -> None:
    rows = [6, 6, 4, 6, 4]
    captured, eager = (start(objective, optimizer, rows) for _ in range(2))
    step = step_module.compile_step(objective, optimizer)
    assert take(step, captured) == take(EagerStep(objective, optimizer), eager)
    assert len(step._graphs) == 2
    assert not step.reason_against
    assert_equal(captured, eager)


def test_the_state_goes_on_from_whichever_is_given_and_none_that_was_returned_changes() -> None:
    objective, optimizer = Counting(network(9, 8, 5)), SGD(0.1)
    captured, eager = (start(objective, optimizer, [6, 6, 6, 6]) for _ in range(2))
    found = []
    for at, make in ((captured, step_module.compile_step), (eager, EagerStep)):
        step: Any = make(objective, optimizer)
        fixed = host.asarray(np.ones(2, np.float32))
        first = {"student.seen": host.asarray(np.array([1, 2, 3], "f")), "student.fixed": fixed}
        states = [first]
        with dispatch.use_backend(BACKEND.name):
            for k, batch in enumerate(at.batches):
                given = states[1] if k == 3 else states[-1]  # once an earlier one
                more = {"lr": 0.1, "where": "here"}
                _, state = step(at.params, given, at.moments, batch, None, **more)
                assert state["student.fixed"] is fixed
                states.append(state)
        found.append([state["student.seen"].tolist() for state in states])
        if make is not EagerStep:
            assert not step.reason_against
    assert found[0] == found[1]
    assert found[0][4] == found[0][2] != found[0][3]
    assert_equal(captured, eager)


def test_other_arrays_in_their_place_are_what_the_step_works_on() -> None:
    objective, optimizer = distillation(), Adam(0.02)
    captured, eager = (start(objective, optimizer, [6, 6]) for _ in range(2))
    step, plain = step_module.compile_step(objective, optimizer), EagerStep(objective, optimizer)
    for at, taker in ((captured, step), (eager, plain)):
        take(taker, at)
        at.params["student.fc1.weight"] = host.asarray(at.params["student.fc1.weight"] * 2)
        at.params["student.fc2.bias"][...] = 1
        take(taker, at)
    assert_equal(captured, eager)


@pytest.mark.parametrize("special", [np.nan, np.inf])
@pytest.mark.parametrize("optimizer", [SGD(0.1, momentum=0.9), Adam(0.02)], ids=str)
def test_what_is_not_finite_is_named_and_nothing_is_written(special: float, optimizer: Any) -> None:
    objective = Classification(network(9, 8, 5))
    at, before = (start(objective, optimizer, [6, 6]) for _ in range(2))
    step = step_module.compile_step(objective, optimizer)
    take(step, dataclasses.replace(at, batches=at.batches[:1]))
    take(step, dataclasses.replace(before, batches=before.batches[:1]))
    at.batches[1].images[2, 3] = special
    with pytest.raises(NonFiniteError, match="here: loss term 'loss' is nan"):
        take(step, dataclasses.replace(at, batches=at.batches[1:]))
    assert_equal(at, before)
    at.batches[1].images[2, 3] = 0
    take(step, dataclasses.replace(at, batches=at.batches[1:]))


def test_a_gradient_that_overflows_is_named() -> None:
    objective, optimizer = Classification(network(9, 8, 5)), SGD(0.1)
    at = start(objective, optimizer, [6])
    at.batches[0].images[...] = 3e38
    for name, array in at.params.items():
        array[...] = 2e-38 if name.endswith("weight") else 0
    at.params["student.fc2.weight"][...] = np.linspace(-8, 8, 40, dtype="f").reshape(5, 8)
    step = step_module.compile_step(objective, optimizer)
    with pytest.raises(NonFiniteError, match=r"the gradient of 'student\.fc1\.weight' holds"):
        take(step, at)


def test_dropout_draws_by_counter_from_a_seed_of_the_generator() -> None:
    objective, optimizer = distillation(dropout=0.4), SGD(0.1)
    starts = [start(objective, optimizer, [6, 6, 6]) for _ in range(2)]
    terms = []
    for at in starts:
        step = step_module.compile_step(objective, optimizer)
        terms.append(take(step, at))
        assert not step.reason_against
    assert terms[0] == terms[1]
    assert_equal(*starts)
    same = dataclasses.replace(starts[0], batches=starts[0].batches[:1] * 2)
    first, second = take(step_module.compile_step(objective, SGD(1e-30)), same)
    assert first != second  # in each step another mask


def test_what_is_drawn_is_philox() -> None:
    draws = graph_module.Draws(host.asarray(np.zeros(2, np.uint32)))
    first = [0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8]  # known for a key and counter of 0
    for p in (*(word / 2**32 for word in first), 0.0, 1.0):
        draws._drawn = 0
        expected = [np.float32((word >> 8) / 2**24) >= np.float32(p) for word in first]
        assert (draws.random((2, 2)) >= p).reshape(-1).tolist() == expected


def test_masks_keep_as_many_as_they_should_and_differ() -> None:
    draws = graph_module.Draws(host.asarray(np.array([7, 9], np.uint32)))
    one, other = (draws.random((999, 7)) >= 0.3 for _ in range(2))
    for mask in (one, other):
        assert abs(mask.mean() - 0.7) < 0.02
    assert abs((one & other).mean() - 0.49) < 0.03


@dataclasses.dataclass(frozen=True)
class Centred(Layer):
    """A network whose logits have no mean over the batch."""

    network: Any

    def init(self, rng: Any, **options: Any) -> Any:
        return self.network.init(rng, **options)

    def forward(self, params: Any, state: Any, x: Any, **options: Any) -> Any:
        centred = host.queued(lambda logits: logits - logits.mean(axis=0))
        return centred(self.network.infer(params, state, x)), None


def of_logits(teacher: Any, **options: Any) -> LogitDistillation:
    spec = KDSpec.preset("hinton", temperature=3.0, alpha=0.4)
    return LogitDistillation(network(9, 8, 5), teacher, spec, **options)


@pytest.mark.parametrize("rows", [[32, 32, 20, 32, 20], [20, 20, 7, 20, 7]])
def test_a_captured_step_evaluates_the_teacher_by_blocks_as_well(rows: list[int]) -> None:
    objective, optimizer = of_logits(network(9, 12, 5)), SGD(0.1)
    captured, eager = (start(objective, optimizer, rows) for _ in range(2))
    step = step_module.compile_step(objective, optimizer)
    infer, evaluated = type(objective.teacher).infer, set()

    def noted(teacher: Any, params: Any, state: Any, x: Any) -> Any:
        evaluated.add(len(x))
        return infer(teacher, params, state, x)

    def all_are_alike(network: Any, block: int, *_: Any) -> Any:
        return np.arange(block)  # as on a GPU; those of NumPy's products here are not

    with (
        mock.patch.object(type(objective.teacher), "infer", noted),
        mock.patch.object(frozen, "_rows_like_the_first", all_are_alike),
        mock.patch.object(frozen, "_among_zeros", host.queued(frozen._among_zeros)),
    ):
        assert take(step, captured) == take(EagerStep(objective, optimizer), eager)
    assert_equal(captured, eager)
    assert not step.reason_against
    assert len(step._graphs) == 2
    assert evaluated == {32}


def test_a_teacher_that_looks_at_the_batch_is_refused_by_a_captured_step_too() -> None:
    objective, optimizer = of_logits(Centred(network(9, 12, 5))), SGD(0.1)
    step = step_module.compile_step(objective, optimizer)
    with pytest.raises(ConfigError, match="depend on the rest of the batch"):
        take(step, start(objective, optimizer, [20, 20]))
    plain = of_logits(objective.teacher, exact=False)
    take(step_module.compile_step(plain, optimizer), start(plain, optimizer, [20, 20]))


def test_a_student_that_changes_with_the_epoch_is_left_to_the_kernels() -> None:
    objective = of_logits(network(9, 12, 5), student_eval_from=3)
    step = step_module.compile_step(objective, SGD(0.1))
    take(step, start(objective, SGD(0.1), [6, 6]))
    assert step.reason_against == "epoch"


@dataclasses.dataclass(frozen=True)
class Changed(Classification):
    """With a result that something was done to."""

    change: Any = None

    def value_and_grad(self, params: Any, state: Any, batch: Batch, rng: Any) -> StepResult:
        result = super().value_and_grad(params, state, batch, rng)
        return self.change(result, params, batch, rng) or result


class OnTheHost(np.ndarray):  # type: ignore[type-arg]
    """An array that is none of the device's."""


def held_by_the_host(x: Any) -> Any:
    return np.asarray(x).view(OnTheHost)


def by_epoch(result: StepResult, params: Any, batch: Batch, rng: Any) -> None:
    result.terms["loss"] *= np.float32(1 + batch.epoch)


def by_step_unpacked(result: StepResult, params: Any, batch: Batch, rng: Any) -> None:
    *_, step = batch
    if step == 1:
        result.terms["loss"] *= np.float32(2)


def by_epoch_as_key(result: StepResult, params: Any, batch: Batch, rng: Any) -> None:
    result.terms["loss"] *= np.float32({0: 1, 1: 2}[batch._asdict()["epoch"]])


def by_normal_numbers(result: StepResult, params: Any, batch: Batch, rng: Any) -> None:
    rng.standard_normal(3)


def a_term_of_the_host(result: StepResult, params: Any, batch: Batch, rng: Any) -> None:
    result.terms["loss"] = float(result.terms["loss"])


def a_new_state(result: StepResult, params: Any, batch: Batch, rng: Any) -> StepResult:
    return result._replace(state={"student.seen": host.asarray(np.ones(3, "f"))})


def a_state_of_the_host(result: StepResult, params: Any, batch: Batch, rng: Any) -> StepResult:
    seen = held_by_the_host(np.ones(3, "f"))
    return result._replace(state={**result.state, "student.seen": seen})


def a_transposed_state(result: StepResult, params: Any, batch: Batch, rng: Any) -> StepResult:
    seen = host.asarray(np.ones((2, 2), "f")).T
    return result._replace(state={**result.state, "student.seen": seen})


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (by_epoch, "epoch"),
        (by_step_unpacked, "step"),
        (by_epoch_as_key, "epoch"),
        (by_normal_numbers, "rng.standard_normal"),
        (a_term_of_the_host, "a term that is no array"),
        (a_new_state, "a state that changes its form"),
        (a_state_of_the_host, "a state on the host"),
        (a_transposed_state, "a state that is not in C order"),
    ],
)
def test_what_a_graph_cannot_do_is_left_to_the_kernels(change: Any, reason: str) -> None:
    objective, optimizer = Changed(network(9, 8, 5), change), SGD(0.1)
    shape = (2, 2) if change is a_transposed_state else (3,)
    given = {} if change is a_new_state else {"student.seen": host.asarray(np.zeros(shape, "f"))}
    starts = [start(objective, optimizer, [6, 6, 6]) for _ in range(2)]
    steps: list[Any] = [step_module.compile_step(objective, optimizer)]
    steps.append(EagerStep(objective, optimizer))
    terms = [take(step, at, state=given) for step, at in zip(steps, starts, strict=True)]
    assert terms[0] == terms[1]
    assert_equal(*starts)
    assert steps[0].reason_against == reason


def labels_on_the_host(at: Start) -> None:
    at.batches[0] = at.batches[0]._replace(labels=held_by_the_host(at.batches[0].labels))


def a_transposed_parameter(at: Start) -> None:
    at.params["student.fc1.weight"] = host.asarray(at.params["student.fc1.weight"].T).T


def a_count_on_the_device(at: Start) -> None:
    at.moments["step"] = mock.MagicMock()


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (labels_on_the_host, "a batch on the host"),
        (a_transposed_parameter, "a parameter that is not float32 in C order"),
        (a_count_on_the_device, "a count of steps that is not on the host"),
    ],
)
def test_arrays_that_do_not_fit_are_left_to_the_kernels(change: Any, reason: str) -> None:
    objective, optimizer = Classification(network(9, 8, 5)), Adam(0.1)
    at = start(objective, optimizer, [6])
    change(at)
    step = step_module.compile_step(objective, optimizer)
    with mock.patch.object(EagerStep, "__call__", return_value=({}, {})):
        take(step, at)
    assert step.reason_against == reason


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda grad: grad.astype(np.float64), "a gradient that is not float32"),
        (lambda grad: grad[:1].copy(), "a gradient of another shape"),
    ],
)
def test_gradients_that_do_not_fit_are_left_to_the_kernels(change: Any, reason: str) -> None:
    def changed(result: StepResult, *_: Any) -> None:
        result.grads["student.fc1.bias"] = change(result.grads["student.fc1.bias"])

    objective, optimizer = Changed(network(9, 8, 5), changed), SGD(0.1)
    step = step_module.compile_step(objective, optimizer)
    with mock.patch.object(EagerStep, "__call__", return_value=({}, {})):
        take(step, start(objective, optimizer, [6]))
    assert step.reason_against == reason


@pytest.mark.parametrize("plays_before", [0, 1])
@pytest.mark.parametrize("of", ["terms", "grads"])
def test_a_graph_that_is_off_by_a_bit_is_refused(
    plays_before: int, of: str, capsys: pytest.CaptureFixture[str]
) -> None:
    objective, optimizer = Classification(network(9, 8, 5)), SGD(0.1)
    captured, eager = (start(objective, optimizer, [6, 6]) for _ in range(2))
    step = step_module.compile_step(objective, optimizer)
    capture, plays = host.host_device.capture, []

    def off_by_a_bit(*of_work: Any) -> Any:
        made, play = capture(*of_work)
        last = list(getattr(made[0], of).values())[-1]

        def play_wrongly() -> None:
            play()
            if len(plays) == plays_before:
                last.reshape(-1).view(np.int32)[-1] ^= 1
            plays.append(1)

        return made, play_wrongly

    with mock.patch.object(host.host_device, "capture", off_by_a_bit):
        assert take(step, captured) == take(EagerStep(objective, optimizer), eager)
    assert_equal(captured, eager)
    assert step.reason_against == "RuntimeError: it computes something else than the kernels"
    assert step.reason_against in capsys.readouterr().err


def test_a_capture_that_fails_is_said_once(capsys: pytest.CaptureFixture[str]) -> None:
    objective, optimizer = distillation(), SGD(0.1)
    captured, eager = (start(objective, optimizer, [6, 6]) for _ in range(2))
    step = step_module.compile_step(objective, optimizer)
    failing = mock.Mock(side_effect=RuntimeError("operation not permitted\nwhen capturing"))
    with mock.patch.object(host.host_device, "capture", failing):
        assert take(step, captured) == take(EagerStep(objective, optimizer), eager)
    assert_equal(captured, eager)
    words = capsys.readouterr().err
    assert words.count("\n") == 1
    assert "could not be captured as a CUDA graph (RuntimeError: operation not permitted" in words


def captures(step: Any, at: Start) -> list[bool]:
    """Take the steps, and return of each whether a graph was captured for it."""
    found = []
    for batch in at.batches:
        with mock.patch.object(host.host_device, "capture", wraps=host.host_device.capture) as made:
            take(step, dataclasses.replace(at, batches=[batch]))
        found.append(made.called)
    return found


def test_the_graph_that_was_not_played_for_longest_makes_room() -> None:
    objective, optimizer = Classification(network(9, 8, 5)), SGD(0.1)
    step = step_module.compile_step(objective, optimizer)
    at = start(objective, optimizer, [2, 3, 4, 5, 2, 6, 2, 3])
    assert captures(step, at) == [True, True, True, True, False, True, False, True]


def test_captures_come_to_an_end_and_graphs_that_are_there_are_played_on() -> None:
    objective, optimizer = Classification(network(9, 8, 5)), SGD(0.1)
    captured, eager = (start(objective, optimizer, [2, 3, 4, 5, 6] * 3) for _ in range(2))
    step = step_module.compile_step(objective, optimizer)
    with mock.patch.object(step_module, "_MOST_CAPTURES", 7):
        made = captures(step, captured)
    assert sum(made) == 7
    take(EagerStep(objective, optimizer), eager)
    assert_equal(captured, eager)
    with mock.patch.object(step, "_eager", return_value=({}, {})) as left:
        take(step, dataclasses.replace(captured, batches=captured.batches[:5]))
    assert left.call_count == 1


def test_arrays_that_are_others_each_time_are_left_to_the_kernels() -> None:
    objective, optimizer = Classification(network(9, 8, 5)), SGD(0.1)
    at = start(objective, optimizer, [6])
    step = step_module.compile_step(objective, optimizer)
    with mock.patch.object(step_module, "_MOST_CAPTURES", 3):
        for _ in range(4):
            assert not step.reason_against
            at.params = {name: host.asarray(array) for name, array in at.params.items()}
            take(step, at)
    assert "others each time" in step.reason_against


def test_a_shape_that_cannot_be_captured_leaves_the_others_theirs(
    capsys: pytest.CaptureFixture[str],
) -> None:
    objective, optimizer = Classification(network(9, 8, 5)), SGD(0.1)
    captured, eager = (start(objective, optimizer, [6, 4, 6, 4]) for _ in range(2))
    step = step_module.compile_step(objective, optimizer)
    capture = mock.Mock(side_effect=[host.host_device.capture, MemoryError("full")])
    with mock.patch.object(host.host_device, "capture", lambda *work: capture()(*work)):
        assert take(step, captured) == take(EagerStep(objective, optimizer), eager)
    assert capture.call_count == 2
    assert_equal(captured, eager)
    assert step.reason_against == "MemoryError: full"
    assert "images of shape (4, 9) could not be captured" in capsys.readouterr().err
    with mock.patch.object(step, "_eager") as left:
        take(step, dataclasses.replace(captured, batches=captured.batches[:1]))
    assert not left.called
    assert not step.reason_against


def test_mistakes_do_not_end_the_captures() -> None:
    objective, optimizer = Classification(network(9, 8, 5)), SGD(0.1)
    at = start(objective, optimizer, [6, 6])
    at.batches[0] = at.batches[0]._replace(labels=at.batches[0].labels[:3])
    step = step_module.compile_step(objective, optimizer)
    with mock.patch.object(step_module, "_MOST_CAPTURES", 1):
        for _ in range(2):
            with pytest.raises(ShapeError):
                take(step, dataclasses.replace(at, batches=at.batches[:1]))
        take(step, dataclasses.replace(at, batches=at.batches[1:]))
    assert not step.reason_against


def test_what_only_a_capture_refuses_is_not_tried_again() -> None:
    objective, optimizer = Classification(network(9, 8, 5)), SGD(0.1)
    at = start(objective, optimizer, [6, 6])
    step = step_module.compile_step(objective, optimizer)
    refusing = mock.Mock(side_effect=ConfigError("rng must be a Generator"))
    with mock.patch.object(host.host_device, "capture", refusing):
        take(step, at)
    assert refusing.call_count == 1
    assert step.reason_against == "rng must be a Generator"


@pytest.mark.parametrize("setting", ["tf32", "three_terms", "three_terms_from", "cublas_lt"])
def test_a_setting_that_chooses_kernels_has_graphs_of_its_own(setting: str) -> None:
    objective, optimizer = Classification(network(9, 8, 5)), SGD(0.1)
    step = step_module.compile_step(objective, optimizer)
    settings = step_module.settings
    before, at = getattr(settings, setting), start(objective, optimizer, [6])
    found = []
    for value in (before, 0 if setting == "three_terms_from" else not before, before):
        with mock.patch.object(settings, setting, value):
            found += captures(step, at)
    assert found == [True, True, False]


def test_a_mistake_is_the_kernels_to_name() -> None:
    objective, optimizer = Classification(network(9, 8, 5)), SGD(0.1)
    at = start(objective, optimizer, [6, 6])
    at.batches[0] = at.batches[0]._replace(labels=at.batches[0].labels[:3])
    step = step_module.compile_step(objective, optimizer)
    with pytest.raises(ShapeError):
        take(step, at)
    take(step, dataclasses.replace(at, batches=at.batches[1:]))
    assert len(step._graphs) == 1


def test_an_unknown_optimiser_has_no_step() -> None:
    assert step_module.compile_step(distillation(), object()) is None
