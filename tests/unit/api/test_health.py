from __future__ import annotations

from pathlib import Path

from prometheus_client.parser import text_string_to_metric_families

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


def test_metrics_are_text_that_prometheus_reads(world: World) -> None:
    world.store.devices_by_id["dev1"] = world.store.devices_by_id["dev1"].model_copy(update={"name": 'a"b\\c\nd'})
    answer = world.ask("GET", "/metrics")
    assert answer.headers["content-type"].startswith("text/plain; version=0.0.4")
    families = {family.name: family for family in text_string_to_metric_families(answer.text)}
    for family in families.values():
        assert family.name.startswith("pruneloop_") and family.documentation and family.type != "unknown"
    samples = {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in families.values()
        for sample in family.samples
    }
    assert samples["pruneloop_devices", (("online", "true"), ("state", "active"))] == 2
    assert samples["pruneloop_device_queue_depth", (("device", 'a"b\\c\nd'), ("device_id", "dev1"))] == 0
    assert samples["pruneloop_device_clock_offset_seconds", (("device", 'a"b\\c\nd'), ("device_id", "dev1"))] == 0.0125
    assert samples["pruneloop_queue_oldest_seconds", (("queue", "build"),)] == 12.0
    assert samples["pruneloop_jobs_ended_total", (("state", "SUCCEEDED"),)] == 4
    assert samples["pruneloop_jobs_ended_total", (("state", "FAILED"),)] == 0
    assert samples["pruneloop_lease_expiries_total", (("lease", "build"),)] == 1
    assert samples["pruneloop_fenced_writes_total", (("lease", "measurement"),)] == 2
    assert samples["pruneloop_measurement_seconds_bucket", (("le", "1.0"),)] == 2
    assert samples["pruneloop_measurement_seconds_bucket", (("le", "+Inf"),)] == 3
    assert samples["pruneloop_measurement_seconds_sum", ()] == 3.25
    assert samples["pruneloop_measurement_seconds_count", ()] == 3


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
