"""The VGG workloads in refkd."""

from __future__ import annotations

from bench.workloads import WORKLOADS
from bench.workloads.loop_refkd import RefkdSide
from bench.workloads.vgg import HARD_WEIGHT, NUM_CLASSES, TEMPERATURE, VGGWorkload
from refkd.distill import LogitDistillation, Objective, Supervised
from refkd.losses.spec import KDSpec
from refkd.models import vgg

__all__ = ["open_side"]


def open_side(workload: str, mode: str, threads: int) -> RefkdSide:
    """Return refkd's side of ``workload`` on the backend ``mode``."""
    chosen = WORKLOADS[workload]
    objective = _objective(chosen)  # which drops nothing
    return RefkdSide(chosen, mode, timed=objective, verified=objective)


def _objective(workload: VGGWorkload) -> Objective:
    networks = {
        name: vgg(num_classes=NUM_CLASSES, blocks=blocks)
        for name, blocks in workload.networks.items()
    }
    if "teacher" not in networks:
        return Supervised(networks["student"])
    spec = KDSpec.preset("hinton", temperature=TEMPERATURE, alpha=HARD_WEIGHT)
    # Not exact: the images of this training are augmented, so no logits can be stored.
    return LogitDistillation(networks["student"], networks["teacher"], spec, exact=False)
