"""Networks of convolutions, rewritten so that neighbouring layers share passes over memory."""

from __future__ import annotations

from refkd_numba.fused.step import compile_step

__all__ = ["compile_step"]
