"""From what a recipe says to what is trained: networks, stages and objectives."""

from __future__ import annotations

import math

from refkd import models
from refkd.data.dataset import Dataset
from refkd.distill.logit import LogitDistillation
from refkd.distill.objective import Objective
from refkd.distill.stage import Stage
from refkd.errors import DataError
from refkd.losses.spec import KDSpec
from refkd.nn.layer import Layer
from refkd.recipes import config
from refkd.train.run import NetworkSpec

__all__ = ["build_stage", "distillation", "network_spec"]


def network_spec(
    network: config.Network, training: config.Training, dataset: Dataset
) -> NetworkSpec:
    """Return a recipe's network, its input size and number of classes taken from the data.

    Parameters
    ----------
    network : Network
    training : Training
        Its hyperparameters take the place of the network's.
    dataset : Dataset

    Raises
    ------
    DataError
        If the network takes images with channels, or square ones, and the data are none.
    """
    accepted = models.hyperparameters(network.model)
    shape = dataset.image_shape
    sizes = {"in_features": math.prod(shape), "num_classes": dataset.num_classes}
    if "in_channels" in accepted:
        square = "image_size" in accepted
        if len(shape) != 3 or (square and shape[1] != shape[2]):
            taken = "square images (C, S, S)" if square else "images (C, H, W)"
            raise DataError(f"{network.model} takes {taken}, those of {dataset.name} are {shape}")
        sizes |= {"in_channels": shape[0], "image_size": shape[1]}
    from_data = {name: size for name, size in sizes.items() if name in accepted}
    return NetworkSpec(
        network.model,
        from_data | network.hyperparameters | training.hyperparameters,
        shape,
        dataset.normalization,
        dataset.class_names,
    )


def build_stage(objective: Objective, training: config.Training) -> Stage:
    """Return the stage that trains ``objective`` as a recipe says."""
    return Stage(
        objective,
        training.build_optimizer(),
        training.build_schedule(),
        training.epochs,
        training.batch_size,
        keep=training.keep,
    )


def distillation(
    recipe: config.Recipe,
    student: config.Student,
    kd: KDSpec,
    network: Layer,
    teacher: Layer | None,
) -> LogitDistillation:
    """Return the objective of a student that distils from a teacher, or its stored logits.

    It is ``exact`` where stored logits could stand in for the teacher: where the images
    stay the same in every epoch, and the teacher has one head and always answers alike.
    """
    changing = any(transform.random for transform in recipe.images.transforms())
    answers_alike = student.teacher_mode == "eval" and not student.head_weights
    return LogitDistillation(
        network,
        teacher,
        kd,
        student.head_weights,
        student.teacher_mode,
        student.student_eval_from,
        exact=answers_alike and not changing,
    )
