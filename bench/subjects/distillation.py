"""The distillation loss as a function of both logits, and with a shared network.

L = a CE(y, softmax z) + (1 − a) T² KL(softmax(v/T) ‖ softmax(z/T)), the mean over the
batch, with the errors that are in circulation.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from bench.subjects import Gradient, Subject

__all__ = ["kd_loss", "log_softmax", "self_distillation"]


def log_softmax(u: Any) -> Any:
    """Return the logarithm of the softmax over the last axis; analytic."""
    shifted = u - u.real.max(axis=-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))


def kd_loss(
    rng: np.random.Generator,
    batch: int = 8,
    classes: int = 10,
    temperature: float = 4.0,
    hard_weight: float = 0.3,
) -> Subject:
    """Return the loss of student and teacher logits, both differentiated.

    Parameters
    ----------
    rng : numpy.random.Generator
        Draws logits and labels.
    batch, classes : int
    temperature : float, > 0
    hard_weight : float, in [0, 1]
        a.
    """
    T, a = temperature, hard_weight
    labels = rng.integers(classes, size=batch)
    one_hot = np.eye(classes)[labels]

    def f(student: Any, teacher: Any) -> Any:
        log_s, log_t = log_softmax(student / T), log_softmax(teacher / T)
        hard = -(one_hot * log_softmax(student)).sum() / batch
        soft = (np.exp(log_t) * (log_t - log_s)).sum() / batch
        return a * hard + (1 - a) * T * T * soft

    def gradient(
        soft_scale: float = 1.0, hard_scale: float = 1.0, teacher_scale: float = 1.0
    ) -> Gradient:
        def grad(student: Any, teacher: Any) -> dict[str, Any]:
            q = np.exp(log_softmax(student))
            log_s, log_t = log_softmax(student / T), log_softmax(teacher / T)
            s, t, ratio = np.exp(log_s), np.exp(log_t), log_t - log_s
            hard = a * (q - one_hot) / batch
            soft = (1 - a) * T * (s - t) / batch
            dteacher = (1 - a) * T * t * (ratio - (t * ratio).sum(axis=-1, keepdims=True)) / batch
            return {
                "student": hard_scale * hard + soft_scale * soft,
                "teacher": soft_scale * teacher_scale * dteacher,
            }

        return grad

    def swapped(student: Any, teacher: Any) -> dict[str, Any]:
        """Give the gradient of KL(student ‖ teacher) in the place of KL(teacher ‖ student)."""
        right = gradient()(student, teacher)
        exchanged = gradient(hard_scale=0.0)(teacher, student)
        soft = gradient(hard_scale=0.0)(student, teacher)["student"]
        return {
            "student": right["student"] - soft + exchanged["teacher"],
            "teacher": exchanged["student"],
        }

    return Subject(
        "distillation loss",
        f,
        {
            "student": 2 * rng.standard_normal((batch, classes)),
            "teacher": 2 * rng.standard_normal((batch, classes)),
        },
        gradient(),
        errors={
            "T² dropped": gradient(soft_scale=1 / T**2),
            "T for T²": gradient(soft_scale=1 / T),
            "mean for sum over the classes": gradient(soft_scale=1 / classes),
            "sum for mean over the batch": gradient(soft_scale=batch, hard_scale=batch),
            "weights of the terms swapped": gradient(
                soft_scale=a / (1 - a), hard_scale=(1 - a) / a
            ),
            "teacher and student swapped": swapped,
            "gradient to the teacher missing": gradient(teacher_scale=0.0),
        },
    )


def self_distillation(rng: np.random.Generator, batch: int = 6, classes: int = 5) -> Subject:
    """Return KL(teacher ‖ student) of one linear map on two views, the teacher's detached.

    Parameters
    ----------
    rng : numpy.random.Generator
        Draws the weight and both views.
    batch, classes : int
    """
    features = 4
    given = rng.standard_normal((classes, features))
    view, other_view = rng.standard_normal((2, batch, features))
    log_t = log_softmax(other_view @ given.T)
    t = np.exp(log_t)

    def f(weight: Any) -> Any:
        return (t * (log_t - log_softmax(view @ weight.T))).sum() / batch

    def grad(weight: Any) -> dict[str, Any]:
        s = np.exp(log_softmax(view @ weight.T))
        return {"weight": (s - t).T @ view / batch}

    def not_detached(weight: Any) -> dict[str, Any]:
        ratio = log_softmax(other_view @ weight.T) - log_softmax(view @ weight.T)
        dlogits = t * (ratio - (t * ratio).sum(axis=-1, keepdims=True)) / batch
        return {"weight": grad(weight)["weight"] + dlogits.T @ other_view}

    def student_detached(weight: Any) -> dict[str, Any]:
        return {"weight": not_detached(weight)["weight"] - grad(weight)["weight"]}

    return Subject(
        "self-distillation",
        f,
        {"weight": given},
        grad,
        errors={"teacher not detached": not_detached, "student detached": student_detached},
    )
