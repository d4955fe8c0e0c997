"""Checkpoints: no bit changes unnoticed, and no crash loses the last one.

The kill test runs as often as the environment variable REFKD_KILLS says::

    REFKD_KILLS=10000 python -m pytest tests/train/test_checkpoint.py -m slow -k killed
"""

from __future__ import annotations

import errno
import hashlib
import io
import itertools
import json
import os
import random
import subprocess
import sys
import tracemalloc
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import refkd
from refkd.errors import CheckpointError
from refkd.train import atomic, safetensors
from refkd.train.checkpoint import load_checkpoint, save_checkpoint
from refkd.train.safetensors import read_safetensors, serialize

ROOT = Path(refkd.__file__).parents[1]
REFUSED = None


def small_checkpoint(version: int = 0) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    arrays = {
        "fc.weight": np.arange(6.0).reshape(2, 3) + version,
        "fc.bias": np.full(2, version, "f4"),
        "mask": np.array([True, False, True]),
    }
    return arrays, {"version": str(version)}


def outcome_of_load(path: Path) -> int | None:
    """The version of a checkpoint whose every array belongs to it, or REFUSED."""
    try:
        arrays, metadata = load_checkpoint(path)
    except CheckpointError:
        return REFUSED
    expected, _ = small_checkpoint(int(metadata["version"]))
    for name, array in expected.items():
        np.testing.assert_array_equal(arrays[name], array)
    return int(metadata["version"])


def test_a_checkpoint_is_loaded_as_it_was_saved(tmp_path):
    arrays, metadata = small_checkpoint(3)
    arrays["nan"] = np.array([np.nan, -0.0, np.inf]).reshape(3, 1).T
    arrays["scalar"] = np.array(7, ">i8")
    save_checkpoint(tmp_path / "x", arrays, metadata)
    found, found_metadata = load_checkpoint(tmp_path / "x")
    assert list(found) == list(arrays)
    assert found_metadata == metadata
    for name, array in arrays.items():
        native = array.astype(array.dtype.newbyteorder("="))
        assert found[name].dtype == native.dtype
        assert found[name].shape == array.shape
        assert found[name].tobytes() == native.tobytes()
    found["scalar"][...] = 8


def test_an_empty_checkpoint_is_loaded_as_it_was_saved(tmp_path):
    save_checkpoint(tmp_path / "x", {}, {})
    assert load_checkpoint(tmp_path / "x") == ({}, {})


def test_saving_what_was_loaded_gives_the_same_file(tmp_path):
    save_checkpoint(tmp_path / "x", *small_checkpoint())
    save_checkpoint(tmp_path / "y", *load_checkpoint(tmp_path / "x"))
    assert (tmp_path / "x").read_bytes() == (tmp_path / "y").read_bytes()


def test_the_digest_is_the_sha256_of_the_file_with_its_digits_zeroed(tmp_path):
    save_checkpoint(tmp_path / "x", *small_checkpoint())
    recorded = read_safetensors(tmp_path / "x")[1]["refkd.sha256"]
    data = (tmp_path / "x").read_bytes()
    assert hashlib.sha256(data.replace(recorded.encode(), b"0" * 64)).hexdigest() == recorded


def test_the_safetensors_package_reads_a_checkpoint(tmp_path):
    oracle = pytest.importorskip("safetensors.numpy", reason="the oracle of the format")
    arrays, metadata = small_checkpoint()
    save_checkpoint(tmp_path / "x", arrays, metadata)
    found = oracle.load_file(tmp_path / "x")
    assert found.keys() == arrays.keys()
    for name, array in arrays.items():
        np.testing.assert_array_equal(found[name], array)


def test_a_file_of_another_program_is_refused_with_the_function_that_reads_it(tmp_path):
    (tmp_path / "x").write_bytes(b"".join(serialize({"a": np.zeros(1)}, {"format": "pt"})))
    with pytest.raises(CheckpointError, match=r"without 'refkd\.sha256'.*read_safetensors"):
        load_checkpoint(tmp_path / "x")
    assert read_safetensors(tmp_path / "x")[1] == {"format": "pt"}


def test_a_missing_checkpoint_is_named(tmp_path):
    with pytest.raises(CheckpointError, match=r"absent\.safetensors: no such file"):
        load_checkpoint(tmp_path / "absent.safetensors")


@pytest.mark.parametrize("recorded", ["", "0" * 64, "\\ud800", "é" * 64, '\\"'])
def test_a_digest_that_is_none_is_refused(recorded, tmp_path):
    header = f'{{"__metadata__":{{"refkd.sha256":"{recorded}"}}}}'.encode()
    (tmp_path / "x").write_bytes(len(header).to_bytes(8, "little") + header)
    with pytest.raises(CheckpointError):
        load_checkpoint(tmp_path / "x")


def test_what_cannot_be_stored_leaves_the_previous_checkpoint(tmp_path):
    save_checkpoint(tmp_path / "x", *small_checkpoint(1))
    with pytest.raises(CheckpointError, match="complex128"):
        save_checkpoint(tmp_path / "x", {"a": np.zeros(1, complex)}, {})
    assert outcome_of_load(tmp_path / "x") == 1
    assert os.listdir(tmp_path) == ["x"]


def test_a_disk_error_while_reading_is_a_checkpoint_error(tmp_path, monkeypatch):
    class FailingFile(io.FileIO):
        def readinto(self, buffer: memoryview) -> int:
            raise OSError(errno.EIO, os.strerror(errno.EIO))

    save_checkpoint(tmp_path / "x", *small_checkpoint())
    monkeypatch.setattr(safetensors, "open", FailingFile, raising=False)
    with pytest.raises(CheckpointError, match=f"x: cannot be read .{os.strerror(errno.EIO)}"):
        load_checkpoint(tmp_path / "x")


# Damage


def test_every_flipped_bit_of_a_small_checkpoint_is_detected(tmp_path):
    path = tmp_path / "x"
    save_checkpoint(path, *small_checkpoint())
    data = path.read_bytes()
    with open(path, "r+b", buffering=0) as file:
        for position, bit in itertools.product(range(len(data)), range(8)):
            file.seek(position)
            file.write(bytes([data[position] ^ 1 << bit]))
            assert outcome_of_load(path) is REFUSED, (position, bit)
            file.seek(position)
            file.write(data[position : position + 1])
    assert outcome_of_load(path) == 0


def test_every_truncation_and_extension_of_a_small_checkpoint_is_detected(tmp_path):
    path = tmp_path / "x"
    save_checkpoint(path, *small_checkpoint())
    data = path.read_bytes()
    for length in range(len(data)):
        path.write_bytes(data[:length])
        assert outcome_of_load(path) is REFUSED, length
    for extension in (b"\0", b" ", b"}", data):
        path.write_bytes(data + extension)
        assert outcome_of_load(path) is REFUSED, extension


@pytest.mark.parametrize(
    ("seed", "flips"),
    [(0, 2_000), *(pytest.param(seed, 25_000, marks=pytest.mark.slow) for seed in range(4))],
)
def test_random_flips_and_cuts_of_a_larger_checkpoint_are_detected(seed, flips, tmp_path):
    path, rng = tmp_path / "x", random.Random(seed)
    arrays = {f"blocks.{i}.weight": np.random.default_rng(i).normal(size=200) for i in range(20)}
    save_checkpoint(path, arrays, {"note": "é" * 100})
    data = path.read_bytes()
    for _ in range(flips):
        damaged = bytearray(data)
        for position in rng.sample(range(len(data)), rng.choice((1, 1, 1, 2, 5))):
            damaged[position] ^= 1 << rng.randrange(8)
        path.write_bytes(damaged)
        with pytest.raises(CheckpointError):
            load_checkpoint(path)
    for _ in range(flips // 10):
        path.write_bytes(data[: rng.randrange(len(data))] + rng.randbytes(rng.choice((0, 9, 999))))
        with pytest.raises(CheckpointError):
            load_checkpoint(path)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.binary(max_size=300))
def test_random_bytes_raise_only_checkpoint_errors(data, tmp_path):
    (tmp_path / "x").write_bytes(data)
    with pytest.raises(CheckpointError):
        load_checkpoint(tmp_path / "x")


# Killed processes


@pytest.mark.skipif(not hasattr(os, "fork"), reason="kills forked processes")
@pytest.mark.parametrize(
    "kills",
    [50, pytest.param(int(os.environ.get("REFKD_KILLS", "1000")), marks=pytest.mark.slow)],
)
def test_a_process_killed_during_a_save_leaves_the_old_or_the_new_checkpoint(kills):
    run = subprocess.run(
        [sys.executable, str(Path(__file__).with_name("kill_during_save.py")), str(kills)],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stdout + run.stderr
    report = json.loads(run.stdout)
    assert report["corrupt"] == 0
    assert report["old"] + report["new"] == kills
    assert report["during_a_write"] > 0  # else no kill has met a save
    assert report["files_left"] == 0


# Power loss. The calls of some saves are recorded, and every state that a power loss may
# leave is enumerated: 512-byte sectors not yet synchronised are there or not, in any
# combination, and hold zeros or garbage if not; the file may have any length in between;
# names changed since the folder was synchronised are changed or not, in any combination.

SECTOR = 512
OLD = -1


class RecordingOs:
    """The os module, with a log of what the disk is asked to do."""

    def __init__(self) -> None:
        self.log: list[tuple[Any, ...]] = []
        self.inode_of: dict[Any, int | None] = {}
        self.offset: dict[int, int] = {}

    def __getattr__(self, name: str) -> Any:
        return getattr(os, name)

    def open(self, path: Path, flags: int, mode: int = 0) -> int:
        descriptor = os.open(path, flags, mode)
        inode = None
        if flags & os.O_CREAT:
            inode = self.inode_of[path.name] = len(self.log)
            self.offset[inode] = 0
            self.log.append(("name", {path.name: inode}))
        self.inode_of[descriptor] = inode
        return descriptor

    def write(self, descriptor: int, data: memoryview) -> int:
        inode = self.inode_of[descriptor]
        self.log.append(("write", inode, self.offset[inode], bytes(data)))
        self.offset[inode] += len(data)
        return os.write(descriptor, data)

    def fsync(self, descriptor: int) -> None:
        inode = self.inode_of[descriptor]
        self.log.append(("sync folder",) if inode is None else ("sync file", inode))

    def replace(self, source: Path, target: Path) -> None:
        os.replace(source, target)
        inode = self.inode_of.pop(source.name)
        self.log.append(("name", {source.name: None, target.name: inode}))


def subsets(items: list[Any]) -> Iterator[tuple[Any, ...]]:
    return itertools.chain.from_iterable(
        itertools.combinations(items, n) for n in range(len(items) + 1)
    )


def file_states(log: list[tuple[Any, ...]], inode: int) -> set[bytes]:
    """Every content a file may have if the power fails at the end of the log."""
    cached = durable = b""
    for kind, *what in log:
        if kind == "write" and what[0] == inode:
            cached = cached[: what[1]] + what[2]
        elif kind == "sync file" and what[0] == inode:
            durable = cached
    sectors = [
        start
        for start in range(0, len(cached), SECTOR)
        if cached[start : start + SECTOR] != durable[start : start + SECTOR]
    ]
    states = set()
    lengths = {len(durable), len(cached), *(s for s in sectors if s > len(durable))}
    for length, arrived, fill in itertools.product(lengths, subsets(sectors), b"\x00\xa5"):
        content = bytearray([fill]) * length
        content[: len(durable)] = durable[:length]
        for start in arrived:
            content[start : start + SECTOR] = cached[start : start + SECTOR]
        states.add(bytes(content[:length]))
    return states


def states_after_power_loss(log: list[tuple[Any, ...]], old: bytes) -> Iterator[dict[str, bytes]]:
    """Every folder that a power failure at the end of the log may leave."""
    synced = max((i for i, entry in enumerate(log) if entry[0] == "sync folder"), default=0)
    durable = [entry[1] for entry in log[:synced] if entry[0] == "name"]
    pending = [entry[1] for entry in log[synced:] if entry[0] == "name"]
    for arrived in subsets(pending):
        names: dict[str, int | None] = {"x": OLD}
        for change in [*durable, *arrived]:
            names |= change
        files = {name: inode for name, inode in names.items() if inode is not None}
        contents = [{old} if i == OLD else file_states(log, i) for i in files.values()]
        for combination in itertools.product(*contents):
            yield dict(zip(files, combination, strict=True))


def log_of_two_saves(folder: Path, monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, ...]]:
    """The log of saving versions 1 and 2 over version 0."""
    save_checkpoint(folder / "x", *small_checkpoint(0))
    recorder = RecordingOs()
    with monkeypatch.context() as patch:
        patch.setattr(atomic, "os", recorder)
        for version in (1, 2):
            arrays, metadata = small_checkpoint(version)
            metadata["padding"] = "-" * 7 * SECTOR
            save_checkpoint(folder / "x", arrays, metadata)
            recorder.log.append(("returned", version))
    return recorder.log


def outcomes_of_power_loss(log: list[tuple[Any, ...]], old: bytes, folder: Path) -> dict[str, int]:
    """Count, over every moment and state, what is loaded: old, new or neither."""
    outcomes = {"old": 0, "new": 0, "bad": 0}
    loaded: dict[bytes, int | None] = {}
    for end in range(len(log) + 1):
        returned = max((e[1] for e in log[:end] if e[0] == "returned"), default=0)
        for files in states_after_power_loss(log[:end], old):
            content = files["x"]
            if content not in loaded:
                (folder / "x").write_bytes(content)
                loaded[content] = outcome_of_load(folder / "x")
            kind = {returned: "old", returned + 1: "new"}.get(loaded[content], "bad")
            outcomes[kind] += 1
    return outcomes


def test_a_power_loss_at_any_moment_leaves_the_old_or_the_new_checkpoint(tmp_path, monkeypatch):
    log = log_of_two_saves(tmp_path, monkeypatch)
    save_checkpoint(tmp_path / "x", *small_checkpoint(0))
    outcomes = outcomes_of_power_loss(log, (tmp_path / "x").read_bytes(), tmp_path)
    assert outcomes["bad"] == 0
    assert outcomes["old"] > 5_000
    assert outcomes["new"] > 2


@pytest.mark.parametrize("omitted", ["sync file", "sync folder"])
def test_the_power_loss_test_fails_without_either_synchronisation(omitted, tmp_path, monkeypatch):
    log = log_of_two_saves(tmp_path, monkeypatch)
    log = [entry for entry in log[: log.index(("returned", 1)) + 1] if entry[0] != omitted]
    save_checkpoint(tmp_path / "x", *small_checkpoint(0))
    outcomes = outcomes_of_power_loss(log, (tmp_path / "x").read_bytes(), tmp_path)
    assert outcomes["bad"] > 0


@pytest.mark.parametrize("digest", ["", "0", "z" * 64, "0" * 63])
def test_a_digest_of_another_form_is_refused_without_copying_the_header(
    tmp_path: Path, digest: str
) -> None:
    path = tmp_path / "crafted.safetensors"
    metadata = {"refkd.sha256": digest, "filler": "0" * 2_000_000}
    path.write_bytes(b"".join(serialize({"a": np.zeros(3)}, metadata)))
    tracemalloc.start()
    with pytest.raises(CheckpointError, match="expected a checkpoint of refkd"):
        load_checkpoint(path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 4 * path.stat().st_size + 64e6
