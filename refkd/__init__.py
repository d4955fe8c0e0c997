"""refkd: the NumPy reference for knowledge distillation with hand-written gradients.

Importing the package loads nothing, not even NumPy; the dispatcher and the subpackages
(``refkd.ops``, ``refkd.losses``, ``refkd.nn``, ...) load on first use.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from refkd.dispatch import available_backends as available_backends
    from refkd.dispatch import use_backend as use_backend
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

_HOMES = {
    "available_backends": "refkd.dispatch",
    "load": "refkd.train.run",
    "use_backend": "refkd.dispatch",
}


def __getattr__(name: str) -> Any:
    if name in _SUBPACKAGES:
        return importlib.import_module(f"refkd.{name}")
    if name in _HOMES:
        return getattr(importlib.import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'refkd' has no attribute {name!r}")
