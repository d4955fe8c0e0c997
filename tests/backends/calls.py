"""Calls of kernels, as data: every case of refkd.testing, larger ones, and the kernels of no pair.

A call holds NumPy arrays. It is made on a backend's arrays, in any memory layout, by the
backend's override or by the reference.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Container, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from refkd.dispatch import Array, registered_kernels
from refkd.testing.adapters.pair import by_name
from refkd.testing.pairs import PairCase, all_cases
from tests.arch.test_device import CONVERSIONS, STATISTICS, UNPAIRED
from tests.backends.large import LARGE

__all__ = ["LAYOUTS", "PARTS", "Call", "call_of", "calls", "make", "pair_of", "reference"]

Arrays = NDArray[Any]
Move = Callable[[Arrays], Array]

PARTS = ("conv2d_backward_input", "conv2d_backward_weight")


@dataclass(frozen=True)
class Call:
    """One kernel and its arguments.

    Attributes
    ----------
    kernel : str
    label : str
        What is particular about the arguments.
    arguments : mapping of str to Any
        By parameter name.
    """

    kernel: str
    label: str
    arguments: Mapping[str, Any]

    def __str__(self) -> str:
        """``linear_forward: 3-D input, no bias``."""
        return f"{self.kernel}: {self.label}"

    def __repr__(self) -> str:
        """Return all that is needed to make the call again, but the numbers."""
        described = (
            f"{name}={value.dtype}{value.shape}" if hasattr(value, "dtype") else f"{name}={value!r}"
            for name, value in self.arguments.items()
        )
        return f"<{self}: {', '.join(described)}>"

    @property
    def arrays(self) -> dict[str, Array]:
        """The arguments that are arrays."""
        return {name: v for name, v in self.arguments.items() if hasattr(v, "strides")}

    @property
    def floating(self) -> list[str]:
        """The names of the floating arrays."""
        return [name for name, array in self.arrays.items() if array.dtype.kind == "f"]

    def replaced(self, arguments: Mapping[str, Any]) -> Call:
        """Return the call with other values of some arguments."""
        return replace(self, arguments={**self.arguments, **arguments})

    def map(self, change: Callable[[Array], Any]) -> Call:
        """Return the call with every array changed."""
        return self.replaced({name: change(array) for name, array in self.arrays.items()})

    def astype(self, dtype: str) -> Call:
        """Return the call with all floating arrays, and what asks for a dtype, in ``dtype``."""
        cast = self.map(lambda x: x.astype(dtype) if x.dtype.kind == "f" else x)
        return cast.replaced({"dtype": dtype}) if "dtype" in self.arguments else cast

    def laid(self, layout: str | Mapping[str, str], move: Move = np.asarray) -> Call:
        """Return the call on copies in a layout, on the device that ``move`` moves to.

        ``layout`` is one for all arrays, or one for each by its parameter.
        """
        of = dict.fromkeys(self.arrays, layout) if isinstance(layout, str) else layout
        return self.replaced({name: LAYOUTS[of[name]](x, move) for name, x in self.arrays.items()})


def make(function: Callable[..., Any], call: Call) -> tuple[Any, ...]:
    """Return what ``function`` makes of a call: its returns, or the arrays it wrote into."""
    result = _by_name(function)(call.arguments)
    if result is None:
        return tuple(call.arrays.values())
    return result if isinstance(result, tuple) else (result,)


_by_name = functools.cache(by_name)


def reference(call: Call) -> tuple[Any, ...]:
    """Return what the reference makes of a call, on copies in C order."""
    return make(registered_kernels()[call.kernel].reference, call.laid("C"))


def calls(
    kernel: str,
    dtype: str = "float32",
    *,
    seed: int = 0,
    large: bool = True,
    labels: Container[str] | None = None,
) -> list[Call]:
    """Return the calls of a kernel in all cases, and in the large ones unless told otherwise.

    Where there are ``labels``, only those that have one of them.
    """
    pair = pair_of(kernel)
    cases = [case for case in (*all_cases(), *(LARGE if large else ())) if case.pair == pair]
    unpaired = [call for call in _unpaired(seed) if call.kernel == kernel]
    if labels is not None:
        cases = [case for case in cases if case.label in labels]
        unpaired = [call for call in unpaired if call.label in labels]
    paired = [call_of(kernel, case, dtype, seed) for case in cases]
    return paired + [call.astype(dtype) for call in unpaired]


def pair_of(kernel: str) -> str:
    """Return the pair whose cases hold arguments for a kernel."""
    return "conv2d" if kernel in PARTS else kernel.rpartition("_")[0]


def call_of(kernel: str, case: PairCase, dtype: str, seed: int = 0) -> Call:
    """Return the call of ``kernel``, a forward, a backward or a part of one, in a case.

    A backward gets what the reference's forward returns in ``dtype``.
    """
    rng = case.generator(seed)
    forward = f"{case.pair}_forward"
    inputs = Call(forward, case.label, {**case.inputs(rng), **case.options}).astype(dtype)
    if kernel == forward:
        return _with_its_parameters(inputs)
    returned = reference(_with_its_parameters(inputs))
    cotangent = np.asarray(rng.standard_normal(np.shape(returned[0]))).astype(dtype)
    arguments = {
        **inputs.arguments,
        **dict(zip(case.outputs, map(np.asarray, returned), strict=True)),
        **case.backward_only,
        f"d{case.outputs[0]}": cotangent,
    }
    if kernel in PARTS:
        arguments["input_size"] = arguments["x"].shape[2:]
        arguments["kernel_size"] = arguments["weight"].shape[2:]
    return _with_its_parameters(Call(kernel, case.label, arguments))


def _with_its_parameters(call: Call) -> Call:
    parameters = inspect.signature(registered_kernels()[call.kernel].reference).parameters
    own = {name: call.arguments[name] for name in parameters if name in call.arguments}
    return replace(call, arguments=own)


@functools.cache
def _unpaired(seed: int) -> tuple[Call, ...]:
    rng = np.random.default_rng(seed)
    return (*_updates(rng), *_conversions(rng), *_statistics(rng))


def _updates(rng: np.random.Generator) -> Iterator[Call]:
    for kernel, choices in UNPAIRED.items():
        parameters = inspect.signature(registered_kernels()[kernel].reference).parameters.values()
        names = [p.name for p in parameters if p.kind is not p.KEYWORD_ONLY]
        for options in choices:
            for shape in ((), (1,), (3, 5), (2, 3, 4, 5), (0, 3), (300, 241)):
                # Second moments are positive, and here no less than what divides well.
                arrays = {name: np.asarray(rng.uniform(0.1, 1, shape)) for name in names}
                yield Call(kernel, f"{shape}, {options}", arrays | options)
            if "step" in options:
                moments = dict.fromkeys(names[2:], np.zeros((3, 5)))
                given = {name: rng.standard_normal((3, 5)) for name in names[:2]}
                first = options | {"step": 1}
                yield Call(kernel, f"first step, {first}", given | moments | first)


def _conversions(rng: np.random.Generator) -> Iterator[Call]:
    for options in CONVERSIONS:
        for shape in ((2, 3, 4, 5), (1, 3, 1, 1), (0, 3, 2, 2), (9, 3, 61, 67)):
            for stored in ("uint8", "float64"):
                pixels = rng.integers(0, 256, shape).astype(stored)
                arguments = {"pixels": pixels, **options, "dtype": "float64"}
                yield Call("pixels_to_float", f"{stored} {shape}, {options}", arguments)


def _statistics(rng: np.random.Generator) -> Iterator[Call]:
    names = ("running_mean", "running_var", "mean", "var")
    for options in STATISTICS:
        for channels in (0, 1, 5, 300):
            arrays = {name: rng.uniform(0.1, 1, channels) for name in names}
            yield Call("running_statistics", f"{channels}, {options}", arrays | options)


def _in_c_order(x: Arrays, move: Move) -> Array:
    return move(np.array(x, order="C", subok=True))


def _channels_last(x: Arrays, move: Move) -> Array:
    if x.ndim < 3:
        return _in_c_order(x, move)
    stored = move(np.array(np.moveaxis(x, 1, -1), order="C"))
    return stored.transpose(0, x.ndim - 1, *range(1, x.ndim - 1))


def _transposed(x: Arrays, move: Move) -> Array:
    return move(np.array(x.T, order="C")).T


def _reversed(x: Arrays, move: Move) -> Array:
    backwards: Any = (*(slice(None, None, -1) for _ in x.shape), ...)
    return move(np.array(x[backwards], order="C"))[backwards]


def _stepped(x: Arrays, move: Move) -> Array:
    # What lies between the entries must not be read: NaN, or -1.
    every_other: Any = (*(slice(None, None, 2) for _ in x.shape), ...)
    filler = np.nan if x.dtype.kind in "fc" else -1
    spread = np.full([2 * n for n in x.shape], filler).astype(x.dtype)
    spread[every_other] = x
    return move(spread)[every_other]


def _odd_address(x: Arrays, move: Move) -> Array:
    return move(np.concatenate([x.reshape(-1)[:1], x.reshape(-1)]))[1 if x.size else 0 :].reshape(
        x.shape
    )


LAYOUTS: dict[str, Callable[[Arrays, Move], Array]] = {
    "C": _in_c_order,
    "channels last": _channels_last,
    "transposed": _transposed,
    "reversed": _reversed,
    "stepped": _stepped,
    "odd address": _odd_address,
}
"""Functions from an array of NumPy to a fresh, equal one of a backend, laid out as named."""
