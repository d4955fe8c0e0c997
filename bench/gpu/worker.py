"""``python -m bench.gpu.worker SECTION WORDS DONE``: takes rows one by one and prints each.

Each row is an iterator of parts, which are printed as they come: what ends it loses none of those
before.
"""

from __future__ import annotations

import importlib
import json
import sys
import traceback
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from bench.gpu.sections import PREFIX

__all__ = ["main"]


def main(section: str, words: str, done: str) -> None:
    """Take the rows of a section whose names contain ``words``, but those that are done."""
    rows: Mapping[str, Callable[[], Iterable[dict[str, Any]]]]
    rows = importlib.import_module(f"bench.gpu.{section}").rows()
    left = [name for name in rows if words in name and name not in json.loads(done)]
    _say(kind="rows", names=left)
    for name in left:
        _say(kind="begin", row=name)
        try:
            for part in rows[name]():
                _say(kind="part", row=name, **part)
        except Exception as error:
            where = traceback.extract_tb(error.__traceback__)[-1]
            what = f"{type(error).__name__}: {error}"[:1000]
            place = f"{where.filename.rpartition('/')[2]}:{where.lineno}"
            _say(kind="row", row=name, error=f"{what} ({place})")
            if _is_fatal(error):
                raise  # the device is lost to this process
            continue
        _say(kind="row", row=name)
    _say(kind="end")


def _is_fatal(error: Exception) -> bool:
    words = str(error).lower()
    return any(
        w in words for w in ("illegal", "misaligned", "launch failure", "assert", "hardware")
    )


def _say(**message: Any) -> None:
    print(PREFIX + json.dumps(message), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
