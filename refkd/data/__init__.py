"""Data sets, their readers, and what turns their images into batches.

There are readers for the shipped digits, MNIST in IDX files, CIFAR-10 in its binary
version, folders of images and a user's own ``.npz``. Each ends in a `Dataset`, unpickles
nothing, raises nothing but `refkd.errors.DataError` on any bytes and takes at most 4
times the size of its file + 64 MB of memory; JPEG and PNG files take more, for their
pixels, see `load_image_folder`.
"""

from refkd.data.augment import (
    CenterCrop,
    HorizontalFlip,
    PaddedCrop,
    RandomResizedCrop,
    Resize,
    Transform,
)
from refkd.data.cifar import load_cifar10
from refkd.data.dataset import Dataset, Normalization, Split, to_batch
from refkd.data.digits import load_digits
from refkd.data.download import fetch
from refkd.data.hold_out import hold_out_validation
from refkd.data.idx import load_mnist, read_idx
from refkd.data.image_files import ImageFiles
from refkd.data.image_folder import load_image_folder
from refkd.data.loader import batches
from refkd.data.npz import load_npz, read_teacher_logits
from refkd.data.sources import load

__all__ = [
    "CenterCrop",
    "Dataset",
    "HorizontalFlip",
    "ImageFiles",
    "Normalization",
    "PaddedCrop",
    "RandomResizedCrop",
    "Resize",
    "Split",
    "Transform",
    "batches",
    "fetch",
    "hold_out_validation",
    "load",
    "load_cifar10",
    "load_digits",
    "load_image_folder",
    "load_mnist",
    "load_npz",
    "read_idx",
    "read_teacher_logits",
    "to_batch",
]
