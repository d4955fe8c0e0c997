from __future__ import annotations

import json
import math
import re
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import refkd as package
from refkd.train.safetensors import read_safetensors

SIDES = ("teacher", "student_alone", "student_distilled")


def networks(folder: str | Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in (Path(folder) / "networks").iterdir()}


def parameters(folder: str | Path, name: str) -> bytes:
    arrays, _ = read_safetensors(Path(folder) / "networks" / f"{name}.safetensors")
    return b"".join(array.tobytes() for array in arrays.values())


def strict_json(text: str) -> Any:
    def refuse(name: str) -> None:
        raise AssertionError(f"{name} is no JSON")

    return json.loads(text, parse_constant=refuse)


def test_json_is_one_strict_object_with_the_documented_keys(distill: Any) -> None:
    code, out, _ = distill("--json", "--run", "run", "--quiet")
    assert code == 0
    assert out.count("\n") == 1
    result = strict_json(out)
    assert result["recipe"] == "mini"
    assert result["protocol"] == "fair"
    assert result["run"] == "run"
    assert result["seconds"] > 0
    for name, seeds, epochs in zip(SIDES, (1, 2, 2), (3, 2, 2), strict=True):
        side = result[name]
        assert side["epochs"] == epochs
        assert len(side["accuracies"]) == seeds
        assert all(0 <= value <= 1 for value in side["accuracies"])
        assert side["accuracy"] == pytest.approx(sum(side["accuracies"]) / seeds, abs=1e-15)
        assert [len(history) for history in side["history"]] == [epochs] * seeds
        assert side["history"][0][-1]["epoch"] == epochs
        for record in side["history"][0]:
            assert all(math.isfinite(value) for value in record.values())
        assert side["bytes"] == 4 * side["parameters"]
        if seeds == 1:
            assert side["interval"] is None
        else:
            low, high = side["interval"]
            assert low <= side["accuracy"] <= high
    assert result["teacher"]["parameters"] == 9 * 8 + 8 + 8 * 3 + 3
    assert result["student_alone"]["parameters"] == 9 * 4 + 4 + 4 * 3 + 3
    assert result["student_distilled"]["train_images"] == 20
    assert result["teacher"]["published"] == 0.9


def test_the_last_history_record_is_the_reported_accuracy(distill: Any) -> None:
    result = json.loads(distill("--json", "--quiet").out)
    for name in SIDES:
        last = [history[-1]["test_accuracy"] for history in result[name]["history"]]
        assert last == result[name]["accuracies"]


def test_a_run_folder_holds_what_it_should(distill: Any, recipe: str) -> None:
    printed = json.loads(distill("--json", "--run", "run", "--quiet").out)
    run = Path("run")
    assert sorted(path.name for path in run.iterdir()) == [
        "class_to_idx.json",
        "config.toml",
        "examples.safetensors",
        "metrics.jsonl",
        "networks",
        "report.html",
        "result.json",
    ]
    assert strict_json((run / "result.json").read_text()) == printed
    assert sorted(networks(run)) == [
        "student_alone-seed0.safetensors",
        "student_alone-seed1.safetensors",
        "student_distilled-seed0.safetensors",
        "student_distilled-seed1.safetensors",
        "teacher-seed0.safetensors",
    ]
    records = [strict_json(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    trainings = [
        ("teacher", 0),
        *((f"student_{n}", s) for s in (0, 1) for n in ("alone", "distilled")),
    ]
    expected = [(*t, e) for t in trainings for e in range(1, (3 if t[0] == "teacher" else 2) + 1)]
    assert [(r["training"], r["seed"], r["epoch"]) for r in records] == expected
    config = tomllib.loads((run / "config.toml").read_text())
    options = config.pop("run")
    assert config == tomllib.loads(recipe)
    assert options["recipe"] == "mini.toml"
    assert options["protocol"] == "fair"
    assert options["data"] == str(Path("data.npz").resolve())
    assert (options["seeds"], options["first_seed"]) == (2, 0)


def test_the_report_is_a_page_with_pictures(distill: Any, draws_pictures: None) -> None:
    assert distill("--run", "run", "--quiet").code == 0
    page = Path("run/report.html").read_text()
    assert page.count("<svg") > 3
    alone = json.loads(Path("run/result.json").read_text())["student_alone"]["accuracy"]
    assert f"Alone {100 * alone:.2f}" in page  # the explanation, with its figures filled in


def test_the_text_names_the_figures_and_the_report(distill: Any) -> None:
    code, out, _ = distill("--run", "run", "--quiet")
    result = json.loads(Path("run/result.json").read_text())
    assert code == 0
    assert "A miniature" in out
    for name in SIDES:
        assert f"{100 * result[name]['accuracy']:.2f}" in out
    assert out.endswith("\nreport: run/report.html\n")
    assert max(map(len, out.splitlines())) <= 80


def test_quiet_is_silent_on_stderr(distill: Any) -> None:
    assert distill("--quiet").err == ""


def test_the_result_on_stdout_does_not_depend_on_quiet(distill: Any) -> None:
    loud, quiet = (json.loads(distill("--json", *more).out) for more in ((), ("--quiet",)))
    assert loud["student_distilled"] == quiet["student_distilled"]


def test_no_escape_code_is_written_where_there_is_no_terminal(distill: Any) -> None:
    _, out, err = distill()
    assert "\x1b" not in out + err
    assert "\r" not in out + err


def test_dry_run_prints_shapes_and_sizes_and_creates_nothing(distill: Any, place: Path) -> None:
    before = sorted(place.rglob("*"))
    code, out, _ = distill("--dry-run", "--run", "run")
    assert code == 0
    assert sorted(place.rglob("*")) == before
    assert "teacher: 107 parameters" in out
    assert "fc1.weight (4, 9)" in out
    assert "64 training images" in out
    assert re.search(r"expected peak memory: about \d+ MB", out)
    assert re.search(r"expected time: about [\d.e-]+ s", out)


def test_dry_run_and_json_exclude_each_other(distill: Any) -> None:
    code, out, err = distill("--dry-run", "--json")
    assert (code, out) == (2, "")
    assert "not allowed with" in err


def test_the_first_protocol_is_the_default_and_another_can_be_named(distill: Any) -> None:
    assert json.loads(distill("--json", "--quiet").out)["protocol"] == "fair"
    result = json.loads(distill("--json", "--quiet", "--protocol", "short").out)
    assert result["protocol"] == "short"
    assert result["student_alone"]["interval"] is None


def test_seeds_and_first_seed_choose_the_students(distill: Any) -> None:
    distill("--run", "all", "--quiet", "--seeds", 3)
    distill("--run", "last", "--quiet", "--seeds", 1, "--first-seed", 2)
    assert "student_alone-seed2.safetensors" in networks("last")
    assert len(networks("last")) == 3
    # A student alone depends on nothing but its seed; a distilled one on the teacher, too.
    assert parameters("all", "student_alone-seed2") == parameters("last", "student_alone-seed2")
    assert parameters("all", "student_alone-seed2") != parameters("all", "student_alone-seed1")


def test_two_runs_of_one_command_are_equal(distill: Any) -> None:
    for name in ("a", "b"):
        distill("--run", name, "--quiet")
    assert networks("a") == networks("b")
    assert Path("a/metrics.jsonl").read_bytes() == Path("b/metrics.jsonl").read_bytes()


def test_runs_started_within_one_second_get_folders_of_their_own(
    distill: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("time.strftime", lambda pattern: "20260101-000000")
    for _ in range(3):
        assert distill("--quiet", "--protocol", "short").code == 0
    assert sorted(path.name for path in Path("runs").iterdir()) == [
        "mini-20260101-000000",
        "mini-20260101-000000-2",
        "mini-20260101-000000-3",
    ]


def test_without_the_cache_the_students_are_the_same_bytes(distill: Any) -> None:
    distill("--run", "cached", "--quiet")
    distill("--run", "live", "--quiet", "--no-cache-teacher")
    assert networks("cached") == networks("live")
    assert "cache_teacher = false" in Path("live/config.toml").read_text()


def test_without_the_cache_no_logits_are_stored(
    distill: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("refkd.recipes.run.RecipeRun._stored_logits", None)
    assert distill("--quiet", "--no-cache-teacher").code == 0


def test_stored_logits_stand_in_for_a_teacher(distill: Any, arrays: dict[str, Any]) -> None:
    logits = 5.0 * np.eye(3, dtype=np.float32)[arrays["y"]]
    np.save("logits.npy", logits)
    code, out, _ = distill("--teacher-logits", "logits.npy", "--run", "run", "--json", "--quiet")
    result = strict_json(out)
    assert code == 0
    assert result["teacher"] is None
    assert not any(name.startswith("teacher") for name in networks("run"))
    assert len(result["student_distilled"]["accuracies"]) == 2
    text = distill("--teacher-logits", "logits.npy", "--quiet").out
    assert "the teacher is known by its logits only" in " ".join(text.split())


def test_stored_logits_are_what_the_student_learns_from(
    distill: Any, arrays: dict[str, Any]
) -> None:
    for name, shift in (("right", 0), ("wrong", 1)):
        np.save("logits.npy", 9.0 * np.eye(3, dtype=np.float32)[(arrays["y"] + shift) % 3])
        distill("--teacher-logits", "logits.npy", "--run", name, "--quiet")
    alone, distilled = "student_alone-seed0", "student_distilled-seed0"
    assert parameters("right", alone) == parameters("wrong", alone)
    assert parameters("right", distilled) != parameters("wrong", distilled)


def test_own_data_without_a_recipe_uses_the_recipe_for_it(refkd: Any, place: Path) -> None:
    _, out, _ = refkd("distill", "--data", "data.npz", "--dry-run")
    assert "on your own images" in out


def test_no_argument_means_the_shipped_digits(refkd: Any, place: Path) -> None:
    _, out, _ = refkd("distill", "--dry-run")
    assert "data: digits, 1,000 training images" in out


def test_a_path_of_any_text_survives_the_config(
    refkd: Any, place: Path, arrays: dict[str, Any]
) -> None:
    folder = place / 'é 😀 "quoted" \\ back\x7fslash\t#'
    folder.mkdir()
    np.savez(folder / "data.npz", **arrays)
    source = folder / "data.npz"
    code, *_ = refkd(
        "distill", "mini.toml", "--data", source, "--run", "run", "--quiet", "--protocol", "short"
    )
    assert code == 0
    assert tomllib.loads(Path("run/config.toml").read_text("utf-8"))["run"]["data"] == str(source)
    Path("run/result.json").unlink()
    assert refkd("distill", "--resume", "run", "--quiet").code == 0


def test_the_networks_can_be_loaded_and_predict(distill: Any, arrays: dict[str, Any]) -> None:
    distill("--run", "run", "--quiet")
    trained = package.load("run")
    probabilities = trained.predict(arrays["x"])
    assert probabilities.shape == (80, 3)
    np.testing.assert_allclose(probabilities.sum(axis=1), 1, rtol=1e-6)
    assert len(trained.history) == 2


def test_without_matplotlib_a_run_works_and_names_the_extra(process: Any) -> None:
    first = "import sys; sys.modules['matplotlib'] = None"
    arguments = ("distill", "mini.toml", "--data", "data.npz", "--run", "run")
    running = process(*arguments, first=first, draws=True)
    out, err = running.communicate(timeout=60)
    assert running.returncode == 0
    assert "pip install 'refkd[plot]'" in out
    assert "Traceback" not in err
    assert Path("run/result.json").exists()
    assert not Path("run/report.html").exists()
    assert out.endswith("\nrun folder: run\n")


def test_python_m_refkd_is_the_command_line(place: Path) -> None:
    run = [sys.executable, "-m", "refkd", "distill", "mini.toml", "--data", "data.npz"]
    done = subprocess.run([*run, "--json", "--quiet"], capture_output=True, text=True, check=True)
    assert json.loads(done.stdout)["recipe"] == "mini"
    assert done.stderr == ""


def test_stdout_that_cannot_show_every_sign_gets_a_substitute(process: Any) -> None:
    first = "import sys; sys.stdout.reconfigure(encoding='ascii')"
    running = process("distill", "mini.toml", "--data", "data.npz", "--quiet", first=first)
    out, err = running.communicate(timeout=60)
    assert (running.returncode, err) == (0, "")
    assert "?" in out


def test_a_reader_that_goes_away_is_no_error(process: Any) -> None:
    running = process("recipes", "hinton-mnist")
    running.stdout.close()
    assert running.stderr.read() == ""
    assert running.wait(timeout=60) == 0
    running.stderr.close()
