"""The training step of a multilayer perceptron: what is to be done, as a program.

Parts that are large are shared by all threads, the others follow one another in one call.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from refkd.dispatch import Array
from refkd.distill import Batch, LogitDistillation, Objective, Optimizer, Supervised
from refkd.losses.reduction import divisor
from refkd.nn.layer import Arrays
from refkd.threads import worker_threads
from refkd.train.optim import SGD, Adam, AdamW
from refkd.train.step import EagerStep, check_gradients, check_terms
from refkd_numba.buffers import empty
from refkd_numba.microkernel import COLUMNS
from refkd_numba.mlp import kernels
from refkd_numba.mlp.room import Dense, Room, dense_layers, flattens, shapes_of
from refkd_numba.team import share

__all__ = ["MLPStep", "compile_step"]

_WORTH = 3 << 20  # products; below it a part is not worth a second thread
_PER_VALUE, _PER_PARAMETER = 16, 40  # products that take as long as to copy, or to update one
_FLOAT32 = np.dtype(np.float32)
_NO_TARGETS = np.empty((0, 0), np.float32)
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
        The layers of the network that learns, and of its teacher.
    """

    def __init__(self, objective: Any, optimizer: Any, learning: list[Dense], frozen: list[Dense]):
        self._objective, self._optimizer = objective, optimizer
        self._learning, self._frozen = learning, frozen
        self._eager = EagerStep(objective, optimizer)
        self._distils = type(objective) is LogitDistillation
        self._flattens = all(map(flattens, objective.networks.values()))
        self._facts, self._numbers = _facts_and_numbers(objective, optimizer, learning, frozen)
        self._room: Room | None = None
        self._bound: list[tuple[str, Array]] = []
        self._bound_kept: list[tuple[str, Array]] = []
        self._programs: dict[tuple[int, bool], _Program] = {}

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
        data = self._data(batch)
        room = None if data is None else self._bound_room(batch, params, optimizer_state)
        if data is None or room is None:
            return self._eager(params, state, optimizer_state, batch, rng, lr=lr, where=where)
        self._note(room, batch, rng, lr, int(optimizer_state.get("step", 0)) + 1)
        self._run(room, self._program(room, len(batch.labels), data.targets), data)
        verdict, *values = room.results.tolist()
        if verdict == kernels.REFUSED:
            return self._eager(params, state, optimizer_state, batch, rng, lr=lr, where=where)
        names = ("loss", "hard", "soft") if self._distils else ("loss",)
        terms = dict(zip(names, values, strict=False))
        if verdict == kernels.FINE:
            if "step" in optimizer_state:
                optimizer_state["step"][...] += 1
        else:
            check_terms(terms, where)
            grads = self._gradients(room, data)
            check_gradients(grads, where)
            self._optimizer.update(params, grads, optimizer_state, lr=lr)
        return terms, dict(state)

    def _data(self, batch: Batch) -> _Data | None:
        """Return the arrays of a batch, or None if the networks do not take them."""
        images, labels = batch.images, batch.labels
        targets = batch.teacher_logits if self._distils else None
        examples = len(labels) if type(labels) is np.ndarray and labels.ndim == 1 else 0
        if not (
            examples
            and labels.dtype.kind in "iu"
            and _is_float32(images)
            and len(images) == examples
            and images.size == examples * self._learning[0].inputs
            and (images.ndim == 2 or self._flattens)
        ):
            return None
        if targets is None:
            if self._distils and not self._frozen:
                return None
            targets = _NO_TARGETS
        elif not (_is_float32(targets) and targets.shape == (examples, self._learning[-1].outputs)):
            return None
        return _Data(
            np.ascontiguousarray(images).reshape(examples, -1),
            np.ascontiguousarray(labels, np.int64),
            np.ascontiguousarray(targets),
        )

    def _bound_room(
        self, batch: Batch, params: Mapping[str, Array], optimizer_state: Mapping[str, Array]
    ) -> Room | None:
        """Return the memory to work in, or None if the arrays are not what a step can work on."""
        capacity, threads = max(len(batch.labels), batch.nominal_size), worker_threads()
        room = self._room
        if room is None or room.capacity < capacity or room.threads != threads:
            room = self._room = Room(self._frozen, self._learning, capacity, threads)
            self._bound, self._programs = [], {}
        if (
            self._bound
            and all(params.get(name) is array for name, array in self._bound)
            and all(optimizer_state.get(name) is array for name, array in self._bound_kept)
        ):
            return room
        frozen, learns = shapes_of(self._frozen), shapes_of(self._learning)
        kinds = _KEPT[type(self._optimizer)]
        kept = {f"{kind}{name}": shape for kind in kinds for name, shape in learns.items()}
        if not (
            all(_is_ready(params.get(name), shape, "read") for name, shape in frozen.items())
            and all(_is_ready(params.get(name), shape, "write") for name, shape in learns.items())
            and all(_is_ready(optimizer_state.get(n), shape, "write") for n, shape in kept.items())
        ):
            self._bound = []
            return None
        room.bind(params)
        room.bind_kept(optimizer_state, kinds)
        self._bound = [(name, params[name]) for name in (*frozen, *learns)]
        self._bound_kept = [(name, optimizer_state[name]) for name in kept]
        return room

    def _note(
        self, room: Room, batch: Batch, rng: np.random.Generator, lr: float, step: int
    ) -> None:
        """Write down what changes from step to step, and draw for dropout."""
        examples, facts, numbers = len(batch.labels), self._facts, self._numbers
        until = getattr(self._objective, "student_eval_from", None)
        trains = until is None or batch.epoch < until
        if trains:
            for draws, outputs in room.draws:
                # As refkd.nn.Dropout draws: as many numbers, in the same order.
                rng.random(out=draws[: examples * outputs], dtype=np.float32)
        live = self._frozen and (not self._distils or batch.teacher_logits is None)
        facts[kernels.EXAMPLES], facts[kernels.CAPACITY] = examples, room.capacity
        facts[kernels.TRAINS] = trains
        facts[kernels.TEACHER] = len(self._frozen) - 1 if live else -1
        if self._distils:
            elements = examples * self._learning[-1].outputs
            reduction = self._objective.spec.reduction
            numbers[kernels.DIVISOR] = divisor(reduction, examples=examples, elements=elements)
        if type(self._optimizer) is SGD:
            numbers[kernels.LR] = lr
            return
        # As in the reference, both bias corrections are folded into two numbers.
        beta1, beta2 = self._optimizer.betas
        correction = math.sqrt(1 - beta2**step)
        numbers[kernels.STEP_SIZE] = lr * correction / (1 - beta1**step)
        numbers[kernels.FLOOR] = self._optimizer.eps * correction
        if self._optimizer.decoupled:
            numbers[kernels.SHRINK] = 1 - lr * self._optimizer.weight_decay

    def _run(self, room: Room, program: _Program, data: _Data) -> None:
        for begin, end, worth in program.calls:
            share(
                kernels.run, program.entries, begin, end, room.layers, room.dropout, self._facts,
                self._numbers, *data, room.results, room.norms, room.scratch, worth=worth,
            )  # fmt: skip

    def _program(self, room: Room, examples: int, targets: Array) -> _Program:
        key = examples, targets.size > 0
        if key not in self._programs:
            live = [] if targets.size else self._frozen
            self._programs[key] = _program(
                live, self._learning, len(self._frozen), examples, room.threads
            )
        return self._programs[key]

    def _gradients(self, room: Room, data: _Data) -> dict[str, Array]:
        """Return the gradients of the step just run, which has updated nothing."""
        grads: dict[str, Array] = {k: empty(v) for k, v in shapes_of(self._learning).items()}
        room.bind_kept(grads, ("",))
        self._bound = []
        optimizer = self._facts[kernels.OPTIMIZER]
        self._facts[kernels.OPTIMIZER] = kernels.KEEP
        first = len(self._frozen)
        updates = [(kernels.UPDATE, first + i) for i in range(len(self._learning))]
        self._run(room, _Program(np.array(updates), [(0, len(updates), False)]), data)
        self._facts[kernels.OPTIMIZER] = optimizer
        return grads


class _Data(NamedTuple):
    images: NDArray[np.float32]
    labels: NDArray[np.int64]
    targets: NDArray[np.float32]  # empty without stored logits


class _Program(NamedTuple):
    """(operation, layer) in a row, and what makes one call: begin, end, for all threads or not."""

    entries: NDArray[np.int64]
    calls: list[tuple[int, int, bool]]


def _program(
    frozen: list[Dense], learning: list[Dense], first: int, examples: int, threads: int
) -> _Program:
    """Return the program of a step; ``first`` is the index of the first layer that learns."""
    rows = -(-examples // COLUMNS) * COLUMNS
    costs = [rows * dense.inputs * dense.outputs for dense in learning]
    last = len(learning) - 1
    parts = [(kernels.PACK, first, _PER_VALUE * examples * learning[0].inputs)]
    parts += [
        (kernels.FORWARD, i, rows * dense.inputs * dense.outputs) for i, dense in enumerate(frozen)
    ]
    parts += [(kernels.FORWARD, first + i, cost) for i, cost in enumerate(costs)]
    parts.append((kernels.LOSS, first + last, 0))
    parts += [(kernels.BACKWARD, first + i, costs[i]) for i in range(last, 0, -1)]
    parts.append((kernels.CHECK, first, 0))
    calls: list[tuple[int, int, bool]] = []
    for i, (_, _, cost) in enumerate(parts):
        _add_call(calls, i, i + 1, worth=threads > 1 and cost > _WORTH)
    parameters = sum(dense.inputs * dense.outputs for dense in learning)
    cost = sum(costs) + _PER_PARAMETER * parameters
    # No weight's update waits for another's: they make one call.
    _add_call(calls, len(parts), len(parts) + len(learning), worth=threads > 1 and cost > _WORTH)
    parts += [(kernels.UPDATE, first + i, 0) for i in range(len(learning))]
    return _Program(np.array([part[:2] for part in parts]), calls)


def _add_call(calls: list[tuple[int, int, bool]], begin: int, end: int, *, worth: bool) -> None:
    if calls and not worth and not calls[-1][2]:
        calls[-1] = (calls[-1][0], end, False)
    else:
        calls.append((begin, end, worth))


def _facts_and_numbers(
    objective: Any, optimizer: Any, learning: list[Dense], frozen: list[Dense]
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Return what is the same in every step, in the order of the kernels."""
    facts = np.zeros(kernels.COUNT_OF_FACTS, np.int64)
    numbers = np.zeros(kernels.COUNT_OF_NUMBERS)
    facts[kernels.FIRST_LAYER] = len(frozen)
    numbers[[kernels.ON, kernels.TEMPERATURE, kernels.HARD_WEIGHT, kernels.DIVISOR]] = 1
    if type(objective) is LogitDistillation:
        spec = objective.spec
        facts[kernels.DISTILS] = True
        facts[kernels.HAS_ENTROPY] = spec.divergence == "cross_entropy"
        numbers[kernels.TEMPERATURE] = spec.temperature
        numbers[kernels.HARD_WEIGHT] = spec.hard_weight
        numbers[kernels.SOFT_WEIGHT] = spec.effective_soft_weight
    else:
        smoothing = float(objective.label_smoothing)
        numbers[kernels.OFF] = smoothing / learning[-1].outputs
        numbers[kernels.ON] = 1 - smoothing + numbers[kernels.OFF]
    numbers[kernels.SHRINK] = 1
    if type(optimizer) is SGD:
        facts[kernels.OPTIMIZER], facts[kernels.NESTEROV] = kernels.SGD, optimizer.nesterov
        numbers[kernels.MOMENTUM], numbers[kernels.DECAY] = (
            optimizer.momentum,
            optimizer.weight_decay,
        )
    else:
        facts[kernels.OPTIMIZER] = kernels.ADAM
        beta1, beta2 = optimizer.betas
        numbers[[kernels.BETA1, kernels.REST1]] = beta1, 1 - beta1
        numbers[[kernels.BETA2, kernels.REST2]] = beta2, 1 - beta2
        numbers[kernels.DECAY] = 0 if optimizer.decoupled else optimizer.weight_decay
    return facts, numbers


def _is_float32(array: Any) -> bool:
    return type(array) is np.ndarray and array.dtype == _FLOAT32


def _is_ready(array: Any, shape: tuple[int, ...], use: str) -> bool:
    return (
        _is_float32(array)
        and array.shape == shape
        and array.flags.c_contiguous
        and (use == "read" or array.flags.writeable)
    )
