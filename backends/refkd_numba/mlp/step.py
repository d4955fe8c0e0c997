"""The training step of a multilayer perceptron: forward, loss, backward, check and update."""

from __future__ import annotations

from collections.abc import Mapping
from operator import is_, itemgetter
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from refkd.dispatch import Array
from refkd.distill import Batch, LogitDistillation, Objective, Optimizer, Supervised
from refkd.nn.layer import Arrays
from refkd.threads import worker_threads
from refkd.train.optim import SGD, Adam, AdamW
from refkd.train.step import EagerStep, check_gradients, check_terms
from refkd_numba.buffers import empty
from refkd_numba.mlp import kernels
from refkd_numba.mlp.program import Program, gradient_program, step_program
from refkd_numba.mlp.room import Dense, Room, dense_layers, flattens, shapes_of
from refkd_numba.team import share

__all__ = ["MLPStep", "compile_step"]

_FLOAT32 = np.dtype(np.float32)
_NO_TARGETS = np.empty((0, 0), np.float32)
_REDUCTIONS = {
    "batchmean": kernels.BATCHMEAN,
    "mean": kernels.MEAN,
    "sum": kernels.SUM,
}
_KEPT = {
    SGD: ("momentum_buffer.",),
    Adam: ("exp_avg.", "exp_avg_sq."),
    AdamW: ("exp_avg.", "exp_avg_sq."),
}


def compile_step(objective: Objective, optimizer: Optimizer) -> MLPStep | None:
    """Return a step for networks like :func:`refkd.models.mlp`, None for others."""
    teacher = None
    if type(objective) is Supervised and not objective.head_weights:
        network = objective.network
    elif (
        type(objective) is LogitDistillation
        and not objective.head_weights
        and objective.teacher_mode == "eval"
        and objective.spec.divergence in ("kl", "cross_entropy")
    ):
        network, teacher = objective.student, objective.teacher
    else:
        return None
    learning = dense_layers(network, objective.learns[0])
    frozen = [] if teacher is None else dense_layers(teacher, "teacher")
    if learning is None or frozen is None or type(optimizer) not in _KEPT:
        return None
    if frozen and (frozen[0].inputs, frozen[-1].outputs) != (
        learning[0].inputs,
        learning[-1].outputs,
    ):
        return None
    return MLPStep(objective, optimizer, learning, frozen)


class MLPStep:
    """See :class:`refkd.train.step.TrainingStep`. What does not fit is left to the kernels.

    Parameters
    ----------
    objective : Supervised or LogitDistillation
    optimizer : SGD or Adam
    learning, frozen : list of Dense
        The layers of the network that learns, and of its teacher; none of a teacher that is
        not evaluated.
    """

    def __init__(self, objective: Any, optimizer: Any, learning: list[Dense], frozen: list[Dense]):
        self._objective, self._optimizer = objective, optimizer
        self._learning, self._frozen = learning, frozen
        self._eager = EagerStep(objective, optimizer)
        self._distils = type(objective) is LogitDistillation
        self._flattens = all(map(flattens, objective.networks.values()))
        self._eval_from = getattr(objective, "student_eval_from", None)
        self._facts = _facts(objective, optimizer, frozen)
        self._numbers = _numbers(objective, optimizer, learning[-1].outputs)
        self._room: Room | None = None
        self._programs: dict[int, Program] = {}
        # Where its logits are stored, the parameters of the teacher need not be there.
        self._without_teacher = MLPStep(objective, optimizer, learning, []) if frozen else self
        self._params = _Watched([*shapes_of(frozen), *shapes_of(learning)])
        kinds = _KEPT[type(optimizer)]
        kept = [f"{kind}{name}" for kind in kinds for name in shapes_of(learning)]
        self._kept = _Watched(kept if type(optimizer) is SGD else ["step", *kept])

    def __call__(
        self,
        params: Mapping[str, Array],
        state: Mapping[str, Array],
        optimizer_state: Mapping[str, Array],
        batch: Batch,
        rng: np.random.Generator,
        *,
        lr: float,
        where: str,
    ) -> tuple[dict[str, float], Arrays]:
        """See :class:`refkd.train.step.TrainingStep`."""
        if batch.teacher_logits is not None and self._frozen:
            return self._without_teacher(
                params, state, optimizer_state, batch, rng, lr=lr, where=where
            )
        data = self._data(batch)
        room = None if data is None else self._bound_room(batch, params, optimizer_state)
        if data is None or room is None or not self._can_draw(room, rng):
            return self._eager(params, state, optimizer_state, batch, rng, lr=lr, where=where)
        drops = self._begin_dropout(room, batch, rng)
        self._run(room, self._program(room, data), data, drops, lr)
        if drops == kernels.BITS:
            room.draws.end(rng)
        verdict, *values = room.results.tolist()
        terms = dict(zip(("loss", "hard", "soft"), values, strict=True))
        if not self._distils:
            terms = {"loss": values[0]}
        if verdict != kernels.FINE:
            check_terms(terms, where)
            grads = self._gradients(room, data)
            check_gradients(grads, where)
            self._optimizer.update(params, grads, optimizer_state, lr=lr)
        return terms, dict(state)

    def _can_draw(self, room: Room, rng: Any) -> bool:
        return not room.drawn_by_example or isinstance(rng, np.random.Generator)

    def _begin_dropout(self, room: Room, batch: Batch, rng: np.random.Generator) -> int:
        trains = self._eval_from is None or batch.epoch < self._eval_from
        if not trains or not room.drawn_by_example:
            return kernels.NOTHING
        bits = room.draws.begin(rng, len(batch.labels) * room.drawn_by_example)
        return kernels.BITS if bits else kernels.FLOATS

    def _data(self, batch: Batch) -> _Data | None:
        """Return the arrays of a batch, or None if the networks do not take them."""
        images, labels = batch.images, batch.labels
        if not (type(labels) is np.ndarray and labels.ndim == 1 and labels.dtype.kind in "iu"):
            return None
        inputs, outputs = self._learning[0].inputs, self._learning[-1].outputs
        size = len(labels)
        if not (
            _is_float32(images)
            and (images.ndim == 2 or (self._flattens and images.ndim > 2))
            and len(images) == size > 0
            and images.size == size * inputs
        ):
            return None
        targets = _NO_TARGETS
        if self._distils and batch.teacher_logits is not None:
            targets = batch.teacher_logits
            if not (_is_float32(targets) and targets.shape == (size, outputs)):
                return None
        elif self._distils and not self._frozen:
            return None
        indices = np.ascontiguousarray(labels, np.int64)
        if not kernels.are_classes(indices, outputs):
            return None  # the reference counts from the end, or raises
        if images.shape != (size, inputs):
            images = images.reshape(size, inputs)
        return _Data(np.ascontiguousarray(images), indices, np.ascontiguousarray(targets))

    def _bound_room(
        self, batch: Batch, params: Mapping[str, Array], optimizer_state: Mapping[str, Array]
    ) -> Room | None:
        """Return the memory to work in, or None if the arrays are not what a step can work on."""
        capacity, threads = max(len(batch.labels), batch.nominal_size), worker_threads()
        room = self._room
        if room is None or room.capacity < capacity or room.threads != threads:
            room = self._room = Room(self._frozen, self._learning, capacity, threads)
            self._facts[kernels.CAPACITY] = capacity
            self._programs = {}
            self._params.forget()
        if self._params.are_in(params) and self._kept.are_in(optimizer_state):
            return room
        if not self._are_ready(params, optimizer_state):
            return None
        self._params.forget()
        self._kept.forget()
        room.bind(params)
        room.bind_kept(optimizer_state, _KEPT[type(self._optimizer)])
        if "step" in optimizer_state:
            self._facts[kernels.STEP] = optimizer_state["step"].ctypes.data
        self._params.watch(params)
        self._kept.watch(optimizer_state)
        return room

    def _are_ready(self, params: Mapping[str, Array], optimizer_state: Mapping[str, Array]) -> bool:
        learns = shapes_of(self._learning)
        written = [(params.get(name), shape) for name, shape in learns.items()]
        for kind in _KEPT[type(self._optimizer)]:
            written += [(optimizer_state.get(kind + name), s) for name, s in learns.items()]
        read = [(params.get(name), shape) for name, shape in shapes_of(self._frozen).items()]
        if type(self._optimizer) is not SGD:
            step = optimizer_state.get("step")
            if type(step) is not np.ndarray or step.dtype != np.int64 or step.shape != ():
                return False
        return all(_fits(array, shape) for array, shape in (*read, *written)) and all(
            array.flags.writeable for array, _ in written
        )

    def _run(
        self,
        room: Room,
        program: Program,
        data: _Data,
        drops: int = kernels.NOTHING,
        lr: float = 0.0,
    ) -> None:
        for begin, end, worth in program.calls:
            share(
                kernels.run, program.entries, begin, end, room.layers, room.rates, self._facts,
                self._numbers, *data, room.results, room.scratch, drops, room.draws.bits,
                room.draws.stream, lr, worth=worth, threads=room.threads,
            )  # fmt: skip

    def _program(self, room: Room, data: _Data) -> Program:
        examples = len(data.labels)
        program = self._programs.get(examples)
        if program is None:
            program = self._programs[examples] = step_program(
                self._frozen, self._learning, examples, room.threads
            )
        return program

    def _gradients(self, room: Room, data: _Data) -> dict[str, Array]:
        """Return the gradients of the step just run, which has updated nothing."""
        grads: dict[str, Array] = {k: empty(v) for k, v in shapes_of(self._learning).items()}
        self._kept.forget()
        room.bind_kept(grads, ("",))
        optimizer = self._facts[kernels.OPTIMIZER]
        try:
            self._facts[kernels.OPTIMIZER] = kernels.KEEP
            self._run(room, gradient_program(self._learning, len(self._frozen)), data)
        finally:
            self._facts[kernels.OPTIMIZER] = optimizer
        return grads


class _Watched:
    """Arrays of a mapping, to see whether others have taken their place."""

    def __init__(self, names: list[str]) -> None:
        self._get, self._arrays = itemgetter(*names, names[0]), ()

    def watch(self, arrays: Mapping[str, Array]) -> None:
        self._arrays = self._get(arrays)

    def forget(self) -> None:
        self._arrays = ()

    def are_in(self, arrays: Mapping[str, Array]) -> bool:
        """Return whether the mapping has the very arrays that were in it."""
        return bool(self._arrays) and all(map(is_, self._get(arrays), self._arrays))


class _Data(NamedTuple):
    images: NDArray[np.float32]
    labels: NDArray[np.int64]
    targets: NDArray[np.float32]  # empty without stored logits


def _facts(objective: Any, optimizer: Any, frozen: list[Dense]) -> NDArray[np.int64]:
    facts = np.zeros(kernels.COUNT_OF_FACTS, np.int64)
    facts[[kernels.FIRST_LAYER, kernels.TEACHER]] = len(frozen), len(frozen) - 1
    if type(objective) is LogitDistillation:
        facts[kernels.DISTILS] = True
        facts[kernels.HAS_ENTROPY] = objective.spec.divergence == "cross_entropy"
        facts[kernels.REDUCTION] = _REDUCTIONS[objective.spec.reduction]
    is_sgd = type(optimizer) is SGD
    facts[kernels.OPTIMIZER] = kernels.SGD if is_sgd else kernels.ADAM
    facts[kernels.NESTEROV] = is_sgd and optimizer.nesterov
    return facts


def _numbers(objective: Any, optimizer: Any, classes: int) -> NDArray[np.float64]:
    numbers = np.zeros(kernels.COUNT_OF_NUMBERS)
    numbers[[kernels.ON, kernels.TEMPERATURE, kernels.HARD_WEIGHT]] = 1
    if type(objective) is LogitDistillation:
        spec = objective.spec
        numbers[kernels.TEMPERATURE] = spec.temperature
        numbers[kernels.HARD_WEIGHT] = spec.hard_weight
        numbers[kernels.SOFT_WEIGHT] = spec.effective_soft_weight
    else:
        smoothing = float(objective.label_smoothing)
        numbers[kernels.OFF] = smoothing / classes
        numbers[kernels.ON] = 1 - smoothing + smoothing / classes
    if type(optimizer) is SGD:
        numbers[kernels.MOMENTUM] = optimizer.momentum
    else:
        numbers[[kernels.BETA1, kernels.BETA2]] = optimizer.betas
        numbers[kernels.EPS] = optimizer.eps
    decoupled = getattr(optimizer, "decoupled", False)
    numbers[kernels.DECOUPLED_DECAY if decoupled else kernels.DECAY] = optimizer.weight_decay
    return numbers


def _is_float32(array: Any) -> bool:
    return type(array) is np.ndarray and array.dtype == _FLOAT32


def _fits(array: Any, shape: tuple[int, ...]) -> bool:
    return _is_float32(array) and array.shape == shape and array.flags.c_contiguous
