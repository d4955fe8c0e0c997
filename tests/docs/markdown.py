"""Markdown as far as the tests of the documentation need it: fenced blocks, code spans, links."""

from __future__ import annotations

import contextlib
import importlib.util
import io
import re
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

ROOT = Path(__file__).parents[2]
README = ROOT / "README.md"
DOCUMENTS = (README, *sorted((ROOT / "docs").rglob("*.md")))

_FENCE = re.compile(r" {0,3}(?P<ticks>`{3,}|~{3,})\s*(?P<language>\S*).*")
_LINK = re.compile(r"\]\(<?([^)>\s]+)>?(?:\s[^)]*)?\)|(?:src|href)=\"([^\"]+)\"")


class Block(NamedTuple):
    """A fenced block: its language, its text, the line it begins on.

    ``output`` is the text of a ```` ```text ```` block that follows a python block with
    nothing but blank lines between: what the code prints.
    """

    language: str
    text: str
    line: int
    output: str | None = None

    @property
    def needs_torch(self) -> bool:
        return re.search(r"^\s*(import|from) torch\b", self.text, re.MULTILINE) is not None


def fenced_blocks(markdown: str) -> list[Block]:
    """Return all fenced blocks, an output attached to its code."""
    found: list[Block] = []
    lines = markdown.splitlines()
    previous_end = -1
    i = 0
    while i < len(lines):
        fence = _FENCE.fullmatch(lines[i])
        if fence is None:
            i += 1
            continue
        end = next(
            (j for j in range(i + 1, len(lines)) if lines[j].strip() == fence["ticks"]), len(lines)
        )
        block = Block(fence["language"], "".join(f"{x}\n" for x in lines[i + 1 : end]), i + 2)
        follows = not any(x.strip() for x in lines[previous_end + 1 : i])
        if block.language == "text" and follows and found and found[-1].language == "python":
            found[-1] = found[-1]._replace(output=block.text)
        found.append(block)
        previous_end = end
        i = end + 1
    return found


def python_blocks(path: Path) -> list[Block]:
    """Return the python blocks of a document in order."""
    return [b for b in fenced_blocks(path.read_text("utf-8")) if b.language == "python"]


def run_block(block: Block, path: Path, namespace: dict[str, Any]) -> str:
    """Execute a block and return what it prints; tracebacks show the document's line numbers."""
    code = compile("\n" * (block.line - 1) + block.text, str(path), "exec")
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(code, namespace)
    return printed.getvalue()


def check_output(block: Block, path: Path, printed: str) -> None:
    """Assert that a block printed what the document says it does."""
    if block.output is not None:
        said, does = (
            [line.rstrip() for line in text.splitlines()] for text in (block.output, printed)
        )
        assert does == said, f"{path.name}:{block.line}: the page shows another output"


def run_document(path: Path, *, with_torch: bool) -> dict[str, Any]:
    """Run all python blocks in one namespace, check their outputs, and return the namespace."""
    namespace: dict[str, Any] = {"__name__": "__main__"}
    with np.printoptions():  # a page may set its own
        for block in python_blocks(path):
            if with_torch or not block.needs_torch:
                check_output(block, path, run_block(block, path, namespace))
    return namespace


def torch_is_installed() -> bool:
    return importlib.util.find_spec("torch") is not None


def code_spans(markdown: str) -> list[str]:
    """Return the inline code outside fenced blocks, line breaks as blanks."""
    return [" ".join(c.split()) for c in re.findall(r"(?<!`)`([^`]+)`(?!`)", prose(markdown))]


def prose(markdown: str) -> str:
    """Return a document without its fenced blocks."""
    lines = markdown.splitlines()
    for block in fenced_blocks(markdown):
        first, count = block.line - 2, block.text.count("\n") + 2
        lines[first : first + count] = [""] * len(lines[first : first + count])
    return "\n".join(lines)


def links(markdown: str) -> list[str]:
    """Return the targets of links and images, outside code."""
    without_code = re.sub(r"`[^`]*`", "", prose(markdown))
    return [a or b for a, b in _LINK.findall(without_code)]
