"""KDSpec: what each preset puts on the gradient, what it says of itself, and what it refuses."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from refkd.errors import ConfigError
from refkd.losses import PRESETS, KDSpec, distillation_loss
from refkd.losses.spec import DIVERGENCES
from refkd.ops import softmax_forward

EPS = np.finfo(np.float64).eps
T, ALPHA, BETA, C = 7.0, 0.3, 0.4, 10

# preset, its parameters, the factors on (q − y)/B and on (s − t)/B
COEFFICIENTS: list[tuple[str, dict[str, float | None], float, float]] = [
    ("hinton", {"temperature": T, "alpha": ALPHA}, ALPHA, (1 - ALPHA) * T),
    ("kldiv-mean-2aT2", {"temperature": T, "alpha": ALPHA}, 1 - ALPHA, 2 * ALPHA * T / C),
    ("batchmean-no-T2", {"temperature": T, "alpha": ALPHA}, ALPHA, (1 - ALPHA) / T),
    ("labml", {}, 0.5, 100 / (C * 5)),
    ("labml", {"temperature": T, "soft_weight": 80, "hard_weight": 0.2}, 0.2, 80 / (C * T)),
    ("deit", {"temperature": T, "alpha": ALPHA}, 1 - ALPHA, ALPHA * T / C),
    ("torchdistill", {"temperature": T, "alpha": ALPHA}, ALPHA, (1 - ALPHA) * T),
    ("torchdistill", {"temperature": T, "alpha": ALPHA, "beta": BETA}, ALPHA, BETA * T),
    ("torchdistill", {"temperature": T, "alpha": None, "beta": BETA}, 0, 1 / T),
    ("torchdistill", {"temperature": T, "alpha": 0, "beta": BETA}, 0, 1 / T),
    ("textbrewer", {"temperature": T, "hard_weight": 0.2, "soft_weight": 3}, 0.2, 3 / T),
    ("googlenet-intended", {}, 0.55, 0.45 / 5),
]
table = pytest.mark.parametrize(("name", "parameters", "hard", "soft"), COEFFICIENTS)


@table
def test_preset_has_the_coefficient_of_the_table(
    name: str, parameters: dict[str, Any], hard: float, soft: float
) -> None:
    spec = KDSpec.preset(name, **parameters)
    assert spec.hard_weight == pytest.approx(hard, rel=4 * EPS)
    assert spec.coefficient(num_classes=C) == pytest.approx(soft, rel=4 * EPS)


@table
def test_the_gradient_really_has_the_coefficient_of_the_table(
    name: str, parameters: dict[str, Any], hard: float, soft: float
) -> None:
    spec = KDSpec.preset(name, **parameters)
    rng = np.random.default_rng(0)
    z, v = 3 * rng.standard_normal((2, 6, C))
    labels = rng.integers(C, size=6)
    _, dz = distillation_loss(z, v, labels, spec)
    hard_part = hard * (softmax_forward(z) - np.eye(C)[labels]) / 6
    t_of = {"temperature": spec.temperature}
    soft_part = soft * (softmax_forward(z, **t_of) - softmax_forward(v, **t_of)) / 6
    assert np.abs(dz - hard_part - soft_part).max() <= 32 * EPS * np.abs(dz).max()


def test_every_preset_stands_in_the_table_but_those_that_are_no_divergence() -> None:
    stated = {name for name, *_ in COEFFICIENTS}
    assert stated | {"kd_lib", "googlenet-published"} == set(PRESETS)
    spec = KDSpec.preset("kd_lib", temperature=T, alpha=ALPHA)
    assert (spec.divergence, spec.reduction) == ("mse_probabilities", "mean")
    assert (spec.hard_weight, spec.effective_soft_weight) == (1 - ALPHA, pytest.approx(0.3 * 49))
    with pytest.raises(ConfigError, match="not a multiple of"):
        spec.coefficient(num_classes=C)


def test_the_published_loss_of_googlenet_has_a_gradient_of_its_own() -> None:
    spec = KDSpec.preset("googlenet-published")
    assert (spec.divergence, spec.reduction) == ("kl_without_log", "batchmean")
    assert (spec.temperature, spec.hard_weight, spec.effective_soft_weight) == (5, 0.55, 0.45)
    with pytest.raises(ConfigError, match=r"Σ_c t\(log t − s\) is ∝ −s⊙\(t − ⟨s, t⟩\), not a mul"):
        spec.coefficient()
    rng = np.random.default_rng(0)
    z, v = 3 * rng.standard_normal((2, 6, C))
    labels = rng.integers(C, size=6)
    _, dz = distillation_loss(z, v, labels, spec)
    s, t = softmax_forward(z, temperature=5), softmax_forward(v, temperature=5)
    soft_part = -0.45 / (5 * 6) * s * (t - (t * s).sum(axis=1, keepdims=True))
    hard_part = 0.55 * (softmax_forward(z) - np.eye(C)[labels]) / 6
    assert np.abs(dz - hard_part - soft_part).max() <= 32 * EPS * np.abs(dz).max()


@pytest.mark.parametrize(
    ("reduction", "batch_over_divisor"), [("batchmean", 1.0), ("mean", 1 / C), ("sum", 16.0)]
)
@pytest.mark.parametrize("divergence", ["kl", "cross_entropy"])
def test_coefficient_follows_the_reduction(
    reduction: str, batch_over_divisor: float, divergence: str
) -> None:
    spec = KDSpec(4.0, 0.1, 0.9, reduction=reduction, divergence=divergence)
    k = spec.coefficient(num_classes=C, batch_size=16)
    assert k == pytest.approx(0.9 * 4 * batch_over_divisor, rel=4 * EPS)


@pytest.mark.parametrize(
    ("reduction", "given_", "missing"),
    [("mean", {"batch_size": 4}, "num_classes"), ("sum", {"num_classes": 4}, "batch_size")],
)
def test_a_coefficient_that_depends_on_a_size_asks_for_it(
    reduction: str, given_: dict[str, int], missing: str
) -> None:
    spec = KDSpec(4.0, 0.1, 0.9, reduction=reduction)
    with pytest.raises(ConfigError, match=f"give {missing}=, a positive integer, got None"):
        spec.coefficient(**given_)
    for wrong in (0, -3, 2.5, "10", True):
        with pytest.raises(ConfigError, match=f"give {missing}="):
            spec.coefficient(**{missing: wrong})


def test_sizes_may_be_numpy_integers() -> None:
    spec = KDSpec.preset("deit", temperature=4.0, alpha=0.5)
    assert spec.coefficient(num_classes=np.int64(10)) == spec.coefficient(num_classes=10)


@given(st.floats(0.5, 50), st.floats(0, 1))
@settings(max_examples=50)
def test_alpha_reads_back_what_the_preset_was_given(temperature: float, alpha: float) -> None:
    for name in ("hinton", "kldiv-mean-2aT2", "batchmean-no-T2", "deit", "kd_lib"):
        spec = KDSpec.preset(name, temperature=temperature, alpha=alpha)
        assert spec.alpha == pytest.approx(alpha, abs=2 * EPS)
    assert KDSpec.preset("labml").alpha is None


def test_explain_tells_the_published_mistake_of_a_missing_t_squared() -> None:
    text = KDSpec.preset("batchmean-no-T2", temperature=7.0, alpha=0.3).explain()
    assert "k = 0.7/T = 0.1\n" in text
    assert "there is no T²: the soft gradient is 49 times weaker" in text
    assert "alpha = 0.3 weights the hard term" in text
    assert "L = 0.3·CE(q, y) + 0.7·Σ_batch KL(t ‖ s)/B" in text


def test_explain_of_the_paper_has_t_squared_and_no_complaint() -> None:
    text = KDSpec.preset("hinton", temperature=7.0, alpha=0.3).explain()
    assert "0.7·T²·Σ_batch KL(t ‖ s)/B" in text
    assert "k = 0.7·T = 4.9\n" in text
    assert "there is no T²" not in text


def test_explain_says_on_which_term_alpha_stands() -> None:
    text = KDSpec.preset("deit", temperature=3.0, alpha=0.1).explain(num_classes=1000)
    assert "alpha = 0.1 weights the soft term" in text
    assert "k = 0.1·T/C = 0.0003" in text
    assert "alpha" not in KDSpec.preset("labml").explain()


def test_explain_gives_a_formula_where_the_number_depends_on_a_size() -> None:
    mean, total = (KDSpec(4.0, 0.1, 0.9, reduction=r) for r in ("mean", "sum"))
    assert mean.explain().splitlines()[3] == "k = 0.9·T/C"
    assert mean.explain(num_classes=10).splitlines()[3] == "k = 0.9·T/C = 0.36"
    assert total.explain(batch_size=8).splitlines()[3] == "k = 0.9·T·B = 28.8"


def test_explain_names_the_gradient_of_what_is_no_forward_divergence() -> None:
    for divergence, words in (
        ("reverse_kl", "ℓ = log s − log t"),
        ("mse_probabilities", "s⊙(d"),
        ("kl_without_log", "−s⊙(t − ⟨s, t⟩)"),
    ):
        text = KDSpec(4.0, 0.1, 0.9, divergence=divergence).explain()
        assert words in text
        assert "k·(s − t)" not in text


def test_explain_tells_the_published_mistake_of_a_missing_logarithm() -> None:
    published = KDSpec.preset("googlenet-published").explain()
    assert published.startswith("L = 0.55·CE(q, y) + 0.45·Σ_batch Σ_c t(log t − s)/B\n")
    assert "a softmax stands where its logarithm is due: the soft term is negative" in published
    assert "there is no T²: the soft gradient is 25 times weaker" in published
    intended = KDSpec.preset("googlenet-intended").explain()
    assert "k = 0.45/T = 0.09\n" in intended
    assert "logarithm" not in intended


def test_explain_at_temperature_one_does_not_complain() -> None:
    assert "no T²" not in KDSpec(1.0, 0.5, 0.5, t_squared=False).explain()


@pytest.mark.parametrize("temperature", [0, 0.0, -1.0, math.nan, math.inf, "4", None, True, 1j])
def test_a_temperature_that_is_no_positive_number_is_refused(temperature) -> None:
    with pytest.raises(ConfigError, match="temperature must be a finite number > 0"):
        KDSpec(temperature, 0.5, 0.5)
    with pytest.raises(ConfigError, match="temperature must be a finite number > 0"):
        KDSpec.preset("hinton", temperature=temperature, alpha=0.5)


def test_a_temperature_whose_square_overflows_is_refused() -> None:
    assert KDSpec(1e150, 0.5, 0.5).effective_soft_weight == pytest.approx(5e299)
    with pytest.raises(ConfigError, match="temperature must have a finite square, got 1e\\+200"):
        KDSpec(1e200, 0.5, 0.5)


@pytest.mark.parametrize("name", ["hard_weight", "soft_weight"])
@pytest.mark.parametrize("value", [-0.1, math.nan, math.inf, "1", None, False])
def test_a_negative_or_unreal_weight_is_refused(name: str, value) -> None:
    with pytest.raises(ConfigError, match=f"{name} must be a finite number >= 0"):
        KDSpec(**({"temperature": 2.0, "hard_weight": 0.5, "soft_weight": 0.5} | {name: value}))


@pytest.mark.parametrize("alpha", [-0.1, 1.1, math.nan, "0.5", None])
@pytest.mark.parametrize("name", ["hinton", "kldiv-mean-2aT2", "deit", "kd_lib"])
def test_an_alpha_outside_the_unit_interval_is_refused(name: str, alpha) -> None:
    with pytest.raises(ConfigError, match=r"alpha must be a number in \[0, 1\]"):
        KDSpec.preset(name, temperature=2.0, alpha=alpha)


def test_a_tied_hard_weight_above_one_is_refused() -> None:
    with pytest.raises(ConfigError, match="hard_weight, tied by alpha"):
        KDSpec(2.0, 1.5, 0.5, alpha_weights="hard")


def test_unknown_names_are_refused_with_a_suggestion() -> None:
    with pytest.raises(ConfigError, match="did you mean 'hinton'"):
        KDSpec.preset("hintn", temperature=2.0, alpha=0.5)
    with pytest.raises(ConfigError, match=r"unknown parameter 'temprature'.*'temperature'\?"):
        KDSpec.preset("hinton", temprature=2.0, alpha=0.5)
    with pytest.raises(ConfigError, match="missing parameter temperature, alpha, expected t"):
        KDSpec.preset("hinton")
    with pytest.raises(ConfigError, match="did you mean 'batchmean'"):
        KDSpec(2.0, 0.5, 0.5, reduction="batch_mean")
    with pytest.raises(ConfigError, match="did you mean 'reverse_kl'"):
        KDSpec(2.0, 0.5, 0.5, divergence="reversekl")
    with pytest.raises(ConfigError, match="did you mean 'kl_without_log'"):
        KDSpec(2.0, 0.5, 0.5, divergence="kl_no_log")
    with pytest.raises(ConfigError, match="did you mean 'googlenet-published'"):
        KDSpec.preset("googlenet_published")
    with pytest.raises(ConfigError, match="alpha_weights must be one of 'hard', 'soft'"):
        KDSpec(2.0, 0.5, 0.5, alpha_weights="both")


def test_a_spec_is_a_frozen_value() -> None:
    spec = KDSpec.preset("hinton", temperature=2.0, alpha=0.5)
    assert spec == KDSpec.preset("hinton", temperature=2.0, alpha=0.5)
    with pytest.raises(AttributeError):
        spec.temperature = 3.0  # type: ignore[misc]


@pytest.mark.parametrize("divergence", DIVERGENCES)
def test_numpy_numbers_in_a_spec_keep_float32(divergence: str) -> None:
    temperature, hard, soft = np.linspace(0.5, 2.5, 3)
    spec = KDSpec(temperature, hard, soft, divergence=divergence)
    z, v = np.eye(3, dtype=np.float32), np.ones((3, 3), np.float32)
    _, dz = distillation_loss(z, v, np.arange(3), spec)
    assert dz.dtype == np.float32
