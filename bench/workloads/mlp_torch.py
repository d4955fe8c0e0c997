"""The MLP workloads in PyTorch. This is a peer in a measurement; nothing of refkd is here."""

from __future__ import annotations

from collections import OrderedDict

import torch
import torch.nn.functional as F
from torch import nn

from bench.workloads import WORKLOADS
from bench.workloads.loop_torch import TorchSide, distillation_loss
from bench.workloads.mlp import DROPOUT, HARD_WEIGHT, TEMPERATURE

__all__ = ["open_side"]


def open_side(workload: str, mode: str, threads: int) -> TorchSide:
    """Return PyTorch's side of ``workload``; the modes are those of :class:`TorchSide`."""
    chosen = WORKLOADS[workload]
    networks = {name: _mlp(widths) for name, widths in chosen.widths.items()}
    return TorchSide(chosen, mode, threads, networks, _loss)


def _loss(z: torch.Tensor, v: torch.Tensor | None, labels: torch.Tensor) -> torch.Tensor:
    if v is None:
        return F.cross_entropy(z, labels)
    return distillation_loss(z, v, labels, TEMPERATURE, HARD_WEIGHT)


def _mlp(widths: tuple[int, ...]) -> nn.Sequential:
    layers: list[tuple[str, nn.Module]] = []
    last = len(widths) - 1
    for i in range(1, last + 1):
        layers.append((f"fc{i}", nn.Linear(widths[i - 1], widths[i])))
        if i < last:
            layers += [(f"dropout{i}", nn.Dropout(DROPOUT)), (f"relu{i}", nn.ReLU())]
    return nn.Sequential(OrderedDict(layers))
