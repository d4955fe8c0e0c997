from __future__ import annotations

import argparse
import dataclasses
import errno
import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest

import refkd as package
from refkd import data
from refkd.cli import build_parser, doctor, gradcheck
from refkd.recipes import shipped_recipes
from refkd.testing.pairs import all_cases


def subparsers(parser: argparse.ArgumentParser) -> dict[str, argparse.ArgumentParser]:
    """Every command and action by what a person types."""
    found = {}
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for name, child in action.choices.items():
                found[name] = child
                found |= {f"{name} {k}": p for k, p in subparsers(child).items()}
    return found


COMMANDS = subparsers(build_parser())


def test_the_commands_are_those_of_the_design() -> None:
    top = {name for name in COMMANDS if " " not in name}
    assert top == {"distill", "predict", "report", "recipes", "gradcheck", "data", "doctor"}


@pytest.mark.parametrize("command", COMMANDS)
def test_help_says_something_about_every_option(command: str, refkd: Any) -> None:
    code, out, err = refkd(*command.split(), "--help")
    assert (code, err) == (0, "")
    for action in COMMANDS[command]._actions:
        if isinstance(action, argparse._SubParsersAction):
            assert all(choice.help in out for choice in action._choices_actions)
            continue
        assert action.help, action
        for name in action.option_strings or [action.metavar or action.dest]:
            assert name in out
    assert max(map(len, out.splitlines())) <= 80


def test_the_top_help_names_each_command_and_the_exit_codes(refkd: Any) -> None:
    out = refkd("--help").out
    assert all(name in out for name in COMMANDS if " " not in name)
    assert "130 interrupted" in out


def test_version_is_the_package_s(refkd: Any) -> None:
    assert refkd("--version") == (0, f"refkd {package.__version__}\n", "")


def test_predict_counts_what_it_got_right(finished: Path, refkd: Any) -> None:
    result = json.loads((finished / "result.json").read_text())
    code, out, err = refkd("predict", finished, "--data", "data.npz")
    assert (code, err) == (0, "")
    accuracy = result["student_distilled"]["accuracies"][0]
    assert out.startswith(f"{round(16 * accuracy)} of 16 right ({accuracy:.2%})\n")
    rows = [line.split() for line in out.splitlines()[3:]]
    assert [row[0] for row in rows] == ["0", "1", "2"]
    for column in (1, 2):
        assert sum(int(row[column]) for row in rows) == 16
    assert sum(int(row[3]) for row in rows) == round(16 * accuracy)


@pytest.mark.parametrize(("network", "seed"), [("teacher", 0), ("student_alone", 1)])
def test_predict_json_holds_every_image(
    finished: Path, refkd: Any, network: str, seed: int
) -> None:
    choice = ("--network", network, "--seed", seed, "--json")
    answer = json.loads(refkd("predict", finished, "--data", "data.npz", *choice).out)
    result = json.loads((finished / "result.json").read_text())
    index = 0 if network == "teacher" else seed
    assert answer["accuracy"] == result[network]["accuracies"][index]
    assert len(answer["predictions"]) == 16
    for row in answer["predictions"]:
        assert set(row) == {"predicted", "probability", "label"}
        assert 1 / 3 <= row["probability"] <= 1


def test_predict_takes_another_split(finished: Path, refkd: Any) -> None:
    out = refkd("predict", finished, "--data", "data.npz", "--split", "train").out
    assert " of 64 right" in out
    code, _, err = refkd("predict", finished, "--data", "data.npz", "--split", "validation")
    assert code == 3
    assert "no validation split" in err


def test_predict_refuses_images_that_are_not_of_the_run(
    finished: Path, refkd: Any, arrays: dict[str, Any]
) -> None:
    images, labels = arrays["x"], arrays["y"]
    others = {
        "larger": (np.zeros((80, 4, 4), np.uint8), labels, "images of shape"),
        "floating": ((images / 255).astype(np.float32), labels, "scaled by"),
        "more classes": (images, np.arange(80) % 4, "the network knows 3 classes"),
    }
    for x, y, reason in others.values():
        np.savez("other.npz", x=x, y=y)
        for more in ((), ("--json",)):
            code, out, err = refkd("predict", finished, "--data", "other.npz", *more)
            assert (code, out) == (3, "")
            assert reason in err


def test_predict_knows_classes_by_their_names(
    finished: Path, refkd: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = refkd("predict", finished, "--data", "data.npz", "--json").out
    numbered = data.load("data.npz")
    test = dataclasses.replace(numbered.test, labels=(numbered.test.labels + 1) % 3)
    shuffled = dataclasses.replace(numbered, test=test, class_names=("2", "0", "1"))
    monkeypatch.setattr(data, "load", lambda *_, **__: shuffled)
    assert refkd("predict", finished, "--data", "folder", "--json").out == expected
    named = dataclasses.replace(numbered, class_names=("rose", "1", "tulip"))
    monkeypatch.setattr(data, "load", lambda *_, **__: named)
    code, out, err = refkd("predict", finished, "--data", "folder")
    assert (code, out) == (3, "")
    assert "has the classes rose, tulip, the network knows 0, 1, 2; give images of these" in err


def test_predict_names_the_networks_there_are(finished: Path, refkd: Any) -> None:
    for choice in (("--network", "techer"), ("--seed", 7)):
        code, _, err = refkd("predict", finished, "--data", "data.npz", *choice)
        assert code == 3
        assert "student_alone-seed1" in err


def test_report_prints_the_result_and_draws_the_page_again(
    finished: Path, refkd: Any, draws_pictures: None
) -> None:
    (finished / "report.html").unlink()
    code, out, err = refkd("report", finished)
    assert (code, err) == (0, "")
    assert "A miniature" in out
    assert out.endswith(f"report: {finished}/report.html\n")
    assert "<svg" in (finished / "report.html").read_text()


def test_report_json_is_the_result(finished: Path, refkd: Any) -> None:
    (finished / "report.html").unlink()
    out = refkd("report", finished, "--json").out
    assert json.loads(out) == json.loads((finished / "result.json").read_text())
    assert not (finished / "report.html").exists()


def test_report_without_matplotlib_prints_the_table_and_names_the_extra(
    finished: Path, refkd: Any, draws_pictures: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in [name for name in sys.modules if name.partition(".")[0] == "matplotlib"]:
        monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    code, out, err = refkd("report", finished)
    assert code == 4
    assert "A miniature" in out
    assert "pip install 'refkd[plot]'" in err


def test_report_of_an_unfinished_run_says_how_to_finish_it(finished: Path, refkd: Any) -> None:
    (finished / "result.json").unlink()
    code, _, err = refkd("report", finished)
    assert code == 3
    assert f"refkd distill --resume {finished}" in err


def test_recipes_lists_every_recipe_with_its_protocols(refkd: Any) -> None:
    code, out, _ = refkd("recipes")
    assert code == 0
    listed = [line.split()[0] for line in out.splitlines() if " (data: " in line]
    assert listed == sorted(shipped_recipes())
    assert "--protocol published" in out
    assert max(map(len, out.splitlines())) <= 80


def test_recipes_json_holds_the_same(refkd: Any) -> None:
    rows = json.loads(refkd("recipes", "--json").out)
    assert [row["name"] for row in rows] == sorted(shipped_recipes())
    assert list(next(r for r in rows if r["name"] == "hinton-mnist")["protocols"]) == [
        "published",
        "fair",
    ]


@pytest.mark.parametrize("name", shipped_recipes())
def test_recipes_prints_a_recipe_that_runs_when_copied(name: str, refkd: Any, place: Path) -> None:
    text = refkd("recipes", name).out
    assert text == shipped_recipes()[name]
    (place / "copy.toml").write_text(text, encoding="utf-8")
    assert refkd("recipes", "copy.toml").out == text


def test_data_show_says_what_a_data_set_holds(
    place: Path, refkd: Any, arrays: dict[str, Any]
) -> None:
    out = refkd("data", "show", "digits").out
    assert out.startswith("digits: images (8, 8), 10 classes\n")
    assert "  train: 1,000 images, uint8\n" in out
    np.savez("own.npz", **arrays, teacher_logits=np.zeros((80, 3), np.float32))
    out = refkd("data", "show", "own.npz").out
    assert "own: images (3, 3), 3 classes" in out
    assert "test: 16 images, uint8, with teacher logits" in out
    assert "validation" not in out


def test_data_fetch_offline_names_the_files_their_hashes_and_their_place(
    place: Path, refkd: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("pooch")
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        address = f"http://127.0.0.1:{listener.getsockname()[1]}/"
        listener.close()
        arguments = ("data", "fetch", "mnist", "--folder", place / "mnist", "--mirror", address)
        code, out, err = refkd(*arguments)
    assert (code, out) == (3, "")
    assert address in err
    assert str(place / "mnist") in err
    for kind in ("train-images-idx3", "train-labels-idx1", "t10k-images-idx3", "t10k-labels-idx1"):
        assert f"{kind}-ubyte.gz" in err
    hashes = [
        word for word in err.split() if len(word) == 64 and set(word) <= set("0123456789abcdef")
    ]
    assert len(hashes) == 4


def test_data_fetch_without_pooch_names_the_extra(
    place: Path, refkd: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "pooch", None)
    code, _, err = refkd("data", "fetch", "mnist", "--folder", place)
    assert code == 4
    assert "pip install 'refkd[data]'" in err


def test_doctor_names_versions_backends_and_one_gradient(refkd: Any) -> None:
    code, out, _ = refkd("doctor")
    assert code == 0
    for word in (
        "numpy",
        np.__version__,
        "blas",
        "BLAS threads",
        "matplotlib",
        "backend 'numpy': ready",
    ):
        assert word in out
    assert "gradient of softmax_kd: right, worst scaled error" in out


def test_doctor_json_is_complete(refkd: Any) -> None:
    facts = json.loads(refkd("doctor", "--json").out)
    assert set(facts) == {"environment", "extras", "backends", "gradient_check"}
    assert facts["environment"]["numpy"] == np.__version__
    assert facts["backends"]["numpy"] is None
    assert facts["gradient_check"]["ok"] is True
    assert facts["gradient_check"]["worst"] < 1e-12


def test_doctor_fails_where_a_gradient_is_wrong(
    refkd: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Wrong:
        name, ok, worst = "softmax_kd", False, 0.5

    monkeypatch.setattr(doctor, "check_all", lambda names: [Wrong])
    monkeypatch.setattr(doctor, "_version", lambda package: None)
    code, out, _ = refkd("doctor")
    assert code == 1
    assert "gradient of softmax_kd: WRONG" in out
    assert "pip install 'refkd[plot]'" in out
    assert refkd("doctor", "--json").code == 1


def test_gradcheck_prints_a_table_and_json(refkd: Any) -> None:
    code, out, _ = refkd("gradcheck", "linear", "softmax_kd")
    assert code == 0
    assert "2 pairs checked, 0 failed" in out
    answer = json.loads(refkd("gradcheck", "linear", "--json").out)
    assert (answer["checked"], answer["failed"]) == (1, [])
    assert answer["worst"]["scaled_error"] < 1e-12


def test_gradcheck_of_an_unknown_pair_is_a_usage_error(refkd: Any) -> None:
    code, _, err = refkd("gradcheck", "linaer")
    assert code == 2
    assert "'linear'" in err


def test_gradcheck_refuses_a_negative_seed(refkd: Any) -> None:
    code, _, err = refkd("gradcheck", "--seed", "-1")
    assert (code, "at least 0" in err) == (2, True)


def test_gradcheck_writes_a_page_beside_the_table_and_beside_json(
    refkd: Any, tmp_path: Path
) -> None:
    page = tmp_path / "page.html"
    for options in ((), ("--json",)):
        page.write_text("an old page", encoding="utf-8")
        code, out, err = refkd("gradcheck", "linear", "tanh", *options, "--html", str(page))
        assert (code, err) == (0, f"heat maps: {page}\n")
        root = ElementTree.parse(page).getroot()
        cases = [case for case in all_cases() if case.pair in ("linear", "tanh")]
        names = ["".join(link.itertext()) for link in root.findall(".//tbody//a")]
        assert sorted(names) == sorted(map(str, cases))
    assert json.loads(out)["checked"] == 2


@pytest.mark.parametrize(
    ("path", "reason"),
    [
        (".", "expected the path of a file, got ."),
        ("", "expected the path of a file"),
        (os.devnull, "expected the path of a file"),
        ("missing/page.html", "No such file or directory"),
        ("file/page.html", "Not a directory"),
        ("x" * 300, "File name too long"),
        ("nul\0", "null"),
    ],
)
def test_gradcheck_says_that_a_page_cannot_be_written_before_it_checks_anything(
    refkd: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, path: str, reason: str
) -> None:
    def checked(*args: object, **kwargs: object) -> Iterator[Any]:
        raise AssertionError("checked too early")
        yield

    monkeypatch.setattr(gradcheck, "check_all", checked)
    monkeypatch.chdir(tmp_path)
    Path("file").touch()
    code, out, err = refkd("gradcheck", "--html", path)
    assert (code, out) == (3, "")
    assert err.startswith("refkd gradcheck: --html: ")
    assert reason in err
    assert sorted(p.name for p in tmp_path.iterdir()) == ["file"]


def test_gradcheck_says_that_a_folder_takes_no_file(
    refkd: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(*args: object, **kwargs: object) -> Any:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    monkeypatch.setattr(gradcheck.tempfile, "TemporaryFile", refused)
    code, out, err = refkd("gradcheck", "tanh", "--html", str(tmp_path / "page.html"))
    assert (code, out) == (3, "")
    assert "Permission denied" in err


@pytest.mark.skipif(os.name == "nt", reason="closed by a shell of POSIX")
@pytest.mark.parametrize("closed", [">&-", "2>&-", ">&- 2>&-"])
def test_a_closed_stream_is_no_error(closed: str) -> None:
    command = f'"{sys.executable}" -m refkd recipes {closed}'
    done = subprocess.run(["sh", "-c", command], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")
    assert (done.stdout == "") == closed.startswith(">")
