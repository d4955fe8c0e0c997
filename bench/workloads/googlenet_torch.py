"""The GoogLeNet workloads in PyTorch. This is a peer in a measurement; nothing of refkd is here."""

from __future__ import annotations

from collections import OrderedDict
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from bench.workloads import WORKLOADS
from bench.workloads.googlenet import (
    AUX_DROPOUT,
    DROPOUT,
    HARD_WEIGHT,
    HEAD_WEIGHTS,
    INCEPTIONS,
    NUM_CLASSES,
    SOFT_WEIGHT,
    STUDENT_WIDTH,
    TEMPERATURE,
)
from bench.workloads.loop_torch import TorchSide

__all__ = ["open_side"]

Heads = tuple[torch.Tensor, ...]


def open_side(workload: str, mode: str, threads: int) -> TorchSide:
    """Return PyTorch's side of ``workload``; the modes are those of :class:`TorchSide`."""
    chosen = WORKLOADS[workload]
    if chosen.distils:
        networks: dict[str, nn.Module] = {"student": _small_cnn(), "teacher": _GoogLeNet()}
        return TorchSide(chosen, mode, threads, networks, _kd_loss)
    return TorchSide(chosen, mode, threads, {"student": _GoogLeNet()}, _teacher_loss)


def _teacher_loss(heads: Heads, _: None, labels: torch.Tensor) -> torch.Tensor:
    losses = [F.cross_entropy(z, labels) for z in heads]
    return sum(weight * loss for weight, loss in zip(HEAD_WEIGHTS, losses, strict=True))


def _kd_loss(z: torch.Tensor, heads: Heads, labels: torch.Tensor) -> torch.Tensor:
    log_s = F.log_softmax(z / TEMPERATURE, 1)
    soft = [F.kl_div(log_s, F.softmax(v / TEMPERATURE, 1), reduction="batchmean") for v in heads]
    weighted = sum(weight * loss for weight, loss in zip(HEAD_WEIGHTS, soft, strict=True))
    return HARD_WEIGHT * F.cross_entropy(z, labels) + SOFT_WEIGHT * weighted


def _small_cnn() -> nn.Sequential:
    return _named(
        conv1=nn.Conv2d(3, STUDENT_WIDTH, 7, stride=2, padding=3),
        relu1=nn.ReLU(inplace=True),
        pool1=nn.MaxPool2d(3, stride=2),
        conv2=nn.Conv2d(STUDENT_WIDTH, STUDENT_WIDTH, 3, stride=2, padding=1),
        relu2=nn.ReLU(inplace=True),
        pool2=nn.MaxPool2d(3, stride=2),
        flatten=nn.Flatten(),
        dropout=nn.Dropout(DROPOUT),
        fc=nn.Linear(STUDENT_WIDTH * 13 * 13, NUM_CLASSES),
    )


class _GoogLeNet(nn.Module):
    """Returns the logits and those of the auxiliary classifiers aux2 and aux1."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = _conv(3, 64, 7, stride=2, padding=3)
        self.conv2 = _conv(64, 64, 1)
        self.conv3 = _conv(64, 192, 3, padding=1)
        self.halve = nn.MaxPool2d(3, stride=2, ceil_mode=True)
        for module, widths in INCEPTIONS.items():
            self.add_module(f"inception{module}", _Inception(*widths))
        self.aux1, self.aux2 = _auxiliary(512), _auxiliary(528)
        self.dropout = nn.Dropout(DROPOUT)
        self.fc = nn.Linear(1024, NUM_CLASSES)

    def forward(self, x: torch.Tensor) -> Heads:
        x = self.halve(self.conv1(x))
        x = self.halve(self.conv3(self.conv2(x)))
        x = self.halve(self.inception3b(self.inception3a(x)))
        x = self.inception4a(x)
        aux1 = self.aux1(x)
        x = self.inception4d(self.inception4c(self.inception4b(x)))
        aux2 = self.aux2(x)
        x = self.halve(self.inception4e(x))
        x = self.inception5b(self.inception5a(x))
        return self.fc(self.dropout(x.mean((2, 3)))), aux2, aux1


class _Inception(nn.Module):
    def __init__(
        self, width: int, one: int, three_in: int, three: int, five_in: int, five: int, pool: int
    ) -> None:
        super().__init__()
        self.branch1 = _conv(width, one, 1)
        self.branch2 = nn.Sequential(
            _conv(width, three_in, 1), _conv(three_in, three, 3, padding=1)
        )
        self.branch3 = nn.Sequential(_conv(width, five_in, 1), _conv(five_in, five, 5, padding=2))
        self.branch4 = nn.Sequential(nn.MaxPool2d(3, stride=1, padding=1), _conv(width, pool, 1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        branches = (self.branch1, self.branch2, self.branch3, self.branch4)
        return torch.cat([branch(x) for branch in branches], 1)


def _auxiliary(width: int) -> nn.Sequential:
    return _named(
        pool=nn.AvgPool2d(5, stride=3),
        conv=_conv(width, 128, 1),
        flatten=nn.Flatten(),
        dropout1=nn.Dropout(AUX_DROPOUT),
        fc1=nn.Linear(2048, 1024),
        relu=nn.ReLU(inplace=True),
        dropout2=nn.Dropout(AUX_DROPOUT),
        fc2=nn.Linear(1024, NUM_CLASSES),
    )


def _conv(width: int, channels: int, size: int, **options: Any) -> nn.Sequential:
    return _named(conv=nn.Conv2d(width, channels, size, **options), relu=nn.ReLU(inplace=True))


def _named(**modules: nn.Module) -> nn.Sequential:
    return nn.Sequential(OrderedDict(modules))
