"""Multilayer perceptrons: a whole training step in one piece."""

from __future__ import annotations

from refkd_numba.mlp.step import compile_step

__all__ = ["compile_step"]
