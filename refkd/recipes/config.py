"""What a recipe says: networks, protocols, and how each network of a protocol is trained.

A recipe is one TOML file. Here are its types, which refuse values that make no sense;
reading the file is :mod:`refkd.recipes.load`'s and running it :mod:`refkd.recipes.run`'s.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

from refkd.data import augment
from refkd.data.augment import Transform
from refkd.data.dataset import Normalization
from refkd.errors import ConfigError, check_choice, check_unit_interval
from refkd.losses import presets
from refkd.losses.spec import KDSpec
from refkd.recipes.tables import from_table
from refkd.train import optim, schedule

__all__ = ["Choice", "Images", "Network", "Protocol", "Recipe", "Student", "Teacher", "Training"]

_OPTIMIZERS = {"sgd": optim.SGD, "adam": optim.Adam, "adamw": optim.AdamW}
_TRANSFORMS = {
    "random_resized_crop": augment.RandomResizedCrop,
    "horizontal_flip": augment.HorizontalFlip,
    "padded_crop": augment.PaddedCrop,
    "center_crop": augment.CenterCrop,
    "resize": augment.Resize,
}
_SCHEDULES = {
    "constant": schedule.Constant,
    "step": schedule.Step,
    "linear": schedule.Linear,
    "cosine": schedule.Cosine,
}


@dataclass(frozen=True)
class Choice:
    """Something by name with its parameters: an optimiser, a schedule, a loss preset."""

    name: str
    parameters: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Network:
    """A model by name; its input size and number of classes come from the data."""

    model: str
    hyperparameters: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        _check_hyperparameters(self.hyperparameters)


@dataclass(frozen=True)
class Images:
    """What becomes of the images before a network sees them.

    Attributes
    ----------
    size : int or None
        Side in pixels to which the images of a folder are resized. Data sets whose images
        have one size need none.
    mean, std : tuple of float
        Of each channel, or one for all, of pixels in [0, 1]; see
        :class:`refkd.data.Normalization`.
    augment : tuple of Choice
        ``random_resized_crop``, ``horizontal_flip``, ``padded_crop``, ``center_crop`` or
        ``resize`` with the attributes of the class, applied in this order in training.
    """

    size: int | None = None
    mean: tuple[float, ...] = (0.0,)
    std: tuple[float, ...] = (1.0,)
    augment: tuple[Choice, ...] = ()

    def __post_init__(self) -> None:
        if self.size is not None:
            _check_at_least(1, "size", self.size)
        Normalization(1.0, self.mean, self.std)
        self.transforms()

    def transforms(self) -> tuple[Transform, ...]:
        """Return the augmentation."""
        return tuple(_build("augment", _TRANSFORMS, choice) for choice in self.augment)


@dataclass(frozen=True)
class Training:
    """How one network is trained.

    Attributes
    ----------
    epochs, batch_size : int
    optimizer : Choice
        ``sgd``, ``adam`` or ``adamw`` with the attributes of the class.
    schedule : Choice
        ``constant``, ``step``, ``linear`` or ``cosine``.
    warmup_steps : int
        Steps of linear warm-up before the schedule.
    label_smoothing : float
    keep : {"last", "best"}
        The last epoch, or the one with the highest validation accuracy.
    hyperparameters : dict
        Of the network, where a protocol departs from the recipe's.
    """

    epochs: int
    batch_size: int
    optimizer: Choice
    schedule: Choice = Choice("constant")
    warmup_steps: int = 0
    label_smoothing: float = 0.0
    keep: str = "last"
    hyperparameters: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        check_choice("training", "keep", self.keep, ("last", "best"))
        _check_hyperparameters(self.hyperparameters)
        _check_at_least(1, "epochs", self.epochs)
        _check_at_least(1, "batch_size", self.batch_size)
        check_unit_interval("training", "label_smoothing", self.label_smoothing)
        self.build_optimizer()
        self.build_schedule()

    def build_optimizer(self) -> optim.SGD | optim.Adam:
        """Return the optimiser."""
        return _build("optimizer", _OPTIMIZERS, self.optimizer)  # type: ignore[no-any-return]

    def build_schedule(self) -> Any:
        """Return the schedule, warm-up included."""
        then = _build("schedule", _SCHEDULES, self.schedule)
        return schedule.WarmUp(self.warmup_steps, then) if self.warmup_steps else then


@dataclass(frozen=True)
class Student(Training):
    """One student of a protocol: how it is trained, by whom it is taught, on what.

    Attributes
    ----------
    label : str
        What to call it in tables and pictures.
    distill : Choice or None
        A preset of :class:`refkd.losses.KDSpec`; None learns from the labels alone.
    head_weights : tuple of float
        Of the teacher's heads in the distillation loss, where it has several.
    teacher_mode : {"eval", "train"}
        In which mode the teacher answers; ``"train"``, with its dropout on, is a mistake
        that some publications made.
    student_eval_from : int or None
        The epoch, from 0, from which the student is left in evaluation mode: another one.
    train_images : int or None
        Only so many training images, drawn by the seed.
    only_classes, without_classes : tuple of int
        Restrict the training images to some classes, or leave some out.
    compared_with : str
        The student it is compared with, seed by seed.
    published : float or None
        The accuracy its source reports.
    """

    label: str = ""
    distill: Choice | None = None
    head_weights: tuple[float, ...] = ()
    teacher_mode: str = "eval"
    student_eval_from: int | None = None
    train_images: int | None = None
    only_classes: tuple[int, ...] = ()
    without_classes: tuple[int, ...] = ()
    compared_with: str = "alone"
    published: float | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        self.spec()
        check_choice("student", "teacher_mode", self.teacher_mode, ("eval", "train"))
        if self.student_eval_from is not None:
            _check_at_least(0, "student_eval_from", self.student_eval_from)
        changed = self.head_weights or self.student_eval_from is not None
        if self.distill is None and (changed or self.teacher_mode != "eval"):
            raise ConfigError(
                "head_weights, teacher_mode and student_eval_from belong to a student that distils"
            )
        if self.distill is not None and self.label_smoothing:
            raise ConfigError(
                "label_smoothing: the distillation loss has none, so the students would differ "
                "in more than their teaching; set it to 0"
            )
        _check_published(self.published)
        if self.train_images is not None:
            _check_at_least(1, "train_images", self.train_images)
        for index in (*self.only_classes, *self.without_classes):
            _check_at_least(0, "a class", index)

    def spec(self) -> KDSpec | None:
        """Return the distillation loss, or None."""
        if self.distill is None:
            return None
        return presets.build(self.distill.name, self.distill.parameters)


@dataclass(frozen=True)
class Teacher(Training):
    """The teacher's training, and the accuracy its source reports.

    Attributes
    ----------
    head_weights : tuple of float
        Of its heads in its own loss, where it has several.
    published : float or None
    """

    head_weights: tuple[float, ...] = ()
    published: float | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_published(self.published)


@dataclass(frozen=True)
class Protocol:
    """One way to run a recipe.

    Attributes
    ----------
    description : str
    seeds : int
        How many students of each kind.
    teacher : Teacher
    students : dict of str to Student
    explanation : str
        Paragraphs for the report, where ``{alone.figure}`` becomes an accuracy and
        ``{distilled_gain.figure}`` a paired difference, both with their intervals.
    """

    description: str
    seeds: int
    teacher: Teacher
    students: dict[str, Student]
    explanation: str = ""

    def __post_init__(self) -> None:
        _check_at_least(1, "seeds", self.seeds)
        for required in ("alone", "distilled"):
            if required not in self.students:
                raise ConfigError(f"students: missing {required!r}")
        for name, student in self.students.items():
            # It becomes part of a file's name and a field of the explanation.
            if not re.fullmatch(r"(?!teacher$)[A-Za-z0-9_]+(?<!_gain)", name):
                raise ConfigError(
                    f"students: a name consists of letters, digits and '_', is not 'teacher' "
                    f"and does not end in '_gain'; got {name!r}"
                )
            check_choice(f"students.{name}", "compared_with", student.compared_with, self.students)
        self._check_explanation()

    def _check_explanation(self) -> None:
        figure = SimpleNamespace(figure="0.9000 ± 0.0100")
        gains = (f"{k}_gain" for k, s in self.students.items() if s.compared_with != k)
        fields = dict.fromkeys(("teacher", *self.students, *gains), figure)
        try:
            self.explanation.format(**fields)
        except (AttributeError, LookupError, TypeError, ValueError) as error:
            raise ConfigError(
                f"explanation: expected fields such as {{alone.figure}} of "
                f"{', '.join(fields)} ({type(error).__name__}: {error}); a brace itself is {{{{"
            ) from error


@dataclass(frozen=True)
class Recipe:
    """A complete system: networks, data and protocols.

    Attributes
    ----------
    title : str
    data : str
        ``digits``, ``mnist`` ...: what the recipe is meant for.
    teacher, student : Network
    images : Images
    validation : float, in [0, 1)
        Where the data bring no validation images, this fraction of each class's training
        images is held out.
    protocols : dict of str to Protocol
        The first one is the default.
    name : str
        The file's name.
    """

    title: str
    data: str
    teacher: Network
    student: Network
    protocols: dict[str, Protocol]
    images: Images = Images()
    validation: float = 0.0
    name: str = ""

    def __post_init__(self) -> None:
        if not 0 <= self.validation < 1:
            raise ConfigError(f"validation must be in [0, 1), got {self.validation}")
        if not self.protocols:
            raise ConfigError("protocols: expected at least one")

    def protocol(self, name: str | None) -> tuple[str, Protocol]:
        """Return the protocol of that name, or the first, with its name."""
        if name is None:
            return next(iter(self.protocols.items()))
        check_choice(f"recipe {self.name!r}", "protocol", name, self.protocols)
        return name, self.protocols[name]


def _build(kind: str, classes: Mapping[str, Any], choice: Choice) -> Any:
    check_choice(kind, "name", choice.name, classes)
    return from_table(classes[choice.name], choice.parameters, f"{kind}.parameters")


def _check_hyperparameters(given: Mapping[str, Any]) -> None:
    for key in ("in_features", "in_channels", "image_size", "num_classes"):
        if key in given:
            raise ConfigError(f"hyperparameters: {key} comes from the data, leave it out")


def _check_at_least(least: int, name: str, value: int) -> None:
    if value < least:
        raise ConfigError(f"{name} must be at least {least}, got {value}")


def _check_published(value: float | None) -> None:
    if value is not None:
        check_unit_interval("published", "an accuracy", value)
