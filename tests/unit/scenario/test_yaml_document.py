# SPDX-License-Identifier: GPL-2.0-or-later
from __future__ import annotations

from typing import Annotated, Literal

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.core.errors import UsageError
from harness.core.paths import PROFILES, SCENARIOS
from harness.scenario.profile import read_profile
from harness.scenario.scenario import read_scenario
from harness.scenario.yaml_document import Address, Document, FieldError, Regex, Size, read_document


class Leaf(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    size: Size
    at: Address | None = None
    colour: Literal["red", "green"] = "red"
    inner: Leaf | None = None

    def __post_init__(self) -> None:
        if self.size == 13:
            raise FieldError("13 is bad", field="size", hint="use 12")


class Tree(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    name: str
    leaf: Leaf | None = None
    leaves: tuple[Leaf, ...] = ()
    by_name: dict[str, Leaf] = {}
    words: dict[Annotated[str, msgspec.Meta(pattern="^[a-z]+$")], int] = {}
    lines: tuple[Regex, ...] = ()

    def __post_init__(self) -> None:
        if self.name == "bad":
            raise FieldError("the tree is bad", hint="plant another")


def read(text: str) -> Document[Tree]:
    return read_document(text, "tree.yaml", Tree)


def refused(text: str) -> UsageError:
    with pytest.raises(UsageError) as caught:
        read(text)
    return caught.value


def test_a_document_becomes_typed_values_and_keeps_its_name() -> None:
    document = read(
        "name: oak\n"
        "leaf: {size: 512M, at: 0x180000000}\n"
        "leaves:\n- {size: 4096, colour: green}\n"
        "by_name:\n  a: {size: 2G}\n"
    )
    tree = document.value
    assert (tree.name, document.name) == ("oak", "tree.yaml")
    assert tree.leaf == Leaf(size=Size(512 << 20), at=Address(0x180000000))
    assert tree.leaves == (Leaf(size=Size(4096), colour="green"),)
    assert tree.by_name == {"a": Leaf(size=Size(2 << 30))}
    assert isinstance(tree.by_name["a"].size, Size)


ERRORS = [
    # An unknown key, with a similar one.
    ("name: a\nleef: {}\n", "2: leef", "unknown key 'leef'", "did you mean leaf?"),
    ("name: a\nleaf: {sise: 1}\n", "2: leaf.sise", "unknown key 'sise'", "did you mean size?"),
    (
        "name: a\nleaves:\n- size: 1\n- size: 1\n  zzz: 1\n",
        "5: leaves[1].zzz",
        "unknown key 'zzz'",
        "valid keys here: at, colour, inner, size",
    ),
    (
        "name: a\nby_name:\n  x: {size: 1}\n  y:\n    size: 1\n    colr: red\n",
        "6: by_name.y.colr",
        "unknown key 'colr'",
        "did you mean colour?",
    ),
    (
        "name: a\nleaf:\n  size: 1\n  inner:\n    size: 1\n    inner: {size: 1, sze: 2}\n",
        "6: leaf.inner.inner.sze",
        "unknown key 'sze'",
        "did you mean size?",
    ),
    # A missing key is placed at its nearest parent.
    ("leaf: {size: 1}\n", "1", "the key 'name' is missing", "add name"),
    ("name: a\n\nleaf:\n  at: 1\n", "3: leaf", "the key 'size' is missing", "add size"),
    ("name: a\nleaves: [{}]\n", "2: leaves[0]", "the key 'size' is missing", "add size"),
    (
        "name: a\nby_name:\n  x: {size: 1}\n  y: {at: 1}\n",
        "4: by_name.y",
        "the key 'size' is missing",
        "add size",
    ),
    # A duplicate key, at its second place.
    ("name: a\nname: b\n", "2: name", "duplicate key 'name'", "remove one"),
    (
        "name: a\nby_name:\n  x: {size: 1}\n  y: {size: 1}\n  x: {size: 2}\n",
        "5: by_name.x",
        "duplicate key 'x'",
        "remove one",
    ),
    # A value of the wrong type.
    ("name: [a]\n", "1: name", "expected `str`, got `array`", ""),
    ("name: 7.1\n", "1: name", "expected `str`, got `float`", ""),
    ("name: a\nleaf: [1]\n", "2: leaf", "expected `object | null`, got `array`", ""),
    ("name: a\nleaves: {}\n", "2: leaves", "expected `array`, got `object`", ""),
    ("name: a\nby_name:\n", "2: by_name", "expected `object`, got `null`", ""),
    ("name: a\nleaf: {size: 1, colour: blue}\n", "2: leaf.colour", "value 'blue'", ""),
    # Sizes and addresses.
    ("name: a\nleaf: {size: 5X}\n", "2: leaf.size", "'5X' is not a size", ""),
    ("name: a\nleaf: {size: -1G}\n", "2: leaf.size", "'-1G' is not a size", ""),
    ("name: a\nleaf: {size: 0G}\n", "2: leaf.size", "'0G' is not a size", ""),
    ("name: a\nleaf: {size: 1.5}\n", "2: leaf.size", "1.5 is not a size", ""),
    ("name: a\nleaf: {size: yes}\n", "2: leaf.size", "true is not a size", ""),
    ("name: a\nleaf: {size: ~}\n", "2: leaf.size", "none is not a size", ""),
    ("name: a\nleaf: {size: 1, at: -1}\n", "2: leaf.at", "-1 is not an address", ""),
    ("name: a\nleaf: {size: 1, at: no}\n", "2: leaf.at", "false is not an address", ""),
    ('name: a\nleaf: {size: 1, at: "0x10"}\n', "2: leaf.at", "'0x10' is not an address", ""),
    (
        "name: a\nby_name:\n  x: {size: 1}\n  y: {size: [2]}\n",
        "4: by_name.y.size",
        "[2] is not a size",
        "",
    ),
    # Not a mapping, or not YAML.
    ("", "", "empty or not a mapping", "copy an existing file"),
    ("# nothing\n", "", "empty or not a mapping", ""),
    ("- name: a\n", "", "empty or not a mapping", ""),
    ("name\n", "", "empty or not a mapping", ""),
    ("name: a\nleaf: {size: 1\n", "3", "not valid YAML", "check indentation"),
    ("name: a\n\tleaf: 1\n", "2", "not valid YAML", ""),
    ("name: *a\n", "1", "alias *a", ""),
    ("name: a\n---\nname: b\n", "2", "not valid YAML: but found another document", ""),
    ("name: a\n? [b]\n: c\n", "2", "a key is not a plain scalar", ""),
    ("name: a\nleaf:\n  <<: {size: 1}\n", "3", "a key is not a plain scalar", "merge keys"),
    ("name: \x01\n", "", "not valid YAML", "UTF-8"),
    ("name: 2026-13-45\n", "", "invalid value", ""),
    ("name: !!python/object:os.system x\n", "", "invalid value", ""),
    # Of two errors the first one, at its key.
    (
        "name: a\nby_name:\n  x: {size: 1}\n  y: {at: 1}\nlines: ['(']\n",
        "4: by_name.y",
        "the key 'size' is missing",
        "",
    ),
    # Regular expressions.
    ("name: a\nlines: ['a(b']\n", "2: lines[0]", "not a regular expression: missing )", "backsl"),
    ("name: a\nlines: [fine, [1]]\n", "2: lines[1]", "[1] is not a regular expression", ""),
    ("name: a\nlines: ['']\n", "2: lines[0]", "matches unrelated kernel messages", "driver's name"),
    ("name: a\nlines: ['.*failed']\n", "2: lines[0]", "matches unrelated", ""),
    # A rule of a struct, at a field of it.
    ("name: a\nleaves:\n- {size: 1}\n- {size: 13}\n", "4: leaves[1].size", "13 is bad", "use 12"),
    (
        "name: a\nby_name:\n  x: {size: 1}\n  y:\n    size: 13\n",
        "5: by_name.y.size",
        "13 is bad",
        "use 12",
    ),
    ("name: bad\n", "1", "the tree is bad", "plant another"),
]


def test_an_error_names_file_line_and_field_and_the_correction() -> None:
    wrong = []
    for text, where, message, hint in ERRORS:
        error = refused(text)
        place = f"tree.yaml:{where}" if where else "tree.yaml"
        if error.where != place or message not in error.message or hint not in error.hint:
            wrong.append(f"{text!r}: expected {place}: {message}\n    got {error}")
    assert wrong == []


def test_a_key_of_the_wrong_form_is_placed_at_its_mapping() -> None:
    error = refused("name: a\nwords:\n  good: 1\n  Bad: 2\n")
    assert error.where == "tree.yaml:2: words"
    assert "matching regex" in error.message


def test_an_absent_field_is_placed_at_its_nearest_parent() -> None:
    document = read("name: a\nleaves:\n- size: 1\n- size: 2\n")
    assert document.where("leaves[1].size") == "tree.yaml:4: leaves[1].size"
    assert document.where("leaves[1].at") == "tree.yaml:4: leaves[1].at"
    assert document.where("leaf.inner") == "tree.yaml:1: leaf.inner"
    assert document.where("") == "tree.yaml:1"


def test_a_document_makes_errors_about_a_field() -> None:
    error = read("name: a\nleaf: {size: 1}\n").error("leaf.size", "too small", hint="enlarge it")
    assert str(error) == "tree.yaml:2: leaf.size: too small\n  hint: enlarge it"


def test_hostile_yaml_is_a_usage_error() -> None:
    for text in (
        'name: !!int ""\n',
        "name: !!bool perhaps\n",
        "name: !!timestamp soon\n",
        "leaf: &a {inner: *a}\n",
        "leaf: " + "{inner: " * 2000 + "}" * 2000 + "\n",
        "leaves: " + "[" * 2000 + "]" * 2000 + "\n",
        "name: \ud800\n",
    ):
        refused(text)


def test_an_alias_is_refused_where_it_stands() -> None:
    error = refused("name: a\nleaf: &one {size: 1}\nleaves:\n- *one\n")
    assert "alias" in error.message + error.hint


def test_a_size_is_never_negative() -> None:
    assert refused("name: a\nleaf: {size: -5}\n").where == "tree.yaml:2: leaf.size"


REAL = [(path, read_scenario) for path in sorted(SCENARIOS.glob("*.yaml"))]
REAL_PROFILES = [(path, read_profile) for path in sorted(PROFILES.glob("*.yaml"))]
FRAGMENTS = [
    *("name", "leaf", "leaves", "by_name", "size", "at", "colour", "inner", "summary", "windows"),
    *(": ", ":\n", "\n", "\n  ", "\n- ", "- ", "{", "}", "[", "]", ", ", "'", '"', "#", "|\n", "?"),
    *("!!int ", "!!bool ", "!!float ", "!!timestamp ", "!!set ", "!!omap ", "!!binary ", "!x "),
    *("!!str ", "!!null ", "!!map ", "!!seq ", "!!merge ", "&a ", "*a", "&b ", "*b"),
    *("512M", "0x10", "-1", "1e9", "~", "yes", "2026-01-02", "<<", "...", "---\n", "%", "@", "\t"),
]


@given(st.text())
def test_no_text_raises_anything_but_a_usage_error(text: str) -> None:
    _read_or_refuse(text)


@given(st.lists(st.sampled_from(FRAGMENTS), max_size=30).map("".join))
def test_nothing_that_looks_like_yaml_raises_anything_but_a_usage_error(text: str) -> None:
    _read_or_refuse(text)


@given(st.data())
def test_no_damaged_file_of_the_project_raises_anything_but_a_usage_error(
    data: st.DataObject,
) -> None:
    path, _ = data.draw(st.sampled_from([*REAL, *REAL_PROFILES]))
    text = path.read_text()
    start = data.draw(st.integers(0, len(text)))
    end = data.draw(st.integers(start, min(len(text), start + 40)))
    damage = data.draw(st.lists(st.sampled_from(FRAGMENTS), max_size=3).map("".join))
    _read_or_refuse(text[:start] + damage + text[end:])


def _read_or_refuse(text: str) -> None:
    for reader in (read, lambda t: read_scenario(t, "s.yaml"), lambda t: read_profile(t, "p.yaml")):
        try:
            reader(text)
        except UsageError as error:
            assert error.where is not None
            assert error.message and error.hint
