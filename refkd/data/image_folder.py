"""A folder of images, one folder per split and within it one per class.

Which files are the images of a data set is decided here; they stay on disk as
``ImageFiles``.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from refkd.data._files import reading
from refkd.data._pillow import decode, require_pillow
from refkd.data.dataset import Dataset, Normalization, Split
from refkd.data.image_files import ImageFiles
from refkd.errors import DataError, check_choice, suggest
from refkd.threads import in_order, usable_cores

__all__ = ["load_image_folder"]

_SUFFIXES = (".jpg", ".jpeg", ".png")
_SPLITS = {"train": ("train",), "validation": ("val", "validation", "valid"), "test": ("test",)}
_LAYOUT = "expected train/CLASS/*.jpg, .jpeg or .png, and val/ or test/ like it"
_AHEAD_PER_THREAD = 4


def load_image_folder(
    folder: str | os.PathLike[str], *, size: int, corrupt: str = "raise"
) -> Dataset:
    """Find the images in a folder, and decode each once to see that it can be.

    Parameters
    ----------
    folder : path-like
        Holds ``train/CLASS/*.jpg``, ``.jpeg`` or ``.png`` (in either case) and likewise
        ``val/`` (or ``validation/``, ``valid/``), ``test/`` or both.
    size : int
        Side of the square that images are resized to, see `ImageFiles`.
    corrupt : ``"raise"`` or ``"skip"``
        Whether a file that cannot be decoded is an error, or is left out and counted.

    Returns
    -------
    Dataset
        Of `ImageFiles`, ``normalization`` 1/255, with the classes of ``train/`` in the
        order of their sorted names and the files of a class in that of theirs. Where
        there is no ``test/``, the validation images are the test split and there is no
        validation split. ``skipped`` counts what ``corrupt="skip"`` left out.

    Raises
    ------
    DataError
        If folders are missing, a class has no image to train on or is not in ``train/``,
        a split has no image, or, with ``"raise"``, a file cannot be decoded: the first
        one, by name.
    ConfigError
        If ``size`` or ``corrupt`` is none of the above.
    MissingExtra
        If Pillow is not installed.

    Notes
    -----
    Left out without a word: files and folders whose names begin with a dot, files of
    other extensions, files beside the class folders and folders inside them. Symbolic
    links are followed; one that leads nowhere is a file that cannot be decoded. A class
    without images in ``val/`` or ``test/`` keeps its index.

    While a file is decoded it takes at most 4 times its size + 72 MB of memory, metadata
    included, and 16 bytes for each of its pixels; one of more than 2^26 pixels
    (8192 x 8192) cannot be decoded. As many files are decoded at once as there are
    cores.
    """
    check_choice("load_image_folder", "corrupt", corrupt, ["raise", "skip"])
    require_pillow()
    folder = Path(folder)
    with reading(folder):
        splits = _find_splits(folder)
        class_names = tuple(splits["train"])
        _check_names(class_names)
        found = {name: _list_images(classes, class_names, size) for name, classes in splits.items()}
    _check_enough(folder, found, class_names)
    readable = {name: _readable(images, corrupt) for name, images in found.items()}
    _check_enough(folder, readable, class_names)
    if "test" not in readable:
        readable["test"] = readable.pop("validation")
    made = {name: Split(images.files, images.labels) for name, images in readable.items()}
    with reading(folder):
        return Dataset(
            name=folder.resolve().name or "images",
            train=made["train"],
            test=made["test"],
            validation=made.get("validation"),
            num_classes=len(class_names),
            class_names=class_names,
            normalization=Normalization(1 / 255),
            skipped=sum(map(len, found.values())) - sum(map(len, readable.values())),
        )


@dataclass(frozen=True)
class _Labelled:
    files: ImageFiles
    labels: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.files)


def _find_splits(folder: Path) -> dict[str, dict[str, Path]]:
    """Return the class folders of each split by name, sorted."""
    if not folder.is_dir():
        raise DataError(f"{'not a folder' if folder.exists() else 'no such folder'}; {_LAYOUT}")
    splits = {}
    for split, names in _SPLITS.items():
        present = [folder / name for name in names if (folder / name).is_dir()]
        if len(present) > 1:
            both = " and ".join(path.name for path in present)
            raise DataError(f"holds both {both}; keep one of them")
        if present:
            splits[split] = {path.name: path for path in _visible(present[0]) if path.is_dir()}
    if "train" not in splits or len(splits) < 2:
        there = ", ".join(path.name for path in _visible(folder) if path.is_dir())
        raise DataError(f"{_LAYOUT}; got the folders {there or '(none)'}")
    return splits


def _check_names(class_names: tuple[str, ...]) -> None:
    for name in class_names:
        try:
            name.encode()
        except UnicodeEncodeError as error:  # no run could write such a name down
            raise DataError(f"train: the name of the folder {name!r} is no Unicode") from error


def _list_images(classes: dict[str, Path], class_names: tuple[str, ...], size: int) -> _Labelled:
    paths: list[Path] = []
    labels: list[int] = []
    for name, path in classes.items():
        if name not in class_names:
            raise DataError(
                f"{path.parent.name} has a class {name!r} that train has not"
                f"{suggest(name, class_names)}"
            )
        of_class = [
            file
            for file in _visible(path)
            if file.suffix.lower() in _SUFFIXES and not file.is_dir()
        ]
        paths += of_class
        labels += [class_names.index(name)] * len(of_class)
    return _Labelled(ImageFiles(tuple(paths), size), np.array(labels, np.int64))


def _visible(folder: Path) -> list[Path]:
    """Return what is in a folder by name, without the hidden."""
    paths = (path for path in folder.iterdir() if not path.name.startswith("."))
    return sorted(paths, key=lambda path: path.name)


def _readable(images: _Labelled, corrupt: str) -> _Labelled:
    is_readable = _decodes if corrupt == "raise" else _decodes_or_not
    cores = usable_cores()
    ahead = _AHEAD_PER_THREAD * cores
    flags = in_order(is_readable, images.files.paths, ahead=ahead, workers=cores)
    kept = np.fromiter(flags, bool, len(images.files))
    return _Labelled(images.files.subset(kept), images.labels[kept])


def _decodes(path: Path) -> bool:
    try:
        decode(path)
    except DataError as error:
        raise DataError(
            f"{error}; remove it, or leave out such images: --skip-corrupt, in Python "
            f"corrupt='skip'"
        ) from error
    return True


def _decodes_or_not(path: Path) -> bool:
    try:
        return _decodes(path)
    except DataError:
        return False


def _check_enough(folder: Path, splits: dict[str, _Labelled], class_names: tuple[str, ...]) -> None:
    counts = np.bincount(splits["train"].labels, minlength=len(class_names))
    for name, count in zip(class_names, counts, strict=True):
        if not count:
            raise DataError(
                f"{folder}: train has no image that can be read in the class folder {name!r}; "
                f"{_LAYOUT}; remove the folder if it is no class"
            )
    for name, images in splits.items():
        if not len(images):
            raise DataError(f"{folder}: no image that can be read for {name}; {_LAYOUT}")
