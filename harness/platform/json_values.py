# SPDX-License-Identifier: GPL-2.0-or-later
"""Dataclasses as JSON values and back; ranges and paths are written as text."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from harness.platform.memory_range import MemoryRange

_Value = TypeVar("_Value")


class FormatError(ValueError):
    """A JSON value does not have the fields and types that were asked for."""


def to_json(value: Any) -> Any:
    """Convert dataclasses, at any depth, to what `json.dumps` takes."""
    plain = msgspec.to_builtins(value, enc_hook=_encode)
    return json.loads(json.dumps(plain))  # lists for tuples


def from_json(raw: Any, kind: type[_Value]) -> _Value:
    """Convert what `to_json` made back; unknown fields are ignored.

    Raises:
        FormatError: a field is missing or has another type; names its place.
    """
    try:
        return msgspec.convert(raw, kind, dec_hook=_decode)
    except msgspec.ValidationError as error:
        message, _, place = str(error).partition(" - at `$.")
        raise FormatError(f"{place.rstrip('`')}: {message}" if place else message) from None


def _encode(value: Any) -> str:
    if isinstance(value, MemoryRange | Path):
        return str(value)
    raise NotImplementedError(f"{type(value).__name__} has no form in JSON")


def _decode(kind: type, raw: Any) -> Any:
    if not isinstance(raw, str):
        raise ValueError(f"Expected `str`, got `{type(raw).__name__}`")
    if kind is MemoryRange:
        return MemoryRange.parse(raw)
    return kind(raw)
