# SPDX-License-Identifier: GPL-2.0-or-later
"""Strict reading of YAML documents into typed values, with file, line and field in every error."""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Generic, TypeVar, get_origin

import msgspec
import yaml
from msgspec import inspect

from harness.contract.dmesg import ANY_MESSAGE
from harness.core.errors import UsageError
from harness.platform.memory_range import parse_size

T = TypeVar("T")

# A path step as msgspec prints it: .name, [3], or [...] for any item of a mapping.
_STEP = re.compile(r"\.(?P<name>[^.\[\]]+)|\[(?P<index>\d+|\.\.\.)\]")


class Size(int):
    """A number of bytes, written `512M`, `2G`, or as a plain integer."""


class Address(int):
    """A physical address, written in hexadecimal."""


# A regular expression for kernel messages; one that matches unrelated messages is refused.
Regex = re.Pattern[str]


class FieldError(ValueError):
    """A struct's `__post_init__` refuses its values.

    Attributes:
        hint: the correction.
        field: path of the field within the struct; empty for the struct itself.
    """

    def __init__(self, message: str, *, hint: str, field: str = "") -> None:
        super().__init__(message)
        self.hint = hint
        self.field = field


@dataclass(frozen=True)
class Document(Generic[T]):
    """A decoded document with the line of each field."""

    value: T
    name: str
    lines: Mapping[str, int]
    text: str = ""

    def where(self, path: str) -> str:
        """Return `file:line: field` for a path such as `firmware.decoders[0].size`.

        A field that is absent is placed at its nearest parent.
        """
        at = path
        while at not in self.lines and at:
            at = at[: max(at.rfind("."), at.rfind("["), 0)]
        line = self.lines.get(at, 1)
        return f"{self.name}:{line}: {path}" if path else f"{self.name}:{line}"

    def error(self, path: str, message: str, *, hint: str) -> UsageError:
        """Make a usage error about one field."""
        return UsageError(message, where=self.where(path), hint=hint)


def read_document(
    text: str, name: str, kind: type[T], guide: str = "docs/scenarios.md"
) -> Document[T]:
    """Decode YAML text into `kind`, a frozen msgspec Struct.

    Args:
        text: the YAML.
        name: the file's name, for errors.
        kind: the type of the document.
        guide: the page that describes such documents.

    Raises:
        UsageError: not YAML, an unknown, missing or duplicate field, or an invalid value; names
            file, line and field.
    """
    raw, lines = _load(text, name)
    try:
        value = msgspec.convert(raw, kind, dec_hook=_read_custom, strict=True)
    except msgspec.ValidationError as error:
        raise _explain(error, raw, kind, Document(None, name, lines), guide) from None
    return Document(value, name, lines, text)


def _load(text: str, name: str) -> tuple[Any, dict[str, int]]:
    """Return the values of a YAML text, and the line of each by its path."""
    node = _compose(text, name)
    lines: dict[str, int] = {}
    loader = yaml.CSafeLoader("")
    try:
        _note_lines(node, "", lines, name)
        return loader.construct_document(node), lines
    except RecursionError:
        raise UsageError(
            "nested too deeply", where=name, hint="remove levels of brackets or indentation"
        ) from None
    except (yaml.YAMLError, ValueError, ArithmeticError, LookupError, AttributeError) as error:
        # Constructors of tags such as !!int raise these for invalid text.
        raise UsageError(
            f"invalid value: {error or type(error).__name__}",
            where=name,
            hint="correct the YAML, and use no tags",
        ) from None
    finally:
        loader.dispose()


def _compose(text: str, name: str) -> yaml.Node:
    try:
        for event in yaml.parse(text, Loader=yaml.CSafeLoader):
            if isinstance(event, yaml.AliasEvent):
                # A few lines of aliases can expand to more values than memory holds.
                raise UsageError(
                    f"alias *{event.anchor}",
                    where=f"{name}:{event.start_mark.line + 1}" if event.start_mark else name,
                    hint="aliases are not supported: write the value out",
                )
        node = yaml.compose(text, Loader=yaml.CSafeLoader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = f":{mark.line + 1}" if mark else ""
        raise UsageError(
            f"not valid YAML: {error.problem or error.context}",
            where=f"{name}{line}",
            hint="check indentation, brackets and quotes around this line",
        ) from None
    except (yaml.YAMLError, RecursionError, UnicodeError) as error:
        raise UsageError(
            f"not valid YAML: {error}", where=name, hint="write the file as UTF-8 YAML"
        ) from None
    if not isinstance(node, yaml.MappingNode):
        raise UsageError(
            "the file is empty or not a mapping",
            where=name,
            hint="copy an existing file of this kind, and change it",
        )
    return node


def _note_lines(node: yaml.Node, path: str, lines: dict[str, int], name: str) -> None:
    lines[path] = node.start_mark.line + 1
    if isinstance(node, yaml.MappingNode):
        seen: set[str] = set()
        for key, value in node.value:
            if not isinstance(key, yaml.ScalarNode) or key.tag == "tag:yaml.org,2002:merge":
                raise UsageError(
                    "a key is not a plain scalar",
                    where=f"{name}:{key.start_mark.line + 1}",
                    hint="write keys as plain words; merge keys are not supported",
                )
            inner = f"{path}.{key.value}" if path else str(key.value)
            if key.value in seen:
                raise UsageError(
                    f"duplicate key {key.value!r}",
                    where=f"{name}:{key.start_mark.line + 1}: {inner}",
                    hint="remove one of the two",
                )
            seen.add(key.value)
            _note_lines(value, inner, lines, name)
            lines[inner] = key.start_mark.line + 1
    elif isinstance(node, yaml.SequenceNode):
        for index, value in enumerate(node.value):
            _note_lines(value, f"{path}[{index}]", lines, name)


def _read_custom(kind: Any, raw: Any) -> Any:
    is_number = isinstance(raw, int) and not isinstance(raw, bool) and raw >= 0
    if kind is Size:
        if is_number:
            return Size(raw)
        if isinstance(raw, str):
            return Size(parse_size(raw))
        raise ValueError(f"{raw!r} is not a size: write a number and K, M, G or T, such as 512M")
    if kind is Address:
        if is_number:
            return Address(raw)
        raise ValueError(f"{raw!r} is not an address: write it in hexadecimal, such as 0x180000000")
    if get_origin(kind) is re.Pattern:
        return _read_regex(raw)
    raise NotImplementedError(kind)


def _read_regex(raw: Any) -> Regex:
    if not isinstance(raw, str):
        raise ValueError(f"{raw!r} is not a regular expression: write it as text, in quotes")
    try:
        regex = re.compile(raw)
    except re.error as error:
        raise FieldError(
            f"not a regular expression: {error}",
            hint="put a backslash before brackets and dots that are literal",
        ) from None
    if regex.search(ANY_MESSAGE):
        raise FieldError(
            "matches unrelated kernel messages",
            hint="include the driver's name and the text of its message",
        )
    return regex


def _explain(
    error: msgspec.ValidationError,
    raw: Any,
    kind: type[Any],
    document: Document[None],
    guide: str,
) -> UsageError:
    message, _, at = str(error).rpartition(" - at `")
    message, at = (message, at.rstrip("`")) if message else (at, "")
    path, struct = _locate(at, raw, kind, str(error))
    cause = error.__cause__
    if isinstance(cause, FieldError):
        return document.error(_joined(path, cause.field), message, hint=cause.hint)
    unknown = re.fullmatch(r"Object contains unknown field `(?P<name>.+)`", message)
    if unknown:
        names = sorted(field.encode_name for field in struct.fields) if struct else []
        close = difflib.get_close_matches(unknown["name"], names, n=1)
        hint = f"did you mean {close[0]}? " if close else ""
        return document.error(
            _joined(path, unknown["name"]),
            f"unknown key {unknown['name']!r}",
            hint=f"{hint}valid keys here: {', '.join(names)}",
        )
    missing = re.fullmatch(r"Object missing required field `(?P<name>.+)`", message)
    if missing:
        return document.error(path, f"the key {missing[1]!r} is missing", hint=f"add {missing[1]}")
    message = message[0].lower() + message[1:]
    return document.error(path, message, hint=f"{guide} describes this field")


def _joined(path: str, field: str) -> str:
    return f"{path}.{field}" if path and field and field[0] != "[" else path + field


def _locate(
    path: str, raw: Any, kind: type[Any], complaint: str
) -> tuple[str, inspect.StructType | None]:
    """Fill the keys of mappings into a msgspec path, and find the struct type there."""
    done, value, at = "", raw, inspect.type_info(kind)
    for step in _STEP.finditer(path):
        if step["name"]:
            key, done = step["name"], f"{done}.{step['name']}"
        elif step["index"] == "...":
            key = _failing_key(value, raw, kind, complaint)
            done += f".{key}"
        else:
            key, done = int(step["index"]), f"{done}[{step['index']}]"
        value = value[key]
        at = _type_within(at, step["name"])
    struct = next(
        (member for member in _members(at) if isinstance(member, inspect.StructType)), None
    )
    return done.removeprefix("."), struct


def _failing_key(mapping: dict[str, Any], raw: Any, kind: type[Any], complaint: str) -> str | None:
    """Find the key whose value alone makes the whole document fail in the same way."""
    entries = dict(mapping)
    for key, value in entries.items():
        mapping.clear()
        mapping[key] = value
        try:
            msgspec.convert(raw, kind, dec_hook=_read_custom, strict=True)
        except msgspec.ValidationError as error:
            if str(error) == complaint:
                break
    mapping.update(entries)
    return key


def _members(kind: inspect.Type) -> tuple[inspect.Type, ...]:
    return kind.types if isinstance(kind, inspect.UnionType) else (kind,)


def _type_within(kind: inspect.Type, field: str | None) -> inspect.Type:
    """Return the type of a struct's field, or without a field the type of the items."""
    for member in _members(kind):
        if isinstance(member, inspect.StructType) and field:
            return next(
                field_type.type for field_type in member.fields if field_type.encode_name == field
            )
        if isinstance(member, inspect.DictType) and not field:
            return member.value_type
        if isinstance(member, inspect.VarTupleType | inspect.ListType) and not field:
            return member.item_type
    return inspect.AnyType()
