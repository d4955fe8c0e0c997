"""Every preset against the PyTorch expression its source evaluates, in float64.

Each function below states its source's formula in the calls the source makes; the
presets must give the same value and the same gradient.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from refkd.losses import PRESETS, KDSpec, distillation_loss

torch = pytest.importorskip("torch", reason="parity with PyTorch needs torch")
F = torch.nn.functional


def repdistiller(z, v, y, *, temperature: float, alpha: float):
    """kl_div(log_softmax(z/T), softmax(v/T), size_average=False) · T² / z.shape[0]."""
    # size_average=False is the old spelling of reduction="sum".
    p_s, p_t = F.log_softmax(z / temperature, dim=1), F.softmax(v / temperature, dim=1)
    kd = F.kl_div(p_s, p_t, reduction="sum") * (temperature**2) / z.shape[0]
    return alpha * F.cross_entropy(z, y) + (1 - alpha) * kd


def vit_pytorch(z, v, y, *, temperature: float, alpha: float):
    """CE · (1 − alpha) + batchmean KL · T² · alpha: alpha here is 1 − the preset's."""
    kd = F.kl_div(
        F.log_softmax(z / temperature, dim=-1),
        F.softmax(v / temperature, dim=-1).detach(),
        reduction="batchmean",
    )
    kd *= temperature**2
    on_soft = 1 - alpha
    return F.cross_entropy(z, y) * (1 - on_soft) + kd * on_soft


def kldiv_mean(z, v, y, *, temperature: float, alpha: float):
    """nn.KLDivLoss()(log_softmax(z/T), softmax(v/T)) · (alpha · T · T · 2) + CE · (1 − alpha)."""
    kd = torch.nn.KLDivLoss()(
        F.log_softmax(z / temperature, dim=1), F.softmax(v / temperature, dim=1)
    )
    return kd * (alpha * temperature * temperature * 2.0) + F.cross_entropy(z, y) * (1.0 - alpha)


def batchmean_without_t_squared(z, v, y, *, temperature: float, alpha: float):
    """CE · alpha + (1 − alpha) · nn.KLDivLoss(reduction="batchmean")(log_softmax, softmax)."""
    kd = torch.nn.KLDivLoss(reduction="batchmean")(
        F.log_softmax(z / temperature, dim=1), F.softmax(v / temperature, dim=1)
    )
    return alpha * F.cross_entropy(z, y) + (1 - alpha) * kd


def labml(z, v, y, *, temperature: float, soft_weight: float, hard_weight: float):
    """nn.KLDivLoss(log_target=True)(log_softmax(z/T), log_softmax(v/T)), the default mean."""
    kd = torch.nn.KLDivLoss(log_target=True)(
        F.log_softmax(z / temperature, dim=-1), F.log_softmax(v / temperature, dim=-1)
    )
    return soft_weight * kd + hard_weight * F.cross_entropy(z, y)


def deit(z, v, y, *, temperature: float, alpha: float):
    """kl_div(log_softmax, log_softmax, reduction="sum", log_target=True) · (T·T) / z.numel()."""
    kd = F.kl_div(
        F.log_softmax(z / temperature, dim=1),
        F.log_softmax(v / temperature, dim=1),
        reduction="sum",
        log_target=True,
    )
    kd = kd * (temperature * temperature) / z.numel()
    return F.cross_entropy(z, y) * (1 - alpha) + kd * alpha


def torchdistill(z, v, y, *, temperature: float, alpha: float | None, beta: float):
    """The bare batchmean KL if alpha is None or 0, else alpha · CE + beta · T² · KL."""
    kd = F.kl_div(
        torch.log_softmax(z / temperature, dim=1),
        torch.softmax(v / temperature, dim=1),
        reduction="batchmean",
    )
    if alpha is None or alpha == 0:
        return kd
    return alpha * F.cross_entropy(z, y) + beta * (temperature**2) * kd


def textbrewer(z, v, y, *, temperature: float, hard_weight: float, soft_weight: float):
    """−(softmax(v/T) · log_softmax(z/T)).sum(dim=-1).mean()."""
    p_t = F.softmax(v / temperature, dim=-1)
    kd = -(p_t * F.log_softmax(z / temperature, dim=-1)).sum(dim=-1).mean()
    return hard_weight * F.cross_entropy(z, y) + soft_weight * kd


def kd_lib(z, v, y, *, temperature: float, alpha: float):
    """(1 − w) · CE + (w · T · T) · nn.MSELoss()(softmax(v/T), softmax(z/T))."""
    soft_teacher, soft_student = (
        F.softmax(v / temperature, dim=1),
        F.softmax(z / temperature, dim=1),
    )
    kd = torch.nn.MSELoss()(soft_teacher, soft_student)
    return (1 - alpha) * F.cross_entropy(z, y) + (alpha * temperature * temperature) * kd


def googlenet_published(z, v, y, *, temperature: float, soft_weight: float, hard_weight: float):
    """nn.KLDivLoss(reduction="batchmean")(softmax(z/T), softmax(v/T)): no logarithm."""
    kd = torch.nn.KLDivLoss(reduction="batchmean")(
        F.softmax(z / temperature, dim=1), F.softmax(v / temperature, dim=1)
    )
    return hard_weight * F.cross_entropy(z, y) + soft_weight * kd


def googlenet_intended(z, v, y, *, temperature: float, soft_weight: float, hard_weight: float):
    """The same with log_softmax(z/T)."""
    kd = torch.nn.KLDivLoss(reduction="batchmean")(
        F.log_softmax(z / temperature, dim=1), F.softmax(v / temperature, dim=1)
    )
    return hard_weight * F.cross_entropy(z, y) + soft_weight * kd


TIED = {"alpha": st.floats(0, 1)}
FREE = {"hard_weight": st.floats(0, 2), "soft_weight": st.floats(0.01, 100)}
SOURCES: list[tuple[str, Callable[..., Any], dict[str, Any]]] = [
    ("hinton", repdistiller, TIED),
    ("hinton", vit_pytorch, TIED),
    ("kldiv-mean-2aT2", kldiv_mean, TIED),
    ("batchmean-no-T2", batchmean_without_t_squared, TIED),
    ("labml", labml, FREE),
    ("deit", deit, TIED),
    ("torchdistill", torchdistill, {"alpha": st.floats(0.01, 1), "beta": st.floats(0, 2)}),
    ("torchdistill", torchdistill, {"alpha": st.sampled_from([None, 0]), "beta": st.floats(0, 2)}),
    ("textbrewer", textbrewer, FREE),
    ("kd_lib", kd_lib, TIED),
    ("googlenet-published", googlenet_published, FREE),
    ("googlenet-intended", googlenet_intended, FREE),
]


def test_every_preset_has_a_source() -> None:
    assert {name for name, _, _ in SOURCES} == set(PRESETS)


# nn.KLDivLoss() itself warns of its default mean, which is the point of two presets.
@pytest.mark.filterwarnings("ignore:reduction. 'mean' divides:UserWarning")
@pytest.mark.parametrize(("name", "source", "weights"), SOURCES)
@given(data=st.data())
@settings(max_examples=15, deadline=None)
def test_preset_is_what_its_source_computes(
    assert_parity, autograd, name: str, source: Callable[..., Any], weights: dict[str, Any], data
) -> None:
    parameters = {k: data.draw(strategy, label=k) for k, strategy in weights.items()}
    parameters["temperature"] = data.draw(st.floats(0.5, 20), label="temperature")
    batch, classes = data.draw(st.integers(1, 8)), data.draw(st.integers(2, 12))
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32 - 1)))
    z, v = 3 * rng.standard_normal((2, batch, classes))
    labels = rng.integers(classes, size=batch)

    teacher, target = torch.from_numpy(v), torch.from_numpy(labels)
    value, dz = autograd(lambda a: source(a, teacher, target, **parameters), (z,))
    spec = KDSpec.preset(name, **parameters)
    ours, dours = distillation_loss(z, v, labels, spec)
    # Near 0 both are differences of numbers of this size: logarithms, and probabilities.
    soft_weight = spec.effective_soft_weight / (classes if spec.reduction == "mean" else 1)
    logarithm = 1 + np.abs([z, v]).max() / min(1.0, spec.temperature)
    assert_parity(ours, value, (spec.hard_weight + soft_weight) * logarithm)
    gradient_scale = (spec.hard_weight + soft_weight / spec.temperature) / batch
    assert_parity(dours, dz, gradient_scale)


@pytest.mark.filterwarnings("ignore:reduction. 'mean' divides:UserWarning")
def test_labml_by_its_defaults(assert_parity, autograd) -> None:
    rng = np.random.default_rng(0)
    z, v = 3 * rng.standard_normal((2, 8, 10))
    labels = rng.integers(10, size=8)
    teacher, target = torch.from_numpy(v), torch.from_numpy(labels)
    published = {"temperature": 5.0, "soft_weight": 100.0, "hard_weight": 0.5}
    value, dz = autograd(lambda a: labml(a, teacher, target, **published), (z,))
    ours, dours = distillation_loss(z, v, labels, KDSpec.preset("labml"))
    assert_parity(ours, value)
    assert_parity(dours, dz)


def test_torchdistill_gives_beta_one_minus_alpha_by_default() -> None:
    spec = KDSpec.preset("torchdistill", temperature=4.0, alpha=0.3)
    assert spec == KDSpec.preset("torchdistill", temperature=4.0, alpha=0.3, beta=0.7)


def test_the_default_mean_warns_in_pytorch_too() -> None:
    zeros = torch.zeros((2, 3))
    with pytest.warns(UserWarning, match="'mean' divides the total loss by both"):
        torch.nn.KLDivLoss()(zeros, zeros)
