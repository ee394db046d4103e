"""Who gets through to what: every route times every kind of caller."""

from __future__ import annotations

import pytest

from api.agent_wheel import agent_wheel
from api.app import build_routes
from tests.unit.api.conftest import World
from tests.unit.api.fakes import ADMIN_TOKEN, DEVICE_TOKEN, NOBODY_TOKEN, OTHER_DEVICE_TOKEN

OPEN = {("GET", "/"), ("GET", "/healthz"), ("GET", "/readyz"), ("GET", "/v1/agent/{file_name}")}
LOG_IN = {("POST", "/v1/session")}
ANYBODY = {("GET", "/v1/session"), ("DELETE", "/v1/session")}
JOIN = {("POST", "/v1/devices")}
DEVICE_OWN = {
    ("POST", "/v1/devices/{device_id}/claim"),
    ("POST", "/v1/devices/{device_id}/heartbeat"),
}
DEVICE_OWN_WITH_BODY = {("POST", "/v1/devices/{device_id}/health")}
DEVICE_MEASUREMENT = {
    ("PUT", "/v1/measurements/{measurement_id}/outcome"),
    ("POST", "/v1/measurements/{measurement_id}/release"),
}
ADMIN_OR_OWN_DEVICE = {("GET", "/v1/devices/{device_id}"), ("GET", "/v1/devices/{device_id}/health")}
ADMIN_OR_DEVICE = {("GET", "/v1/artifacts/{digest}")}


def routes() -> list[tuple[str, str]]:
    paths = build_routes().openapi()["paths"]
    listed = [(method.upper(), path) for path, operations in paths.items() for method in operations]
    return [*sorted(listed), ("GET", "/")]


def concrete(path: str) -> str:
    digest = "sha256:" + "0" * 64
    return (
        path.replace("{device_id}", "dev1")
        .replace("{job_id}", "job1")
        .replace("{measurement_id}", "m1")
        .replace("{number}", "0")
        .replace("{digest}", digest)
        .replace("{file_name}", agent_wheel().file_name)
    )


CLOSED = [route for route in routes() if route not in OPEN | LOG_IN]


def test_the_table_knows_every_route() -> None:
    named = OPEN | JOIN | DEVICE_OWN | DEVICE_OWN_WITH_BODY | DEVICE_MEASUREMENT | ADMIN_OR_OWN_DEVICE | ADMIN_OR_DEVICE
    assert named <= set(routes())
    assert len(CLOSED) >= 24


@pytest.mark.parametrize(("method", "path"), CLOSED)
def test_without_a_token_every_closed_route_answers_401(world: World, method: str, path: str) -> None:
    answer = world.ask(method, concrete(path), token=None)
    assert answer.status_code == 401
    assert answer.headers["content-type"] == "application/problem+json"
    assert answer.headers["www-authenticate"].startswith("Bearer")
    assert answer.json()["code"] == "unauthorized"


@pytest.mark.parametrize(("method", "path"), CLOSED)
def test_a_token_nobody_knows_answers_401(world: World, method: str, path: str) -> None:
    body = {"json": JOINING} if (method, path) in JOIN else {}
    answer = world.ask(method, concrete(path), token="guess", **body)
    assert answer.status_code == 401


@pytest.mark.parametrize(
    "header", ["Basic YWRtaW46YWRtaW4=", "Bearer", "Bearer ", "admin-secret", "Token admin-secret"]
)
def test_another_scheme_or_an_empty_token_answers_401(world: World, header: str) -> None:
    assert world.ask("GET", "/v1/jobs", token=None, headers={"Authorization": header}).status_code == 401


@pytest.mark.parametrize(("method", "path"), [route for route in CLOSED if route not in JOIN | ANYBODY])
def test_a_token_without_scopes_answers_403(world: World, method: str, path: str) -> None:
    answer = world.ask(method, concrete(path), token=NOBODY_TOKEN)
    assert answer.status_code == 403
    assert answer.json()["code"] == "forbidden"
    assert "insufficient_scope" in answer.headers["www-authenticate"]


@pytest.mark.parametrize(("method", "path"), CLOSED)
def test_a_device_reaches_its_own_rows_and_nothing_else(world: World, method: str, path: str) -> None:
    route = (method, path)
    if route in JOIN:
        return
    own = world.ask(method, concrete(path), token=DEVICE_TOKEN).status_code
    other = world.ask(method, concrete(path), token=OTHER_DEVICE_TOKEN).status_code
    if route in ANYBODY:
        assert own == other < 300
    elif route in DEVICE_OWN | ADMIN_OR_OWN_DEVICE:
        assert (own, other) == (200, 403)
    elif route in DEVICE_OWN_WITH_BODY:
        assert (own, other) == (400, 403)
    elif route in DEVICE_MEASUREMENT:
        assert own == other == 400  # let through to the missing body; the lease is the fence
    elif route in ADMIN_OR_DEVICE:
        assert own == other == 404
    else:
        assert own == other == 403


@pytest.mark.parametrize(("method", "path"), sorted(DEVICE_OWN | DEVICE_OWN_WITH_BODY | DEVICE_MEASUREMENT))
def test_an_admin_cannot_act_as_a_device(world: World, method: str, path: str) -> None:
    assert world.ask(method, concrete(path), token=ADMIN_TOKEN).status_code == 403


@pytest.mark.parametrize(("method", "path"), sorted(OPEN))
def test_open_routes_need_no_token(world: World, method: str, path: str) -> None:
    assert world.ask(method, concrete(path), token=None).status_code == 200


def test_the_schema_needs_no_token(world: World) -> None:
    assert world.ask("GET", "/openapi.json", token=None).json()["info"]["title"] == "Pruneloop"


@pytest.mark.parametrize("method", ["POST", "DELETE", "PUT"])
def test_a_page_of_another_site_may_not_change_anything(world: World, method: str) -> None:
    path = {"POST": "/v1/jobs/job1/cancel", "DELETE": "/v1/devices/dev1", "PUT": "/v1/measurements/m1/outcome"}[method]
    answer = world.ask(method, path, headers={"Origin": "http://evil.example"})
    assert answer.status_code == 403
    assert answer.json()["code"] == "foreign_origin"


def test_the_servers_own_pages_may(world: World) -> None:
    answer = world.ask("DELETE", "/v1/devices/dev1", headers={"Origin": "http://server.example"})
    assert answer.status_code == 204


JOINING = {
    "inventory": {
        "hostname": "box",
        "machine": "aarch64",
        "cpu": "A",
        "cores": 4,
        "memory_bytes": 1,
        "os": "Linux",
        "kernel": "6",
        "python": "3.11",
        "agent_version": "0.1.0",
        "runtimes": [],
    }
}
