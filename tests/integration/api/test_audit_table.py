"""Every change through the API leaves one entry in the audit log, by whoever made it: every route of the OpenAPI text that changes.

A route that is not in ``CHANGES`` or ``SILENT`` fails the first test, so that a new one cannot be forgotten.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from itertools import count

import httpx
import numpy as np
import pytest
from safetensors.numpy import save

from db.joining import sha256_of
from domain.access import Scope
from domain.job import DeviceSelector
from domain.measurement import MeasurementRequest
from domain.ports import NewMeasurement
from tests.integration.api.conftest import Live
from tests.integration.api.test_access_table import routes
from tests.integration.api.test_live import ask, join
from tests.unit.api.messages import BASELINE, CANDIDATE, SPEC, file_of, measured
from tests.unit.api.test_access import JOINING
from tests.unit.api.test_devices import GOOD_CHECK

SILENT = {
    "POST /v1/devices/{device_id}/claim": "a device that asks for work changes nothing that a person owns; measurements tell of it",
    "POST /v1/devices/{device_id}/heartbeat": "every two seconds, from every device",
}


NUMBERS = count()


@dataclass(frozen=True)
class Change:
    """A request, who makes it, and what the log is to say of it."""

    answer: httpx.Response
    actor: str
    action: str
    subject: str


def _job(live: Live) -> str:
    return live.client.submit(SPEC).id


def _verb(verb: str, *before: str) -> Callable[[Live], Change]:
    def change(live: Live) -> Change:
        job_id = _job(live)
        for earlier in before:
            assert ask(live, "POST", f"/v1/jobs/{job_id}/{earlier}").is_success
        return Change(ask(live, "POST", f"/v1/jobs/{job_id}/{verb}"), "admin", f"job.{verb}", job_id)

    return change


def _device_verb(verb: str, *before: str) -> Callable[[Live], Change]:
    def change(live: Live) -> Change:
        device_id = join(live)["device_id"]
        for earlier in before:
            assert ask(live, "POST", f"/v1/devices/{device_id}/{earlier}").is_success
        answer = ask(live, "POST", f"/v1/devices/{device_id}/{verb}")
        return Change(answer, "admin", f"device.{verb}", device_id)

    return change


def _submit(live: Live) -> Change:
    answer = ask(live, "POST", "/v1/jobs", json=SPEC)
    return Change(answer, "admin", "job.create", answer.json()["id"])


def _clone(live: Live) -> Change:
    answer = ask(live, "POST", f"/v1/jobs/{_job(live)}/clone")
    return Change(answer, "admin", "job.create", answer.json()["id"])


def _upload(live: Live) -> Change:
    weights = ("w.safetensors", save({"w": np.arange(4, dtype=np.float32)}), "application/octet-stream")
    answer = ask(live, "POST", "/v1/artifacts", data={"kind": "weights"}, files={"file": weights})
    return Change(answer, "admin", "artifact.upload", answer.json()["digest"])


def _join(live: Live) -> Change:
    answer = ask(live, "POST", "/v1/devices", live.client.create_join_token().token, json=JOINING)
    return Change(answer, answer.json()["name"], "device.join", answer.json()["device_id"])


def _remove(live: Live) -> Change:
    device_id = join(live)["device_id"]
    return Change(ask(live, "DELETE", f"/v1/devices/{device_id}"), "admin", "device.remove", device_id)


def _check(live: Live) -> Change:
    joined = join(live)
    path = f"/v1/devices/{joined['device_id']}/health"
    answer = ask(live, "POST", path, joined["device_token"], json=GOOD_CHECK)
    return Change(answer, joined["name"], "device.health", joined["device_id"])


def _end_of_lease(verb: str) -> Callable[[Live], Change]:
    def change(live: Live) -> Change:
        joined, job = join(live), live.client.submit(SPEC)
        own, device = joined["device_token"], f"/v1/devices/{joined['device_id']}"
        can = {"name": "onnxruntime", "available": True, "formats": ["onnx"], "precisions": ["fp32"]}
        inventory = {**JOINING["inventory"], "runtimes": [can]}
        assert ask(live, "POST", f"{device}/heartbeat", own, json={"inventory": inventory}).is_success
        lease = live.store.lease_search("test", lease_s=30, job_id=job.id)
        assert lease is not None
        request = MeasurementRequest(
            runtime="onnxruntime", baseline=file_of(BASELINE), candidates=(file_of(CANDIDATE),)
        )
        selector = DeviceSelector(id=joined["device_id"])
        new = NewMeasurement(key="k", target=0, selector=selector, request=request)
        row = live.store.add_measurement(lease, new)
        attempt = ask(live, "POST", f"{device}/claim", own).json()["claim"]["attempt"]
        path = f"/v1/measurements/{row.id}/{verb}"
        if verb == "outcome":
            answer = ask(live, "PUT", path, own, json={"attempt": attempt, "outcome": measured()})
        else:
            answer = ask(live, "POST", path, own, json={"attempt": attempt, "reason": "shutting down"})
        return Change(answer, joined["name"], f"measurement.{verb}", row.id)

    return change


def _join_token(live: Live) -> Change:
    answer = ask(live, "POST", "/v1/join_tokens", json={"uses": 1})
    return Change(answer, "admin", "join_token.create", f"join_{sha256_of(answer.json()['token'])[:12]}")


def _token(live: Live) -> Change:
    name = f"reader-{next(NUMBERS)}"
    answer = ask(live, "POST", "/v1/tokens", json={"name": name, "scopes": ["read"]})
    return Change(answer, "admin", "token.create", answer.json()["id"])


def _revoke(live: Live) -> Change:
    token_id = _token(live).subject
    return Change(ask(live, "DELETE", f"/v1/tokens/{token_id}"), "admin", "token.revoke", token_id)


def _log_in(live: Live) -> Change:
    name = f"person-{next(NUMBERS)}"
    made = live.store.create_token(name, name=name, scopes=(Scope.READ,), expires_in=timedelta(hours=1))
    return Change(live.http.post("/v1/session", json={"token": name}), name, "session.open", made.id)


def _log_out(live: Live) -> Change:
    opened = _log_in(live)
    answer = live.http.delete("/v1/session", headers={"Origin": live.url})
    return Change(answer, opened.actor, "session.close", opened.subject)


CHANGES: dict[str, Callable[[Live], Change]] = {
    "POST /v1/artifacts": _upload,
    "POST /v1/devices": _join,
    "DELETE /v1/devices/{device_id}": _remove,
    "POST /v1/devices/{device_id}/drain": _device_verb("drain"),
    "POST /v1/devices/{device_id}/health": _check,
    "POST /v1/devices/{device_id}/pause": _device_verb("pause"),
    "POST /v1/devices/{device_id}/resume": _device_verb("resume", "pause"),
    "POST /v1/jobs": _submit,
    "POST /v1/jobs/{job_id}/cancel": _verb("cancel"),
    "POST /v1/jobs/{job_id}/clone": _clone,
    "POST /v1/jobs/{job_id}/pause": _verb("pause"),
    "POST /v1/jobs/{job_id}/resume": _verb("resume", "pause"),
    "POST /v1/jobs/{job_id}/stop": _verb("stop"),
    "POST /v1/join_tokens": _join_token,
    "PUT /v1/measurements/{measurement_id}/outcome": _end_of_lease("outcome"),
    "POST /v1/measurements/{measurement_id}/release": _end_of_lease("release"),
    "POST /v1/session": _log_in,
    "DELETE /v1/session": _log_out,
    "POST /v1/tokens": _token,
    "DELETE /v1/tokens/{token_id}": _revoke,
}


def test_every_route_that_changes_something_is_known_here() -> None:
    changing = {route for route in routes() if not route.startswith("GET ")}
    assert changing == CHANGES.keys() | SILENT.keys()


@pytest.mark.parametrize("route", CHANGES)
def test_a_change_leaves_one_entry(live: Live, route: str) -> None:
    change = CHANGES[route](live)
    live.http.cookies.clear()
    assert change.answer.is_success, change.answer.text
    entries = ask(live, "GET", f"/v1/audit?subject={change.subject}").json()["items"]
    told = [(entry["actor"], entry["action"]) for entry in entries]
    assert told[0] == (change.actor, change.action), told  # the latest first
    assert told.count((change.actor, change.action)) == 1


@pytest.mark.parametrize("route", ["POST /v1/jobs", "POST /v1/jobs/{job_id}/pause", "DELETE /v1/tokens/{token_id}"])
def test_what_was_refused_leaves_none(live: Live, route: str) -> None:
    method, _, path = route.partition(" ")
    before = ask(live, "GET", "/v1/audit?page_size=1").json()["items"][0]["id"]
    for placeholder in ("{job_id}", "{token_id}"):
        path = path.replace(placeholder, "none")
    assert ask(live, method, path, json={"name": "no model"} if path == "/v1/jobs" else None).is_client_error
    assert ask(live, "GET", "/v1/audit?page_size=1").json()["items"][0]["id"] == before
