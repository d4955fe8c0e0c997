"""Running a recipe: train the teacher once and every student for every seed, resumably.

What comes out is a :class:`Trained` collection of networks; :mod:`refkd.recipes.result`
turns it into figures.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from refkd.data.augment import Transform
from refkd.data.dataset import Dataset, Split, to_batch
from refkd.data.loader import batches, row_blocks
from refkd.dispatch import Array, current_backend
from refkd.distill.frozen import frozen_logits
from refkd.distill.logit import LogitDistillation
from refkd.distill.objective import Objective, Supervised, select
from refkd.distill.stage import Stage
from refkd.errors import CheckpointError, DataError, NonFiniteError
from refkd.nn.layer import Arrays, Layer, add_prefix
from refkd.recipes import config
from refkd.recipes.build import build_stage, distillation, network_spec
from refkd.recipes.monitor import Display, RunMonitor
from refkd.train.checkpoint import load_checkpoint
from refkd.train.evaluate import accuracy, evaluate_logits, move_arrays
from refkd.train.loop import begin, train
from refkd.train.progress import Progress
from refkd.train.run import NetworkSpec, RunFolder, TrainedNetwork, read_network
from refkd.train.seeds import Purpose, generator

__all__ = ["RecipeRun", "Trained"]

_VALUES = 1 << 22  # of the images whose logits are computed at a time: 16 MB of float32


@dataclass(frozen=True)
class Trained:
    """The networks of a run.

    Attributes
    ----------
    teacher : TrainedNetwork or None
        None where stored logits stood in for it.
    students : dict of str to list of TrainedNetwork
        By student name, one per seed.
    """

    teacher: TrainedNetwork | None
    students: dict[str, list[TrainedNetwork]]


@dataclass
class RecipeRun:
    """One run of a recipe in a run folder.

    Attributes
    ----------
    recipe : Recipe
    protocol : Protocol
    dataset : Dataset
    folder : RunFolder
    seeds : sequence of int
        Of the students; the teacher's is the first.
    display : Display
    cache_teacher : bool
        Whether the teacher's logits are computed once and stored, or in every step. The
        results are the same, bit for bit. Logits of images that change from epoch to epoch,
        and of several heads, are never stored.
    stop_requested : callable
        Asked after every step; True saves a checkpoint and raises KeyboardInterrupt.
    save_every : float
        Seconds between checkpoints of a training under way.
    """

    recipe: config.Recipe
    protocol: config.Protocol
    dataset: Dataset
    folder: RunFolder
    seeds: Sequence[int]
    display: Display
    cache_teacher: bool = True
    stop_requested: Callable[[], bool] = lambda: False
    save_every: float = 30.0
    _stored: dict[int, Array] = field(default_factory=dict, init=False, repr=False)

    def train_all(self) -> Trained:
        """Train what is not trained yet and return all networks.

        Raises
        ------
        KeyboardInterrupt
            If a stop was requested; the checkpoint is saved.
        NonFiniteError
            If a training diverges.
        CheckpointError
            If a checkpoint is damaged or cannot be written, or another process is training
            this run.
        """
        with self.folder.lock():
            return self._train_all()

    def _train_all(self) -> Trained:
        self._truncate_log()
        teacher = None
        if self.dataset.train.teacher_logits is None:
            teacher = self._trained("teacher", self.seeds[0], None)
        students: dict[str, list[TrainedNetwork]] = {n: [] for n in self.protocol.students}
        for seed in self.seeds:
            for name in self.protocol.students:
                students[name].append(self._trained(f"student_{name}", seed, teacher))
        # Not training by training: a kill between keeping the last network and this would
        # leave it for good, since a network that is kept is not trained again.
        self.folder.in_progress.unlink(missing_ok=True)
        return Trained(teacher, students)

    def training_rows(self, student: config.Student, seed: int) -> NDArray[np.intp]:
        """Return which of the training images one student learns from, in ascending order.

        Raises
        ------
        DataError
            If fewer images are left than the recipe asks for.
        """
        labels = self.dataset.train.labels
        wanted = ~np.isin(labels, student.without_classes)
        if student.only_classes:
            wanted &= np.isin(labels, student.only_classes)
        rows = np.flatnonzero(wanted)
        size = len(rows) if student.train_images is None else student.train_images
        if not 0 < size <= len(rows):
            raise DataError(
                f"recipe {self.recipe.name!r}: {student.label or 'a student'} needs {size} "
                f"training images, the data set has {len(rows)} of its classes"
            )
        if size < len(rows):
            rows = np.sort(generator(seed, Purpose.SUBSET).permutation(rows)[:size])
        return rows

    @property
    def _augmentation(self) -> tuple[Transform, ...]:
        return self.recipe.images.transforms()

    def _trained(self, name: str, seed: int, teacher: TrainedNetwork | None) -> TrainedNetwork:
        path, spec = self.folder.network(name, seed), self.spec(name)
        if path.exists():
            kept = read_network(path)[0]
            _check_belongs(path, kept.spec.to_json(), spec)
            return kept
        layer = spec.build()
        plan = self._plan(name, seed, layer, teacher)
        learns = plan.stage.objective.learns[0]
        progress = self._resumed(name, seed, spec, plan) or begin(
            [plan.stage], seed, frozen_params=plan.frozen_params, frozen_state=plan.frozen_state
        )
        try:
            train(
                [plan.stage],
                progress,
                plan.split,
                normalization=self.dataset.normalization,
                augment=self._augmentation,
                evaluate=self._evaluator(layer, learns),
                monitor=RunMonitor(
                    self.folder,
                    self.display,
                    self.stop_requested,
                    self.save_every,
                    name,
                    seed,
                    spec,
                    (learns,),
                    plan.stage.epochs,
                ),
            )
        except NonFiniteError as error:
            raise NonFiniteError(f"{name}-seed{seed}: {error}") from error
        trained = TrainedNetwork(
            spec,
            layer,
            select(progress.params, learns),
            select(progress.state, learns),
            progress.history,
        )
        self.folder.save_network(path, trained, metrics_bytes=self.folder.metrics_bytes())
        return trained

    def settings(self, name: str) -> config.Teacher | config.Student:
        """Return how ``"teacher"`` or a student, ``"student_alone"``, is trained."""
        if name == "teacher":
            return self.protocol.teacher
        return self.protocol.students[name.removeprefix("student_")]

    def spec(self, name: str) -> NetworkSpec:
        """Return the network of a training."""
        network = self.recipe.teacher if name == "teacher" else self.recipe.student
        return network_spec(network, self.settings(name), self.dataset)

    def objective(self, name: str, layer: Layer, teacher: Layer | None) -> Objective:
        """Return what a training minimises; no teacher where its logits are stored."""
        settings = self.settings(name)
        if isinstance(settings, config.Teacher):
            return Supervised(layer, "teacher", settings.label_smoothing, settings.head_weights)
        kd = settings.spec()
        if kd is None:
            return Supervised(layer, "student", settings.label_smoothing)
        return distillation(self.recipe, settings, kd, layer, teacher)

    def _plan(self, name: str, seed: int, layer: Layer, teacher: TrainedNetwork | None) -> _Plan:
        settings, split = self.settings(name), self.dataset.train
        objective = self.objective(name, layer, None if teacher is None else teacher.network)
        stage = build_stage(objective, settings)
        if isinstance(settings, config.Teacher):
            return _Plan(stage, split, {}, {})
        rows = self.training_rows(settings, seed)
        if len(rows) < len(split):
            split = split.take(rows)
        if teacher is None or not isinstance(objective, LogitDistillation):
            return _Plan(stage, split, {}, {})
        if self.cache_teacher and objective.exact:
            logits = self._stored_logits(teacher, settings.batch_size)[rows]
            return _Plan(stage, dataclasses.replace(split, teacher_logits=logits), {}, {})
        return _Plan(
            stage,
            split,
            add_prefix("teacher", teacher.params),
            add_prefix("teacher", teacher.state),
        )

    def _evaluator(self, layer: Layer, network: str) -> Callable[..., dict[str, float]]:
        splits = {"validation": self.dataset.validation, "test": self.dataset.test}

        def evaluate(params: Mapping[str, Array], state: Mapping[str, Array]) -> dict[str, float]:
            own, own_state = select(params, network), select(state, network)
            figures = {}
            for name, split in splits.items():
                if split is not None:
                    logits = evaluate_logits(
                        layer,
                        own,
                        own_state,
                        split.images,
                        normalization=self.dataset.normalization,
                    )
                    figures[f"{name}_accuracy"] = accuracy(logits, split.labels)
            return figures

        return evaluate

    def _stored_logits(self, teacher: TrainedNetwork, batch_size: int) -> Array:
        if batch_size not in self._stored:
            images, normalization = self.dataset.train.images, self.dataset.normalization
            dtype = next(iter(teacher.params.values())).dtype
            backend = current_backend()
            params = move_arrays(teacher.params, backend)
            state = move_arrays(teacher.state, backend)
            step = batch_size * max(1, _VALUES // math.prod(images.shape[1:]) // batch_size)
            with closing(batches(images, row_blocks(len(images), step))) as stored:
                blocks = [
                    frozen_logits(
                        teacher.network,
                        params,
                        state,
                        to_batch(backend.asarray(block), normalization, dtype),
                        block=batch_size,
                    )
                    for block in stored
                ]
            self._stored[batch_size] = np.concatenate(list(map(backend.to_numpy, blocks)))
        return self._stored[batch_size]

    def _resumed(self, name: str, seed: int, spec: NetworkSpec, plan: _Plan) -> Progress | None:
        if not self.folder.in_progress.exists():
            return None
        arrays, metadata = load_checkpoint(self.folder.in_progress)
        if metadata.get("training") != f"{name}-seed{seed}":
            return None
        _check_belongs(self.folder.in_progress, metadata.get("network"), spec)
        return Progress.from_checkpoint(
            arrays, metadata, frozen_params=plan.frozen_params, frozen_state=plan.frozen_state
        )

    def _truncate_log(self) -> None:
        # The log may be ahead of the last checkpoint; what follows it will be run again.
        belongs = [read_network(path)[1] for path in self.folder.networks()]
        if self.folder.in_progress.exists():
            metadata = load_checkpoint(self.folder.in_progress)[1]
            size = metadata.get("metrics_bytes", "")
            if not size.isdecimal():
                raise CheckpointError(
                    f"{self.folder.in_progress}: is no training of a run; delete it to go on "
                    f"without it"
                )
            belongs.append(int(size))
        self.folder.truncate_metrics(max(belongs, default=0))


def _check_belongs(path: Path, found: str | None, spec: NetworkSpec) -> None:
    if found != spec.to_json():
        raise CheckpointError(
            f"{path}: holds another network than the recipe asks for (found {found}, expected "
            f"{spec.to_json()}); restore the recipe, or delete the file to train it anew"
        )


class _Plan(NamedTuple):
    """What one training is made of."""

    stage: Stage
    split: Split
    frozen_params: Arrays
    frozen_state: Arrays
