from __future__ import annotations

import copy
import datetime
import re
import tomllib
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from refkd.errors import ConfigError
from refkd.losses.spec import KDSpec
from refkd.recipes.build import build_stage
from refkd.recipes.config import Choice, Network, Student, Teacher, Training
from refkd.recipes.load import load_recipe, parse_recipe, recipe_from_table, shipped_recipes
from refkd.train import optim, schedule

SHIPPED = shipped_recipes()
ADAM = Choice("adam")

MINIMAL = """
title = "t"
data = "digits"
teacher.model = "mlp"
student.model = "mlp"
[protocols.p]
description = "d"
seeds = 1
teacher = { epochs = 1, batch_size = 1, optimizer = { name = "adam" } }
student = { epochs = 2, batch_size = 3, optimizer = { name = "adam" } }
students.alone = {}
students.distilled = { epochs = 5 }
"""


def test_the_shipped_recipes_are_the_systems_there_are() -> None:
    assert list(SHIPPED) == [
        "digits",
        "googlenet-flowers",
        "googlenet-flowers-small",
        "hinton-mnist",
        "hinton-mnist-omit3",
        "hinton-mnist-scarce",
        "own-data",
        "resnet-cifar10",
        "vgg-cifar10",
        "vgg-cifar10-small",
    ]
    assert next(iter(load_recipe("hinton-mnist")[0].protocols)) == "published"


@pytest.mark.parametrize("name", SHIPPED)
def test_a_shipped_recipe_parses_and_its_explanation_takes_every_figure(name: str) -> None:
    recipe, text = load_recipe(name)
    assert text == SHIPPED[name]
    assert recipe.name == name
    for protocol in recipe.protocols.values():
        assert {"alone", "distilled"} <= set(protocol.students)
        fields = {
            key: SimpleNamespace(figure="0.1234 ± 0.0056")
            for student in protocol.students
            for key in (student, f"{student}_gain")
        }
        explained = protocol.explanation.format(teacher=SimpleNamespace(figure="0.99"), **fields)
        assert "{" not in explained
        assert explained.count("0.1234") == protocol.explanation.count(".figure}")
        for student in protocol.students.values():
            assert student.label
            assert (student.spec() is None) == (student.distill is None)


def test_the_published_protocol_is_the_published_comparison() -> None:
    recipe, _ = load_recipe("hinton-mnist")
    protocol = recipe.protocols["published"]
    alone, distilled = protocol.students["alone"], protocol.students["distilled"]
    assert (protocol.teacher.epochs, alone.epochs, distilled.epochs) == (6, 3, 20)
    figures = (protocol.teacher.published, alone.published, distilled.published)
    assert figures == (0.9764, 0.8173, 0.9015)
    spec = distilled.spec()
    assert spec is not None
    assert (spec.temperature, spec.t_squared) == (7.0, False)


def test_the_fair_protocols_give_every_student_of_a_comparison_the_same_training() -> None:
    for name in SHIPPED:
        protocol = load_recipe(name)[0].protocols["fair"]
        for student in protocol.students.values():
            other = protocol.students[student.compared_with]
            for key in ("epochs", "batch_size", "optimizer", "schedule", "train_images"):
                assert getattr(student, key) == getattr(other, key), name


def test_what_the_students_have_in_common_is_written_once() -> None:
    protocol = parse_recipe(MINIMAL, "m").protocols["p"]
    assert [(s.epochs, s.batch_size) for s in protocol.students.values()] == [(2, 3), (5, 3)]


def test_the_first_protocol_is_the_default() -> None:
    recipe = parse_recipe(MINIMAL, "m")
    assert recipe.protocol(None) == recipe.protocol("p")
    with pytest.raises(ConfigError, match="did you mean 'p'"):
        recipe.protocol("pp")


def test_a_training_builds_what_it_names() -> None:
    training = Training(
        1,
        1,
        Choice("sgd", {"lr": 1, "momentum": 0.9, "nesterov": True}),
        Choice("step", {"milestones": [0.5, 0.75], "gamma": 0.5}),
        warmup_steps=2,
    )
    assert training.build_optimizer() == optim.SGD(1.0, 0.9, True)
    expected = schedule.WarmUp(2, schedule.Step((0.5, 0.75), 0.5))
    assert training.build_schedule() == expected
    assert Training(1, 1, ADAM).build_schedule() == schedule.Constant()


def test_a_student_builds_its_loss() -> None:
    distill = Choice("hinton", {"temperature": 4.0, "alpha": 0.1})
    student = Student(1, 1, ADAM, distill=distill)
    assert student.spec() == KDSpec.preset("hinton", temperature=4.0, alpha=0.1)
    assert Student(1, 1, ADAM).spec() is None


@pytest.mark.parametrize(
    "make",
    [
        lambda: Training(0, 1, ADAM),
        lambda: Training(1, 0, ADAM),
        lambda: Training(1, 1, Choice("adamm")),
        lambda: Training(1, 1, Choice("adam", {"lr": -1.0})),
        lambda: Training(1, 1, Choice("adam", {"betas": [0.9]})),
        lambda: Training(1, 1, Choice("adam", {"betas": 0.9})),
        lambda: Training(1, 1, Choice("sgd")),
        lambda: Training(1, 1, Choice("sgd", {"lr": 0.1, "nesterov": True})),
        lambda: Training(1, 1, ADAM, Choice("step")),
        lambda: Training(1, 1, ADAM, Choice("step", {"milestones": [2.0]})),
        lambda: Training(1, 1, ADAM, Choice("cosine", {"end": "low"})),
        lambda: Training(1, 1, ADAM, warmup_steps=-1),
        lambda: Training(1, 1, ADAM, label_smoothing=1.5),
        lambda: Student(1, 1, ADAM, distill=Choice("hinton")),
        lambda: Student(1, 1, ADAM, train_images=0),
        lambda: Student(1, 1, ADAM, only_classes=(-1,)),
        lambda: Student(1, 1, ADAM, published=1.5),
        lambda: Teacher(1, 1, ADAM, published=float("nan")),
        lambda: Network("mlp", {"in_features": 3}),
    ],
)
def test_a_value_that_makes_no_sense_is_refused_when_it_is_written_down(make: Any) -> None:
    with pytest.raises(ConfigError):
        make()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (MINIMAL.replace("students.alone", "students.one"), "missing 'alone'"),
        (MINIMAL.replace("students.distilled", "students.two"), "missing 'distilled'"),
        (MINIMAL + 'students."../up" = {}', "letters, digits"),
        (MINIMAL + "students.teacher = {}", "not 'teacher'"),
        (MINIMAL + "students.alone_gain = {}", "not end in '_gain'"),
        (MINIMAL.replace("epochs = 5", 'compared_with = "alnoe"'), "did you mean 'alone'"),
        (re.sub(r"\[protocols[\s\S]*", "[protocols]", MINIMAL), "expected at least one"),
        (MINIMAL + "student = 3", "not valid TOML"),
        (MINIMAL.replace("student = { epochs = 2, batch_size = 3,", "student = 3 # "), "student"),
        (MINIMAL.replace("seeds = 1", "seeds = 0"), "seeds must be at least 1"),
        (MINIMAL + "[run]\nseeds = 1", "unknown key 'run'"),
    ],
)
def test_a_protocol_that_makes_no_sense_is_refused(text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        parse_recipe(text, "m")


@pytest.mark.parametrize(
    "explanation",
    ["{nobody.figure}", "{alone.accuracy}", "{alone", "}", "{}", "{0}", "{alone.figure:d}",
     "{alone_gain.figure}", "{alone.figure[x]}"],
)  # fmt: skip
def test_an_explanation_that_could_not_be_filled_in_is_refused_before_the_run(
    explanation: str,
) -> None:
    text = MINIMAL.replace("seeds = 1", f'seeds = 1\nexplanation = "{explanation}"')
    with pytest.raises(ConfigError, match="explanation: expected fields"):
        parse_recipe(text, "m")


def test_the_error_names_the_place_in_the_recipe() -> None:
    text = MINIMAL.replace("epochs = 5", "epochs = -5")
    message = r"recipe 'm'\.protocols\.p\.students\.distilled: epochs must be at least 1, got -5"
    with pytest.raises(ConfigError, match=message):
        parse_recipe(text, "m")


def test_an_unknown_recipe_gets_a_suggestion_and_the_list() -> None:
    with pytest.raises(ConfigError, match=r"did you mean 'hinton-mnist'.*digits, .*own-data"):
        load_recipe("hinton-minst")


def test_a_file_is_read_and_named_after_itself(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(MINIMAL)
    recipe, text = load_recipe(str(path))
    assert (recipe.name, text) == ("mine", MINIMAL)


@pytest.mark.parametrize("content", [None, b"\xff", b"a ="])
def test_a_file_that_cannot_be_read_is_named(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "mine.toml"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ConfigError, match="mine"):
        load_recipe(str(path))
    with pytest.raises(ConfigError, match="cannot be read"):
        load_recipe(f"{tmp_path}/x.toml")


VALUES: tuple[Any, ...] = (
    0, -1, 1, 10**18, 0.5, -0.0, float("nan"), float("inf"), True, "", "adam", "{", [], [0.5],
    [[]], {}, {"name": "adam"}, {"name": 3}, datetime.date(2026, 1, 1),
)  # fmt: skip
KEYS = ("name", "model", "alone", "distilled", "student", "epochs", "run", "", "ü", "p")


def every_place(table: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    inner: Any = table.items() if isinstance(table, dict) else ()
    return [path, *(p for key, value in inner for p in every_place(value, (*path, key)))]


@given(data=st.data())
def test_a_shipped_recipe_changed_anywhere_parses_or_is_refused(data: st.DataObject) -> None:
    name = data.draw(st.sampled_from(sorted(SHIPPED)))
    table = tomllib.loads(SHIPPED[name])
    for _ in range(data.draw(st.integers(1, 3))):
        path = data.draw(st.sampled_from([p for p in every_place(table) if p]))
        parent = table
        for key in path[:-1]:
            parent = parent[key]
        value = copy.deepcopy(data.draw(st.sampled_from(VALUES)))
        action = data.draw(st.sampled_from(["set", "delete", "add", "rename"]))
        if action == "set":
            parent[path[-1]] = value
        elif action == "add":
            parent[data.draw(st.sampled_from(KEYS))] = value
        else:
            moved = parent.pop(path[-1])
            if action == "rename":
                parent[data.draw(st.sampled_from(KEYS))] = moved
    try:
        recipe = recipe_from_table(table, "fuzz")
    except ConfigError:
        return
    for protocol in recipe.protocols.values():  # what was accepted can be built
        for training in (protocol.teacher, *protocol.students.values()):
            build_stage(None, training)  # type: ignore[arg-type]


@given(st.one_of(st.binary(max_size=200), st.text(max_size=100).map(lambda t: t.encode())))
def test_random_bytes_as_a_recipe_are_refused(content: bytes) -> None:
    path = Path(__file__).with_name("never-written.toml")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Path, "read_text", lambda self, encoding: content.decode(encoding))
        with pytest.raises(ConfigError):
            load_recipe(str(path))


@given(
    name=st.sampled_from(sorted(SHIPPED)),
    at=st.integers(0, 10**6),
    length=st.integers(0, 40),
    junk=st.text(max_size=10),
)
def test_a_shipped_recipe_with_a_piece_replaced_parses_or_is_refused(
    name: str, at: int, length: int, junk: str
) -> None:
    text = SHIPPED[name]
    at %= len(text)
    with suppress(ConfigError):
        assert parse_recipe(text[:at] + junk + text[at + length :], "fuzz").protocols


def test_a_distilled_student_cannot_smooth_labels_that_the_student_alone_would_smooth_too() -> None:
    kd = Choice("hinton", {"temperature": 2.0, "alpha": 0.5})
    with pytest.raises(ConfigError, match="label_smoothing: the distillation loss has none"):
        Student(1, 1, ADAM, label_smoothing=0.1, distill=kd)
