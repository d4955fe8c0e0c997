"""A backend's own version of a kernel, as the tests call it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np

from refkd.dispatch import (
    Backend,
    available_backends,
    get_backend,
    registered_kernels,
    use_backend,
)
from tests.backends.calls import Call, make
from tests.backends.surroundings import STRICT, surroundings

__all__ = ["BACKENDS", "Override", "overrides"]

BACKENDS = [name for name, reason in available_backends().items() if not reason and name != "numpy"]
"""The backends that are installed and work, but the reference itself."""


def overrides(*, everywhere: bool = False) -> Iterator[Override]:
    """Yield all overrides of all backends, in all surroundings where ``everywhere``."""
    for name in BACKENDS:
        backend = get_backend(name)
        for kernel in sorted(backend.kernels):
            for around in surroundings(name) if everywhere else ["as it is"]:
                if around != STRICT or kernel in backend.error_factors:
                    yield Override(backend, kernel, around)


class Override(NamedTuple):
    """A backend's own version of a kernel, in certain surroundings."""

    backend: Backend
    kernel: str
    around: str = "as it is"

    def __str__(self) -> str:
        words = [self.backend.name, self.kernel]
        return "-".join(words + [self.around] * (self.around != "as it is"))

    @property
    def error_factor(self) -> float:
        """How many times the reference's error it may make in float32."""
        factors = {} if self.around == STRICT else self.backend.error_factors
        return factors.get(self.kernel, 4.0)

    def moved(self, call: Call, layout: str | Mapping[str, str] = "C") -> Call:
        """Return the call on copies, arrays of the backend in a layout."""
        return call.laid(layout, self.backend.asarray)

    def runs_on(self, call: Call) -> bool:
        """Whether it serves the call, and leaves it not to the reference."""
        with use_backend(self.backend.name), surroundings(self.backend.name)[self.around]():
            result = make(self.backend.kernels[self.kernel], self.moved(call))
        return not (len(result) == 1 and result[0] is NotImplemented)

    def make(self, call: Call) -> tuple[Any, ...]:
        """Return what a call on the backend's arrays comes to where the backend is selected."""
        with use_backend(self.backend.name), surroundings(self.backend.name)[self.around]():
            return make(registered_kernels()[self.kernel].call, call)

    def results(self, call: Call, layout: str | Mapping[str, str] = "C") -> list[Any]:
        """Return what a call comes to on copies in a layout, as arrays of NumPy."""
        return list(map(self.to_numpy, self.make(self.moved(call, layout))))

    def to_numpy(self, value: Any) -> Any:
        """Return a result as an array of NumPy, and None as it is."""
        if value is None:
            return None
        assert isinstance(value, (self.backend.array_type, np.generic)), type(value)
        return np.asarray(self.backend.to_numpy(value))
