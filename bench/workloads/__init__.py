"""What is measured: one file per family with the definitions, one beside it for each side.

``bench.workloads.mlp`` defines, ``mlp_refkd`` and ``mlp_torch`` compute; ``loop_refkd``
and ``loop_torch`` are the loops around them. The definitions need NumPy alone, so that
no side loads the other's library.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from bench.workloads import googlenet, kernel_families, mlp, vgg
from bench.workloads.kernels import Kernel

__all__ = ["KERNELS", "WORKLOADS", "module_of"]

WORKLOADS: Mapping[str, Any] = {
    w.name: w for w in (*mlp.WORKLOADS, *vgg.WORKLOADS, *googlenet.WORKLOADS)
}
KERNELS: Mapping[str, Kernel] = {k.name: k for k in kernel_families.KERNELS}


def module_of(workload: str, side: str) -> str:
    """Return the module that computes ``workload`` for ``side``, ``"refkd"`` or ``"torch"``."""
    return f"bench.workloads.{WORKLOADS[workload].family}_{side}"
