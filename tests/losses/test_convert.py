"""KDSpec.convert: equal gradients between conventions, or a reason why there are none."""

from __future__ import annotations

import re
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from refkd.errors import ConfigError
from refkd.losses import PRESETS, KDSpec, distillation_loss

EPS = np.finfo(np.float64).eps
TIED = {"hinton", "kldiv-mean-2aT2", "batchmean-no-T2", "deit", "kd_lib"}
FREE = {"labml", "textbrewer", "googlenet-published", "googlenet-intended"}
# What is no multiple of s − t stands alone.
FUNCTION = {"kd_lib": "mse_probabilities", "googlenet-published": "kl_without_log"}


def preset(name: str, temperature: float, alpha: float) -> KDSpec:
    """Return a preset at given weights, whatever its parameters are called."""
    if name in FREE:
        return KDSpec.preset(name, temperature=temperature, hard_weight=alpha, soft_weight=3.0)
    return KDSpec.preset(name, temperature=temperature, alpha=alpha)


def gradient(spec: KDSpec, batch: int, classes: int) -> np.ndarray:
    rng = np.random.default_rng(17)
    z, v = 3 * rng.standard_normal((2, batch, classes))
    return distillation_loss(z, v, rng.integers(classes, size=batch), spec)[1]


def assert_same_gradient(a: KDSpec, b: KDSpec, batch: int, classes: int) -> None:
    expected = gradient(a, batch, classes)
    error = np.abs(gradient(b, batch, classes) - expected).max()
    assert error <= 64 * EPS * np.abs(expected).max()


SIZES = {"batch_size": st.integers(1, 9), "num_classes": st.integers(2, 9)}


@given(
    source=st.sampled_from(sorted(PRESETS)),
    target=st.sampled_from(sorted(PRESETS)),
    temperature=st.floats(0.5, 20),
    alpha=st.floats(0.01, 0.99),
    **SIZES,
)
@settings(max_examples=300, deadline=None)
def test_conversion_gives_the_same_gradient_or_says_why_it_cannot(
    source: str,
    target: str,
    temperature: float,
    alpha: float,
    batch_size: int,
    num_classes: int,
) -> None:
    spec = preset(source, temperature, alpha)
    sizes = {"batch_size": batch_size, "num_classes": num_classes}
    try:
        converted = spec.convert(target, **sizes)
    except ConfigError as error:
        reason = str(error)
    else:
        reason = ""
    if FUNCTION.get(source) != FUNCTION.get(target):
        assert "are different functions of s and t" in reason
        return
    if reason:
        assert target in TIED
        assert "ties both weights by one alpha, and no alpha gives the weights" in reason
        return
    convention = preset(target, temperature, 0.5)
    assert (converted.divergence, converted.reduction, converted.t_squared) == (
        convention.divergence,
        convention.reduction,
        convention.t_squared,
    )
    assert_same_gradient(spec, converted, batch_size, num_classes)
    back = converted.convert(spec, **sizes)
    assert back.hard_weight == pytest.approx(spec.hard_weight, rel=8 * EPS)
    assert back.soft_weight == pytest.approx(spec.soft_weight, rel=8 * EPS)


@given(
    source=st.sampled_from(sorted(PRESETS.keys() - FUNCTION.keys())),
    target=st.sampled_from(["labml", "torchdistill", "textbrewer", "googlenet-intended"]),
    temperature=st.floats(0.5, 20),
    alpha=st.floats(0.01, 0.99),
    **SIZES,
)
@settings(max_examples=60, deadline=None)
def test_a_convention_with_free_weights_can_always_be_reached(
    source: str, target: str, temperature: float, alpha: float, batch_size: int, num_classes: int
) -> None:
    spec = preset(source, temperature, alpha)
    converted = spec.convert(target, batch_size=batch_size, num_classes=num_classes)
    assert_same_gradient(spec, converted, batch_size, num_classes)


@given(
    source=st.sampled_from(sorted(PRESETS.keys() - FUNCTION.keys())),
    target=st.sampled_from(sorted(TIED - {"kd_lib"})),
    temperature=st.floats(0.5, 20),
    alpha=st.floats(0.05, 0.95),
)
@settings(max_examples=60, deadline=None)
def test_the_alpha_a_refusal_proposes_has_the_direction_and_length_it_states(
    source: str, target: str, temperature: float, alpha: float
) -> None:
    spec = preset(source, temperature, alpha)
    try:
        spec.convert(target, num_classes=6)
    except ConfigError as error:
        found = re.search(r"alpha = (\S+) gives (\S+) times this gradient", str(error))
    else:
        assume(False)
    assert found is not None
    proposed, factor = map(float, found.groups())
    assume(1e-3 < proposed < 1 - 1e-3)  # the message rounds to six digits
    ours = gradient(preset(target, temperature, proposed), 4, 6)
    expected = factor * gradient(spec, 4, 6)
    assert np.abs(ours - expected).max() <= 1e-2 * np.abs(expected).max()


@given(temperature=st.floats(0.5, 20), alpha=st.floats(0, 1))
@settings(max_examples=40, deadline=None)
def test_alpha_on_the_other_term_is_one_minus_alpha(temperature: float, alpha: float) -> None:
    on_hard = KDSpec.preset("hinton", temperature=temperature, alpha=alpha)
    on_soft = replace(on_hard, hard_weight=0.5, soft_weight=0.5, alpha_weights="soft")
    converted = on_hard.convert(on_soft)
    assert converted.alpha == pytest.approx(1 - alpha, abs=4 * EPS)
    assert_same_gradient(on_hard, converted, 3, 4)


def test_labml_in_the_terms_of_the_paper() -> None:
    # 100/(C·T) on (s − t)/B is w·T with w = 100/(10·25): weaker than it looks.
    spec = KDSpec.preset("labml").convert(KDSpec(5.0, 0.5, 0.5), num_classes=10)
    assert (spec.hard_weight, spec.soft_weight) == (0.5, pytest.approx(0.4, rel=4 * EPS))


def test_divergence_and_cross_entropy_convert_and_keep_the_gradient() -> None:
    spec = KDSpec(4.0, 0.3, 0.7)
    converted = spec.convert(replace(spec, divergence="cross_entropy"))
    assert converted.divergence == "cross_entropy"
    np.testing.assert_array_equal(gradient(spec, 3, 4), gradient(converted, 3, 4))


def test_another_temperature_is_another_function() -> None:
    with pytest.raises(ConfigError, match=r"T = 2 and at T = 3 are different functions"):
        KDSpec(2.0, 0.5, 0.5).convert(KDSpec(3.0, 0.5, 0.5))


def test_the_reverse_divergence_is_another_function() -> None:
    reverse = KDSpec(2.0, 0.5, 0.5, divergence="reverse_kl")
    with pytest.raises(ConfigError, match=r"KL\(t ‖ s\) and of KL\(s ‖ t\)"):
        KDSpec(2.0, 0.5, 0.5).convert(reverse)
    assert reverse.convert(replace(reverse, reduction="sum"), batch_size=4).soft_weight == 0.125


def test_a_missing_logarithm_cannot_be_weighted_away() -> None:
    published = KDSpec.preset("googlenet-published")
    with pytest.raises(ConfigError, match=r"Σ_c t\(log t − s\) and of KL\(t ‖ s\)"):
        published.convert("googlenet-intended")
    with pytest.raises(ConfigError, match=r"KL\(t ‖ s\) and of Σ_c t\(log t − s\)"):
        KDSpec.preset("hinton", temperature=5.0, alpha=0.55).convert("googlenet-published")
    scaled = published.convert(replace(published, t_squared=True))
    assert (scaled.hard_weight, scaled.soft_weight) == (0.55, pytest.approx(0.45 / 25))
    assert_same_gradient(published, scaled, 3, 5)


def test_what_googlenet_was_meant_to_learn_from_is_the_paper_without_its_t_squared() -> None:
    spec = KDSpec.preset("googlenet-intended").convert("batchmean-no-T2")
    assert spec.alpha == pytest.approx(0.55)


def test_a_size_that_is_needed_is_asked_for() -> None:
    with pytest.raises(ConfigError, match="give num_classes="):
        KDSpec.preset("deit", temperature=2.0, alpha=0.5).convert("torchdistill")
    with pytest.raises(ConfigError, match="give batch_size="):
        KDSpec(2.0, 0.5, 0.5).convert(KDSpec(2.0, 0.5, 0.5, reduction="sum"))


def test_equal_reductions_need_no_size() -> None:
    spec = KDSpec.preset("deit", temperature=2.0, alpha=0.5).convert("labml")
    assert spec.soft_weight == pytest.approx(0.5 * 4, rel=4 * EPS)


def test_a_given_convention_without_a_soft_weight_cannot_be_scaled() -> None:
    for hard_weight in (1.0, 0.5):
        other = KDSpec(2.0, hard_weight, 0.0, alpha_weights="hard")
        with pytest.raises(ConfigError, match="leaves the soft term no weight to scale"):
            KDSpec(2.0, 0.5, 0.5).convert(other)


def test_a_loss_of_weight_zero_has_no_alpha() -> None:
    with pytest.raises(ConfigError, match="no alpha gives the weights 0 and 0"):
        KDSpec(2.0, 0.0, 0.0).convert("hinton")


def test_an_unknown_convention_is_refused_with_a_suggestion() -> None:
    with pytest.raises(ConfigError, match="did you mean 'textbrewer'"):
        KDSpec(2.0, 0.5, 0.5).convert("textbrewr")


def test_a_given_convention_without_room_for_a_soft_weight_cannot_be_scaled() -> None:
    full = KDSpec(2.0, 1.0, 0.5, alpha_weights="hard")
    with pytest.raises(ConfigError, match="leaves the soft term no weight"):
        KDSpec(2.0, 0.5, 0.5).convert(full)
