"""``refkd predict``: what a run's network says of images."""

from __future__ import annotations

import argparse
import json
from typing import Any

import numpy as np

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
    _check_fits(trained.spec, dataset, split)
    probabilities = trained.predict(split.images)
    predicted = probabilities.argmax(axis=1)
    correct = int((predicted == split.labels).sum())
    if arguments.json:
        rows = [
            {"predicted": names[p], "probability": float(row[p]), "label": names[label]}
            for p, row, label in zip(predicted, probabilities, split.labels, strict=True)
        ]
        print(json.dumps({"accuracy": correct / len(split), "predictions": rows}))
        return 0
    print(f"{correct} of {len(split)} right ({correct / len(split):.2%})\n")
    width = max(map(len, ("class", *names)))
    print(f"{'class':>{width}}  images  predicted   right")
    columns = (split.labels, predicted, predicted[predicted == split.labels])
    counts = (np.bincount(column, minlength=len(names)) for column in columns)
    for name, images, guesses, hits in zip(names, *counts, strict=True):
        print(f"{name:>{width}}  {images:6}  {guesses:9}  {hits:6}")
    return 0


def _check_fits(spec: NetworkSpec, dataset: Dataset, split: Split) -> None:
    largest = int(split.labels.max())
    if largest >= len(spec.class_names):
        raise DataError(
            f"predict: {dataset.name} has label {largest}, the network knows "
            f"{len(spec.class_names)} classes from 0"
        )
    scale, expected = dataset.normalization.scale, spec.normalization.scale
    if scale != expected:
        raise DataError(
            f"predict: {dataset.name} holds {split.images.dtype} images that are scaled by "
            f"{scale:g}, the network was trained on images scaled by {expected:g}; "
            f"store them alike"
        )
