"""Checkpoints: arrays and text that survive crashes and cannot change unnoticed.

A checkpoint is a safetensors file, so other programs read it, with a digest of
itself in its metadata. What a training run stores in it (parameters, optimiser,
random generator, step) is decided by the caller.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Mapping
from typing import Any

from numpy.typing import NDArray

from refkd.errors import CheckpointError
from refkd.train.atomic import atomic_write
from refkd.train.safetensors import open_safetensors, read_arrays, serialize

__all__ = ["DIGEST_KEY", "load_checkpoint", "save_checkpoint"]

DIGEST_KEY = "refkd.sha256"
_BLANK = "0" * 64


def save_checkpoint(
    path: str | os.PathLike[str],
    arrays: Mapping[str, NDArray[Any]],
    metadata: Mapping[str, str],
) -> None:
    """Save arrays and metadata; a crash leaves the previous checkpoint or this one.

    Parameters
    ----------
    path : str or path
        Replaced if it exists. Its folder must exist.
    arrays : mapping of str to array
        Any shape, strides and byte order; dtypes as for `serialize`.
    metadata : mapping of str to str
        The key ``"refkd.sha256"`` is replaced by the new digest.

    Raises
    ------
    CheckpointError
        If something cannot be stored, or the system refuses to (disk full, no
        permission ...); the previous checkpoint is then intact.

    Notes
    -----
    The digest is the SHA-256 of the whole file, its own 64 digits read as zeros.
    """
    digest = hashlib.sha256()
    for chunk in serialize(arrays, {**metadata, DIGEST_KEY: _BLANK}):
        digest.update(chunk)
    atomic_write(path, serialize(arrays, {**metadata, DIGEST_KEY: digest.hexdigest()}))


def load_checkpoint(
    path: str | os.PathLike[str],
) -> tuple[dict[str, NDArray[Any]], dict[str, str]]:
    """The arrays and metadata of a checkpoint, bit for bit as they were saved.

    Parameters
    ----------
    path : str or path

    Returns
    -------
    arrays : dict of str to array
        Fresh and writable, C-ordered, native byte order, in the order they were given.
    metadata : dict of str to str
        As given; the digest is taken out.

    Raises
    ------
    CheckpointError
        If the file is missing, unreadable or damaged (any single bit), or is a
        safetensors file of another program, which has no digest; `read_safetensors`
        reads those.
    """
    with open_safetensors(path) as (stream, header):
        metadata = dict(header.metadata)
        recorded = metadata.pop(DIGEST_KEY, None)
        if recorded is None or not re.fullmatch("[0-9a-f]{64}", recorded):
            raise CheckpointError(
                f"{header.file}: a safetensors file without {DIGEST_KEY!r}, expected a "
                f"checkpoint of refkd; read files of other programs with "
                f"refkd.train.safetensors.read_safetensors"
            )
        digest = hashlib.sha256(header.raw.replace(recorded.encode(), _BLANK.encode(), 1))
        arrays = read_arrays(stream, header, observe=digest.update)
    if digest.hexdigest() != recorded:
        raise CheckpointError(
            f"{header.file}: damaged, its SHA-256 is {digest.hexdigest()}, expected {recorded}; "
            f"load an earlier checkpoint or restore it from a copy"
        )
    return arrays, metadata
