"""The distillation losses in circulation, each as the :class:`KDSpec` it really is.

The docstring of each function gives the coefficient that its source puts on
(s − t)/B; they differ by factors of tens for the same "T and alpha".
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping

from refkd.errors import ConfigError, check_arguments, check_choice, check_unit_interval
from refkd.losses.spec import KDSpec

__all__ = ["PRESETS", "build", "check_expressible", "template"]


def hinton(temperature: float, alpha: float) -> KDSpec:
    """α·CE + (1 − α)·T²·KL, batch mean: (1 − α)·T.

    Hinton, Vinyals, Dean 2015; RepDistiller and mdistiller write the same, vit-pytorch with
    α on the soft term.
    """
    return KDSpec(temperature, alpha, 1 - alpha, alpha_weights="hard")


def kldiv_mean_2at2(temperature: float, alpha: float) -> KDSpec:
    """(1 − α)·CE + 2α·T²·``nn.KLDivLoss()``: 2αT/C, since the default mean divides by C too."""
    return KDSpec(temperature, 1 - alpha, 2 * alpha, reduction="mean", alpha_weights="soft")


def batchmean_no_t2(temperature: float, alpha: float) -> KDSpec:
    """α·CE + (1 − α)·KL, batch mean, T² forgotten: (1 − α)/T."""
    return KDSpec(temperature, alpha, 1 - alpha, t_squared=False, alpha_weights="hard")


def labml(temperature: float = 5.0, soft_weight: float = 100.0, hard_weight: float = 0.5) -> KDSpec:
    """hard·CE + soft·KL with the mean over elements and no T²: soft/(C·T).

    labmlai/annotated_deep_learning_paper_implementations, distillation.
    """
    return KDSpec(temperature, hard_weight, soft_weight, t_squared=False, reduction="mean")


def deit(temperature: float, alpha: float) -> KDSpec:
    """(1 − α)·CE + α·T²·KL summed and divided by ``numel``: αT/C.

    facebookresearch/deit, losses.py, distillation type "soft".
    """
    return KDSpec(temperature, 1 - alpha, alpha, reduction="mean", alpha_weights="soft")


def torchdistill(
    temperature: float, alpha: float | None = None, beta: float | None = None
) -> KDSpec:
    """α·CE + β·T²·KL, β = 1 − α by default: βT, but 1/T where α is None or 0.

    yoshitomo-matsubara/torchdistill, KDLoss. Without α (or without targets) it returns
    the bare batch-mean KL: the hard term, β and T² are dropped together.
    """
    if alpha is None or alpha == 0:
        return KDSpec(temperature, 0.0, 1.0, t_squared=False)
    check_unit_interval("KDSpec.preset('torchdistill')", "alpha", alpha)
    return KDSpec(temperature, alpha, 1 - alpha if beta is None else beta)


def textbrewer(temperature: float, hard_weight: float, soft_weight: float) -> KDSpec:
    """hard·CE + soft·H(t, s), batch mean, no T²: soft/T. TextBrewer, kd_ce_loss."""
    return KDSpec(
        temperature, hard_weight, soft_weight, t_squared=False, divergence="cross_entropy"
    )


def kd_lib(temperature: float, alpha: float) -> KDSpec:
    """(1 − α)·CE + α·T²·MSE(s, t): squared error of probabilities, not a KL.

    SforAiDl/KD_Lib, VanillaKD, where α is called ``distil_weight``.
    """
    return KDSpec(
        temperature,
        1 - alpha,
        alpha,
        reduction="mean",
        divergence="mse_probabilities",
        alpha_weights="soft",
    )


def googlenet_published(
    temperature: float = 5.0, soft_weight: float = 0.45, hard_weight: float = 0.55
) -> KDSpec:
    """hard·CE + soft·Σ t(log t − s), batch mean, no T²: not a multiple of s − t.

    ``nn.KLDivLoss(reduction="batchmean")`` on the student's *softmax*, in a published
    distillation of GoogLeNet; its student learns from each of the teacher's three heads.
    """
    return KDSpec(
        temperature, hard_weight, soft_weight, t_squared=False, divergence="kl_without_log"
    )


def googlenet_intended(
    temperature: float = 5.0, soft_weight: float = 0.45, hard_weight: float = 0.55
) -> KDSpec:
    """hard·CE + soft·KL, batch mean, no T²: soft/T. What "googlenet-published" was to be."""
    return KDSpec(temperature, hard_weight, soft_weight, t_squared=False)


PRESETS: Mapping[str, Callable[..., KDSpec]] = {
    "hinton": hinton,
    "kldiv-mean-2aT2": kldiv_mean_2at2,
    "batchmean-no-T2": batchmean_no_t2,
    "labml": labml,
    "deit": deit,
    "torchdistill": torchdistill,
    "textbrewer": textbrewer,
    "kd_lib": kd_lib,
    "googlenet-published": googlenet_published,
    "googlenet-intended": googlenet_intended,
}


def build(name: str, parameters: Mapping[str, float]) -> KDSpec:
    """Return preset ``name`` with its parameters checked; see :meth:`KDSpec.preset`."""
    check_choice("KDSpec.preset", "name", name, PRESETS)
    where = f"KDSpec.preset({name!r})"
    check_arguments(where, "parameter", PRESETS[name], parameters)
    accepted = inspect.signature(PRESETS[name]).parameters
    if "alpha" in parameters and parameters["alpha"] is not accepted["alpha"].default:
        check_unit_interval(where, "alpha", parameters["alpha"])
    return PRESETS[name](**parameters)


def template(name: str, temperature: float) -> KDSpec:
    """Return preset ``name`` at any legal weights, for the sake of its convention."""
    check_choice("KDSpec.convert", "other", name, PRESETS)
    accepted = inspect.signature(PRESETS[name]).parameters
    weights = {k: 0.5 for k in accepted if k in ("alpha", "hard_weight", "soft_weight")}
    return build(name, {"temperature": temperature, **weights})


def check_expressible(name: str, spec: KDSpec) -> None:
    """Raise ConfigError if preset ``name`` cannot be called so as to give ``spec``."""
    if name == "torchdistill" and spec.hard_weight == 0:
        raise ConfigError(
            "KDSpec.convert: torchdistill's KDLoss drops beta and T² where alpha is 0, so it has "
            "no weights without a hard term; scale its bare KL outside of it"
        )
