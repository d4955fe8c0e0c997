"""``refkd data``: look at a data set, or download one."""

from __future__ import annotations

import argparse
from typing import Any

from refkd import data

__all__ = ["register", "run"]


def register(subparsers: Any) -> None:
    """Add the subcommand."""
    parser = subparsers.add_parser("data", help="fetch a data set, or say what is in one")
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
    fetch = actions.add_parser(
        "fetch", help="download a data set, checked by SHA-256, and print where it is"
    )
    fetch.add_argument("name", help="mnist")
    fetch.add_argument(
        "--folder", metavar="DIR", help="where to put it (default: in the user's cache)"
    )
    fetch.add_argument(
        "--mirror", metavar="URL", help="download from here (default: REFKD_MNIST_MIRROR, if set)"
    )
    fetch.set_defaults(run=_fetch)
    show = actions.add_parser("show", help="say what a data set holds")
    show.add_argument(
        "source", help="'digits', a folder with images, CIFAR-10 or MNIST, or an .npz"
    )
    show.add_argument(
        "--image-size",
        type=int,
        default=224,
        metavar="S",
        help="side to which a folder's images are resized (default: %(default)s)",
    )
    show.add_argument(
        "--skip-corrupt",
        action="store_true",
        help="leave out images of a folder that cannot be decoded, and count them",
    )
    show.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Say what a data set holds."""
    corrupt = "skip" if arguments.skip_corrupt else "raise"
    dataset = data.load(arguments.source, image_size=arguments.image_size, corrupt=corrupt)
    print(f"{dataset.name}: images {dataset.image_shape}, {dataset.num_classes} classes")
    for name in ("train", "validation", "test"):
        split = getattr(dataset, name)
        if split is not None:
            logits = "" if split.teacher_logits is None else ", with teacher logits"
            print(f"  {name}: {len(split):,} images, {split.images.dtype}{logits}")
    if dataset.skipped:
        print(f"  left out: {dataset.skipped:,} images that cannot be decoded")
    return 0


def _fetch(arguments: argparse.Namespace) -> int:
    print(data.fetch(arguments.name, arguments.folder, arguments.mirror))
    return 0
