"""Writing a file so that a crash at any moment leaves the old file or the new one.

The bytes go to a temporary file beside the target, reach the disk, and take the
target's name in one step; then the folder reaches the disk. What the bytes mean,
and whether they still are what was written, is not known here.
"""

from __future__ import annotations

import errno
import os
import re
import secrets
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

from refkd.errors import CheckpointError

__all__ = ["atomic_write", "atomic_write_text"]

_REMEDIES = {
    errno.ENOSPC: "free some space on the disk, or save elsewhere",
    errno.EDQUOT: "free some of the disk quota, or save elsewhere",
    errno.EIO: "the disk reports errors: check it, and save elsewhere",
    errno.EROFS: "the file system is read-only: save elsewhere",
    errno.EACCES: "make the folder readable and writable, or save elsewhere",
    errno.EPERM: "make the folder readable and writable, or save elsewhere",
    errno.ENOENT: "check that the folder exists and that no other process saves the same file",
}


def atomic_write(path: str | os.PathLike[str], chunks: Iterable[bytes | memoryview]) -> None:
    """Replace a file by the given bytes, all or nothing, and durably.

    Parameters
    ----------
    path : str or path
        The file to create or replace, in an existing folder. A symbolic link is followed.
    chunks : iterable of bytes or memoryview of bytes
        Written one after the other.

    Raises
    ------
    CheckpointError
        If the system refuses any step. The previous file is then intact, unless only the
        last step failed, that of making the new name durable: then the new file is in
        place, and a power loss may bring the previous one back.

    Notes
    -----
    Whatever ends the call, an exception from ``chunks`` included, the temporary file is
    removed. One left by a killed process is removed by the next save of the same path,
    so of two processes that save one path at the same time, one may be told that its
    temporary file is gone; neither spoils the other's file. On Windows a folder cannot
    be synchronised, and the last step is left to the system.
    """
    target = Path(os.path.realpath(path))
    temporary = target.with_name(f".{target.name}.{secrets.token_hex(4)}.tmp")
    outcome = "the previous file, if any, is unchanged"
    try:
        _remove_leftovers(target)
        _write_durably(temporary, chunks)
        os.replace(temporary, target)
        outcome = "the new file is in place, but may not survive a power loss"
        _synchronize_folder(target.parent)
    except OSError as error:
        remedy = _REMEDIES.get(error.errno or 0, "check the path and the disk")
        raise CheckpointError(
            f"{path}: cannot be saved ({error.strerror or error}); {outcome}; {remedy}"
        ) from error
    finally:
        with suppress(OSError):
            os.unlink(temporary)


def atomic_write_text(path: str | os.PathLike[str], text: str) -> None:
    """Replace a file by ``text`` in UTF-8, as `atomic_write` does.

    Raises
    ------
    CheckpointError
        If the system refuses any step.
    """
    atomic_write(path, [text.encode()])


def _remove_leftovers(target: Path) -> None:
    leftover = re.compile(rf"\.{re.escape(target.name)}\.[0-9a-f]{{8}}\.tmp")
    for name in os.listdir(target.parent):
        if leftover.fullmatch(name):
            with suppress(FileNotFoundError):
                os.unlink(target.parent / name)


def _write_durably(file: Path, chunks: Iterable[bytes | memoryview]) -> None:
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0)
    descriptor = os.open(file, flags, 0o666)
    try:
        for chunk in chunks:
            rest = memoryview(chunk)
            while rest:
                rest = rest[os.write(descriptor, rest) :]
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _synchronize_folder(folder: Path) -> None:
    if os.name == "nt":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
