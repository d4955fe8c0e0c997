"""The settings of distillation losses: temperatures, and every loss that a spec describes."""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Any

from hypothesis import strategies as st

from refkd.errors import ConfigError, check_choice, check_positive

if TYPE_CHECKING:
    from refkd.losses import KDSpec

__all__ = ["kd_specs", "temperatures"]


def temperatures(min_value: float = 0.01, max_value: float = 100.0) -> st.SearchStrategy[float]:
    """Return a strategy for temperatures: half of them 1, 2, 4, 20 or a bound; shrinks to 1.

    Parameters
    ----------
    min_value, max_value : float, > 0
        Both included.

    Raises
    ------
    ConfigError
        If they are no range of positive numbers.
    """
    check_positive("temperatures", "min_value", min_value)
    check_positive("temperatures", "max_value", max_value)
    if min_value > max_value:
        raise ConfigError(
            f"temperatures: min_value {min_value:g} is greater than max_value {max_value:g}"
        )
    familiar = [t for t in (1.0, 2.0, 4.0, 20.0) if min_value <= t <= max_value]
    return st.sampled_from([*familiar, float(min_value), float(max_value)]) | st.floats(
        min_value, max_value
    )


def kd_specs(
    preset: str | None = None, temperature: st.SearchStrategy[float] | None = None
) -> st.SearchStrategy[KDSpec]:
    """Return a strategy for :class:`refkd.losses.KDSpec`: presets and free combinations.

    Parameters
    ----------
    preset : str, optional
        Only this preset, a key of :data:`refkd.losses.presets.PRESETS`, at any of its
        parameters. By default every preset, and any other spec that is valid.
    temperature : strategy, optional
        By default :func:`temperatures`.

    Raises
    ------
    ConfigError
        If there is no such preset.
    """
    from refkd.losses import PRESETS

    drawn = temperatures() if temperature is None else temperature
    if preset is not None:
        check_choice("kd_specs", "preset", preset, PRESETS)
        return _of_preset(preset, drawn)
    return st.one_of(*(_of_preset(name, drawn) for name in PRESETS), _free(drawn))


def _of_preset(name: str, temperature: st.SearchStrategy[float]) -> st.SearchStrategy[KDSpec]:
    from refkd.losses import PRESETS, KDSpec

    strategies: dict[str, st.SearchStrategy[Any]] = {
        "temperature": temperature,
        "alpha": _alphas(),
        "beta": _weights(),
        "hard_weight": _weights(),
        "soft_weight": _weights(),
    }
    accepted = inspect.signature(PRESETS[name]).parameters.values()
    return st.builds(
        KDSpec.preset,
        st.just(name),
        **{
            p.name: st.none() | strategies[p.name] if p.default is None else strategies[p.name]
            for p in accepted
        },
    )


def _free(temperature: st.SearchStrategy[float]) -> st.SearchStrategy[KDSpec]:
    from refkd.losses import KDSpec
    from refkd.losses.spec import DIVERGENCES

    free: dict[str, st.SearchStrategy[Any]] = {
        "temperature": temperature,
        "soft_weight": _weights(),
        "t_squared": st.booleans(),
        "reduction": st.sampled_from(("batchmean", "mean", "sum")),
        "divergence": st.sampled_from(DIVERGENCES),
    }
    return st.one_of(
        st.builds(KDSpec, hard_weight=_weights(), **free),
        st.builds(
            KDSpec, hard_weight=_alphas(), alpha_weights=st.sampled_from(("hard", "soft")), **free
        ),
    )


def _alphas() -> st.SearchStrategy[float]:
    return st.sampled_from((0.5, 0.0, 1.0, 0.1, 0.9)) | st.floats(0, 1)


def _weights() -> st.SearchStrategy[float]:
    return st.sampled_from((1.0, 0.0, 0.5, 100.0)) | st.floats(1e-3, 1e3)
