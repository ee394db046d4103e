"""docs/reference/rest.md: every call, from docs/openapi.json."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from tests.docs.pages.markdown import code, page, table

HEAD = """
Base path `/v1`, JSON in snake_case, `Authorization: Bearer TOKEN` for all but `healthz`, `readyz` and the agent's
wheel. Errors are `application/problem+json` (RFC 9457) with a stable `code`: [error codes](errors.md). Lists answer
`{items, next_page_token}`: give the token back as `page_token` until it is empty. What is polled has an `ETag`; send it
as `If-None-Match` and an unchanged answer is an empty 304.

The machine-readable form, from which clients are generated, is `docs/openapi.json`, and `GET /openapi.json` of a
server.
"""
VERBS = ("get", "post", "put", "patch", "delete")


def text(openapi: Mapping[str, Any]) -> str:
    by_tag: dict[str, list[str]] = {}
    for path, calls in openapi["paths"].items():
        for verb in VERBS:
            if verb in calls:
                call = calls[verb]
                by_tag.setdefault((call.get("tags") or ["other"])[0], []).append(_call(verb, path, call))
    parts = [f"## {tag.replace('_', ' ').capitalize()}\n\n" + "\n\n".join(calls) for tag, calls in by_tag.items()]
    schemas = [_schema(name, schema) for name, schema in sorted(openapi["components"]["schemas"].items())]
    return page("REST", HEAD, *parts, "## Schemas", *(one for one in schemas if one))


def _call(verb: str, path: str, call: Mapping[str, Any]) -> str:
    parts = [f"### {call.get('summary') or call['operationId']}", f"`{verb.upper()} {path}` ({call['operationId']})"]
    if call.get("description"):
        parts.append(call["description"])
    rows = [
        (
            code(one["name"]) + ("" if one["in"] == "query" else f", {one['in']}"),
            type_of(one["schema"]),
            one.get("description", ""),
        )
        for one in call.get("parameters", [])
    ]
    if rows:
        parts.append(table(("parameter", "is", "meaning"), rows))
    if "requestBody" in call:
        kinds = [f"`{kind}`: {type_of(body['schema'])}" for kind, body in call["requestBody"]["content"].items()]
        parts.append("Body: " + "; ".join(kinds))
    answers = []
    for status, answer in call["responses"].items():
        if status == "default":
            continue
        kinds = [type_of(body["schema"]) for body in answer.get("content", {}).values() if body.get("schema")]
        said = answer["description"] if answer["description"] != "Successful Response" else ""
        answers.append(f"**{status}** " + ", ".join(filter(None, [*dict.fromkeys(kinds), said])))
    parts.append("Answers: " + "; ".join(answer.strip() for answer in answers))
    return "\n\n".join(parts)


def _schema(name: str, schema: Mapping[str, Any]) -> str:
    head = [f"### {name}"] + ([_inline(schema["description"])] if schema.get("description") else [])
    if "enum" in schema:
        return "\n\n".join([*head, ", ".join(code(str(one)) for one in schema["enum"])])
    if "properties" not in schema:
        return "\n\n".join([*head, type_of(schema) or "any JSON"])
    required = set(schema.get("required", ()))
    rows = [
        (code(key) + ("" if key in required else ", optional"), type_of(value), _inline(value.get("description", "")))
        for key, value in schema["properties"].items()
    ]
    return "\n\n".join([*head, table(("field", "is", "meaning"), rows)])


def _inline(text: str) -> str:
    return text.replace("``", "`")


def type_of(schema: Mapping[str, Any]) -> str:
    """Return a JSON schema in a few words, other schemas as links."""
    if "$ref" in schema:
        name = schema["$ref"].rsplit("/", 1)[1]
        return f"[{name}](#{name.lower()})"
    for key in ("anyOf", "oneOf", "allOf"):
        if key in schema:
            return " or ".join(dict.fromkeys(type_of(one) for one in schema[key]))
    if "const" in schema:
        return code(json.dumps(schema["const"]))
    if "enum" in schema:
        return ", ".join(code(str(one)) for one in schema["enum"])
    kind = str(schema.get("type", "JSON"))
    if kind == "array":
        return f"array of {type_of(schema.get('items', {}))}"
    if kind == "string" and schema.get("format"):
        return f"string, {schema['format']}"
    return kind
