"""Section ``torch_compile``: steps that PyTorch compiles, which may take it minutes."""

from bench.gpu.training import compiled_rows as rows

__all__ = ["rows"]
