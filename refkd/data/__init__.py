"""Data sets and their readers: the shipped digits, MNIST in IDX files, a user's own ``.npz``.

Everything here ends in a `Dataset`. No reader unpickles, and each raises nothing
but `refkd.errors.DataError` on any bytes and takes at most 4 times the size of
its file + 64 MB of memory.
"""

from refkd.data.dataset import Dataset, Split, to_batch
from refkd.data.digits import load_digits
from refkd.data.download import fetch
from refkd.data.idx import load_mnist, read_idx
from refkd.data.npz import load_npz, read_teacher_logits
from refkd.data.sources import load

__all__ = [
    "Dataset",
    "Split",
    "fetch",
    "load",
    "load_digits",
    "load_mnist",
    "load_npz",
    "read_idx",
    "read_teacher_logits",
    "to_batch",
]
