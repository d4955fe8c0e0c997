"""PyTorch's side of a training step: a plain loop, idiomatic, with its fused Adam.

In mode ``"eager"`` as it comes; in ``"channels_last"`` with images and weights in that
memory format; in ``"compile"`` the batch's conversion, the teacher, the student and the
loss are one ``torch.compile`` graph. This is a peer in a measurement; nothing of refkd
is here.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import nn

from bench.workloads.step import (
    LEARNING_RATE,
    SCALE,
    VERIFY_EPS,
    VERIFY_LEARNING_RATE,
    Workload,
)

__all__ = ["TorchSide", "distillation_loss"]


class TorchSide:
    """One workload, trained by a plain PyTorch loop.

    Parameters
    ----------
    workload : Workload
    mode : {"eager", "channels_last", "compile"}
    threads : int
    networks : mapping of str to Module
        ``"student"``, which learns, and perhaps a frozen ``"teacher"``.
    loss : callable
        Of the student's outputs, the teacher's (or None) and the labels.
    """

    def __init__(
        self,
        workload: Workload,
        mode: str,
        threads: int,
        networks: Mapping[str, nn.Module],
        loss: Callable[[Any, Any, torch.Tensor], torch.Tensor],
    ) -> None:
        torch.set_num_threads(threads)
        torch.manual_seed(3)
        self.workload, self.loss = workload, loss
        arrays = workload.params() | workload.state()
        initial = {name: torch.as_tensor(value) for name, value in arrays.items()}
        self.networks = nn.ModuleDict(dict(networks))
        self.networks.load_state_dict(initial)
        self.initial = {k: v for k, v in initial.items() if k.startswith("student.")}
        self.layout = torch.preserve_format
        if mode == "channels_last":
            self.layout = torch.channels_last
            self.networks.to(memory_format=self.layout)
        self.images, self.labels = (torch.from_numpy(array) for array in workload.data())
        self.dtype = torch.float32
        self.student = self.networks["student"].train()
        self.teacher = None
        if "teacher" in self.networks:
            self.teacher = self.networks["teacher"].eval().requires_grad_(False)
        self.value = torch.compile(self._value) if mode == "compile" else self._value

    def verify(self, dtype: str) -> dict[str, NDArray[Any]]:
        """Return loss, gradients, parameters and statistics after one step, on the first batch."""
        for module in self.student.modules():
            if isinstance(module, nn.Dropout):
                module.p = 0.0
        self.dtype = getattr(torch, dtype)
        self.networks.to(self.dtype)
        self._reset()
        rows = slice(self.workload.batch_size)
        loss = self._value(self.images[rows], self.labels[rows])
        self.student.zero_grad()
        loss.backward()
        outputs = {"loss": loss.detach().numpy()}
        for name, value in self.student.named_parameters():
            outputs[f"gradient of student.{name}"] = value.grad.numpy()
        torch.optim.Adam(
            self.student.parameters(), lr=VERIFY_LEARNING_RATE, eps=VERIFY_EPS, fused=True
        ).step()
        for name, value in self.student.state_dict().items():
            outputs[f"student.{name} after the step"] = value.numpy()
        return outputs

    def run(self, steps: int) -> list[float]:
        """Train from the initial parameters; return the seconds of each step after the first."""
        self._reset()
        optimizer = torch.optim.Adam(self.student.parameters(), lr=LEARNING_RATE, fused=True)
        stamps: list[float] = []
        total = 0.0
        batch_size = self.workload.batch_size
        while True:
            order = torch.randperm(len(self.images))
            for rows in order.split(batch_size):
                loss = self.value(self.images[rows], self.labels[rows])
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                total += loss.item()
                stamps.append(time.perf_counter())
                if len(stamps) > steps:
                    return [float(seconds) for seconds in np.diff(stamps)]

    def _reset(self) -> None:
        self.networks.load_state_dict(self.initial, strict=False)

    def _value(self, images: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        x = images.to(self.dtype, memory_format=self.layout) * SCALE
        if self.teacher is None:
            return self.loss(self.student(x), None, labels)
        with torch.no_grad():
            v = self.teacher(x)
        return self.loss(self.student(x), v, labels)


def distillation_loss(
    z: torch.Tensor, v: torch.Tensor, labels: torch.Tensor, temperature: float, hard_weight: float
) -> torch.Tensor:
    """Return hard·CE + (1 − hard)·T²·KL, the mean over the batch."""
    soft = F.kl_div(
        F.log_softmax(z / temperature, 1), F.softmax(v / temperature, 1), reduction="batchmean"
    )
    hard = F.cross_entropy(z, labels)
    return hard_weight * hard + (1 - hard_weight) * temperature**2 * soft
