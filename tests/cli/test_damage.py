"""A person's files, damaged in every way: an error of refkd's kinds, never a traceback."""

from __future__ import annotations

import copy
import json
import shutil
import tomllib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from refkd.cli.options import Options, read_config
from refkd.cli.report import read_result, show_result, write_page
from refkd.errors import CheckpointError, ConfigError
from refkd.train.run import RunFolder

VALUES = (None, True, -1, 10**400, 1e308, float("nan"), float("inf"), "", "\x1b[2J{", [], [[]], {})
quick = settings(
    max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None
)


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The path of every value inside ``value``; of a long list the first two entries."""
    inner: Any = ()
    if isinstance(value, dict):
        inner = value.items()
    elif isinstance(value, list):
        inner = enumerate(value[:2])
    return [path, *(p for key, entry in inner for p in places(entry, (*path, key)))]


def changed(value: Any, path: tuple[Any, ...], new: Any) -> Any:
    """A copy of ``value`` with ``new`` at ``path``."""
    if not path:
        return new
    result = copy.copy(value)
    result[path[0]] = changed(value[path[0]], path[1:], new)
    return result


def use(folder: RunFolder) -> None:
    """All that the command line does with a result."""
    result = read_result(folder)
    for as_json in (True, False):
        show_result(folder, result, as_json=as_json)
    write_page(folder, result)


@pytest.fixture
def run(finished: Path) -> RunFolder:
    return RunFolder(finished)


def only_checkpoint_errors(action: Any, *arguments: Any) -> bool:
    try:
        action(*arguments)
    except CheckpointError:
        return False
    return True


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # matplotlib's, of numbers that no run can have
def test_a_result_with_a_value_changed_is_drawn_or_refused(
    run: RunFolder, draws_pictures: None, capsys: pytest.CaptureFixture[str]
) -> None:
    result = json.loads((run.path / "result.json").read_text())
    rng = np.random.default_rng(0)
    outcomes = []
    for path in rng.permutation(np.array(places(result), object))[:60]:
        value = VALUES[rng.integers(len(VALUES))]
        (run.path / "result.json").write_text(json.dumps(changed(result, tuple(path), value)))
        outcomes.append(only_checkpoint_errors(use, run))
    capsys.readouterr()
    assert 0.1 < np.mean(outcomes) < 0.9  # both happen


@quick
@given(data=st.data())
def test_a_result_with_a_value_changed_is_printed_or_refused(
    data: st.DataObject, run: RunFolder, finished_once: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    result = json.loads((finished_once / "result.json").read_text())
    place = data.draw(st.sampled_from(places(result)))
    value = data.draw(st.sampled_from(VALUES))
    (run.path / "result.json").write_text(json.dumps(changed(result, place, value)))
    only_checkpoint_errors(use, run)
    capsys.readouterr()


@quick
@given(content=st.one_of(st.binary(max_size=60), st.text(max_size=60).map(str.encode)))
def test_bytes_that_are_no_result_are_refused(content: bytes, run: RunFolder) -> None:
    (run.path / "result.json").write_bytes(content)
    with pytest.raises(CheckpointError, match=r"result\.json is damaged"):
        use(run)


@pytest.mark.parametrize("number", ["NaN", "Infinity", "1e999"])
def test_a_number_that_json_does_not_have_is_refused(
    run: RunFolder, refkd: Any, number: str
) -> None:
    path = run.path / "result.json"
    path.write_text(path.read_text().replace("{", f'{{"extra": {number}, ', 1))
    code, out, err = refkd("report", run.path, "--json")
    assert (code, out) == (3, "")
    assert "result.json is damaged" in err


def test_json_nested_too_deeply_is_refused(run: RunFolder) -> None:
    (run.path / "result.json").write_text("[" * 100_000)
    with pytest.raises(CheckpointError, match=r"result\.json is damaged"):
        read_result(run)


@quick
@given(
    where=st.integers(0, 10**6),
    damage=st.sampled_from(["cut", "flip", "drop line", "insert"]),
    junk=st.binary(min_size=1, max_size=8),
)
def test_a_damaged_config_is_read_or_refused(
    where: int, damage: str, junk: bytes, finished_once: Path, tmp_path: Path
) -> None:
    content = (finished_once / "config.toml").read_bytes()
    at = where % len(content)
    lines = content.splitlines(keepends=True)
    damaged = {
        "cut": content[:at],
        "flip": content[:at] + bytes([content[at] ^ junk[0]]) + content[at + 1 :],
        "drop line": b"".join(line for i, line in enumerate(lines) if i != where % len(lines)),
        "insert": content[:at] + junk + content[at:],
    }[damage]
    (tmp_path / "config.toml").write_bytes(damaged)
    only_checkpoint_errors(read_config, RunFolder(tmp_path))


@pytest.mark.parametrize(
    "line",
    [
        "seeds = 0",
        "seeds = -1",
        "first_seed = -1",
        'protocol = "other"',
        "seeds = 1.5",
        "unknown = 1",
        "seeds = 0x" + "f" * 5000,
    ],
)
def test_options_that_make_no_sense_are_damage(line: str, run: RunFolder) -> None:
    key = line.partition(" ")[0]
    path = run.path / "config.toml"
    kept = [old for old in path.read_text().splitlines() if not old.startswith(f"{key} = ")]
    assert kept[-1]
    path.write_text("\n".join([*kept, line, ""]))
    with pytest.raises(CheckpointError, match=r"config\.toml is damaged"):
        read_config(run)


@given(
    text=st.text(st.characters(exclude_categories=("Cs",)), max_size=20),
    seeds=st.integers(1, 1_000_000),
    first_seed=st.integers(0, 2**63 - 1),
    cache=st.booleans(),
)
def test_options_survive_their_toml(text: str, seeds: int, first_seed: int, cache: bool) -> None:
    options = Options(text, "p", text, seeds, first_seed, text, "numpy", cache)
    assert Options(**tomllib.loads(options.to_toml())["run"]) == options


def test_options_refuse_seeds_that_make_no_sense() -> None:
    for seeds, first_seed in ((0, 0), (-1, 0), (10**9, 0), (1, -1)):
        with pytest.raises(ConfigError, match="--seeds"):
            Options("r", "p", "d", seeds, first_seed)


@quick
@given(content=st.binary(max_size=80), name=st.sampled_from(["config.toml", "result.json"]))
def test_resuming_a_run_with_random_bytes_in_it_is_refused(
    content: bytes, name: str, finished_once: Path, tmp_path: Path, refkd: Any
) -> None:
    folder = tmp_path / "run"
    if not folder.exists():
        shutil.copytree(finished_once, folder)
    original = (finished_once / name).read_bytes()
    (folder / name).write_bytes(content)
    code, out, err = refkd("distill", "--resume", folder)
    (folder / name).write_bytes(original)
    assert (code, out) == (3, "")
    assert name in err


def test_a_page_of_another_kind_of_error_is_not_hidden(
    run: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*arguments: Any) -> str:
        raise RuntimeError("a bug")

    monkeypatch.setattr("refkd.cli.report.html_report", broken)
    with pytest.raises(RuntimeError, match="a bug"):
        write_page(run, read_result(run))
