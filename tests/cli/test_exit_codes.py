from __future__ import annotations

import gzip
import os
import struct
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from refkd import cli, dispatch, errors


def replaced(text: str, old: str, new: str) -> str:
    assert old in text
    return text.replace(old, new, 1)


@pytest.mark.parametrize(
    ("old", "new", "reason"),
    [
        ("temperature = 4.0", "temperature = 0.0", "temperature must be a finite number > 0"),
        ("temperature = 4.0", "temperature = -1", "temperature"),
        ("temperature = 4.0", "temperature = nan", "temperature"),
        ("alpha = 0.1", "alpha = 1.1", "alpha must be a number in [0, 1], got 1.1"),
        ("alpha = 0.1", "alfa = 0.1", "did you mean 'alpha'"),
        ("alpha = 0.1", "alpha = 0.1, name = 3", "unknown parameter 'name'"),
        ("hinton", "hintom", "did you mean 'hinton'"),
        ("batch_size", "batchsize", "did you mean 'batch_size'"),
        ("[teacher]", "[teachers]", "did you mean 'teacher'"),
        ('"adam"', '"adan"', "did you mean 'adam'"),
        ("momentum", "momentun", "did you mean 'momentum'"),
        ("lr = 0.1", "lr = 0.0", "SGD: lr must be a finite number > 0"),
        ("lr = 0.1", 'lr = "fast"', "expected a number, got 'fast'"),
        ('model = "mlp"', 'model = "mpl"', "did you mean 'mlp'"),
        ("hidden = [8]", "hiden = [8]", "did you mean 'hidden'"),
        ("hidden = [8]", "hidden = [0]", "must be an integer >= 1"),
        ("hidden = [8]", "hidden = [8], num_classes = 2", "comes from the data"),
        ("epochs = 3", "epochs = 0", "epochs must be at least 1, got 0"),
        ("epochs = 3", "epochs = 3.0", "expected an integer, got 3.0"),
        ("batch_size = 8", "batch_size = -8", "batch_size must be at least 1"),
        ("seeds = 2", "seeds = 0", "seeds must be at least 1"),
        ("train_images = 20", "train_images = 0", "train_images must be at least 1"),
        ("published = 0.9", "published = nan", "an accuracy must be a number in [0, 1]"),
        ("{alone.figure}", "{nobody.figure}", "nobody"),
        ("{alone.figure}", "{alone.figure", "explanation"),
        ("students.alone]", "students.only]", "missing 'alone'"),
        ("[teacher]", "[teacher", "not valid TOML"),
    ],
)
def test_a_recipe_that_makes_no_sense_is_a_usage_error_before_anything_is_created(
    distill: Any, recipe: str, old: str, new: str, reason: str
) -> None:
    Path("mini.toml").write_text(replaced(recipe, old, new), encoding="utf-8")
    code, out, err = distill("--quiet")
    assert (code, out) == (2, "")
    assert reason in err
    assert err.startswith("refkd distill: ")
    assert not Path("runs").exists()


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (("distill", "digts"), "did you mean 'digits'"),
        (("distill", "no.toml"), "cannot be read (No such file or directory); check the path"),
        (("distill", "--protocol", "fare"), "did you mean 'fair'"),
        (("distill", "--seeds", "-1"), "--seeds must be at least 1"),
        (("distill", "--seeds", "0"), "--seeds must be at least 1"),
        (("distill", "--seeds", str(10**20)), "--seeds must be at least 1, and at most 1,000,000"),
        (("distill", "--data", ""), "recipe 'own-data' needs --data PATH"),
        (("distill", "--first-seed", "-1"), "--first-seed at least 0"),
        (("distill", "--seeds", "many"), "invalid int value"),
        (("distill", "--backend", "nunpy"), "nunpy"),
        (("distill", "hinton-mnist"), "`refkd data fetch mnist`"),
        (("distill", "own-data"), "an .npz with x and y"),
        (("distill", "--colour"), "unrecognized arguments"),
        (("predict", "run"), "--data"),
        (("recipes", "digts"), "did you mean 'digits'"),
        (("data", "fetch", "mnst"), "did you mean 'mnist'"),
        (("data",), "ACTION"),
        (("tell",), "invalid choice"),
        ((), "COMMAND"),
        (("distill", "--run", "\udc80"), "not valid Unicode"),
    ],
)
def test_a_wrong_command_is_a_usage_error(
    refkd: Any, place: Path, arguments: tuple[str, ...], reason: str
) -> None:
    before = sorted(place.iterdir())
    code, out, err = refkd(*arguments)
    assert (code, out) == (2, "")
    assert reason in err
    assert sorted(place.iterdir()) == before


def idx(array: np.ndarray) -> bytes:
    shape = struct.pack(f">{array.ndim}I", *array.shape)
    return bytes([0, 0, 8, array.ndim]) + shape + array.astype(np.uint8).tobytes()


@pytest.fixture
def mnist(place: Path, arrays: dict[str, Any]) -> Path:
    folder = place / "mnist"
    folder.mkdir()
    for name, rows in (("train", slice(64)), ("t10k", slice(64, 80))):
        (folder / f"{name}-images-idx3-ubyte").write_bytes(idx(arrays["x"][rows]))
        (folder / f"{name}-labels-idx1-ubyte").write_bytes(idx(arrays["y"][rows]))
    return folder


def test_a_folder_of_idx_files_is_distilled(refkd: Any, mnist: Path) -> None:
    assert refkd("distill", "mini.toml", "--data", mnist, "--quiet").code == 0


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        ("cut", "truncated"),
        ("magic", "wrong magic number"),
        ("counts", "do not belong together"),
        ("missing", "t10k-labels-idx1-ubyte"),
        ("gzip cut", "truncated"),
        ("gzip flipped", "corrupt"),
        ("empty", "truncated"),
    ],
)
def test_damaged_idx_files_are_bad_data(refkd: Any, mnist: Path, damage: str, reason: str) -> None:
    path = mnist / "t10k-labels-idx1-ubyte"
    content = path.read_bytes()
    packed = gzip.compress(content, mtime=0)
    flipped = bytearray(packed)
    flipped[-8] ^= 1  # in the checksum
    changed = {
        "cut": content[:-3],
        "magic": b"\x89PNG" + content[4:],
        "counts": idx(np.zeros(5)),
        "gzip cut": packed[:-10],
        "gzip flipped": bytes(flipped),
        "empty": b"",
    }
    path.unlink()
    if damage in changed:
        path.write_bytes(changed[damage])
    code, out, err = refkd("distill", "mini.toml", "--data", mnist, "--quiet")
    assert (code, out) == (3, "")
    assert reason in err
    assert not Path("runs").exists()


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda a: a | {"y": a["y"][:70]}, "as many rows"),
        (lambda a: a | {"y": a["y"] * 0}, "at least 2 classes"),
        (lambda a: a | {"y": a["y"] - 1}, "-1"),
        (lambda a: a | {"y": a["y"] + 0.5}, "integers"),
        (lambda a: a | {"x": np.where(a["x"] == 0, np.nan, a["x"])}, "NaN or infinity"),
        (lambda a: a | {"x": a["x"][:0], "y": a["y"][:0]}, "data.npz"),
        (lambda a: a | {"z": a["y"]}, "unknown array 'z'"),
        (lambda a: {"x": a["x"]}, "no array 'y'"),
        (lambda a: a | {"x": a["x"].astype(object)}, "data.npz"),
        (lambda a: a | {"teacher_logits": np.full((80, 3), np.inf)}, "NaN or infinity"),
        (lambda a: a | {"teacher_logits": np.zeros((80, 2))}, "y: expected labels 0 to"),
        (lambda a: a | {"split": np.full(80, "train")}, "one to test on"),
    ],
)
def test_arrays_that_make_no_sense_are_bad_data(
    distill: Any, arrays: dict[str, Any], change: Any, reason: str
) -> None:
    np.savez("data.npz", **change(arrays))
    code, out, err = distill("--quiet")
    assert (code, out) == (3, "")
    assert reason in err
    assert "data.npz" in err
    assert not Path("runs").exists()


@pytest.mark.parametrize("kept", [0, 1, 100, -1])
def test_a_cut_npz_is_bad_data(distill: Any, kept: int) -> None:
    path = Path("data.npz")
    path.write_bytes(path.read_bytes()[:kept])
    code, _, err = distill("--quiet")
    assert code == 3
    assert "data.npz" in err


@pytest.mark.parametrize("source", ["nowhere", "nowhere.npz", "empty", "mini.toml"])
def test_data_that_are_not_there_are_bad_data(refkd: Any, place: Path, source: str) -> None:
    (place / "empty").mkdir()
    for command in (("distill", "mini.toml", "--data"), ("data", "show")):
        code, _, err = refkd(*command, source)
        assert code == 3
        assert source in err


def test_stored_logits_that_do_not_fit_are_bad_data(distill: Any) -> None:
    for logits in (np.zeros((80, 1)), np.zeros((7, 3)), np.zeros((80, 3), int), np.zeros(80)):
        np.save("logits.npy", logits)
        code, _, err = distill("--teacher-logits", "logits.npy", "--quiet")
        assert code == 3
        assert err.count("\n") == 1
    code, _, err = distill("--teacher-logits", "none.npy", "--quiet")
    assert code == 3
    assert "none.npy: no such file" in err


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("train_images = 1000", "needs 1000 training images, the data set has 64"),
        ("only_classes = [3]", "names class 3, data has classes 0 to 2"),
        ("without_classes = [99]", "names class 99, data has classes 0 to 2"),
        ("without_classes = [0, 1, 2]", "training images"),
    ],
)
def test_a_student_that_the_data_cannot_serve_is_found_before_the_teacher_trains(
    distill: Any, recipe: str, line: str, reason: str
) -> None:
    Path("mini.toml").write_text(replaced(recipe, "train_images = 20", line))
    code, _, err = distill("--quiet")
    assert code == 3
    assert reason in err
    assert not Path("runs").exists()


def test_a_run_folder_with_something_in_it_is_left_alone(distill: Any, place: Path) -> None:
    (place / "taken").mkdir()
    (place / "taken/notes.txt").write_text("mine")
    code, _, err = distill("--run", "taken", "--quiet")
    assert code == 3
    assert "not empty" in err
    assert [path.name for path in (place / "taken").iterdir()] == ["notes.txt"]


def test_an_empty_run_folder_is_used(distill: Any, place: Path) -> None:
    (place / "run").mkdir()
    assert distill("--run", "run", "--quiet").code == 0


@pytest.mark.parametrize("folder", ["mini.toml", "mini.toml/run"])
def test_a_run_folder_that_cannot_be_made_is_an_error(distill: Any, folder: str) -> None:
    code, _, err = distill("--run", folder, "--quiet")
    assert code == 3
    assert "cannot be written" in err
    assert "--run" in err


def test_a_training_that_diverges_names_the_place_and_the_term(distill: Any, recipe: str) -> None:
    Path("mini.toml").write_text(replaced(recipe, "lr = 0.1", "lr = 1e30"))
    code, out, err = distill("--run", "run", "--quiet")
    assert (code, out) == (1, "")
    assert "epoch 1, step " in err
    assert "loss term" in err or "gradient of" in err
    assert err.count("\n") == 1  # no warning of NumPy's beside it
    assert [path.name for path in Path("run/networks").iterdir()] == ["teacher-seed0.safetensors"]


def test_a_training_that_diverges_is_named(distill: Any, recipe: str) -> None:
    Path("mini.toml").write_text(replaced(recipe, "lr = 0.1", "lr = 1e30"))
    assert "student_alone-seed0" in distill("--quiet").err


@pytest.mark.parametrize("name", ["numba", "cupy"])
def test_a_backend_that_is_not_there_says_why_and_creates_nothing(
    distill: Any, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, f"refkd_{name}", None)
    monkeypatch.delitem(dispatch._loaded, name, raising=False)
    code, _, err = distill("--backend", name, "--quiet")
    assert code == 4
    assert f"backend {name!r}" in err
    assert not Path("runs").exists()


def test_too_little_memory_is_said_in_a_line(distill: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def exhausted(*arguments: Any) -> None:
        raise MemoryError("Unable to allocate 262. TiB")

    monkeypatch.setattr("refkd.cli.distill.rehearse", exhausted)
    code, _, err = distill("--quiet")
    assert code == 1
    assert err == "refkd distill: not enough memory: Unable to allocate 262. TiB\n"


def test_an_error_of_the_system_is_said_in_a_line(
    distill: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*arguments: Any) -> None:
        raise PermissionError(13, "Permission denied", "data.npz")

    monkeypatch.setattr("refkd.cli.distill.rehearse", fail)
    code, _, err = distill("--quiet")
    assert code == 3
    assert err == "refkd distill: [Errno 13] Permission denied: 'data.npz'\n"


def test_ctrl_c_before_a_training_is_130(distill: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*arguments: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("refkd.cli.distill.rehearse", interrupt)
    assert distill("--quiet") == (130, "", "refkd distill: interrupted\n")


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="/dev/full is missing here")
@pytest.mark.parametrize("arguments", [("recipes",), ("distill", "--dry-run")])
def test_stdout_on_a_full_disk_is_an_error_without_a_traceback(
    place: Path, arguments: tuple[str, ...]
) -> None:
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [sys.executable, "-m", "refkd", *arguments],
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
        )
    assert done.returncode == 3
    assert done.stderr == f"refkd {arguments[0]}: [Errno 28] No space left on device\n"


@pytest.mark.parametrize(
    ("kind", "code"),
    [
        ("ConfigError", 2),
        ("DataError", 3),
        ("CheckpointError", 3),
        ("ShapeError", 3),
        ("DtypeError", 3),
        ("MissingExtra", 4),
        ("BackendUnavailable", 4),
        ("NonFiniteError", 1),
    ],
)
def test_every_kind_of_error_has_its_exit_code(
    kind: str, code: int, distill: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*arguments: Any) -> None:
        raise getattr(errors, kind)("the reason")

    monkeypatch.setattr("refkd.cli.distill.rehearse", fail)
    assert distill("--quiet") == (code, "", "refkd distill: the reason\n")


def test_the_kinds_with_an_exit_code_are_all_there_are() -> None:
    kinds = {name for name in errors.__all__ if isinstance(getattr(errors, name), type)}
    tested = {"ConfigError", "DataError", "CheckpointError", "ShapeError", "DtypeError"}
    tested |= {"MissingExtra", "BackendUnavailable", "NonFiniteError", "RefkdError"}
    assert kinds == tested
    assert cli._exit_code(errors.RefkdError("any other")) == 3


def test_a_corrupt_image_is_named_and_left_out_where_asked(place: Path, refkd: Any) -> None:
    pillow = pytest.importorskip("PIL.Image", reason="images need Pillow")
    rng = np.random.default_rng(0)
    for split in ("train", "val"):
        for name in ("a", "b"):
            folder = place / "photos" / split / name
            folder.mkdir(parents=True)
            for i in range(9):
                pixels = rng.integers(256, size=(6, 6, 3)).astype(np.uint8)
                pillow.fromarray(pixels).save(folder / f"{i}.png")
    (place / "photos" / "train" / "a" / "broken.jpg").write_text("no image")
    text = Path("mini.toml").read_text().replace("[teacher]", "[images]\nsize = 6\n[teacher]", 1)
    Path("photos.toml").write_text(text.replace("train_images = 20", ""))
    command = ("distill", "photos.toml", "--data", place / "photos", "--quiet", "--run", "run")
    code, _, err = refkd(*command)
    assert code == 3
    assert "broken.jpg" in err
    assert "--skip-corrupt" in err
    code, _, err = refkd(*command, "--skip-corrupt")
    assert code == 0
    assert "left out 1 image that cannot be decoded" in err
    assert refkd("predict", "run", "--data", place / "photos").code == 3
    assert refkd("predict", "run", "--data", place / "photos", "--skip-corrupt").code == 0
