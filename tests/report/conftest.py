"""A realistic result of a run, its attachments, and the parts to make others from."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from refkd.recipes.mistakes import confident_mistakes, confusion_matrix
from refkd.report.attachments import Attachments, Filters
from refkd.report.examples import Examples


def make_side(
    label: str, accuracy: float, *, seeds: int, epochs: int, parameters: int, rng: int = 0
) -> dict[str, Any]:
    """A network's part of a result; its accuracies scatter around ``accuracy``."""
    generator = np.random.default_rng(rng)
    accuracies = accuracy + 0.004 * generator.standard_normal(seeds)
    epoch = np.arange(1, epochs + 1)
    half = 2.26 * 0.004 / np.sqrt(seeds)
    mean = float(accuracies.mean())
    confidence = np.array([0.45, 0.55, 0.65, 0.75, 0.85, 0.97])
    count = np.array([9, 17, 31, 44, 90, 606])
    right = np.clip(confidence - 0.04 + 0.03 * generator.standard_normal(6), 0, 1)
    return {
        "label": label,
        "accuracy": mean,
        "accuracies": accuracies.tolist(),
        "interval": [mean - half, mean + half] if seeds > 1 else None,
        "epochs": epochs,
        "parameters": parameters,
        "bytes": 4 * parameters,
        "train_images": 1000,
        "history": [
            [
                {
                    "stage": 1,
                    "epoch": int(e),
                    "loss": float(2.2 * np.exp(-e / 3) + 0.02 + 0.005 * generator.random()),
                    "test_accuracy": float(
                        final - 0.7 * np.exp(-e / 2.5) + 0.7 * np.exp(-epochs / 2.5)
                    ),
                }
                for e in epoch
            ]
            for final in accuracies
        ],
        "calibration": {
            "bins": [
                {"confidence": float(c), "accuracy": float(a), "count": int(n)}
                for c, a, n in zip(confidence, right, count, strict=True)
            ],
            "ece": float((count * abs(right - confidence)).sum() / count.sum()),
        },
        "explain": None,
        "published": None,
    }


def make_result(seeds: int = 10, classes: int = 10) -> dict[str, Any]:
    """A result of the digits recipe as a user would get it."""
    rng = np.random.default_rng(7)
    logits = 1.6 * rng.standard_normal((classes, classes)) + 7.0 * np.eye(classes)
    matrix = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    names = [str(i) for i in range(classes)]
    teacher = make_side("teacher", 0.981, seeds=seeds, epochs=30, parameters=1_195_210, rng=1)
    alone = make_side("student, alone", 0.939, seeds=seeds, epochs=20, parameters=2410, rng=2)
    distilled = make_side(
        "student, distilled (T = 4)", 0.952, seeds=seeds, epochs=20, parameters=2410, rng=3
    )
    distilled["explain"] = (
        "L = 0.3·CE(q, y) + 0.7·T²·Σ_batch KL(t ‖ s)/B\n"
        "q = softmax(z), s = softmax(z/T), t = softmax(v/T), T = 4\n"
        "dL/dz = 0.3·(q − y)/B + k·(s − t)/B\n"
        "k = 0.7·T = 2.8"
    )
    per_seed = (np.array(distilled["accuracies"]) - alone["accuracies"]).tolist()
    mean = float(np.mean(per_seed))
    return {
        "recipe": "digits",
        "title": "Distilling a small network on handwritten digits",
        "protocol": "fair",
        "explanation": (
            "A teacher of 1,195,210 parameters learns the digits first. Then the same small "
            "student is trained twice: from the labels alone, and from the labels and the "
            "teacher's softened probabilities.\n\n"
            "Both students see the same 1,000 images for the same 20 epochs from the same "
            "initial weights, so that the difference is the teacher's."
        ),
        "data": {
            "name": "digits",
            "train": 1000,
            "validation": None,
            "test": 797,
            "image_shape": [8, 8],
            "class_names": names,
        },
        "teacher": teacher,
        "student_alone": alone,
        "student_distilled": distilled,
        "differences": [
            {
                "a": "student_distilled",
                "b": "student_alone",
                "mean": mean,
                "interval": [mean - 0.004, mean + 0.004] if seeds > 1 else None,
                "per_seed": per_seed,
            }
        ],
        "soft_targets": {"temperature": 4.0, "matrix": matrix.tolist(), "class_names": names},
        "seconds": 12.3,
        "run": "runs/digits-1",
        "environment": {
            "refkd": "0.1.0",
            "numpy": "2.4.0",
            "python": "3.11",
            "machine": "x86_64",
            "blas": "openblas 0.3.31",
            "threads": 2,
        },
    }


def with_images(
    result: dict[str, Any], *, images: int = 400, teacher: bool = True, shape: Any = (3, 12, 10)
) -> tuple[dict[str, Any], Attachments]:
    """The result, had it been on images of that shape, and what its report shows of them."""
    classes = len(result["data"]["class_names"])
    rng = np.random.default_rng(classes)
    labels = np.arange(images) % classes
    alike = rng.standard_normal((classes, classes))
    logits = {
        name: (
            sharpness * np.eye(classes)[labels]
            + alike[labels]
            + 1.5 * rng.standard_normal((images, classes))
        ).astype(np.float32)
        for name, sharpness in (("teacher", 4), ("student_alone", 2), ("student_distilled", 3))
    }
    if not teacher:
        result["teacher"] = None
        del logits["teacher"]
    result["confusion"] = {
        name: confusion_matrix(z, labels, classes).tolist() for name, z in logits.items()
    }
    result["data"]["image_shape"] = list(shape)
    student = logits["student_distilled"]
    rows = confident_mistakes(student, labels, 24)
    examples = Examples(
        rows,
        labels[rows],
        rng.integers(0, 256, (len(rows), *shape), dtype=np.uint8),
        student[rows],
        logits["teacher"][rows] if teacher else None,
        4.0,
        stretched=False,
    )
    filters = (
        Filters("teacher", "conv1.conv.weight", rng.standard_normal((20, 3, 7, 7))),
        Filters("student_distilled", "conv1.weight", rng.standard_normal((6, 3, 3, 3))),
    )
    return result, Attachments(examples, filters if teacher else filters[1:])


@pytest.fixture
def result() -> dict[str, Any]:
    """Ten seeds of the digits recipe."""
    return make_result()


@pytest.fixture(scope="session", name="make_result")
def make_result_fixture() -> Callable[..., dict[str, Any]]:
    """make_result(seeds, classes): a result of that size."""
    return make_result


@pytest.fixture(scope="session", name="make_side")
def make_side_fixture() -> Callable[..., dict[str, Any]]:
    """make_side(label, accuracy, seeds=, epochs=, parameters=): a network of a result."""
    return make_side


@pytest.fixture(scope="session", name="with_images")
def with_images_fixture() -> Callable[..., tuple[dict[str, Any], Attachments]]:
    """with_images(result, images=, teacher=, shape=): it and its attachments."""
    return with_images
