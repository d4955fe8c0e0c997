from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from refkd.errors import ConfigError
from refkd.recipes.tables import from_table, parse_toml


@dataclass(frozen=True)
class Inner:
    rate: float

    def __post_init__(self) -> None:
        if self.rate < 0:
            raise ConfigError("rate must not be negative")


@dataclass(frozen=True)
class Outer:
    name: str
    count: int = 1
    on: bool = False
    share: float | None = None
    sizes: tuple[int, ...] = ()
    inner: Inner | None = None
    many: dict[str, Inner] = field(default_factory=dict)
    free: dict[str, Any] = field(default_factory=dict)


def test_a_table_becomes_a_dataclass_of_its_types() -> None:
    table = {
        "name": "a",
        "count": 2,
        "on": True,
        "share": 1,
        "sizes": [3, 4],
        "inner": {"rate": 0.5},
        "many": {"x": {"rate": 2}},
        "free": {"anything": [1, "two"]},
    }
    built = from_table(Outer, table, "file")
    expected = Outer(
        "a", 2, True, 1.0, (3, 4), Inner(0.5), {"x": Inner(2.0)}, {"anything": [1, "two"]}
    )
    assert built == expected
    assert type(built.share) is float


def test_what_is_left_out_has_its_default() -> None:
    assert from_table(Outer, {"name": "a"}, "file") == Outer("a")


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ({}, "file: missing name"),
        ({"name": "a", "cout": 1}, "file: unknown key 'cout'.*did you mean 'count'"),
        ({"name": 1}, "file.name: expected text, got 1"),
        ({"name": "a", "count": 1.0}, "file.count: expected an integer, got 1.0"),
        ({"name": "a", "count": True}, "file.count: expected an integer, got True"),
        ({"name": "a", "on": 1}, "file.on: expected true or false, got 1"),
        ({"name": "a", "share": "1"}, "file.share: expected a number, got '1'"),
        ({"name": "a", "share": True}, "file.share: expected a number, got True"),
        ({"name": "a", "share": 2**62}, "file.share: expected a number"),
        ({"name": "a", "sizes": 3}, "file.sizes: expected a list, got 3"),
        ({"name": "a", "sizes": [1, "x"]}, r"file.sizes\[1\]: expected an integer"),
        ({"name": "a", "inner": 3}, "file.inner: expected a table, got 3"),
        ({"name": "a", "inner": {}}, "file.inner: missing rate"),
        ({"name": "a", "inner": {"rate": -1}}, "file.inner: rate must not be negative"),
        ({"name": "a", "many": []}, "file.many: expected a table"),
        ({"name": "a", "many": {"x": 1}}, "file.many.x: expected a table"),
        ({"name": "a", "free": 3}, "file.free: expected a table"),
        ([], "file: expected a table"),
    ],
)
def test_the_error_says_where_and_what_was_expected(table: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        from_table(Outer, table, "file")


def test_a_long_value_is_cut_in_the_message() -> None:
    with pytest.raises(ConfigError) as caught:
        from_table(Outer, {"name": "a", "count": "x" * 10_000}, "file")
    assert len(str(caught.value)) < 100


def test_toml_integers_have_64_bits() -> None:
    assert parse_toml(f"a = {2**63 - 1}\nb = [-{2**63}]", "file") == {
        "a": 2**63 - 1,
        "b": [-(2**63)],
    }
    digits = "f" * 5000
    for text in (f"a = {2**63}", "a = [[1, {b = -9223372036854775809}]]", f"a = 0x{digits}"):
        with pytest.raises(ConfigError, match="64 bits"):
            parse_toml(text, "file")


@pytest.mark.parametrize(
    "text", ["a", "a = 1\na = 2", "a = " + "9" * 5000, "a = " + "[" * 5000, "\ufeffa = 1"]
)
def test_what_is_no_toml_is_a_config_error(text: str) -> None:
    with pytest.raises(ConfigError, match="file: not valid TOML"):
        parse_toml(text, "file")


def test_keys_nested_too_deeply_are_a_config_error() -> None:
    with pytest.raises(ConfigError, match="file: not valid TOML"):
        parse_toml(".".join("a" * 5000) + " = 1", "file")


@given(st.text(max_size=40))
def test_any_text_is_parsed_or_refused(text: str) -> None:
    with suppress(ConfigError):
        assert isinstance(parse_toml(text, "file"), dict)
