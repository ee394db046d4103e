from __future__ import annotations

from pathlib import Path

from api.openapi import openapi_text
from domain.errors import Unavailable
from tests.unit.api.conftest import World

COMMITTED = Path(__file__).parents[3] / "docs" / "openapi.json"


def test_ready_means_database_schema_and_broker(world: World) -> None:
    answer = world.ask("GET", "/readyz")
    assert (answer.status_code, answer.json()["checks"]) == (200, {"database": "ok", "broker": "ok"})


def test_a_stale_schema_is_not_ready_and_says_what_to_run(world: World) -> None:
    world.store.is_current = False
    answer = world.ask("GET", "/readyz")
    assert (answer.status_code, answer.json()["code"]) == (503, "not_ready")
    assert "pruneloop db upgrade" in answer.json()["detail"]


def test_a_database_or_broker_that_is_away_is_named(world: World) -> None:
    world.store.crash = Unavailable("PostgreSQL does not answer.")
    world.is_broker_there = False
    checks = world.ask("GET", "/readyz").json()["metadata"]["checks"]
    assert "is away" in checks["database"]
    assert "is away" in checks["broker"]
    assert world.ask("GET", "/healthz").status_code == 200


def test_metrics_count_jobs_and_devices(world: World) -> None:
    world.store.devices_by_id["dev1"] = world.store.devices_by_id["dev1"].model_copy(update={"name": 'a"b\\c'})
    text = world.ask("GET", "/metrics").text
    assert 'pruneloop_devices{state="active",online="true"} 2' in text
    assert r'pruneloop_device_queue_depth{device="a\"b\\c",device_id="dev1"} 0' in text


def test_the_committed_openapi_text_is_this_applications() -> None:
    text = COMMITTED.read_text(encoding="utf-8")
    assert text == openapi_text(), "review the change, then run: python -m api.openapi docs/openapi.json"


def test_every_reference_of_the_openapi_text_resolves(world: World) -> None:
    schema = world.ask("GET", "/openapi.json", token=None).json()
    known = {f"#/components/schemas/{name}" for name in schema["components"]["schemas"]}
    used: set[str] = set()
    todo: list[object] = [schema]
    while todo:
        item = todo.pop()
        if isinstance(item, dict):
            if isinstance(item.get("$ref"), str):
                used.add(item["$ref"])
            todo.extend(item.values())
        elif isinstance(item, list):
            todo.extend(item)
    assert "#/components/schemas/JobSpec" in used
    assert used <= known
