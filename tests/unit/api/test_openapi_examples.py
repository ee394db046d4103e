"""The examples of the OpenAPI text work as they stand there."""

from __future__ import annotations

from typing import Any

import pytest

from api.app import build_routes
from tests.unit.api.conftest import World

SCHEMA = build_routes().openapi()
MUST_HAVE = {("POST", "/v1/jobs"), ("POST", "/v1/join_tokens"), ("POST", "/v1/tokens")}


def examples() -> list[tuple[str, str, Any]]:
    """Return (method, path, example) of every body that has examples."""
    found = []
    for path, operations in SCHEMA["paths"].items():
        for method, operation in operations.items():
            body = operation.get("requestBody", {}).get("content", {}).get("application/json", {}).get("schema", {})
            model = SCHEMA["components"]["schemas"].get(body.get("$ref", "").rpartition("/")[2], {})
            found += [(method.upper(), path, example) for example in model.get("examples", ())]
    return found


def test_what_people_send_first_has_an_example() -> None:
    assert {(method, path) for method, path, _ in examples()} >= MUST_HAVE


@pytest.mark.parametrize(("method", "path", "example"), examples())
def test_an_example_is_taken_as_it_is(world: World, method: str, path: str, example: Any) -> None:
    assert "{" not in path, "an example for a path with an id needs that id here"
    answer = world.ask(method, path, json=example)
    assert answer.status_code == 201, answer.text


def test_operation_ids_make_good_names() -> None:
    ids = [operation["operationId"] for path in SCHEMA["paths"].values() for operation in path.values()]
    assert len(ids) == len(set(ids))
    assert all(name.isidentifier() and name[0].islower() and "_" not in name for name in ids)
