"""How pages are put together: tables, and types and defaults as people write them."""

from __future__ import annotations

import re
import sys
import types
import typing
from collections.abc import Iterable, Mapping, Sequence
from enum import Enum
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import annotated_types
from pydantic import BaseModel, SecretStr
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from domain.artifact import Digest

NOTE = "<!-- Made from the code by `make reference`; a test compares. -->"


def page(title: str, *parts: str) -> str:
    return "\n\n".join([f"# {title}", NOTE, *(part.strip("\n") for part in parts if part.strip())]) + "\n"


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [f"| {' | '.join(head)} |", "|" + "---|" * len(head)]
    return "\n".join([*lines, *(f"| {' | '.join(cell_of(cell) for cell in row)} |" for row in rows)])


def cell_of(text: str) -> str:
    return re.sub(r"\s+", " ", text.strip()).replace("``", "`").replace("|", "\\|")


def code(text: str) -> str:
    return f"`{text}`" if text else ""


def type_text(annotation: Any) -> str:
    """Return a field's type in words of JSON and YAML."""
    if annotation == Digest:
        return "digest, `sha256:...`"
    origin, args = get_origin(annotation), get_args(annotation)
    if origin is typing.Annotated:
        return type_text(args[0])
    if origin in {types.UnionType, typing.Union}:
        return " or ".join(type_text(arg) for arg in args if arg is not type(None))
    if origin is Literal:
        return ", ".join(f"`{value}`" for value in args)
    if origin in {tuple, list, frozenset, set}:
        inner = type_text(args[0])
        return f"list of {inner}"
    if origin in {dict, Mapping}:
        return "mapping"
    if not isinstance(annotation, type):
        return "JSON"
    if issubclass(annotation, Enum):
        return ", ".join(f"`{member.value}`" for member in annotation)
    if issubclass(annotation, BaseModel):
        return f"[{annotation.__name__}](#{annotation.__name__.lower()})"
    names = {
        bool: "true or false",
        int: "whole number",
        float: "number",
        str: "text",
        Path: "path",
        SecretStr: "text, secret",
    }
    return names.get(annotation, annotation.__name__)


def limits_of(field: FieldInfo) -> str:
    """Return a field's bounds as people write them: 1 to 32, more than 0."""
    found: dict[str, Any] = {}
    for item in field.metadata:
        for name in ("ge", "gt", "le", "lt", "min_length", "max_length"):
            if (
                isinstance(item, annotated_types.BaseMetadata)
                and hasattr(item, name)
                and getattr(item, name) is not None
            ):
                found[name] = getattr(item, name)
    parts = []
    low, high = found.get("ge", found.get("gt")), found.get("le", found.get("lt"))
    if low is not None and "gt" not in found and high is not None and "lt" not in found:
        parts.append(f"{low} to {high}")
    else:
        parts += [f"{low} or more" if "ge" in found else f"more than {low}"] if low is not None else []
        parts += [f"{high} at most" if "le" in found else f"less than {high}"] if high is not None else []
    if found.get("min_length") == 1 and "max_length" not in found:
        parts.append("at least one")
    elif "max_length" in found:
        parts.append(f"at most {found['max_length']} long")
    return ", ".join(parts)


def default_of(field: FieldInfo) -> str:
    """Return a default as YAML has it; empty where there is none, as the field is then required or absent."""
    if field.is_required():
        return "**required**"
    if field.default_factory is not None:
        made = field.default_factory()  # type: ignore[call-arg]
        return "" if isinstance(made, Path) else code(_yaml(made))
    if isinstance(field.default, BaseModel):
        return "all its defaults"
    return "" if field.default is None or field.default is PydanticUndefined else code(_yaml(field.default))


def _yaml(value: Any) -> str:
    if value == sys.executable:  # another path on every machine
        return "its own python"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, Enum):
        return str(value.value)
    if isinstance(value, tuple | list):
        return "[" + ", ".join(_yaml(one) for one in value) + "]"
    if isinstance(value, float):
        return f"{value:g}"
    if isinstance(value, dict):
        return "{}" if not value else str(value)
    return str(value)
