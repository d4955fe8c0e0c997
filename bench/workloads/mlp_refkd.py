"""The MLP workloads in refkd."""

from __future__ import annotations

from bench.workloads import WORKLOADS
from bench.workloads.loop_refkd import RefkdSide
from bench.workloads.mlp import DROPOUT, HARD_WEIGHT, TEMPERATURE, MLPWorkload
from refkd.distill import LogitDistillation, Objective, Supervised
from refkd.losses.spec import KDSpec
from refkd.models import mlp

__all__ = ["open_side"]


def open_side(workload: str, mode: str, threads: int) -> RefkdSide:
    """Return refkd's side of ``workload`` on the backend ``mode``."""
    chosen = WORKLOADS[workload]
    return RefkdSide(
        chosen, mode, timed=_objective(chosen, DROPOUT), verified=_objective(chosen, 0.0)
    )


def _objective(workload: MLPWorkload, dropout: float) -> Objective:
    networks = {
        name: mlp(
            in_features=widths[0], hidden=widths[1:-1], num_classes=widths[-1], dropout=dropout
        )
        for name, widths in workload.widths.items()
    }
    if "teacher" not in networks:
        return Supervised(networks["student"])
    spec = KDSpec.preset("hinton", temperature=TEMPERATURE, alpha=HARD_WEIGHT)
    return LogitDistillation(networks["student"], networks["teacher"], spec)
