"""``refkd predict``: what a run's network says of images."""

from __future__ import annotations

import argparse
import json
from typing import Any

import numpy as np

from refkd import data
from refkd.data.dataset import Split
from refkd.errors import DataError
from refkd.train.run import load

__all__ = ["register", "run"]


def register(subparsers: Any) -> None:
    """Add the subcommand."""
    parser = subparsers.add_parser("predict", help="classify images with a network of a run")
    parser.add_argument("folder", metavar="RUN", help="a run folder")
    parser.add_argument("--data", required=True, help="'digits', a folder with MNIST, or an .npz")
    parser.add_argument(
        "--split", default="test", choices=("train", "validation", "test"), help="(default: test)"
    )
    parser.add_argument("--network", default="student_distilled", help="or teacher, student_alone")
    parser.add_argument("--seed", type=int, help="which of the run's seeds (default: the first)")
    parser.add_argument("--json", action="store_true", help="print every prediction as JSON")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Run the subcommand."""
    trained = load(arguments.folder, arguments.network, seed=arguments.seed)
    dataset = data.load(arguments.data)
    split: Split | None = getattr(dataset, arguments.split)
    if split is None:
        raise DataError(f"predict: {dataset.name} has no {arguments.split} split")
    probabilities = trained.predict(split.images)
    predicted = probabilities.argmax(axis=1)
    correct = int((predicted == split.labels).sum())
    names = trained.spec.class_names
    if arguments.json:
        rows = [
            {"predicted": names[p], "probability": float(row[p]), "label": names[label]}
            for p, row, label in zip(predicted, probabilities, split.labels, strict=True)
        ]
        print(json.dumps({"accuracy": correct / len(split), "predictions": rows}))
        return 0
    print(f"{correct} of {len(split)} right ({correct / len(split):.2%})")
    counts = np.bincount(predicted, minlength=len(names))
    for name, count in zip(names, counts, strict=True):
        print(f"{name:>12}  {count}")
    return 0
