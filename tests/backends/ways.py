"""The ways in which the CuPy backend computes a call, each chosen by hand.

Its launchers choose tiles, teams and parts by sizes and by the device's multiprocessors, so that
of the calls of the conformance tests a large device runs the same few kernels always.
"""

from __future__ import annotations

import importlib
import itertools
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from functools import partial
from typing import Any, NamedTuple
from unittest import mock

from tests.backends.calls import pair_of
from tests.backends.judge import Judged, check_accuracy
from tests.backends.override import Override

__all__ = ["TF32_ROUNDING", "Way", "check_way", "forced", "ways"]

TF32_ROUNDING = 2.0**-10
_MULTIPROCESSORS = (1, 20, 1000)
_PARTS = (1, 2, 9)  # of the sums of convolutions; the last are added by another kernel


class Way(NamedTuple):
    """A way to compute calls.

    Attributes
    ----------
    around : callable
        Returns the surroundings in which calls are computed so.
    rounds : bool
        Whether factors are rounded to TF32.
    """

    around: Callable[[], AbstractContextManager[Any]]
    rounds: bool = False


def ways(kernel: str) -> dict[str, Way]:
    """Return the ways in which an override of ``kernel`` may compute its calls, by name.

    Together they launch every kernel of every source but those of captured steps.
    """
    pair = pair_of(kernel)
    if pair == "conv2d":
        return _ways_of_convolutions()
    found = {
        f"{count} multiprocessors": Way(partial(_with_multiprocessors, count))
        for count in _MULTIPROCESSORS
    }
    if pair == "attention":
        found |= {
            f"{name}, TF32": Way(partial(_with_multiprocessors, count, tf32=True), rounds=True)
            for name, count in zip(tuple(found), _MULTIPROCESSORS, strict=True)
        }
    if pair == "linear":
        found["three terms"] = Way(_with_linear_maps_as_convolutions)
    return found


def check_way(override: Override, judged: Judged, way: Way) -> None:
    """Check what an override computes in a way."""
    with way.around():
        if way.rounds:
            check_accuracy(override, judged, "C", floor=8 * TF32_ROUNDING)
        else:
            check_accuracy(override, judged, "C")


def forced(
    conv: Any, stem: str, gather: Any, weight: Any, parts: int
) -> AbstractContextManager[Any]:
    """Let products be made by a source, and by tiles of these sizes where there are such."""

    def choice(stem: str, tiles: Any, *sizes: int) -> Any:
        wanted = gather if tiles in conv.GATHER_TILES.values() else weight
        return next((tile for tile in tiles if tile[:2] == wanted[:2]), tiles[-1]), parts

    return mock.patch.multiple(conv, _stem=mock.Mock(return_value=stem), tile_and_parts=choice)


def _ways_of_convolutions() -> dict[str, Way]:
    conv = _module("conv")
    has_tensor_cores = _module("device").supports_tensor_cores()
    stems = (conv.FMA, conv.THREE_TERMS, conv.TF32) if has_tensor_cores else (conv.FMA,)
    gathers, weights = conv.GATHER_TILES[4], conv.WEIGHT_TILES[4, 4]
    found = {}
    for stem in stems:
        turns = zip(gathers, itertools.cycle(weights), itertools.cycle(_PARTS), strict=False)
        for gather, weight, parts in turns:
            name = f"{stem}, {gather}, {weight}, {parts} parts"
            around = partial(forced, conv, stem, gather, weight, parts)
            found[name] = Way(around, rounds=stem == conv.TF32)
    return found


@contextmanager
def _with_multiprocessors(count: int, *, tf32: bool = False) -> Iterator[None]:
    """Pretend that the device has so many; where it has one, sums are added in parts."""
    patches = [
        mock.patch.object(_module("device"), "multiprocessors", return_value=count),
        mock.patch.object(_module("settings"), "tf32", tf32),
    ]
    if count == 1:
        patches += [mock.patch.object(_module(name), "AT_ONCE", 100) for name in ("kd", "rows")]
    with ExitStack() as stack:
        for patch in patches:
            stack.enter_context(patch)
        yield


def _with_linear_maps_as_convolutions() -> AbstractContextManager[Any]:
    return mock.patch.object(_module("settings"), "three_terms_from", 0)


def _module(name: str) -> Any:
    return importlib.import_module(f"refkd_cupy.{name}")
