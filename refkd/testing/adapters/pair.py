"""Forward and backward as NumPy code writes them: two functions that share argument names."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any

import numpy as np

from refkd.errors import ConfigError, DtypeError, check_choice
from refkd.testing.adapters import (
    Subject,
    cotangent_generator,
    cotangents_like,
    draw_cotangents,
    in_precision_of,
    inner_product,
    is_floating,
)
from refkd.testing.structure import flatten

__all__ = ["by_name", "from_pair"]

_NOTHING: Mapping[str, Any] = MappingProxyType({})


def from_pair(
    forward: Callable[..., Any],
    backward: Callable[..., Any],
    params: Mapping[str, Any],
    *,
    gradients: Sequence[str | None],
    outputs: Sequence[str] = ("y",),
    options: Mapping[str, Any] = _NOTHING,
    backward_only: Mapping[str, Any] = _NOTHING,
    rng: int | np.random.Generator = 0,
) -> Subject:
    """Return the subject Σ dy · y for the output y of ``forward`` and a random cotangent dy.

    Parameters
    ----------
    forward : callable
        Of ``params`` and ``options`` by name; returns an array, or a tuple of the
        outputs and of what else the backward needs.
    backward : callable
        Of any of ``dy`` (``d`` and the name of an output), ``params``, the outputs,
        ``options`` and ``backward_only``, by name; returns an array or a tuple.
    params : mapping of str to array or None
        All inputs. Those that ``gradients`` does not name are constants.
    gradients : sequence of str or None
        For each return of ``backward`` the input it belongs to; None for one that
        belongs to none or is skipped.
    outputs : sequence of str
        Names of what ``forward`` returns. The first has a cotangent, and every other
        whose ``d`` name is an argument of ``backward``.
    options, backward_only : mapping
        Keyword arguments of both functions, and of the backward alone.
    rng : int or numpy.random.Generator
        Draws the cotangents.

    Raises
    ------
    ConfigError
        If names and signatures do not fit together; also by a call of the subject, if
        ``backward`` returns another number of gradients than named.
    DtypeError
        If an output with a cotangent is not floating.

    Examples
    --------
    >>> from refkd.testing import check_grad
    >>> def scale_forward(x, scale):
    ...     return x * scale
    >>> def scale_backward(dy, x, scale):
    ...     return dy * scale, (dy * x).sum(axis=0)
    >>> rng = np.random.default_rng(0)
    >>> params = {"x": rng.standard_normal((4, 3)), "scale": rng.standard_normal(3)}
    >>> subject = from_pair(scale_forward, scale_backward, params, gradients=("x", "scale"))
    >>> check_grad(*subject).ok
    True
    """
    names = [name for name in gradients if name is not None]
    for name in names:
        check_choice("from_pair", "gradients", name, params)
    # The checker differentiates all floating arrays that it is given.
    constants = {n: v for n, v in params.items() if n not in names and _has_floats(v)}
    point = {name: value for name, value in params.items() if name not in constants}
    call_forward, call_backward = by_name(forward), by_name(backward)

    def run(given: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
        inputs = {**in_precision_of(given, constants), **given}
        returned = call_forward({**inputs, **options})
        returned = returned if isinstance(returned, tuple) else (returned,)
        if len(returned) != len(outputs):
            raise ConfigError(
                f"from_pair: {_name(forward)} returns {len(returned)} outputs, expected "
                f"{len(outputs)}: {', '.join(outputs)}; name all in outputs="
            )
        return inputs, dict(zip(outputs, returned, strict=True))

    def used(found: Mapping[str, Any]) -> dict[str, Any]:
        return {name: np.asarray(found[name]) for name in with_cotangent}

    taken = _signature(backward).parameters
    if f"d{outputs[0]}" not in taken and not any(p.kind is p.VAR_KEYWORD for p in taken.values()):
        raise ConfigError(
            f"from_pair: {_name(backward)} takes no d{outputs[0]}, the cotangent of the first "
            f"output, only {', '.join(taken)}; name the outputs in outputs="
        )
    with_cotangent = [y for y in outputs if y == outputs[0] or f"d{y}" in taken]
    rng = cotangent_generator(rng)
    found = used(run(point)[1])
    for name, y in found.items():
        if not is_floating(y):
            raise DtypeError(
                f"from_pair: {_name(forward)}: {name} must be a floating array, got {y.dtype}"
            )
    cotangents = draw_cotangents(found, rng)

    def scalar(**given: Any) -> Any:
        return inner_product(used(run(given)[1]), cotangents)

    def gradient(**given: Any) -> dict[str, Any]:
        inputs, found = run(given)
        dy = cotangents_like(used(found), cotangents)
        returned = call_backward(
            {**inputs, **found, **options, **backward_only, **{f"d{y}": d for y, d in dy.items()}}
        )
        returned = returned if isinstance(returned, tuple) else (returned,)
        if len(returned) != len(gradients):
            raise ConfigError(
                f"from_pair: {_name(backward)} returns {len(returned)} gradients, expected "
                f"{len(gradients)}: {', '.join(map(str, gradients))}; name all in gradients="
            )
        named = zip(gradients, returned, strict=True)
        return {n: g for n, g in named if n is not None}

    return Subject(scalar, point, gradient)


def by_name(function: Callable[..., Any]) -> Callable[[Mapping[str, Any]], Any]:
    """Return a function of one mapping that calls ``function`` with the arguments it names.

    Arguments are positional where ``function`` allows it, since dispatch looks there;
    one that is not in the mapping keeps its default.

    Raises
    ------
    ConfigError
        If ``function`` has no signature; by the returned function, if an argument without
        default is not in the mapping.
    """
    signature = _signature(function)
    parameters = signature.parameters.values()

    def call(available: Mapping[str, Any]) -> Any:
        arguments = {p.name: available[p.name] for p in parameters if p.name in available}
        for p in parameters:
            if p.kind is p.VAR_KEYWORD:
                arguments[p.name] = {k: v for k, v in available.items() if k not in arguments}
            elif (
                p.default is p.empty and p.kind is not p.VAR_POSITIONAL and p.name not in arguments
            ):
                raise ConfigError(
                    f"{_name(function)}: the case gives no {p.name}, only "
                    f"{', '.join(sorted(available))}"
                )
        bound = inspect.BoundArguments(signature, arguments)
        return function(*bound.args, **bound.kwargs)

    return call


def _signature(function: Callable[..., Any]) -> inspect.Signature:
    try:
        return inspect.signature(function)
    except (TypeError, ValueError) as error:
        raise ConfigError(
            f"from_pair: {_name(function)} has no signature to find arguments by name ({error}); "
            f"write a lambda around it"
        ) from error


def _has_floats(value: Any) -> bool:
    return any(map(is_floating, flatten(value).values()))


def _name(function: Callable[..., Any]) -> str:
    return getattr(function, "__name__", repr(function))
