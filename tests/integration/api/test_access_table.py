"""Who gets through to what: every route of the OpenAPI text times every kind of caller, on real tables.

A route that is not in ``ACCESS`` fails the first test, so that a new one cannot be forgotten.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta

import pytest
from sqlalchemy import text

from api.agent_wheel import agent_wheel
from api.app import build_routes
from db.engine import make_engine
from domain.access import Scope
from domain.device import DeviceState
from tests.integration.api.conftest import Live
from tests.integration.api.test_live import ask, join

OPEN, JOIN, LOG_IN, KNOWN = "open", "join", "log in", "any known token"
READ, SUBMIT, ADMIN = "read", "submit", "admin"
DEVICE, OWN_DEVICE, READ_OR_OWN_DEVICE = "device", "own device", "read or own device"
READ_OR_DEVICE = "read or device"

ACCESS = {
    "GET /": OPEN,
    "GET /openapi.json": OPEN,
    "GET /healthz": OPEN,
    "GET /readyz": OPEN,
    "GET /metrics": READ,
    "GET /v1/agent/{file_name}": OPEN,
    "GET /v1/artifacts/{digest}": READ_OR_DEVICE,
    "POST /v1/artifacts": SUBMIT,
    "GET /v1/audit": ADMIN,
    "GET /v1/capabilities": READ,
    "GET /v1/devices": READ,
    "POST /v1/devices": JOIN,
    "GET /v1/devices/{device_id}": READ_OR_OWN_DEVICE,
    "DELETE /v1/devices/{device_id}": ADMIN,
    "POST /v1/devices/{device_id}/claim": OWN_DEVICE,
    "POST /v1/devices/{device_id}/drain": ADMIN,
    "GET /v1/devices/{device_id}/health": READ_OR_OWN_DEVICE,
    "POST /v1/devices/{device_id}/health": OWN_DEVICE,
    "POST /v1/devices/{device_id}/heartbeat": OWN_DEVICE,
    "POST /v1/devices/{device_id}/pause": ADMIN,
    "POST /v1/devices/{device_id}/resume": ADMIN,
    "GET /v1/job_summaries": READ,
    "GET /v1/jobs": READ,
    "POST /v1/jobs": SUBMIT,
    "GET /v1/jobs/{job_id}": READ,
    "GET /v1/jobs/{job_id}/artifacts": READ,
    "POST /v1/jobs/{job_id}/cancel": SUBMIT,
    "POST /v1/jobs/{job_id}/clone": SUBMIT,
    "GET /v1/jobs/{job_id}/events": READ,
    "GET /v1/jobs/{job_id}/front": READ,
    "GET /v1/jobs/{job_id}/importance": READ,
    "GET /v1/jobs/{job_id}/timeline": READ,
    "GET /v1/jobs/{job_id}/trial_columns": READ,
    "GET /v1/jobs/{job_id}/trials/{number}": READ,
    "POST /v1/jobs/{job_id}/pause": SUBMIT,
    "POST /v1/jobs/{job_id}/resume": SUBMIT,
    "POST /v1/jobs/{job_id}/stop": SUBMIT,
    "GET /v1/jobs/{job_id}/trials": READ,
    "POST /v1/join_tokens": ADMIN,
    "GET /v1/measurements/{measurement_id}": READ,
    "PUT /v1/measurements/{measurement_id}/outcome": DEVICE,
    "POST /v1/measurements/{measurement_id}/release": DEVICE,
    "GET /v1/plugins": READ,
    "POST /v1/session": LOG_IN,
    "GET /v1/session": KNOWN,
    "DELETE /v1/session": KNOWN,
    "GET /v1/webhook_deliveries": ADMIN,
    "GET /v1/tokens": ADMIN,
    "POST /v1/tokens": ADMIN,
    "DELETE /v1/tokens/{token_id}": ADMIN,
}

NOBODY = ("no token", "wrong", "expired", "revoked", "removed device")
CALLERS = (*NOBODY, "join token", "no scope", "read", "submit", "admin", "device", "another device")
PASSES = {
    READ: {"read", "submit", "admin"},
    SUBMIT: {"submit", "admin"},
    ADMIN: {"admin"},
    DEVICE: {"device", "another device"},  # whose measurement it is, the lease says: 409 for another device's
    OWN_DEVICE: {"device"},
    READ_OR_OWN_DEVICE: {"read", "submit", "admin", "device"},
    READ_OR_DEVICE: {"read", "submit", "admin", "device", "another device"},
    KNOWN: {"no scope", "read", "submit", "admin", "device", "another device"},
    JOIN: {"join token"},
    LOG_IN: set(CALLERS),  # the token is in the body: without one it is 422 whoever asks
    OPEN: set(CALLERS),
}


@dataclass
class Cast:
    """Everybody who calls, with the device whose rows are asked for."""

    tokens: dict[str, str | None]
    device_id: str


@pytest.fixture(scope="module")
def cast(live: Live, fresh_database: str) -> Cast:
    store = live.store
    own, other, gone = join(live), join(live), join(live)
    store.set_device_state(gone["device_id"], DeviceState.REMOVED)
    for name in ("read", "submit", "admin", "expired", "revoked"):
        scope = Scope(name) if name in {"read", "submit"} else Scope.ADMIN
        made = store.create_token(f"t-{name}", name=f"t-{name}", scopes=(scope,), expires_in=timedelta(hours=1))
        if name == "revoked":
            store.revoke_token(made.id)
    store.set_token("nothing", "t-nothing", frozenset())
    engine = make_engine(fresh_database)
    with engine.begin() as connection:
        past = "UPDATE api_token SET expires_at = now() - interval '1 second' WHERE name = 't-expired'"
        connection.execute(text(past))
    engine.dispose()
    return Cast(
        tokens={
            "no token": None,
            "wrong": "guess",
            "expired": "t-expired",
            "revoked": "t-revoked",
            "removed device": gone["device_token"],
            "join token": "",
            "no scope": "t-nothing",
            "read": "t-read",
            "submit": "t-submit",
            "admin": "t-admin",
            "device": own["device_token"],
            "another device": other["device_token"],
        },
        device_id=own["device_id"],
    )


def routes() -> set[str]:
    paths = build_routes().openapi()["paths"]
    return {f"{method.upper()} {path}" for path, operations in paths.items() for method in operations}


def test_the_table_knows_every_route_and_no_other() -> None:
    assert set(ACCESS) == routes() | {"GET /", "GET /openapi.json"}


@pytest.mark.parametrize("caller", CALLERS)
@pytest.mark.parametrize("route", ACCESS)
def test_access(live: Live, cast: Cast, route: str, caller: str) -> None:
    method, _, path = route.partition(" ")
    # Nobody else's rows are there, so whoever gets through changes nothing: 404, 400 and 422 are ways through.
    acts_on_device = ACCESS[route] in {OWN_DEVICE, READ_OR_OWN_DEVICE}
    known = {
        "{device_id}": cast.device_id if acts_on_device else "device_none",
        "{digest}": "sha256:" + "0" * 64,
        "{file_name}": agent_wheel().file_name,
        **{f"{{{name}_id}}": f"{name}_none" for name in ("job", "measurement", "token")},
    }
    for placeholder, value in known.items():
        path = path.replace(placeholder, value)
    token = live.client.create_join_token().token if caller == "join token" else cast.tokens[caller]
    answer = live.http.request(method, path) if token is None else ask(live, method, path, token)
    live.http.cookies.clear()
    is_through = answer.status_code not in {401, 403, 429}
    if ACCESS[route] == JOIN and caller not in {"no token"}:
        # A join token is spent with the join: whether it is one is seen after the body, which is missing here.
        assert answer.status_code == 400
        return
    assert is_through == (caller in PASSES[ACCESS[route]]), (answer.status_code, answer.text)
    assert answer.status_code < 500 and answer.status_code != 405
    if not is_through:
        problem = answer.json()
        is_nobody = caller in {*NOBODY, "join token"}
        assert (answer.status_code, problem["code"] in {"unauthorized", "forbidden", "not_your_device"}) == (
            401 if is_nobody else 403,
            True,
        )
        assert answer.headers["www-authenticate"].startswith("Bearer")


@pytest.mark.parametrize("caller", [*NOBODY, "admin", "device", "read", "no scope"])
def test_only_a_join_token_joins(live: Live, cast: Cast, caller: str) -> None:
    from tests.unit.api.test_access import JOINING

    token = cast.tokens[caller]
    headers = {} if token is None else {"Authorization": f"Bearer {token}"}
    answer = live.http.post("/v1/devices", json=JOINING, headers=headers)
    assert answer.status_code == 401


@pytest.mark.parametrize("caller", [*NOBODY, "device", "another device"])
def test_only_a_persons_token_logs_in(live: Live, cast: Cast, caller: str) -> None:
    answer = live.http.post("/v1/session", json={"token": cast.tokens[caller] or "x"})
    assert answer.status_code in {401, 403} and "set-cookie" not in answer.headers


def test_another_devices_measurement_is_out_of_reach(live: Live, cast: Cast) -> None:
    from tests.unit.api.messages import measured

    body = {"attempt": 1, "outcome": measured()}
    answer = ask(live, "PUT", "/v1/measurements/measurement_none/outcome", str(cast.tokens["device"]), json=body)
    assert answer.status_code == 404
