"""The API with real tables under it and somebody of every scope, for tests that ask it everything."""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx
from sqlalchemy import text
from sqlalchemy.engine import make_url

from db.engine import make_engine, upgrade
from db.store import SqlJobStore
from tests.integration.api.conftest import make_app, serving
from tests.unit.api.fakes import FakeLauncher
from tests.unit.api.messages import SPEC
from tests.unit.api.test_access import JOINING


@dataclass(frozen=True)
class Everybody:
    """Where the server is, and a token of every scope; ``device`` is that of ``device_id``."""

    url: str
    tokens: dict[str, str]
    device_id: str


@contextmanager
def whole_api(database_url: str, folder: Path) -> Iterator[Everybody]:
    """Serve the API on a database of its own, with a few rows in it."""
    name = f"whole_{secrets.token_hex(6)}"
    beside = make_engine(database_url).execution_options(isolation_level="AUTOCOMMIT")
    with beside.connect() as connection:
        connection.execute(text(f"CREATE DATABASE {name}"))
    url = make_url(database_url).set(database=name).render_as_string(hide_password=False)
    upgrade(url)
    engine = make_engine(url)
    try:
        store = SqlJobStore(engine)
        tokens = {scope: f"{scope}-{secrets.token_hex(8)}" for scope in ("admin", "submit", "read")}
        for scope, token in tokens.items():
            store.set_token(scope, token, frozenset({scope}))
        with serving(make_app(store, FakeLauncher(), folder, longest_stream_s=0.1)) as served:
            device = _join(served, tokens["admin"])
            yield Everybody(served, {**tokens, "device": device["device_token"]}, device["device_id"])
    finally:
        engine.dispose()
        with beside.connect() as connection:
            connection.execute(text(f"DROP DATABASE {name} WITH (FORCE)"))
        beside.dispose()


def _join(url: str, admin: str) -> dict[str, str]:
    with httpx.Client(base_url=url, trust_env=False, timeout=30) as http:
        as_admin = {"Authorization": f"Bearer {admin}"}
        for _ in range(3):
            http.post("/v1/jobs", json=SPEC, headers=as_admin).raise_for_status()
        token = http.post("/v1/join_tokens", headers=as_admin).json()["token"]
        answer = http.post("/v1/devices", json=JOINING, headers={"Authorization": f"Bearer {token}"})
        return dict(answer.raise_for_status().json())
