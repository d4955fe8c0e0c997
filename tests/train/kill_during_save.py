"""Kill a process with SIGKILL while it saves, many times, and load what it left.

    python tests/train/kill_during_save.py 10000

After each kill the checkpoint must be the last one whose save returned, or the one that
was being saved. Prints one line of JSON; exits with 1 at the first other outcome. Needs
``fork``, and ``refkd`` importable.
"""

from __future__ import annotations

import json
import os
import random
import signal
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from refkd.errors import CheckpointError
from refkd.train.checkpoint import load_checkpoint, save_checkpoint

SIZE = 40_000
LONGEST_LIFE = 0.01


def save(path: Path, version: int) -> None:
    """Save a checkpoint that says its version in every one of its parts."""
    save_checkpoint(
        path,
        {"weight": np.full(SIZE, version), "bias": np.full(7, version, "f4")},
        {"version": str(version)},
    )


def load(path: Path) -> int:
    """The version of a checkpoint, or a CheckpointError if its parts disagree."""
    arrays, metadata = load_checkpoint(path)
    version = int(metadata["version"])
    for name, size in (("weight", SIZE), ("bias", 7)):
        if arrays[name].shape != (size,) or np.any(arrays[name] != version):
            raise CheckpointError(f"{path}: parts of more than one checkpoint")
    return version


def save_until_killed(path: Path, version: int, acknowledge: int) -> None:
    while True:
        version += 1
        save(path, version)
        os.write(acknowledge, version.to_bytes(8, "little"))


def kill_once(path: Path, version: int, life: float) -> int:
    """The last version acknowledged by a child that saved for ``life`` seconds."""
    read_end, write_end = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            save_until_killed(path, version, write_end)
        finally:
            os._exit(1)
    os.close(write_end)
    time.sleep(life)
    os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    if not os.WIFSIGNALED(status):
        raise CheckpointError(f"{path}: the child ended before it was killed")
    with open(read_end, "rb") as pipe:
        acknowledged = pipe.read()
    return int.from_bytes(acknowledged[-8:], "little") if acknowledged else version


def main(kills: int, seed: int = 0) -> int:
    rng = random.Random(seed)
    report = {"kills": kills, "old": 0, "new": 0, "during_a_write": 0, "corrupt": 0}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "last.safetensors"
        save(path, 1)
        version = 1
        for _ in range(kills):
            before = kill_once(path, version, rng.uniform(0, LONGEST_LIFE))
            report["during_a_write"] += len(list(Path(folder).glob(".*.tmp")))
            try:
                version = load(path)
            except CheckpointError as error:
                print(error, file=sys.stderr)
                version = -1
            if version not in (before, before + 1):
                report["corrupt"] += 1
                break
            report["old" if version == before else "new"] += 1
        save(path, version + 1)
        report["files_left"] = len(os.listdir(folder)) - 1
    print(json.dumps(report))
    return 1 if report["corrupt"] else 0


if __name__ == "__main__":
    sys.exit(main(*map(int, sys.argv[1:])))
