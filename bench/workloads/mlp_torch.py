"""The MLP workloads in PyTorch: idiomatic, with its fused Adam, eager or compiled.

Compiled means that the batch's conversion, the teacher, the student and the loss are
one ``torch.compile`` graph. This is a peer in a measurement; nothing of refkd is here.
"""

from __future__ import annotations

import time
from collections import OrderedDict

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import nn

from bench.workloads import WORKLOADS
from bench.workloads.mlp import (
    DROPOUT,
    HARD_WEIGHT,
    LEARNING_RATE,
    SCALE,
    TEMPERATURE,
    VERIFY_EPS,
    VERIFY_LEARNING_RATE,
    MLPWorkload,
)

__all__ = ["TorchSide", "open_side"]


def open_side(workload: str, mode: str, threads: int) -> TorchSide:
    """Return PyTorch's side of ``workload``; ``mode`` is ``"eager"`` or ``"compile"``."""
    torch.set_num_threads(threads)
    torch.manual_seed(3)
    return TorchSide(WORKLOADS[workload], compiled=mode == "compile")


class TorchSide:
    """One workload, trained by a plain PyTorch loop."""

    def __init__(self, workload: MLPWorkload, *, compiled: bool) -> None:
        self.workload = workload
        params = {name: torch.from_numpy(value) for name, value in workload.params().items()}
        self.networks = nn.ModuleDict(
            {name: _mlp(widths) for name, widths in workload.widths.items()}
        )
        self.initial = {k: v for k, v in params.items() if k.startswith("student.")}
        self.networks.load_state_dict(params)
        self.images, self.labels = (torch.from_numpy(array) for array in workload.data())
        self.student = self.networks["student"].train()
        self.teacher = None
        if "teacher" in self.networks:
            self.teacher = self.networks["teacher"].eval().requires_grad_(False)
        self.loss = torch.compile(self._loss) if compiled else self._loss

    def verify(self) -> dict[str, NDArray[np.float32]]:
        """Return loss, gradients and parameters after one step, on the first batch."""
        self._reset()
        self.student.eval()  # no dropout
        rows = slice(self.workload.batch_size)
        loss = self._loss(self.images[rows], self.labels[rows])
        loss.backward()
        outputs = {"loss": loss.detach().numpy()}
        for name, value in self.student.named_parameters():
            outputs[f"gradient of student.{name}"] = value.grad.numpy()
        torch.optim.Adam(
            self.student.parameters(), lr=VERIFY_LEARNING_RATE, eps=VERIFY_EPS, fused=True
        ).step()
        for name, value in self.student.named_parameters():
            outputs[f"student.{name} after the step"] = value.detach().numpy()
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
                loss = self.loss(self.images[rows], self.labels[rows])
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                total += loss.item()
                stamps.append(time.perf_counter())
                if len(stamps) > steps:
                    return [float(seconds) for seconds in np.diff(stamps)]

    def _reset(self) -> None:
        self.networks.load_state_dict(self.initial, strict=False)

    def _loss(self, images: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        x = images.to(torch.float32) * SCALE
        if self.teacher is None:
            return F.cross_entropy(self.student(x), labels)
        with torch.no_grad():
            v = self.teacher(x)
        z = self.student(x)
        soft = F.kl_div(
            F.log_softmax(z / TEMPERATURE, 1),
            F.softmax(v / TEMPERATURE, 1),
            reduction="batchmean",
        )
        hard = F.cross_entropy(z, labels)
        return HARD_WEIGHT * hard + (1 - HARD_WEIGHT) * TEMPERATURE**2 * soft


def _mlp(widths: tuple[int, ...]) -> nn.Sequential:
    layers: list[tuple[str, nn.Module]] = []
    last = len(widths) - 1
    for i in range(1, last + 1):
        layers.append((f"fc{i}", nn.Linear(widths[i - 1], widths[i])))
        if i < last:
            layers += [(f"dropout{i}", nn.Dropout(DROPOUT)), (f"relu{i}", nn.ReLU())]
    return nn.Sequential(OrderedDict(layers))
