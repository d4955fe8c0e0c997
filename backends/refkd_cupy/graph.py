"""One training step as a CUDA graph: value, gradients, check and update in one launch.

What the kernels of an objective do for a batch of one shape is recorded once, with fixed
arrays, and played again for every batch of that shape. Dropout draws by counter here, from a
seed that ``rng`` gives for each step: other masks than the kernels get, with the same chances.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from operator import is_, setitem
from typing import Any

import numpy as np

from refkd.dispatch import Array
from refkd.distill import Batch, Objective
from refkd.nn.layer import Arrays
from refkd.train.optim import SGD, Adam, AdamW
from refkd.train.step import check_gradients, check_terms
from refkd_cupy import device
from refkd_cupy.layout import empty_like, is_dense
from refkd_cupy.update import adam_numbers

__all__ = ["KEPT", "Draws", "Graph", "Unfit"]

_THREADS = 256
_CHUNK = 4 * _THREADS  # entries a block takes, as step.cu has it
_NUMBERS = 8  # that an optimiser takes, at most
_FLOAT32 = np.dtype(np.float32)
KEPT = {
    SGD: ("momentum_buffer",),
    Adam: ("exp_avg", "exp_avg_sq"),
    AdamW: ("exp_avg", "exp_avg_sq"),
}


class Unfit(Exception):
    """A step needs what a graph cannot give, or an array is not what the kernels take."""


class Draws:
    """The generator of a captured step: masks by counter, the same for the same seed.

    Of a :class:`numpy.random.Generator` it has what dropout asks for, ``random(shape) >= p``.
    """

    def __init__(self, seed: Array) -> None:
        self._seed, self._drawn = seed, 0

    def random(self, size: tuple[int, ...], dtype: Any = np.float32) -> _Uniform:
        return _Uniform(self, size)

    def mask(self, shape: tuple[int, ...], p: float) -> Array:
        mask = device.empty(shape, np.bool_)
        if mask.size:
            groups = -(-mask.size // 4)
            grid, block = device.spread(groups)
            arguments = [self._seed, np.int64(self._drawn), np.float32(p), mask.reshape(-1)]
            device.launch("step", "draw_mask", grid, block, [*arguments, np.int64(mask.size)])
            self._drawn += groups
        return mask

    @property
    def was_asked(self) -> bool:
        return self._drawn > 0

    def __getattr__(self, name: str) -> Any:
        raise Unfit(f"rng.{name}")


class _Uniform:
    """Numbers uniform in [0, 1) that are drawn once it is known what they are compared with."""

    def __init__(self, draws: Draws, shape: tuple[int, ...]) -> None:
        self._draws, self._shape = draws, shape

    def __ge__(self, p: float) -> Array:
        return self._draws.mask(self._shape, p)


class _Untold:
    """A number of each step that a graph cannot be made of.

    Whatever is computed with it, compared or printed is refused; not so a look at its type.
    """

    def __init__(self, name: str) -> None:
        self._name = name

    def _refuse(self, *_: Any) -> Any:
        raise Unfit(self._name)


_OF_OBJECTS = "__eq__ __ne__ __lt__ __le__ __gt__ __ge__ __hash__ __repr__ __str__ __format__"
for _operation in {*dir(int)} - {*dir(object)} | {*_OF_OBJECTS.split()}:
    setattr(_Untold, _operation, _Untold._refuse)


@dataclass(frozen=True)
class _Table:
    """Arrays by address, for kernels that take all at once."""

    addresses: Array
    arrays: list[Array]

    @classmethod
    def of(cls, count: int) -> _Table:
        return cls(device.asarray(np.zeros(max(1, count), np.int64)), [])

    def fill(self, arrays: Iterable[Array]) -> None:
        self.arrays[:] = arrays
        addresses = [device.pointer(array) for array in self.arrays]
        self.addresses[: len(addresses)] = device.asarray(np.array(addresses, np.int64))


class Graph:
    """The captured step for batches of one shape, and all arrays it works on."""

    def __init__(
        self,
        objective: Objective,
        optimizer: Any,
        params: Mapping[str, Array],
        state: Mapping[str, Array],
        optimizer_state: Mapping[str, Array],
        batch: Batch,
    ) -> None:
        self._params = dict(params)
        self._kept = {name: optimizer_state[name] for name in optimizer_state}
        _check_step_count(optimizer, optimizer_state)
        rooms = [None if x is None else _room_for(x) for x in batch[:3]]
        # For an array of the form that it was made for, each: what fills it.
        self._loads = [
            None if room is None else _load_of(room, x)
            for room, x in zip(rooms, batch[:3], strict=True)
        ]
        self._load(batch)
        epoch, step = (_Untold(name) for name in ("epoch", "step"))
        given: Any = Batch(*rooms, batch.nominal_size, epoch, step)  # type: ignore[arg-type]
        # What changes from step to step: the optimiser's numbers, and dropout's seed.
        self._numbers = device.pinned((_NUMBERS + 2,), np.float32)
        self._numbers[...] = 0
        self._seed = self._numbers[_NUMBERS:].view(np.uint64)
        self._numbers_on_device = device.empty(self._numbers.shape)
        self._draws = False
        self._state_in: dict[str, Array] = {}
        self._frozen_state = dict(state)

        def compute() -> Any:
            device.copy(self._numbers_on_device, self._numbers)
            draws: Any = Draws(self._numbers_on_device.view(np.uint32)[_NUMBERS:])
            current = {**state, **self._state_in}
            result = objective.value_and_grad(self._params, current, given, draws)
            self._draws = draws.was_asked
            grads = {name: _gradient(grad) for name, grad in result.grads.items()}
            return result, grads, current

        def prepare() -> None:
            result, grads, current = compute()
            self._plan(result, grads, current, optimizer)
            self._expected = self._outputs(result, grads)
            self._end(optimizer, warm_up=True)

        def record() -> Any:
            results = compute()
            self._end(optimizer)
            return results

        (result, grads, _), self._replay = device.capture(prepare, record)
        self._actual = self._outputs(result, grads)  # the graph writes into their memory
        self._grads.fill(grads.values())
        self._terms.fill(result.terms.values())
        self._changed.fill(result.state[name] for name in self._state_in)
        self._verify()

    def is_of(
        self,
        params: Mapping[str, Array],
        state: Mapping[str, Array],
        optimizer_state: Mapping[str, Array],
    ) -> bool:
        """Return whether these are the arrays that the graph has the addresses of."""
        return (
            len(params) == len(self._params)
            and all(map(is_, map(params.get, self._params), self._params.values()))
            and all(map(is_, map(optimizer_state.get, self._kept), self._kept.values()))
            and all(map(is_, map(state.get, self._frozen_state), self._frozen_state.values()))
            and len(state) == len(self._frozen_state) + len(self._state_in)
        )

    def play(
        self,
        state: Mapping[str, Array],
        optimizer_state: Mapping[str, Array],
        batch: Batch,
        rng: np.random.Generator,
        optimizer: Any,
        lr: float,
        where: str,
    ) -> tuple[dict[str, float], Arrays]:
        """Take a step. Nothing is written, but into arrays of the graph, if it is refused."""
        self._load(batch)
        self._load_state(state)
        numbers = _numbers(optimizer, optimizer_state, lr)
        self._numbers[: len(numbers)] = numbers
        if self._draws:
            self._seed[0] = rng.bit_generator.random_raw()  # the quickest to draw
        self._replay()
        next_state = self._next_state(state)  # while the device works
        device.wait()
        values = self._report.tolist()
        terms = dict(zip(self._term_names, values, strict=False))
        check_terms(terms, where)
        flags = values[len(terms) : len(terms) + len(self._names)]
        if any(flags):
            refused = {
                n: np.full(1, np.nan) for n, bad in zip(self._names, flags, strict=True) if bad
            }
            check_gradients(refused, where)
        if "step" in optimizer_state:
            count = optimizer_state["step"]
            np.add(count, 1, out=count)
        return terms, next_state

    def _outputs(self, result: Any, grads: Arrays) -> list[Array]:
        state = [result.state[name] for name in self._state_in]
        return [*result.terms.values(), *grads.values(), *state]

    def _verify(self) -> None:
        """Play the graph, without an update, and raise unless it computes what the kernels did.

        Twice: memory that it should not share shows when it is used again.
        """
        for _ in range(2):
            self._flags[...] = 1
            self._replay()
            device.wait()
            for actual, expected in zip(self._actual, self._expected, strict=True):
                a, e = (device.dense(x).reshape(-1).view(np.int32) for x in (actual, expected))
                if not bool((a == e).all()):
                    raise RuntimeError("it computes something else than the kernels")
        del self._expected

    def _plan(self, result: Any, grads: Arrays, state: Arrays, optimizer: Any) -> None:
        """Make tables and room for what the kernels of the end take and give."""
        self._names, self._term_names = list(grads), list(result.terms)
        params = [self._params[name] for name in grads]
        kept = [[self._kept[f"{kind}.{name}"] for name in grads] for kind in KEPT[type(optimizer)]]
        for array, grad in zip(params, grads.values(), strict=True):
            if grad.shape != array.shape:
                raise Unfit("a gradient of another shape")
        for array in (*params, *(a for arrays in kept for a in arrays)):
            _check_float32(array)
        for term in result.terms.values():
            if not device.is_array(term) or term.dtype != _FLOAT32 or term.shape != ():
                raise Unfit("a term that is no array")
        self._written = [_Table.of(len(params)) for _ in range(1 + len(kept))]
        for table, arrays in zip(self._written, (params, *kept), strict=True):
            table.fill(arrays)
        self._grads, self._terms = _Table.of(len(params)), _Table.of(len(result.terms))
        sizes = [array.size for array in params]
        places = [(i, k) for i, size in enumerate(sizes) for k in range(-(-size // _CHUNK))]
        self._blocks = len(places)
        self._sizes = device.asarray(np.array(sizes, np.int64))
        self._tensors, self._chunks = (
            device.asarray(np.array([place[i] for place in places], np.int32)) for i in range(2)
        )
        self._flags = device.asarray(np.zeros(len(params), np.int32))
        entries = len(result.terms) + len(params)
        self._report_on_device = device.empty((entries,))
        self._report = device.pinned((entries,), np.float32)
        self._plan_state(result.state, state)

    def _plan_state(self, after: Mapping[str, Array], before: Mapping[str, Array]) -> None:
        changed = [name for name, array in after.items() if array is not before.get(name)]
        words, offsets, total = [], [], 0
        for name in changed:
            array = before.get(name)
            if array is None or after[name].shape != array.shape or array.itemsize % 4:
                raise Unfit("a state that changes its form")
            if not (device.is_array(array) and device.is_array(after[name])):
                raise Unfit("a state on the host")
            if not after[name].flags.c_contiguous:
                raise Unfit("a state that is not in C order")
            words.append(array.size * array.itemsize // 4)
            offsets.append(total)
            total += -(-words[-1] // 4) * 4
        self._forms = [(before[n].shape, before[n].dtype, 4 * at) for n, at in
                       zip(changed, offsets, strict=True)]  # fmt: skip
        self._words, self._offsets = (
            device.asarray(np.array(values or [0], np.int64)) for values in (words, offsets)
        )
        self._flat_in, self._flat_out = (device.empty((max(4, total),), np.int32) for _ in range(2))
        self._state_in = dict(zip(changed, self._views(self._flat_in), strict=True))
        self._changed = _Table.of(len(changed))
        self._returned: dict[str, Array] = {}
        self._returned_flat = self._flat_in
        for name in changed:
            del self._frozen_state[name]
        self._load_state(before)

    def _views(self, room: Array) -> list[Array]:
        """Return the arrays of the state that changes, as views of one piece of memory."""
        return [device.view(room, *form) for form in self._forms]

    def _end(self, optimizer: Any, *, warm_up: bool = False) -> None:
        """Queue check, update and report. To warm up, such that no array is read or written."""
        sizes, words, term_count = self._sizes, self._words, len(self._term_names)
        if warm_up:
            self._flags[...] = 1  # which the update obeys, and the report lowers
            sizes, words, term_count = sizes * 0, words * 0, 0
        grads, terms = self._grads.addresses, [self._terms.addresses, np.int32(term_count)]
        chunks = [sizes, self._tensors, self._chunks]
        flags = [self._flags, np.int32(len(self._names))]
        written = [table.addresses for table in self._written]
        _launch("check_gradients", self._blocks, [grads, *chunks, self._flags])
        kernel = "update_by_sgd" if type(optimizer) is SGD else "update_by_adam"
        arguments = [written[0], grads, *written[1:], *chunks, *flags, *terms]
        _launch(kernel, self._blocks, [*arguments, self._numbers_on_device])
        _launch("report", 1, [*terms, *flags, self._report_on_device])
        if self._state_in:
            state = [self._changed.addresses, words, self._offsets, self._flat_out]
            _launch("gather", len(self._state_in), state)
        device.copy(self._report, self._report_on_device)

    def _load(self, batch: Batch) -> None:
        for load, given in zip(self._loads, batch, strict=False):
            if load is not None:
                load(given)

    def _load_state(self, state: Mapping[str, Array]) -> None:
        returned = self._returned
        if returned and all(map(is_, map(state.get, returned), returned.values())):
            device.copy(self._flat_in, self._returned_flat)
            return
        for name, room in self._state_in.items():
            room[...] = state[name]

    def _next_state(self, state: Mapping[str, Array]) -> Arrays:
        if not self._state_in:
            return dict(state)
        # Fresh memory each time: somebody may keep what was returned before.
        self._returned_flat = device.empty(self._flat_out.shape, np.int32)
        device.copy(self._returned_flat, self._flat_out)
        views = self._views(self._returned_flat)
        self._returned = dict(zip(self._state_in, views, strict=True))
        return {**state, **self._returned}


def _launch(kernel: str, blocks: int, arguments: list[Any]) -> None:
    device.launch("step", kernel, blocks, _THREADS, arguments)


def _room_for(x: Array) -> Array:
    if not device.is_array(x):
        raise Unfit("a batch on the host")
    return empty_like(x) if is_dense(x) else device.empty(x.shape, x.dtype)


def _load_of(room: Array, x: Array) -> Callable[[Array], None]:
    return device.copier(room) if is_dense(x) else partial(setitem, room, ...)


def _gradient(grad: Array) -> Array:
    if not device.is_array(grad) or grad.dtype != _FLOAT32:
        raise Unfit("a gradient that is not float32")
    return device.dense(grad)


def _check_float32(array: Array) -> None:
    fits = device.is_array(array) and array.dtype == _FLOAT32 and array.flags.c_contiguous
    if not fits or not array.size:
        raise Unfit("a parameter that is not float32 in C order")


def _check_step_count(optimizer: Any, optimizer_state: Mapping[str, Array]) -> None:
    if type(optimizer) is not SGD and not isinstance(optimizer_state.get("step"), np.ndarray):
        raise Unfit("a count of steps that is not on the host")


def _numbers(optimizer: Any, optimizer_state: Mapping[str, Array], lr: float) -> list[float]:
    if type(optimizer) is SGD:
        return [lr, optimizer.momentum, optimizer.weight_decay, float(optimizer.nesterov)]
    return adam_numbers(
        step=int(optimizer_state["step"]) + 1,
        lr=lr,
        beta1=optimizer.betas[0],
        beta2=optimizer.betas[1],
        eps=optimizer.eps,
        weight_decay=optimizer.weight_decay,
        decoupled=optimizer.decoupled,
    )
