"""Request bodies, read strictly and after the caller is known: JSON (or YAML) -> domain model.

FastAPI's own body parsing runs before any dependency, takes NaN and knows no depth limit; so bodies are a dependency here.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

import yaml
from fastapi import Request
from pydantic import BaseModel, ValidationError
from starlette.types import Message

from api.errors import field_problems, sentence_of
from domain.errors import FieldProblem, Invalid

MAX_JSON_BYTES = 1024 * 1024
MAX_YAML_BYTES = 256 * 1024  # YAML is parsed far slower than JSON; a job file is a few kilobytes
MAX_DEPTH = 48

JSON_TYPES = frozenset({"", "application/json", "text/json"})
YAML_TYPES = frozenset({"application/yaml", "application/x-yaml", "text/yaml", "text/x-yaml"})

M = TypeVar("M", bound=BaseModel)


def body_of(
    model: type[M], *, allow_yaml: bool = False, is_optional: bool = False, max_bytes: int = MAX_JSON_BYTES
) -> Callable[[Request], Coroutine[Any, Any, M]]:
    """Return a dependency that gives the validated body.

    Args:
        model: What the body must be.
        allow_yaml: Whether YAML is taken as well.
        is_optional: Whether an empty body stands for ``{}``.
        max_bytes: Longest body taken.
    """

    async def read(request: Request) -> M:
        data = await limited(request, max_bytes).body()
        media_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
        if is_optional and not data.strip():
            return validated(model, {})
        if media_type in JSON_TYPES or media_type.endswith("+json"):
            return validated(model, parse_json(data))
        if allow_yaml and media_type in YAML_TYPES:
            return validated(model, parse_yaml(data))
        wanted = "application/json" + (" or application/yaml" if allow_yaml else "")
        raise Invalid(f"Send the body as {wanted}, and say so in Content-Type.", code="unsupported_media_type")

    return read


def limited(request: Request, max_bytes: int) -> Request:
    """Return the same request whose body ends in Invalid ``too_large`` past a size.

    The framework's own limit answers in plain text, and also in place of a 401.
    """
    size_bytes = 0

    async def receive() -> Message:
        nonlocal size_bytes
        message = await request.receive()
        size_bytes += len(message.get("body", b""))
        if size_bytes > max_bytes:
            raise Invalid(
                f"The body may have {max_bytes} bytes here; files go to POST /v1/artifacts.",
                code="too_large",
                metadata={"max_bytes": max_bytes},
            )
        return message

    return Request(request.scope, receive)


def request_body(model: type[BaseModel], *, allow_yaml: bool = False, is_optional: bool = False) -> dict[str, Any]:
    """Return the OpenAPI text of a body read by ``body_of``; ``api.app`` adds the schema it points at."""
    schema = {"$ref": f"#/components/schemas/{model.__name__}"}
    media_types = ["application/json", *(["application/yaml"] if allow_yaml else [])]
    content = {media_type: {"schema": schema} for media_type in media_types}
    BODY_MODELS.add(model)
    return {"requestBody": {"required": not is_optional, "content": content}}


BODY_MODELS: set[type[BaseModel]] = set()


def parse_json(data: bytes) -> object:
    """Parse JSON as RFC 8259 has it. Raises Invalid for NaN, repeated keys, too much depth, text PostgreSQL cannot hold."""
    try:
        text = data.decode("utf-8")
        value = json.loads(text, parse_constant=_refuse_constant, object_pairs_hook=_object_of_unique_keys)
    except UnicodeDecodeError as error:
        raise Invalid(f"The body is not UTF-8 (byte {error.start}).", code="malformed_json") from error
    except json.JSONDecodeError as error:
        where = f"line {error.lineno}, column {error.colno}"
        raise Invalid(
            f"The body is not JSON: {error.msg} at {where}.",
            code="malformed_json",
            metadata={"line": error.lineno, "column": error.colno},
        ) from error
    except RecursionError as error:
        raise _too_deep("malformed_json") from error
    except ValueError as error:  # an integer of thousands of digits
        raise Invalid("The body holds a number that is too long.", code="malformed_json") from error
    _refuse_unfit(value, code="malformed_json")
    return value


def parse_yaml(data: bytes) -> object:
    """Parse one YAML document of plain values. Raises Invalid for tags, aliases and everything ``parse_json`` refuses."""
    if len(data) > MAX_YAML_BYTES:
        raise Invalid(f"A YAML body may have {MAX_YAML_BYTES} bytes; send JSON instead.", code="too_large")
    try:
        value = yaml.load(data, Loader=_PlainLoader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        where = f" at line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        raise Invalid(f"The body is not YAML: {error.problem}{where}.", code="malformed_yaml") from error
    except (yaml.YAMLError, ValueError, UnicodeDecodeError) as error:
        raise Invalid("The body is not YAML of plain values in UTF-8.", code="malformed_yaml") from error
    except RecursionError as error:
        raise _too_deep("malformed_yaml") from error
    _refuse_unfit(value, code="malformed_yaml")
    return value


class _PlainLoader(yaml.SafeLoader):
    """Safe YAML without aliases (a few of them unfold to gigabytes), without repeated keys, and not deep."""

    _depth = 0

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        if self.check_event(yaml.AliasEvent):
            mark = self.peek_event().start_mark  # type: ignore[no-untyped-call]
            raise yaml.MarkedYAMLError(problem="aliases are not taken; write the value out", problem_mark=mark)
        self._depth += 1
        try:
            # Here and not after the fact: what the scanner does for a bracket grows with the brackets before it.
            if self._depth > MAX_DEPTH + 1:
                raise _too_deep("malformed_yaml")
            return super().compose_node(parent, index)
        finally:
            self._depth -= 1

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        seen: set[str] = set()
        for index, key in enumerate(keys):
            if not isinstance(key, str):
                mark = node.value[index][0].start_mark
                raise yaml.MarkedYAMLError(problem=f"the key {key!r} is not text; quote it", problem_mark=mark)
            if key in seen:
                mark = node.value[index][0].start_mark
                raise yaml.MarkedYAMLError(problem=f"the key {key!r} stands there twice", problem_mark=mark)
            seen.add(key)
        return super().construct_mapping(node, deep=deep)


# A date is text to us: 2026-11-01 as a name stays what it says.
_PlainLoader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag != "tag:yaml.org,2002:timestamp"]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}


def validated(model: type[M], value: object) -> M:
    """Return a value as a model. Raises Invalid, naming every failing field."""
    try:
        return model.model_validate(value)
    except ValidationError as error:
        problems = field_problems(error.errors(include_url=False, include_input=False, include_context=False))
        raise Invalid(sentence_of(problems), fields=problems) from error
    except RecursionError as error:
        raise _too_deep("malformed_json") from error


def _refuse_constant(name: str) -> object:
    raise Invalid(f"The body holds {name}, which JSON does not know; leave the value out.", code="malformed_json")


def _object_of_unique_keys(pairs: list[tuple[str, object]]) -> dict[str, object]:
    found = dict(pairs)
    if len(found) != len(pairs):
        seen: set[str] = set()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
        raise Invalid(f"The key {twice!a} stands in one object twice; keep one.", code="malformed_json")
    return found


def _refuse_unfit(value: object, *, code: str) -> None:
    """Walk a parsed value; refuse what neither the wire nor the database can hold, naming where it stands."""
    todo: list[tuple[object, str, int]] = [(value, "", 0)]
    while todo:
        item, path, depth = todo.pop()
        if depth > MAX_DEPTH:
            raise _too_deep(code)
        if isinstance(item, dict):
            for key, child in item.items():
                _refuse_bad_text(key, path or "body")
                todo.append((child, f"{path}.{key}" if path else key, depth + 1))
        elif isinstance(item, list):
            todo.extend(
                (child, f"{path}.{index}" if path else str(index), depth + 1) for index, child in enumerate(item)
            )
        elif isinstance(item, str):
            _refuse_bad_text(item, path or "body")
        elif isinstance(item, float) and not math.isfinite(item):
            raise Invalid("A number is not finite.", fields=[FieldProblem(path or "body", "must be a finite number")])
        elif isinstance(item, int) and not isinstance(item, bool) and abs(item) >= 2**63:
            raise Invalid("A number is too large.", fields=[FieldProblem(path or "body", "must fit in 64 bits")])
        elif item is not None and not isinstance(item, bool | int | float):
            raise Invalid("A value is not plain.", fields=[FieldProblem(path or "body", "must be plain JSON data")])


def _refuse_bad_text(text: str, path: str) -> None:
    if "\x00" in text:
        raise Invalid("A text holds NUL.", fields=[FieldProblem(path.replace("\x00", "?"), "must not hold NUL")])
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        safe_path = path.encode("utf-8", "replace").decode()
        problem = FieldProblem(safe_path, "holds half a surrogate pair; send whole characters")
        raise Invalid("A text is not Unicode.", fields=[problem]) from error


def _too_deep(code: str) -> Invalid:
    return Invalid(f"The body is nested more than {MAX_DEPTH} levels deep; flatten it.", code=code)
