"""What is measured: one file per family with the definitions, one beside it for each side.

``bench.workloads.mlp`` defines, ``mlp_refkd`` and ``mlp_torch`` compute. The
definitions need NumPy alone, so that no side loads the other's library.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from bench.workloads import mlp

__all__ = ["WORKLOADS", "module_of"]

WORKLOADS: Mapping[str, Any] = {w.name: w for w in mlp.WORKLOADS}


def module_of(workload: str, side: str) -> str:
    """Return the module that computes ``workload`` for ``side``, ``"refkd"`` or ``"torch"``."""
    return f"bench.workloads.{WORKLOADS[workload].family}_{side}"
