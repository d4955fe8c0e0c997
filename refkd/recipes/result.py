"""From trained networks to figures: the one JSON object a run comes down to."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean
from types import SimpleNamespace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from refkd.data.dataset import Dataset, Split
from refkd.models import parameter_count
from refkd.ops.softmax import softmax_forward
from refkd.recipes import config
from refkd.recipes.environment import environment
from refkd.recipes.mistakes import confident_mistakes, confusion_matrix
from refkd.recipes.run import RecipeRun, Trained
from refkd.recipes.statistics import confidence_interval
from refkd.recipes.transfer import best_bias_shift, transfer_errors
from refkd.report.examples import Examples, save_examples
from refkd.report.pixels import as_pixels, is_image
from refkd.report.words import with_half_interval
from refkd.train.evaluate import accuracy, calibration, evaluate_logits
from refkd.train.run import TrainedNetwork

__all__ = ["summarise"]

_TRANSFER_KEYS = (
    "errors",
    "errors_on_omitted",
    "bias_shift",
    "errors_corrected",
    "errors_on_omitted_corrected",
)

_MOST_EXAMPLES = 24  # a screen or two of the report
_MOST_CLASSES = 200  # of which there is a number for each two

Logits = NDArray[np.floating[Any]]


@dataclass(frozen=True)
class _Side:
    """Networks of one kind, one per seed, and their logits on the test images."""

    networks: Sequence[TrainedNetwork]
    logits: list[Logits]


def summarise(
    run: RecipeRun, trained: Trained, protocol_name: str, seconds: float
) -> dict[str, Any]:
    """Evaluate the networks of a run on the test images and return the result.

    Of a run on images, those that the distilled student (first seed) is surest of and gets
    wrong are kept in the run folder, for the report.

    Parameters
    ----------
    run : RecipeRun
    trained : Trained
    protocol_name : str
    seconds : float
        What the run took.

    Returns
    -------
    dict
        Ready for JSON; the keys are those that ``refkd distill --json`` documents.

    Raises
    ------
    CheckpointError
        If the images cannot be written.
    """
    test = run.dataset.test
    students = {
        name: _Side(networks, [_test_logits(n, test) for n in networks])
        for name, networks in trained.students.items()
    }
    teacher_logits = (
        test.teacher_logits if trained.teacher is None else _test_logits(trained.teacher, test)
    )
    result: dict[str, Any] = {
        "recipe": run.recipe.name,
        "title": run.recipe.title,
        "protocol": protocol_name,
        "explanation": "",
        "data": _data(run.dataset),
        "teacher": None,
    }
    if trained.teacher is not None and teacher_logits is not None:
        side = _Side([trained.teacher], [teacher_logits])
        result["teacher"] = _side(
            side, "teacher", run.protocol.teacher, len(run.dataset.train), test
        )
    for name, side in students.items():
        settings = run.protocol.students[name]
        size = len(run.training_rows(settings, run.seeds[0]))
        entry = _side(side, settings.label or name, settings, size, test)
        kd = settings.spec()
        entry["explain"] = kd and kd.explain(num_classes=run.dataset.num_classes)
        result[f"student_{name}"] = entry
    result["differences"] = _differences(run.protocol, result)
    first = {f"student_{name}": students[name].logits[0] for name in ("alone", "distilled")}
    if run.dataset.num_classes <= _MOST_CLASSES:
        result["soft_targets"] = _soft_targets(run.protocol, teacher_logits, run.dataset)
        result["confusion"] = _confusion(first, teacher_logits, run.dataset)
    if is_image(run.dataset.image_shape):
        examples = _examples(run, first["student_distilled"], teacher_logits)
        save_examples(run.folder.examples, examples)
    transfer = _transfer(run, students)
    if transfer:
        result["transfer"] = transfer
    result["explanation"] = _explain(run.protocol.explanation, result)
    result |= {"seconds": seconds, "run": str(run.folder.path), "environment": environment()}
    return result


def _test_logits(network: TrainedNetwork, split: Split) -> Logits:
    logits: Logits = evaluate_logits(
        network.network,
        network.params,
        network.state,
        split.images,
        normalization=network.spec.normalization,
    )
    return logits


def _data(dataset: Dataset) -> dict[str, Any]:
    return {
        "name": dataset.name,
        "train": len(dataset.train),
        "validation": None if dataset.validation is None else len(dataset.validation),
        "test": len(dataset.test),
        "image_shape": list(dataset.image_shape),
        "class_names": list(dataset.class_names),
    }


def _side(
    side: _Side,
    label: str,
    settings: config.Student | config.Teacher,
    train_images: int,
    test: Split,
) -> dict[str, Any]:
    accuracies = [accuracy(logits, test.labels) for logits in side.logits]
    first = side.networks[0]
    labels = np.tile(test.labels, len(side.logits))
    return {
        "label": label,
        "accuracy": fmean(accuracies),
        "accuracies": accuracies,
        "interval": confidence_interval(accuracies),
        "epochs": settings.epochs,
        "keep": settings.keep,
        "parameters": parameter_count(first.network),
        "bytes": sum(int(a.nbytes) for a in first.params.values()),
        "train_images": train_images,
        "history": [network.history for network in side.networks],
        "calibration": calibration(np.concatenate(side.logits), labels),
        "explain": None,
        "published": settings.published,
    }


def _differences(protocol: config.Protocol, result: dict[str, Any]) -> list[dict[str, Any]]:
    rows = []
    for name, settings in protocol.students.items():
        if name == settings.compared_with:
            continue
        a, b = f"student_{name}", f"student_{settings.compared_with}"
        pairs = zip(result[a]["accuracies"], result[b]["accuracies"], strict=True)
        per_seed = [x - y for x, y in pairs]
        rows.append(
            {
                "a": a,
                "b": b,
                "mean": fmean(per_seed),
                "interval": confidence_interval(per_seed),
                "per_seed": per_seed,
            }
        )
    return rows


def _soft_targets(
    protocol: config.Protocol, teacher_logits: Logits | None, dataset: Dataset
) -> dict[str, Any] | None:
    kd = protocol.students["distilled"].spec()
    if teacher_logits is None or kd is None:
        return None
    soft = softmax_forward(teacher_logits, temperature=kd.temperature).astype(np.float64)
    labels = dataset.test.labels
    matrix = np.zeros((dataset.num_classes, dataset.num_classes))
    np.add.at(matrix, labels, soft)
    counts = np.bincount(labels, minlength=dataset.num_classes)
    matrix /= np.maximum(counts, 1)[:, None]
    return {
        "temperature": kd.temperature,
        "matrix": matrix.tolist(),
        "class_names": list(dataset.class_names),
    }


def _confusion(
    students: dict[str, Logits], teacher_logits: Logits | None, dataset: Dataset
) -> dict[str, list[list[int]]]:
    networks = {"teacher": teacher_logits, **students}
    return {
        name: confusion_matrix(logits, dataset.test.labels, dataset.num_classes).tolist()
        for name, logits in networks.items()
        if logits is not None
    }


def _examples(run: RecipeRun, student: Logits, teacher: Logits | None) -> Examples:
    test, kd = run.dataset.test, run.protocol.students["distilled"].spec()
    rows = confident_mistakes(student, test.labels, _MOST_EXAMPLES)
    pixels, stretched = as_pixels(test.images[rows], run.dataset.normalization.scale)
    return Examples(
        rows,
        test.labels[rows],
        pixels,
        student[rows],
        None if teacher is None else teacher[rows],
        1.0 if kd is None else kd.temperature,
        stretched,
    )


def _transfer(run: RecipeRun, students: dict[str, _Side]) -> list[dict[str, Any]]:
    rows = []
    everything, test = run.dataset.train, run.dataset.test
    for name, settings in run.protocol.students.items():
        seen = settings.only_classes or tuple(range(run.dataset.num_classes))
        unseen = sorted(
            set(range(run.dataset.num_classes)) - set(seen) | set(settings.without_classes)
        )
        if not unseen:
            continue
        figures = []
        for network, logits in zip(students[name].networks, students[name].logits, strict=True):
            shift = best_bias_shift(_test_logits(network, everything), everything.labels, unseen)
            before = transfer_errors(logits, test.labels, unseen)
            after = transfer_errors(logits, test.labels, unseen, shift=shift)
            figures.append((*before, shift, *after))
        means = [fmean(column) for column in zip(*figures, strict=True)]
        names = [run.dataset.class_names[c] for c in unseen]
        rows.append(
            {"arm": f"student_{name}", "classes": f"without {', '.join(names)}"}
            | dict(zip(_TRANSFER_KEYS, means, strict=True))
        )
    return rows


def _explain(text: str, result: dict[str, Any]) -> str:
    sides = {
        key.removeprefix("student_"): _described(value, value["accuracy"])
        for key, value in result.items()
        if value and (key == "teacher" or key.startswith("student_"))
    }
    sides.setdefault("teacher", SimpleNamespace(figure="unknown"))  # only its logits are known
    gains = {
        f"{row['a'].removeprefix('student_')}_gain": _described(row, row["mean"], "+")
        for row in result["differences"]
    }
    return text.strip().format(**sides, **gains) if text else ""


def _described(values: dict[str, Any], center: float, sign: str = "") -> SimpleNamespace:
    figure = with_half_interval(center, values["interval"], sign)
    return SimpleNamespace(**values, figure=figure + (" points" if sign else "%"))
