"""Section ``training``: whole steps, by the kernels and captured, beside PyTorch's.

The images lie on the device as bytes. A step takes its rows out of them, converts them, does
forward, backward and Adam and fetches the loss; refkd's looks for NaN besides. All this is in the
graphs of both sides. Before a row is timed both sides take one step from the same weights, without
dropout: loss, gradients, parameters and running statistics agree.
"""

from __future__ import annotations

import copy
import dataclasses
import importlib
import itertools
import statistics
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import cupy
import numpy as np
import torch
from torch import nn

from bench.gpu.timing import precision
from bench.harness import check_agreement, differences, largest_entry
from bench.workloads import WORKLOADS, module_of
from bench.workloads.step import (
    LEARNING_RATE,
    SCALE,
    VERIFY_EPS,
    VERIFY_LEARNING_RATE,
    draw_data,
)
from refkd.dispatch import use_backend
from refkd.distill import Batch
from refkd.ops import pixels_to_float
from refkd.train.optim import Adam
from refkd.train.step import EagerStep
from refkd_cupy.step import compile_step

__all__ = ["compiled_rows", "rows"]

_BATCHES = 8
_FIRST_STEPS, _LEAST_STEPS, _MOST_STEPS = 6, 12, 400
_SECONDS = 0.4
# In TF32 a hundredth of the activations may lie on the other side of a ReLU. PyTorch's gradients of
# VGG differ by 0.1 in the norm from its own in float32.
_TF32_TOLERANCE = 0.2
_SAME_KERNELS = 1e-6  # of a captured step and of the kernels one by one, TF32 or not

# A workload of the CPU, and how many images a batch has; those first of which least is known.
_ROWS = {
    "vgg_kd_b256": ("vgg_kd_b64", 256),
    "mlp_student_b32": ("mlp_student_b32", 32),
    "mlp_kd_b128": ("mlp_kd_b128", 128),
    "mlp_teacher_b128": ("mlp_teacher_b128", 128),
    "mlp_kd_b1024": ("mlp_kd_b128", 1024),
    "mlp_teacher_b4096": ("mlp_teacher_b128", 4096),
    "vgg_student_b64": ("vgg_student_b64", 64),
    "vgg_student_b1024": ("vgg_student_b64", 1024),
    "googlenet_kd_b32": ("googlenet_kd_b32", 32),
}
_COMPILED = ("mlp_kd_b128", "vgg_student_b64")


Parts = Iterator[dict[str, Any]]


def rows() -> dict[str, Callable[[], Parts]]:
    """Return the rows by name, each in float32 and in TF32."""
    return {
        name + suffix: partial(_measure, *row, tf32=bool(suffix))
        for name, row in _ROWS.items()
        for suffix in ("", " tf32")
    }


def compiled_rows() -> dict[str, Callable[[], Parts]]:
    """Return the rows that PyTorch compiles, by name."""
    return {name: partial(_measure_compiled, *_ROWS[name]) for name in _COMPILED}


def _measure(base: str, batch_size: int, *, tf32: bool) -> Parts:
    workload = WORKLOADS[base]
    data = _Data(base, batch_size)
    own = _Refkd(base, data)
    peer = _Torch(base, data)
    yield {"gflop": workload.flop / 1e9 * batch_size / workload.batch_size}
    precision(False)
    expected = peer.verified()
    precision(tf32)
    tolerance, size = workload.tolerances["float32"], largest_entry
    if tf32:
        tolerance, size = _TF32_TOLERANCE, _norm
    by_kernels: dict[str, Any] = {}
    with use_backend("cupy"):
        for captured, mode in ((False, "eager"), (True, "captured")):
            found = own.verified(captured)
            yield {f"difference_{mode}": max(differences(found, expected, size=size).values())}
            check_agreement(found, expected, tolerance=tolerance, size=size)
            if captured:
                check_agreement(found, by_kernels, tolerance=_SAME_KERNELS)
            by_kernels = found
            milliseconds = _milliseconds(own.steps(captured=captured))
            yield {f"refkd_{mode}_ms": milliseconds}
    yield from _measure_peer(peer, workload.family, milliseconds)


def _measure_peer(peer: _Torch, family: str, captured_ms: float) -> Parts:
    """Time PyTorch in the faster of its memory formats, of those that there is memory for."""
    layouts = ("contiguous",) if family == "mlp" else ("contiguous", "channels_last")
    for mode in ("eager", "graph"):
        found = {}
        for layout in layouts:
            try:
                found[layout] = _milliseconds(peer.steps(mode, layout))
            except torch.OutOfMemoryError as error:
                yield {f"torch_{mode}_{layout}_failed": str(error)[:200]}
        if found:
            layout = min(found, key=found.__getitem__)
            yield {
                f"torch_{mode}_ms": found[layout],
                f"torch_{mode}_layout": layout,
                f"ratio_{mode}": found[layout] / captured_ms,
            }


def _norm(array: Any) -> float:
    return float(np.linalg.norm(array))


def _measure_compiled(base: str, batch_size: int) -> Parts:
    precision(False)
    peer = _Torch(base, _Data(base, batch_size))
    yield {"torch_compile_ms": _milliseconds(peer.steps("compile", "contiguous"))}


def _milliseconds(steps: Iterator[None]) -> float:
    """Return the median time of a step; each ends with a value that was fetched."""
    for _ in itertools.islice(steps, _FIRST_STEPS):
        pass
    stamps = [time.perf_counter()]
    while len(stamps) <= _MOST_STEPS:
        next(steps)
        stamps.append(time.perf_counter())
        if len(stamps) > _LEAST_STEPS and stamps[-1] - stamps[0] > _SECONDS:
            break
    return 1e3 * float(statistics.median(np.diff(stamps)))


class _Data:
    """Images as bytes and labels, on the device; and the rows of batches, in a drawn order."""

    def __init__(self, base: str, batch_size: int) -> None:
        workload = WORKLOADS[base]
        images, labels = workload.data()
        classes = int(labels.max()) + 1
        self.batch_size = batch_size
        images, labels = draw_data(batch_size * _BATCHES, images.shape[1:], classes)
        self.images, self.labels = torch.from_numpy(images).cuda(), torch.from_numpy(labels).cuda()
        order = torch.randperm(len(images), device="cuda")
        self.rows = list(order.split(batch_size))


class _Refkd:
    """refkd's side, on CuPy arrays."""

    def __init__(self, base: str, data: _Data) -> None:
        side = importlib.import_module(module_of(base, "refkd")).open_side(base, "numpy", 1)
        self.arrays = side.params, side.state
        stored = tuple(map(cupy.from_dlpack, (data.images, data.labels)))
        self.timed: Any = _FromRows(_without_blocks(side.timed), *stored)
        self.checked: Any = _FromRows(_without_blocks(side.verified), *stored)
        self.rows = [cupy.from_dlpack(rows) for rows in data.rows]
        self.batch_size = data.batch_size

    def verified(self, captured: bool) -> dict[str, Any]:
        """Return loss and gradients, and what one step makes of the network, without dropout."""
        optimizer = Adam(VERIFY_LEARNING_RATE, eps=VERIFY_EPS)
        params, state, rng = *self._moved(), np.random.default_rng(0)
        batch = self._batch(cupy.arange(self.batch_size))
        grads = self.checked.value_and_grad(params, state, batch, rng).grads
        outputs = {f"gradient of {name}": cupy.asnumpy(grad) for name, grad in grads.items()}
        make = compile_step if captured else EagerStep
        step: Any = make(self.checked, optimizer)
        moments = optimizer.init({name: params[name] for name in grads})
        where = {"lr": optimizer.lr, "where": "verify"}
        terms, state = step(params, state, moments, batch, rng, **where)
        if captured:
            _check_captured(step)
        outputs["loss"] = np.asarray(terms["loss"])
        learned = {n: array for n, array in (params | state).items() if n.startswith("student.")}
        return outputs | {f"{n} after the step": cupy.asnumpy(a) for n, a in learned.items()}

    def steps(self, *, captured: bool) -> Iterator[None]:
        """Take steps without end."""
        optimizer = Adam(LEARNING_RATE)
        step: Any = (compile_step if captured else EagerStep)(self.timed, optimizer)
        params, state = self._moved()
        learning = {k: v for k, v in params.items() if k.partition(".")[0] in self.timed.learns}
        moments, rng = optimizer.init(learning), np.random.default_rng(0)
        for rows in itertools.cycle(self.rows):
            batch = self._batch(rows)
            where = {"lr": optimizer.lr, "where": "bench"}
            _, state = step(params, state, moments, batch, rng, **where)
            if captured:
                _check_captured(step)
            yield

    def _batch(self, rows: Any) -> Batch:
        return Batch(rows, None, None, self.batch_size)

    def _moved(self) -> tuple[dict[str, Any], dict[str, Any]]:
        params, state = (
            {name: cupy.asarray(array) for name, array in arrays.items()} for arrays in self.arrays
        )
        return params, state


def _check_captured(step: Any) -> None:
    if step.reason_against:
        raise RuntimeError(f"the step was not captured: {step.reason_against}")


@dataclasses.dataclass(frozen=True)
class _FromRows:
    """An objective whose batches are the rows that it takes out of the images."""

    objective: Any
    images: Any
    labels: Any

    @property
    def networks(self) -> Any:
        return self.objective.networks

    @property
    def learns(self) -> tuple[str, ...]:
        return tuple(self.objective.learns)

    def value_and_grad(self, params: Any, state: Any, batch: Batch, rng: Any) -> Any:
        rows = batch.images
        pixels = self.images.take(rows, axis=0)
        images = pixels_to_float(pixels, scale=SCALE, mean=(0.0,), std=(1.0,), dtype=np.float32)
        given = batch._replace(images=images, labels=self.labels.take(rows))
        return self.objective.value_and_grad(params, state, given, rng)


def _without_blocks(objective: Any) -> Any:
    return dataclasses.replace(objective, exact=False) if hasattr(objective, "exact") else objective


class _Torch:
    """PyTorch's side."""

    def __init__(self, base: str, data: _Data) -> None:
        self.side = importlib.import_module(module_of(base, "torch")).open_side(base, "eager", 1)
        self.data = data

    def verified(self) -> dict[str, Any]:
        """Return loss and gradients, and what one step makes of the network, without dropout."""
        networks = copy.deepcopy(self.side.networks).cuda()
        for module in networks.modules():
            if isinstance(module, nn.Dropout):
                module.p = 0.0
        objective = self._value(networks, torch.preserve_format)
        rows = torch.arange(self.data.batch_size, device="cuda")
        student = networks["student"]
        loss = objective(rows)
        loss.backward()
        outputs = {"loss": loss.detach().cpu().numpy()}
        for name, parameter in student.named_parameters():
            outputs[f"gradient of student.{name}"] = parameter.grad.cpu().numpy()
        torch.optim.Adam(student.parameters(), lr=VERIFY_LEARNING_RATE, eps=VERIFY_EPS).step()
        for name, value in student.state_dict().items():
            outputs[f"student.{name} after the step"] = value.cpu().numpy()
        return outputs

    def steps(self, mode: str, layout: str) -> Iterator[None]:
        """Take steps without end; ``mode`` is eager, graph or compile."""
        memory_format = getattr(torch, layout, torch.preserve_format)
        if layout == "contiguous":
            memory_format = torch.preserve_format
        networks = copy.deepcopy(self.side.networks).cuda().to(memory_format=memory_format)
        optimizer = torch.optim.Adam(
            networks["student"].parameters(),
            lr=LEARNING_RATE,
            fused=True,
            capturable=mode == "graph",
        )
        value = self._value(networks, memory_format)
        if mode == "compile":
            value = torch.compile(value)

        def step(rows: torch.Tensor) -> torch.Tensor:
            optimizer.zero_grad(set_to_none=True)
            loss: torch.Tensor = value(rows)
            loss.backward()
            optimizer.step()
            return loss.detach()

        take = self._captured(step) if mode == "graph" else step
        for rows in itertools.cycle(self.data.rows):
            take(rows).item()
            yield

    def _captured(self, step: Callable[[Any], Any]) -> Callable[[Any], Any]:
        given = self.data.rows[0].clone()
        side_stream = torch.cuda.Stream()
        side_stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side_stream):
            for _ in range(3):
                step(given)
        torch.cuda.current_stream().wait_stream(side_stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            loss = step(given)

        def replay(rows: torch.Tensor) -> torch.Tensor:
            given.copy_(rows)
            graph.replay()
            return loss

        return replay

    def _value(self, networks: Any, memory_format: Any) -> Callable[[Any], Any]:
        student = networks["student"].train()
        teacher = None
        if "teacher" in networks:
            teacher = networks["teacher"].eval().requires_grad_(False)

        def value(rows: torch.Tensor) -> torch.Tensor:
            images = self.data.images[rows].to(torch.float32, memory_format=memory_format) * SCALE
            labels = self.data.labels[rows]
            if teacher is None:
                loss: torch.Tensor = self.side.loss(student(images), None, labels)
                return loss
            with torch.no_grad():
                targets = teacher(images)
            loss = self.side.loss(student(images), targets, labels)
            return loss

        return value
