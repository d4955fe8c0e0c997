"""The VGG workloads in PyTorch. This is a peer in a measurement; nothing of refkd is here."""

from __future__ import annotations

from collections import OrderedDict

import torch
import torch.nn.functional as F
from torch import nn

from bench.workloads import WORKLOADS
from bench.workloads.loop_torch import TorchSide, distillation_loss
from bench.workloads.vgg import HARD_WEIGHT, NUM_CLASSES, TEMPERATURE, Blocks, numbered_layers

__all__ = ["open_side"]


def open_side(workload: str, mode: str, threads: int) -> TorchSide:
    """Return PyTorch's side of ``workload``; the modes are those of :class:`TorchSide`."""
    chosen = WORKLOADS[workload]
    networks = {name: _vgg(blocks) for name, blocks in chosen.networks.items()}
    return TorchSide(chosen, mode, threads, networks, _loss)


def _loss(z: torch.Tensor, v: torch.Tensor | None, labels: torch.Tensor) -> torch.Tensor:
    if v is None:
        return F.cross_entropy(z, labels)
    return distillation_loss(z, v, labels, TEMPERATURE, HARD_WEIGHT)


def _vgg(blocks: Blocks) -> nn.Sequential:
    layers: list[nn.Module] = []
    width = 3
    for _, kind, channels in numbered_layers(blocks):
        if kind == "conv":
            layers.append(nn.Conv2d(width, channels, 3, padding=1))
            width = channels
        elif kind == "norm":
            layers.append(nn.BatchNorm2d(channels))
        elif kind == "relu":
            layers.append(nn.ReLU(inplace=True))
        else:
            layers.append(nn.MaxPool2d(2))
    parts = {
        "layers": nn.Sequential(*layers),
        "flatten": nn.Flatten(),
        "fc": nn.Linear(width, NUM_CLASSES),
    }
    return nn.Sequential(OrderedDict(parts))
