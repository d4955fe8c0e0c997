"""Atomic writing of bytes: what is on the disk after success, failure and interruption."""

from __future__ import annotations

import errno
import os
import stat
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from refkd.errors import CheckpointError
from refkd.train import atomic
from refkd.train.atomic import atomic_write, atomic_write_text

IO_CALLS = ("listdir", "open", "write", "fsync", "close", "replace", "unlink")
ERRORS = [errno.ENOSPC, errno.EIO, errno.EACCES]
posix = pytest.mark.skipif(os.name == "nt", reason="the calls of a POSIX system")


class FaultyOs:
    """The os module with its I/O calls recorded, and the one numbered ``fault`` failing."""

    def __init__(self, error: int = 0, fault: int = -1) -> None:
        self.calls: list[str] = []
        self.error, self.fault = error, fault

    def __getattr__(self, name: str) -> Any:
        function = getattr(os, name)
        if name not in IO_CALLS:
            return function

        def call(*args: Any) -> Any:
            self.calls.append(name)
            if len(self.calls) - 1 != self.fault:
                return function(*args)
            if name == "close":
                function(*args)
            raise OSError(self.error, os.strerror(self.error))

        return call


def calls_of_one_save(path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    recorder = FaultyOs()
    with monkeypatch.context() as patch:
        patch.setattr(atomic, "os", recorder)
        atomic_write(path, [b"first", b"second"])
    return recorder.calls


@pytest.mark.parametrize("old", [None, b"old"], ids=["new file", "existing file"])
def test_the_file_holds_exactly_the_chunks(old, tmp_path):
    path = tmp_path / "x.bin"
    if old:
        path.write_bytes(old)
    atomic_write(path, [b"ab", b"", memoryview(b"cd"), np.arange(3, dtype="u1").data])
    assert path.read_bytes() == b"abcd\0\1\2"
    assert os.listdir(tmp_path) == ["x.bin"]


def test_no_chunks_give_an_empty_file(tmp_path):
    atomic_write(tmp_path / "x", [])
    assert (tmp_path / "x").read_bytes() == b""


def test_text_is_written_as_utf8_with_its_line_ends(tmp_path):
    atomic_write_text(tmp_path / "config.toml", "τ = 4\r\nα = 1\n")
    assert (tmp_path / "config.toml").read_bytes() == "τ = 4\r\nα = 1\n".encode()


def test_a_relative_name_is_saved_in_the_current_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    atomic_write("x", [b"1"])
    assert (tmp_path / "x").read_bytes() == b"1"


@posix
def test_a_new_file_has_the_permissions_of_an_ordinary_one(tmp_path):
    (tmp_path / "ordinary").write_bytes(b"")
    atomic_write(tmp_path / "x", [b"1"])
    modes = {stat.S_IMODE(file.stat().st_mode) for file in tmp_path.iterdir()}
    assert len(modes) == 1


@posix
def test_a_symbolic_link_stays_and_its_file_is_replaced(tmp_path):
    folder = tmp_path / "disk"
    folder.mkdir()
    (tmp_path / "link").symlink_to(folder / "x")
    atomic_write(tmp_path / "link", [b"1"])
    assert (tmp_path / "link").is_symlink()
    assert (folder / "x").read_bytes() == b"1"
    assert os.listdir(folder) == ["x"]


@posix
def test_a_reader_that_has_the_old_file_open_keeps_reading_it(tmp_path):
    (tmp_path / "x").write_bytes(b"old")
    with open(tmp_path / "x", "rb") as reader:
        atomic_write(tmp_path / "x", [b"new"])
        assert reader.read() == b"old"


@posix
def test_the_data_is_durable_before_the_name_and_the_name_before_the_return(tmp_path, monkeypatch):
    assert calls_of_one_save(tmp_path / "x", monkeypatch) == [
        *("listdir", "open", "write", "write", "fsync", "close"),
        *("replace", "open", "fsync", "close", "unlink"),
    ]


def test_writes_the_system_cuts_short_are_continued(tmp_path, monkeypatch):
    class ShortWrites(FaultyOs):
        def write(self, descriptor: int, data: memoryview) -> int:
            return os.write(descriptor, data[:3])

    monkeypatch.setattr(atomic, "os", ShortWrites())
    atomic_write(tmp_path / "x", [bytes(range(100)), b"ab"])
    assert (tmp_path / "x").read_bytes() == bytes(range(100)) + b"ab"


@pytest.mark.parametrize("name", ["x", "a.b", "[x]*", "é"])
def test_only_leftovers_of_the_same_path_are_removed(name, tmp_path):
    others = {f".{name}.0123abcd.tmp.keep", f".y{name}.0123abcd.tmp", f".{name}.b.0123abcd.tmp"}
    others |= {f"{name}.tmp", ".x.c.0123abcd.tmp"}
    for file in [f".{name}.0123abcd.tmp", f".{name}.ffffffff.tmp", *others]:
        (tmp_path / file).write_bytes(b"torn")
    atomic_write(tmp_path / name, [b"1"])
    assert set(os.listdir(tmp_path)) == {name} | others
    assert (tmp_path / name).read_bytes() == b"1"


@posix
@pytest.mark.parametrize("error", ERRORS, ids=errno.errorcode.get)
@pytest.mark.parametrize("old", [None, b"old"], ids=["new file", "existing file"])
def test_an_error_at_any_call_leaves_the_old_file_whole_and_no_other(
    old, error, tmp_path, monkeypatch
):
    *calls, cleanup = calls_of_one_save(tmp_path / "x", monkeypatch)
    assert cleanup == "unlink"
    for fault in range(len(calls)):
        (tmp_path / "x").unlink(missing_ok=True)
        if old:
            (tmp_path / "x").write_bytes(old)
        with monkeypatch.context() as patch:
            patch.setattr(atomic, "os", FaultyOs(error, fault))
            with pytest.raises(CheckpointError, match=os.strerror(error)) as caught:
                atomic_write(tmp_path / "x", [b"first", b"second"])
        assert isinstance(caught.value.__cause__, OSError)
        named = fault > calls.index("replace")
        expected = b"firstsecond" if named else old
        assert os.listdir(tmp_path) == ([] if expected is None else ["x"])
        assert expected is None or (tmp_path / "x").read_bytes() == expected
        assert ("is in place" if named else "is unchanged") in str(caught.value)
        assert ("free some space" in str(caught.value)) == (error == errno.ENOSPC)


@posix
def test_no_descriptor_stays_open_after_an_error(tmp_path, monkeypatch):
    calls = calls_of_one_save(tmp_path / "x", monkeypatch)
    lowest_free = os.open(tmp_path, os.O_RDONLY)
    os.close(lowest_free)
    for fault in range(len(calls) - 1):
        with monkeypatch.context() as patch:
            patch.setattr(atomic, "os", FaultyOs(errno.EIO, fault))
            with pytest.raises(CheckpointError):
                atomic_write(tmp_path / "x", [b"first", b"second"])
    now_free = os.open(tmp_path, os.O_RDONLY)
    os.close(now_free)
    assert now_free == lowest_free


@posix
def test_a_file_too_large_for_the_process_is_refused_by_the_real_system(tmp_path):
    resource = pytest.importorskip("resource", reason="limits of a POSIX process")
    signal = pytest.importorskip("signal")
    (tmp_path / "x").write_bytes(b"old")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, limits[1]))
    try:
        with pytest.raises(CheckpointError, match="unchanged"):
            atomic_write(tmp_path / "x", [bytes(8_000), bytes(8_000)])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)
    assert (tmp_path / "x").read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["x"]


def test_a_missing_folder_is_refused_with_the_path(tmp_path):
    with pytest.raises(CheckpointError, match=r"absent.x: cannot be saved.*folder exists"):
        atomic_write(tmp_path / "absent" / "x", [b"1"])


def test_a_folder_is_never_replaced_by_a_file(tmp_path):
    (tmp_path / "x").mkdir()
    with pytest.raises(CheckpointError, match="x: cannot be saved"):
        atomic_write(tmp_path / "x", [b"1"])
    assert os.listdir(tmp_path) == ["x"]


@pytest.mark.skipif(
    sys.platform == "win32" or os.geteuid() == 0, reason="the superuser may write anywhere"
)
def test_a_read_only_folder_is_refused_by_the_real_system(tmp_path):
    tmp_path.chmod(0o555)
    try:
        with pytest.raises(CheckpointError, match="make the folder readable and writable"):
            atomic_write(tmp_path / "x", [b"1"])
    finally:
        tmp_path.chmod(0o755)
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("interruption", [KeyboardInterrupt, ValueError])
def test_an_interruption_passes_through_and_leaves_the_old_file_alone(interruption, tmp_path):
    def chunks():
        yield b"half"
        raise interruption

    (tmp_path / "x").write_bytes(b"old")
    with pytest.raises(interruption):
        atomic_write(tmp_path / "x", chunks())
    assert (tmp_path / "x").read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["x"]


def test_of_two_saves_of_one_path_one_wins_and_the_other_is_told(tmp_path):
    def chunks():
        yield b"slow "
        atomic_write(tmp_path / "x", [b"quick"])
        yield b"and late"

    with pytest.raises(CheckpointError, match="no other process saves the same file"):
        atomic_write(tmp_path / "x", chunks())
    assert (tmp_path / "x").read_bytes() == b"quick"
    assert os.listdir(tmp_path) == ["x"]
