"""``refkd predict``: what a run's network says of images."""

from __future__ import annotations

import argparse
import json
from typing import Any

import numpy as np
from numpy.typing import NDArray

from refkd import data
from refkd.data.dataset import Dataset, Split
from refkd.errors import DataError
from refkd.train.run import NetworkSpec, load

__all__ = ["register", "run"]


def register(subparsers: Any) -> None:
    """Add the subcommand."""
    parser = subparsers.add_parser("predict", help="classify images with a network of a run")
    parser.add_argument("folder", metavar="RUN", help="a run folder")
    parser.add_argument(
        "--data",
        required=True,
        metavar="PATH",
        help="'digits', a folder with MNIST, CIFAR-10 or images, or an .npz",
    )
    parser.add_argument(
        "--split",
        default="test",
        choices=("train", "validation", "test"),
        help="which images (default: test)",
    )
    parser.add_argument(
        "--network",
        default="student_distilled",
        metavar="NAME",
        help="teacher, student_alone ... (default: student_distilled)",
    )
    parser.add_argument(
        "--seed", type=int, metavar="K", help="which of the run's seeds (default: the first)"
    )
    parser.add_argument(
        "--skip-corrupt", action="store_true", help="leave out images that cannot be decoded"
    )
    parser.add_argument("--json", action="store_true", help="print every prediction as JSON")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Run the subcommand."""
    trained = load(arguments.folder, arguments.network, seed=arguments.seed)
    dataset = data.load(
        arguments.data,
        image_size=trained.spec.image_shape[-1],
        corrupt="skip" if arguments.skip_corrupt else "raise",
    )
    split: Split | None = getattr(dataset, arguments.split)
    if split is None:
        raise DataError(f"predict: {dataset.name} has no {arguments.split} split")
    names = trained.spec.class_names
    labels = _labels(names, dataset, split)
    _check_scale(trained.spec, dataset)
    probabilities = trained.predict(split.images)
    predicted = probabilities.argmax(axis=1)
    correct = int((predicted == labels).sum())
    if arguments.json:
        rows = [
            {"predicted": names[p], "probability": float(row[p]), "label": names[label]}
            for p, row, label in zip(predicted, probabilities, labels, strict=True)
        ]
        print(json.dumps({"accuracy": correct / len(split), "predictions": rows}))
        return 0
    print(f"{correct} of {len(split)} right ({correct / len(split):.2%})\n")
    width = max(map(len, ("class", *names)))
    print(f"{'class':>{width}}  images  predicted   right")
    columns = (labels, predicted, predicted[predicted == labels])
    counts = (np.bincount(column, minlength=len(names)) for column in columns)
    for name, images, guesses, hits in zip(names, *counts, strict=True):
        print(f"{name:>{width}}  {images:6}  {guesses:9}  {hits:6}")
    return 0


def _labels(known: tuple[str, ...], dataset: Dataset, split: Split) -> NDArray[Any]:
    """Return the labels as the network counts them: classes are the same by their name.

    Those of an ``.npz`` have no other names than their numbers, which are the network's.
    """
    names = dataset.class_names
    if names == tuple(map(str, range(len(names)))):
        largest = int(split.labels.max())
        if largest >= len(known):
            raise DataError(
                f"predict: {dataset.name} has label {largest}, the network knows "
                f"{len(known)} classes from 0"
            )
        return split.labels
    unknown = [names[label] for label in np.unique(split.labels) if names[label] not in known]
    if unknown:
        raise DataError(
            f"predict: {dataset.name} has the classes {', '.join(unknown)}, the network knows "
            f"{', '.join(known)}; give images of these, in folders of these names"
        )
    places = [known.index(name) if name in known else -1 for name in names]
    return np.array(places)[split.labels]


def _check_scale(spec: NetworkSpec, dataset: Dataset) -> None:
    scale, expected = dataset.normalization.scale, spec.normalization.scale
    if scale != expected:
        raise DataError(
            f"predict: {dataset.name} holds {dataset.train.images.dtype} images that are scaled by "
            f"{scale:g}, the network was trained on images scaled by {expected:g}; "
            f"store them alike"
        )
