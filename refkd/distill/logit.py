"""Logit distillation: a student learns from labels and from a frozen teacher's logits."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from refkd.dispatch import Array
from refkd.distill.frozen import frozen_logits
from refkd.distill.heads import checked_weights, separate_heads
from refkd.distill.objective import Batch, StepResult, select
from refkd.errors import ConfigError, check_choice
from refkd.losses.heads import kd_heads_backward, kd_heads_forward
from refkd.losses.spec import KDSpec
from refkd.nn.checks import check_layer
from refkd.nn.layer import Layer, add_prefix

__all__ = ["LogitDistillation"]


@dataclass(frozen=True)
class LogitDistillation:
    """Hinton's objective: ``spec`` between the student's logits and the teacher's.

    The teacher is a constant to the loss: it receives no gradient, and its running
    statistics stay what they are in either mode (PyTorch moves those of a module in train
    mode). The defaults are the sound ones; ``teacher_mode`` and ``student_eval_from``
    reproduce two mistakes with which results have been published.

    Attributes
    ----------
    student : Layer
        Returns one array of logits.
    teacher : Layer or None
        None where every batch brings stored teacher logits.
    spec : KDSpec
    head_weights : tuple of float, >= 0
        Of a teacher that returns several logits, the weight of each in the soft term, in
        the order in which it returns them. The student learns from all; the labels count
        once. Empty for a teacher that returns one array.
    teacher_mode : {"eval", "train"}
        ``"train"``: the teacher's dropout drops and its batch norm normalises by the batch,
        so that the same image gets another target in every step.
    student_eval_from : int or None
        From this epoch of the stage on, counted from 0, the student is trained as it would
        be evaluated: nothing is dropped and its running statistics stand still.
    exact : bool
        True evaluates the teacher by :func:`frozen_logits`, so that stored and live logits
        are the same bit for bit; False by one plain forward, which is faster and serves
        where images are augmented and nothing can be stored. No matter in mode "train".

    Raises
    ------
    ConfigError
        On construction, if a value is out of range.
    """

    student: Layer
    teacher: Layer | None
    spec: KDSpec
    head_weights: tuple[float, ...] = ()
    teacher_mode: str = "eval"
    student_eval_from: int | None = None
    exact: bool = True

    def __post_init__(self) -> None:
        where = "LogitDistillation"
        check_layer(where, "student", self.student)
        if self.teacher is not None:
            check_layer(where, "teacher", self.teacher)
        if not isinstance(self.spec, KDSpec):
            raise ConfigError(f"{where}: spec must be a KDSpec, got {self.spec!r}")
        object.__setattr__(self, "head_weights", checked_weights(where, self.head_weights))
        check_choice(where, "teacher_mode", self.teacher_mode, ("eval", "train"))
        epoch = self.student_eval_from
        if epoch is not None and (type(epoch) is not int or epoch < 0):
            raise ConfigError(
                f"{where}: student_eval_from must be an integer >= 0 or None, got {epoch!r}"
            )

    @property
    def networks(self) -> Mapping[str, Layer]:
        """See :class:`refkd.distill.Objective`."""
        if self.teacher is None:
            return {"student": self.student}
        return {"student": self.student, "teacher": self.teacher}

    @property
    def learns(self) -> tuple[str, ...]:
        """See :class:`refkd.distill.Objective`."""
        return ("student",)

    @property
    def stop_gradient(self) -> tuple[str, ...]:
        """See :class:`refkd.distill.Objective`."""
        return () if self.teacher is None else ("teacher",)

    def value_and_grad(
        self,
        params: Mapping[str, Array],
        state: Mapping[str, Array],
        batch: Batch,
        rng: np.random.Generator,
    ) -> StepResult:
        """Return the terms ``loss``, ``hard``, ``soft`` and the student's gradients.

        ``soft`` is the weighted sum over the teacher's heads. ``rng`` is the student's:
        what the teacher does neither draws from it nor moves it.

        Raises
        ------
        ConfigError
            If there are no teacher logits, or not one output of the teacher for each of
            ``head_weights``, or the student returns several outputs.
        """
        heads = self._teacher_heads(params, state, batch, rng)
        weights = self.head_weights or (1.0,)
        own, own_state = select(params, "student"), select(state, "student")
        train = self.student_eval_from is None or batch.epoch < self.student_eval_from
        logits, cache = self.student.forward(own, own_state, batch.images, train=train, rng=rng)
        if isinstance(logits, tuple):
            raise ConfigError(
                f"LogitDistillation: the student must return one array of logits, "
                f"got {len(logits)} outputs"
            )
        terms, saved = kd_heads_forward(logits, heads, batch.labels, self.spec, weights)
        dlogits = kd_heads_backward(1.0, saved, batch.labels, self.spec, weights)
        _, grads = self.student.backward(own, cache, dlogits, need_dx=False)
        next_state = dict(state)
        if train:
            next_state |= add_prefix("student", self.student.next_state(own_state, cache))
        return StepResult(terms._asdict(), add_prefix("student", grads), next_state)

    def _teacher_heads(
        self,
        params: Mapping[str, Array],
        state: Mapping[str, Array],
        batch: Batch,
        rng: np.random.Generator,
    ) -> tuple[Array, ...]:
        if batch.teacher_logits is not None:
            if self.teacher_mode == "train":
                raise ConfigError(
                    "LogitDistillation: teacher_mode='train' draws its targets anew in each "
                    "step, and the batch has stored teacher_logits; leave one of them out"
                )
            stored = "LogitDistillation: what is stored of the teacher"
            return separate_heads(stored, batch.teacher_logits, self.head_weights)
        if self.teacher is None:
            raise ConfigError(
                "LogitDistillation: there is no teacher network and the batch has no "
                "teacher_logits; give one of them"
            )
        own, own_state = select(params, "teacher"), select(state, "teacher")
        if self.teacher_mode == "train":
            outputs, _ = self.teacher.forward(
                own, own_state, batch.images, train=True, rng=_apart_from(rng, batch)
            )
        elif self.exact:
            outputs = frozen_logits(
                self.teacher, own, own_state, batch.images, block=batch.nominal_size
            )
        else:
            outputs = self.teacher.infer(own, own_state, batch.images)
        return separate_heads("LogitDistillation: the teacher", outputs, self.head_weights)


def _apart_from(rng: np.random.Generator, batch: Batch) -> np.random.Generator:
    """Return a generator for the teacher's masks of this step, and leave ``rng`` alone.

    Students of one seed stay paired whatever the mode of their teacher, so it may not
    advance ``rng``. Training resumes from the position of ``rng`` alone, so it may not
    spawn from it either. It is seeded with what ``rng`` would draw next, which carries the
    seed, and with epoch and step, since a student that draws nothing never advances.
    """
    words = copy.deepcopy(rng).integers(2**32, size=4, dtype=np.uint32)
    seed = np.random.SeedSequence(words.tolist(), spawn_key=(batch.epoch, batch.step))
    return np.random.default_rng(seed)
