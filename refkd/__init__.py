"""refkd: the NumPy reference for knowledge distillation with hand-written gradients.

Importing the package loads NumPy and the dispatcher only; the subpackages
(``refkd.ops``, ``refkd.losses``, ``refkd.nn``, ...) load on first use.
"""

import importlib
from typing import TYPE_CHECKING, Any

from refkd.dispatch import available_backends, use_backend

if TYPE_CHECKING:
    from refkd.train.run import load as load

__version__ = "0.1.0.dev0"

__all__ = ["__version__", "available_backends", "load", "use_backend"]

_SUBPACKAGES = frozenset(
    {
        "cli",
        "data",
        "distill",
        "losses",
        "models",
        "nn",
        "ops",
        "recipes",
        "report",
        "testing",
        "train",
    }
)


def __getattr__(name: str) -> Any:
    if name in _SUBPACKAGES:
        return importlib.import_module(f"refkd.{name}")
    if name == "load":
        return importlib.import_module("refkd.train.run").load
    raise AttributeError(f"module 'refkd' has no attribute {name!r}")
