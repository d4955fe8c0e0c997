from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from refkd.cli.distill import _Interrupts
from refkd.errors import CheckpointError
from refkd.recipes import monitor
from refkd.recipes import run as recipe_run
from refkd.train import atomic
from refkd.train.checkpoint import load_checkpoint

STUDENT = "student_distilled-seed1"


def networks(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in (folder / "networks").iterdir()}


def check_equal_runs(one: Path, other: Path) -> None:
    assert networks(one) == networks(other)
    assert (one / "metrics.jsonl").read_bytes() == (other / "metrics.jsonl").read_bytes()
    results = [json.loads((folder / "result.json").read_text()) for folder in (one, other)]
    for result in results:
        del result["seconds"], result["run"], result["environment"]
    assert results[0] == results[1]
    assert not (one / "in-progress.safetensors").exists()


def stop_at(monkeypatch: pytest.MonkeyPatch, training: str, epoch: int, step: int) -> None:
    """Ask for a stop once a training has taken a step, as Ctrl-C does."""
    after_step = monitor.RunMonitor.after_step

    def watched(self: Any, progress: Any, steps_per_epoch: int) -> None:
        if (self._training, progress.epoch, progress.step) == (training, epoch, step):
            os.kill(os.getpid(), signal.SIGINT)
        after_step(self, progress, steps_per_epoch)

    monkeypatch.setattr(monitor.RunMonitor, "after_step", watched)


@pytest.fixture
def interrupted(distill: Any, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A run stopped in the middle of its last training."""
    with monkeypatch.context() as patch:
        stop_at(patch, STUDENT, 1, 2)
        assert distill("--run", "interrupted", "--quiet").code == 130
    return Path("interrupted")


@pytest.mark.parametrize(
    ("training", "epoch", "step"),
    [
        ("teacher-seed0", 0, 1),
        ("teacher-seed0", 1, 8),  # the last step of an epoch, its evaluation still to come
        ("teacher-seed0", 2, 8),
        ("student_alone-seed1", 0, 3),
        ("student_distilled-seed0", 0, 3),
        (STUDENT, 1, 3),
    ],
)
def test_a_run_stopped_anywhere_resumes_to_the_bytes_of_an_uninterrupted_one(
    distill: Any,
    refkd: Any,
    finished: Path,
    monkeypatch: pytest.MonkeyPatch,
    training: str,
    epoch: int,
    step: int,
) -> None:
    with monkeypatch.context() as patch:
        stop_at(patch, training, epoch, step)
        code, out, err = distill("--run", "run", "--quiet")
    assert (code, out) == (130, "")
    assert err.endswith(
        "stopped; continue with: refkd distill --resume run\nrefkd distill: interrupted\n"
    )
    assert load_checkpoint("run/in-progress.safetensors")[1]["training"] == training
    assert not Path("run/result.json").exists()
    code, out, err = refkd("distill", "--resume", "run", "--quiet")
    assert (code, err) == (0, "")
    assert "A miniature" in out
    check_equal_runs(Path("run"), finished)


def test_a_run_without_a_cached_teacher_resumes_to_the_same_bytes(
    distill: Any, refkd: Any, finished: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        stop_at(patch, STUDENT, 0, 2)
        distill("--run", "run", "--quiet", "--no-cache-teacher")
    assert refkd("distill", "--resume", "run", "--quiet").code == 0
    assert networks(Path("run")) == networks(finished)


def test_a_run_stopped_twice_resumes_to_the_same_bytes(
    distill: Any, refkd: Any, finished: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        stop_at(patch, "student_alone-seed0", 0, 2)
        assert distill("--run", "run", "--quiet").code == 130
    with monkeypatch.context() as patch:
        stop_at(patch, "student_alone-seed0", 1, 4)
        assert refkd("distill", "--resume", "run", "--quiet").code == 130
    assert refkd("distill", "--resume", "run", "--quiet").code == 0
    check_equal_runs(Path("run"), finished)


def test_a_run_with_stored_logits_resumes_with_them(
    distill: Any, refkd: Any, arrays: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    import numpy as np

    np.save("logits.npy", 4.0 * np.eye(3)[arrays["y"]])
    logits = ("--teacher-logits", "logits.npy", "--quiet", "--run")
    assert distill(*logits, "whole").code == 0
    with monkeypatch.context() as patch:
        stop_at(patch, STUDENT, 1, 1)
        assert distill(*logits, "run").code == 130
    assert refkd("distill", "--resume", "run", "--quiet").code == 0
    check_equal_runs(Path("run"), Path("whole"))


def test_what_was_logged_after_the_checkpoint_is_dropped_on_resume(
    interrupted: Path, refkd: Any, finished: Path
) -> None:
    with (interrupted / "metrics.jsonl").open("a") as log:
        log.write('{"training": "student_distilled", "seed": 1, "epoch": 2}\n{"torn')
    assert refkd("distill", "--resume", interrupted, "--quiet").code == 0
    check_equal_runs(interrupted, finished)


def test_the_folder_named_after_an_interrupt_can_be_pasted_into_a_shell(
    distill: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    stop_at(monkeypatch, "teacher-seed0", 0, 1)
    assert "--resume 'my run'\n" in distill("--run", "my run", "--quiet").err


def test_resuming_a_finished_run_only_reports(
    finished: Path, refkd: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*arguments: Any, **options: Any) -> None:
        raise AssertionError("a finished run was touched")

    monkeypatch.setattr(recipe_run, "train", refuse)
    before = (finished / "result.json").read_bytes()
    Path("data.npz").unlink()  # the data are not needed either
    code, out, err = refkd("distill", "--resume", finished, "--json")
    assert (code, err) == (0, "")
    assert json.loads(out) == json.loads(before)
    assert (finished / "result.json").read_bytes() == before
    assert "A miniature" in refkd("distill", "--resume", finished).out


def test_a_run_that_only_lacks_its_result_is_summarised_without_training(
    finished: Path, refkd: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    reference = json.loads((finished / "result.json").read_text())
    (finished / "result.json").unlink()
    monkeypatch.setattr(recipe_run, "train", None)
    result = json.loads(refkd("distill", "--resume", finished, "--json", "--quiet").out)
    assert result["student_distilled"] == reference["student_distilled"]


@pytest.mark.parametrize(
    "more",
    [
        ("mini.toml",),
        ("--data", "data.npz"),
        ("--seeds", "3"),
        ("--first-seed", "0"),
        ("--protocol", "fair"),
        ("--backend", "numpy"),
        ("--no-cache-teacher",),
        ("--teacher-logits", "x.npy"),
        ("--run", "other"),
    ],
)
def test_resume_takes_no_option_that_the_run_has_fixed(
    finished: Path, refkd: Any, more: tuple[str, ...]
) -> None:
    code, _, err = refkd("distill", "--resume", finished, *more)
    assert code == 2
    assert "leave out" in err
    assert more[0] in err or "the recipe" in err


def test_dry_run_of_an_interrupted_run_leaves_it_as_it_is(interrupted: Path, refkd: Any) -> None:
    before = {path: path.read_bytes() for path in interrupted.rglob("*") if path.is_file()}
    code, out, _ = refkd("distill", "--resume", interrupted, "--dry-run")
    assert code == 0
    assert "expected time" in out
    after = {path: path.read_bytes() for path in interrupted.rglob("*") if path.is_file()}
    assert before == after


def test_the_first_interrupt_is_a_request_and_the_second_immediate(
    capfd: pytest.CaptureFixture[str],
) -> None:
    interrupts = _Interrupts()
    before = signal.getsignal(signal.SIGINT)
    with interrupts.caught():
        assert not interrupts.requested
        os.kill(os.getpid(), signal.SIGINT)
        assert interrupts.requested
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is before
    assert "Ctrl-C again to stop at once" in capfd.readouterr().err


def test_a_second_interrupt_during_a_save_keeps_the_previous_checkpoint(
    interrupted: Path, refkd: Any, finished: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = (interrupted / "in-progress.safetensors").read_bytes()
    write = atomic._write_durably

    def slow_write(file: Path, chunks: Any) -> None:
        os.kill(os.getpid(), signal.SIGINT)  # the second; the first made it save
        write(file, chunks)

    with monkeypatch.context() as patch:
        stop_at(patch, STUDENT, 1, 3)
        patch.setattr(atomic, "_write_durably", slow_write)
        assert refkd("distill", "--resume", interrupted, "--quiet").code == 130
    assert (interrupted / "in-progress.safetensors").read_bytes() == before
    assert not list(interrupted.rglob("*.tmp"))
    assert refkd("distill", "--resume", interrupted, "--quiet").code == 0
    check_equal_runs(interrupted, finished)


# Long enough to be met in the middle by a signal from outside.
FREQUENT = (
    "import functools\nfrom refkd.cli import distill\n"
    "distill.RecipeRun = functools.partial(distill.RecipeRun, save_every=0.01)"
)


@pytest.fixture
def long_recipe(place: Path, recipe: str) -> tuple[str, ...]:
    text = recipe.replace("epochs = 2", "epochs = 30").replace("epochs = 3", "epochs = 30")
    (place / "mini.toml").write_text(text)
    return ("distill", "mini.toml", "--data", "data.npz", "--quiet", "--run")


def wait_for_lines(path: Path, count: int, running: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + 60
    while not path.exists() or path.read_bytes().count(b"\n") < count:
        assert running.poll() is None, running.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.005)


@pytest.mark.parametrize(
    "number", [signal.SIGINT, pytest.param(signal.SIGKILL, marks=pytest.mark.slow)]
)
def test_a_process_stopped_by_a_signal_resumes_to_the_same_bytes(
    process: Any, refkd: Any, long_recipe: tuple[str, ...], number: signal.Signals
) -> None:
    assert refkd(*long_recipe, "whole").code == 0
    running = process(*long_recipe, "run", first=FREQUENT)
    wait_for_lines(Path("run/metrics.jsonl"), 45, running)
    running.send_signal(number)
    _, err = running.communicate(timeout=60)
    assert "Traceback" not in err
    if number == signal.SIGINT:
        assert running.returncode == 130
        assert "stopped; continue with: refkd distill --resume run" in err
    else:
        assert running.returncode == -signal.SIGKILL
    assert not Path("run/result.json").exists()
    assert refkd("distill", "--resume", "run", "--quiet").code == 0
    check_equal_runs(Path("run"), Path("whole"))


@pytest.mark.slow
def test_a_process_killed_again_and_again_arrives_at_the_same_bytes(
    process: Any, refkd: Any, long_recipe: tuple[str, ...]
) -> None:
    assert refkd(*long_recipe, "whole").code == 0
    arguments: tuple[str, ...] = (*long_recipe, "run")
    kills = 0
    for lines in range(10, 150, 10):
        running = process(*arguments, first=FREQUENT)
        wait_for_lines(Path("run/metrics.jsonl"), lines, running)
        running.kill()
        running.communicate()
        kills += running.returncode == -signal.SIGKILL
        arguments = ("distill", "--resume", "run", "--quiet")
    assert kills == 14
    assert refkd(*arguments).code == 0
    check_equal_runs(Path("run"), Path("whole"))


def test_a_full_disk_loses_nothing_that_was_saved(
    distill: Any, refkd: Any, finished: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write, writes = atomic._write_durably, 0

    def fail_at_the_fourth(file: Path, chunks: Any) -> None:
        nonlocal writes
        writes += 1
        if writes == 4:  # the classes, the teacher and the first student are written
            raise OSError(28, "No space left on device")
        write(file, chunks)

    with monkeypatch.context() as patch:
        patch.setattr(atomic, "_write_durably", fail_at_the_fourth)
        code, out, err = distill("--run", "run", "--quiet")
    assert (code, out) == (3, "")
    assert "No space left on device" in err
    assert "free some space" in err
    kept = networks(Path("run"))
    assert sorted(kept) == ["student_alone-seed0.safetensors", "teacher-seed0.safetensors"]
    assert refkd("distill", "--resume", "run", "--quiet").code == 0
    check_equal_runs(Path("run"), finished)


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="/dev/full is missing here")
def test_a_log_that_cannot_grow_is_an_error_and_the_checkpoint_stays(
    interrupted: Path, refkd: Any, finished: Path
) -> None:
    log = (interrupted / "metrics.jsonl").read_bytes()
    (interrupted / "metrics.jsonl").unlink()
    (interrupted / "metrics.jsonl").symlink_to("/dev/full")
    checkpoint = (interrupted / "in-progress.safetensors").read_bytes()
    code, _, err = refkd("distill", "--resume", interrupted, "--quiet")
    assert code == 3
    assert "metrics.jsonl cannot be written (No space left on device)" in err
    assert (interrupted / "in-progress.safetensors").read_bytes() == checkpoint
    (interrupted / "metrics.jsonl").unlink()
    (interrupted / "metrics.jsonl").write_bytes(log)
    assert refkd("distill", "--resume", interrupted, "--quiet").code == 0
    check_equal_runs(interrupted, finished)


@pytest.mark.parametrize(
    "name", ["config.toml", "in-progress.safetensors", "networks/teacher-seed0.safetensors"]
)
@pytest.mark.parametrize("damage", ["cut", "flipped", "emptied"])
def test_a_damaged_file_of_a_run_is_named(
    interrupted: Path, refkd: Any, name: str, damage: str
) -> None:
    path = interrupted / name
    content = bytearray(path.read_bytes())
    if damage == "flipped":
        content[len(content) // 2] ^= 0x80
    path.write_bytes(content[: {"cut": len(content) // 2, "emptied": 0}.get(damage)])
    code, out, err = refkd("distill", "--resume", interrupted, "--quiet")
    assert (code, out) == (3, "")
    assert str(path) in err


def of_another_model(interrupted: Path, refkd: Any, **changes: str) -> Path:
    """A run stopped at the same place whose networks have other sizes."""
    text = Path("mini.toml").read_text().replace("hidden = [4]", f"hidden = {changes['hidden']}")
    Path("other.toml").write_text(text)
    with pytest.MonkeyPatch.context() as patch:
        stop_at(patch, STUDENT, 1, 2)
        refkd("distill", "other.toml", "--data", "data.npz", "--run", "other", "--quiet")
    return Path("other")


@pytest.mark.parametrize("hidden", ["[6]", "[4, 4]"])
@pytest.mark.parametrize(
    "name", ["in-progress.safetensors", "networks/student_alone-seed0.safetensors"]
)
def test_a_checkpoint_of_another_model_is_refused(
    interrupted: Path, refkd: Any, name: str, hidden: str
) -> None:
    other = of_another_model(interrupted, refkd, hidden=hidden)
    shutil.copy(other / name, interrupted / name)
    before = networks(interrupted)
    code, out, err = refkd("distill", "--resume", interrupted, "--quiet")
    assert (code, out) == (3, "")
    assert name in err
    assert "another" in err
    assert networks(interrupted) == before


def test_a_recipe_edited_between_sessions_is_refused(interrupted: Path, refkd: Any) -> None:
    config = interrupted / "config.toml"
    config.write_text(config.read_text().replace("hidden = [4]", "hidden = [6]"))
    code, _, err = refkd("distill", "--resume", interrupted, "--quiet")
    assert code == 3
    assert "another" in err


def test_other_data_under_the_same_path_are_refused(
    interrupted: Path, refkd: Any, arrays: dict[str, Any]
) -> None:
    before = networks(interrupted)
    np.savez("data.npz", x=255 - arrays["x"], y=arrays["y"])
    code, _, err = refkd("distill", "--resume", interrupted, "--quiet")
    assert code == 3
    assert "not the data this run was started with" in err
    assert networks(interrupted) == before


@pytest.mark.parametrize("metadata", [{"by": "hand"}, {"metrics_bytes": "many"}])
def test_a_checkpoint_of_something_else_is_refused(
    interrupted: Path, refkd: Any, metadata: dict[str, str]
) -> None:
    from refkd.train.checkpoint import save_checkpoint

    save_checkpoint(interrupted / "in-progress.safetensors", {"a": np.zeros(3)}, metadata)
    code, _, err = refkd("distill", "--resume", interrupted, "--quiet")
    assert code == 3
    assert "in-progress.safetensors" in err


def test_a_folder_that_is_no_run_is_refused(place: Path, refkd: Any) -> None:
    for name in (".", "nowhere", "mini.toml"):
        code, _, err = refkd("distill", "--resume", name)
        assert code == 3
        assert "no run folder" in err


def test_the_checkpoint_error_of_an_unwritable_folder_is_a_refkd_error(
    interrupted: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from refkd.train.run import RunFolder

    monkeypatch.setattr(Path, "open", lambda *a, **k: (_ for _ in ()).throw(OSError(13, "denied")))
    with pytest.raises(CheckpointError, match="denied"):
        RunFolder(interrupted).log({})
