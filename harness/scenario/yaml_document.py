# SPDX-License-Identifier: GPL-2.0-or-later
"""Strict reading of YAML documents into typed values, with file, line and field in every error."""

from __future__ import annotations

import difflib
import re
import types
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import msgspec
import yaml

from harness.core.errors import UsageError
from harness.platform.memory_range import parse_size

T = TypeVar("T")

# A path step as msgspec prints it: .name, [3], or [...] for any item of a mapping.
_STEP = re.compile(r"\.(?P<name>[^.\[\]]+)|\[(?P<index>\d+|\.\.\.)\]")


class Size(int):
    """A number of bytes, written `512M`, `2G`, or as a plain integer."""


class Address(int):
    """A physical address, written in hexadecimal."""


@dataclass(frozen=True)
class Document(Generic[T]):
    """A decoded document that still knows where each field stood."""

    value: T
    name: str
    lines: Mapping[str, int]
    text: str = ""

    def where(self, path: str) -> str:
        """`file:line: field` of a path such as `firmware.decoders[0].size`.

        A field that is absent is placed at its nearest parent.
        """
        at = path
        while at not in self.lines and at:
            at = at[: max(at.rfind("."), at.rfind("["), 0)]
        line = self.lines.get(at, 1)
        return f"{self.name}:{line}: {path}" if path else f"{self.name}:{line}"

    def error(self, path: str, message: str, *, hint: str) -> UsageError:
        """A usage error about one field."""
        return UsageError(message, where=self.where(path), hint=hint)


def read_document(
    text: str, name: str, kind: type[T], guide: str = "docs/scenarios.md"
) -> Document[T]:
    """Decode YAML text into `kind`, a frozen msgspec Struct.

    Args:
        text: the YAML.
        name: the file's name, for errors.
        kind: what the document must be.
        guide: what describes such documents.

    Raises:
        UsageError: not YAML, an unknown, missing or doubled field, or a value of the wrong kind;
            names file, line and field.
    """
    node = _compose(text, name)
    lines: dict[str, int] = {}
    loader = yaml.CSafeLoader("")
    try:
        _note_lines(node, "", lines, name)
        raw = loader.construct_document(node)
    except RecursionError:
        raise UsageError(
            "nested too deep", where=name, hint="take out levels of brackets or indentation"
        ) from None
    except (yaml.YAMLError, ValueError, ArithmeticError, LookupError, AttributeError) as error:
        # What the constructors of tags such as !!int raise when the text is none.
        raise UsageError(
            f"a value cannot be read: {error or type(error).__name__}",
            where=name,
            hint="correct the YAML, and use no tags",
        ) from None
    finally:
        loader.dispose()
    try:
        value = msgspec.convert(raw, kind, dec_hook=_read_custom, strict=True)
    except RecursionError:
        raise UsageError(
            "nested too deep, or in itself", where=name, hint="use no anchors and aliases"
        ) from None
    except msgspec.ValidationError as error:
        raise _explain(str(error), raw, kind, Document(None, name, lines), guide) from None
    return Document(value, name, lines, text)


def _compose(text: str, name: str) -> yaml.Node:
    try:
        for event in yaml.parse(text, Loader=yaml.CSafeLoader):
            if isinstance(event, yaml.AliasEvent):
                # A few lines of them can stand for more values than memory holds.
                raise UsageError(
                    f"the alias *{event.anchor} is used",
                    where=f"{name}:{event.start_mark.line + 1}" if event.start_mark else name,
                    hint="write the value out instead of an alias",
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
            hint="start from one of the files beside it",
        )
    return node


def _note_lines(node: yaml.Node, path: str, lines: dict[str, int], name: str) -> None:
    lines[path] = node.start_mark.line + 1
    if isinstance(node, yaml.MappingNode):
        seen: set[str] = set()
        for key, value in node.value:
            if not isinstance(key, yaml.ScalarNode) or key.tag == "tag:yaml.org,2002:merge":
                raise UsageError(
                    "a key is not a plain word",
                    where=f"{name}:{key.start_mark.line + 1}",
                    hint="use plain words as keys; merge keys are not supported",
                )
            inner = f"{path}.{key.value}" if path else str(key.value)
            if key.value in seen:
                raise UsageError(
                    f"the key {key.value!r} stands twice",
                    where=f"{name}:{key.start_mark.line + 1}: {inner}",
                    hint="remove one of the two",
                )
            seen.add(key.value)
            _note_lines(value, inner, lines, name)
            lines[inner] = key.start_mark.line + 1
    elif isinstance(node, yaml.SequenceNode):
        for index, value in enumerate(node.value):
            _note_lines(value, f"{path}[{index}]", lines, name)


def _read_custom(kind: type[Any], raw: Any) -> Any:
    if kind is Size:
        if isinstance(raw, int) and not isinstance(raw, bool) and raw >= 0:
            return Size(raw)
        if isinstance(raw, str):
            return Size(parse_size(raw))
        raise ValueError(f"{raw!r} is not a size: write a number and K, M, G or T, such as 512M")
    if kind is Address:
        if isinstance(raw, int) and not isinstance(raw, bool) and raw >= 0:
            return Address(raw)
        raise ValueError(f"{raw!r} is not an address: write it in hexadecimal, such as 0x180000000")
    raise NotImplementedError(kind)


def _explain(
    text: str, raw: Any, kind: type[Any], document: Document[None], guide: str
) -> UsageError:
    message, _, at = text.rpartition(" - at `")
    if not message:
        message, at = text, "$`"
    path = at.rstrip("`").removeprefix("$")
    struct, path = _follow(path, raw, kind)
    unknown = re.fullmatch(r"Object contains unknown field `(?P<name>.+)`", message)
    if unknown:
        valid = sorted(msgspec.structs.fields(struct), key=lambda f: f.name) if struct else []
        names = [field.encode_name for field in valid]
        close = difflib.get_close_matches(unknown["name"], names, n=1)
        hint = f"did you mean {close[0]}? " if close else ""
        field = f"{path}.{unknown['name']}" if path else unknown["name"]
        return document.error(
            field,
            f"unknown key {unknown['name']!r}",
            hint=f"{hint}valid keys here: {', '.join(names)}",
        )
    missing = re.fullmatch(r"Object missing required field `(?P<name>.+)`", message)
    if missing:
        return document.error(
            path,
            f"the key {missing['name']!r} is missing",
            hint=f"add {missing['name']}",
        )
    wrong = message[0].lower() + message[1:]
    return document.error(path, wrong, hint=f"see {guide} for what this field takes")


def _follow(path: str, raw: Any, kind: Any) -> tuple[Any, str]:
    """The struct type at a msgspec path, and the path with mapping keys filled in.

    msgspec prints `[...]` for "some value of this mapping"; the first value that does not
    convert is the one it means.
    """
    done = ""
    for step in _STEP.finditer(path):
        if step["name"]:
            raw = raw.get(step["name"]) if isinstance(raw, dict) else None
            kind = _chosen(_field_type(kind, step["name"]), raw)
            done += f".{step['name']}"
        elif step["index"] == "...":
            kind = _item_type(kind)
            for key, value in raw.items() if isinstance(raw, dict) else ():
                try:
                    msgspec.convert(value, kind, dec_hook=_read_custom, strict=True)
                except msgspec.ValidationError:
                    raw, done = value, f"{done}.{key}"
                    break
        else:
            kind = _item_type(kind)
            index = int(step["index"])
            raw = raw[index] if isinstance(raw, list) and index < len(raw) else None
            done += f"[{index}]"
    struct = kind if isinstance(kind, type) and issubclass(kind, msgspec.Struct) else None
    return struct, done.removeprefix(".")


def _field_type(kind: Any, name: str) -> Any:
    if isinstance(kind, type) and issubclass(kind, msgspec.Struct):
        for field in msgspec.structs.fields(kind):
            if field.encode_name == name:
                return _without_none(field.type)
    return None


def _chosen(kind: Any, raw: Any) -> Any:
    """Of a list or a struct, the one that the value is."""
    members = getattr(kind, "__args__", ())
    structs = [one for one in members if isinstance(one, type) and issubclass(one, msgspec.Struct)]
    if not structs or isinstance(kind, types.GenericAlias):
        return kind
    if isinstance(raw, dict):
        return structs[0]
    return next((one for one in members if isinstance(one, types.GenericAlias)), kind)


def _item_type(kind: Any) -> Any:
    arguments = [a for a in getattr(kind, "__args__", ()) if a is not Ellipsis]
    return _without_none(arguments[-1]) if arguments else None


def _without_none(kind: Any) -> Any:
    arguments = getattr(kind, "__args__", ())
    if type(None) in arguments:
        rest = [a for a in arguments if a is not type(None)]
        return rest[0] if len(rest) == 1 else kind
    return kind
