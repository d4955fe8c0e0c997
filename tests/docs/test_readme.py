"""README and docs: the examples run, the links lead somewhere, the commands exist."""

from __future__ import annotations

import contextlib
import io
import re
import shlex
import tomllib
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import unquote

import numpy as np
import pytest

from refkd.cli import build_parser
from refkd.recipes import shipped_recipes
from tests.docs.markdown import (
    DOCUMENTS,
    README,
    ROOT,
    Block,
    check_output,
    code_spans,
    fenced_blocks,
    links,
    python_blocks,
    run_block,
    torch_is_installed,
)

SHELL = ("", "sh", "bash", "shell", "console")


def name_of(path: Path) -> str:
    return str(path.relative_to(ROOT))


def commands(markdown: str) -> Iterator[list[str]]:
    """Yield the arguments of every ``refkd`` command line, in blocks and in code spans."""
    lines = [
        line
        for block in fenced_blocks(markdown)
        if block.language in SHELL
        for line in block.text.replace("\\\n", " ").splitlines()
    ]
    for line in (*lines, *code_spans(markdown)):
        if re.search(r"\brefkd\s", line):
            for command in simple_commands(line.removeprefix("$ ")):
                yield from refkd_arguments(command)


def simple_commands(line: str) -> list[list[str]]:
    """Split a shell line at ``&&``, ``|`` and ``;``; leave redirections and comments out."""
    lexer = shlex.shlex(line, posix=True, punctuation_chars=True)
    lexer.whitespace_split = True
    found: list[list[str]] = [[]]
    redirected = False
    for token in lexer:
        if set(token) <= set("&|;"):
            found.append([])
        elif set(token) <= set("<>"):
            redirected = True
            continue
        elif not redirected:
            found[-1].append(token)
        redirected = False
    return found


def refkd_arguments(command: list[str]) -> Iterator[list[str]]:
    """Yield what follows ``refkd`` or ``python -m refkd``, if that is the command."""
    while command and re.fullmatch(r"\w+=.*", command[0]):
        command = command[1:]
    if command and command[0].split("/")[-1] == "refkd" and len(command) > 1:
        yield command[1:]
    elif command[1:3] == ["-m", "refkd"] and len(command) > 3:
        yield command[3:]


def refusal(arguments: list[str]) -> str | None:
    """Return why the command line does not parse, None where it does."""
    words = io.StringIO()
    try:
        with contextlib.redirect_stderr(words), contextlib.redirect_stdout(words):
            build_parser().parse_args(arguments)
    except SystemExit as stop:
        if stop.code:
            return f"refkd {shlex.join(arguments)}: {words.getvalue().splitlines()[-1]}"
    return None


def test_readme_has_python_examples() -> None:
    assert python_blocks(README) != []


@pytest.mark.parametrize("block", python_blocks(README), ids=lambda block: f"line{block.line}")
def test_a_python_example_of_the_readme_runs(
    block: Block, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if block.needs_torch and not torch_is_installed():
        pytest.skip("this example imports torch, which is not installed")
    monkeypatch.chdir(tmp_path)
    namespace: dict[str, object] = {"__name__": "__main__"}
    with np.printoptions():
        check_output(block, README, run_block(block, README, namespace))
        for name, value in namespace.copy().items():
            if name.startswith("test_") and callable(value):
                value()


@pytest.mark.parametrize("path", DOCUMENTS, ids=name_of)
def test_relative_links_lead_to_files(path: Path) -> None:
    broken = []
    for target in links(path.read_text("utf-8")):
        file = unquote(target.partition("#")[0])
        if file and not re.match(r"[a-z]+:", file) and not (path.parent / file).exists():
            broken.append(target)
    assert broken == []


@pytest.mark.parametrize("path", DOCUMENTS, ids=name_of)
def test_quoted_command_lines_parse(path: Path) -> None:
    refused = [refusal(arguments) for arguments in commands(path.read_text("utf-8"))]
    assert [reason for reason in refused if reason is not None] == []


def test_readme_begins_with_the_command_that_distils() -> None:
    assert ["distill"] in list(commands(README.read_text("utf-8")))


@pytest.mark.parametrize("recipe", shipped_recipes())
def test_readme_mentions_every_shipped_recipe(recipe: str) -> None:
    text = README.read_text("utf-8")
    code = "\n".join([*code_spans(text), *(block.text for block in fenced_blocks(text))])
    named = re.search(rf"(?<![\w-]){re.escape(recipe)}(?![\w-])", code)
    assert named, f"README names the recipe {recipe} nowhere in `code`"


@pytest.mark.parametrize("path", DOCUMENTS, ids=name_of)
def test_quoted_extras_exist(path: Path) -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    quoted = re.findall(r"(?:refkd|\.)\[([\w, ]+)\]", path.read_text("utf-8"))
    extras = {extra.strip() for group in quoted for extra in group.split(",")}
    assert extras <= project["optional-dependencies"].keys()


def test_every_page_of_the_docs_is_in_their_index() -> None:
    index = ROOT / "docs" / "README.md"
    indexed = {(index.parent / link).resolve() for link in links(index.read_text("utf-8"))}
    assert set(DOCUMENTS) - {README, index} <= indexed


@pytest.mark.parametrize(
    ("markdown", "expected"),
    [
        ("```sh\nrefkd distill digits\n```", [["distill", "digits"]]),
        ("```sh\na=1 .venv/bin/refkd recipes > x.toml && ls\n```", [["recipes"]]),
        ("```console\n$ python3 -m refkd doctor  # one line\n```", [["doctor"]]),
        ("```sh\nrefkd distill \\\n  --seeds 2 | tee log\n```", [["distill", "--seeds", "2"]]),
        ("Type `refkd gradcheck\n--json` now", [["gradcheck", "--json"]]),
        ("```python\nimport refkd\n```", []),
        ("`refkd` and `import refkd` and `pip install 'refkd[plot]'`", []),
        ("```sh\ncd refkd && pip install refkd\n```", []),
    ],
)
def test_command_lines_are_found(markdown: str, expected: list[list[str]]) -> None:
    assert list(commands(markdown)) == expected


def test_a_command_line_that_does_not_exist_is_refused() -> None:
    assert "invalid choice" in str(refusal(["distil"]))
    assert "--sedes" in str(refusal(["distill", "--sedes", "2"]))
    assert refusal(["--version"]) is None


def test_links_in_code_are_none_and_in_html_are() -> None:
    page = '[a](b.md "title") ![c](<d.svg>) `[e](f)` <img src="g.png">\n\n```\n[h](i)\n```\n'
    assert links(page) == ["b.md", "d.svg", "g.png"]


def test_readme_has_a_row_of_results_for_every_recipe_with_its_command() -> None:
    rows = [line for line in README.read_text("utf-8").splitlines() if line.startswith("|")]
    for recipe in set(shipped_recipes()) - {"own-data", "digits"}:
        assert any(f"`refkd distill {recipe} " in row for row in rows), recipe
    assert any("`refkd distill`" in row for row in rows)
