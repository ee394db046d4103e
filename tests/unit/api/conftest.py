from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import httpx
import pytest
from fastapi import FastAPI

from api.app import build_routes, stand_on
from api.deps import ApiDependencies
from api.limits import Buckets, Limits
from tests.unit.api.fakes import ADMIN_TOKEN, FakeArtifacts, FakeLauncher, FakeService, FakeStore, seeded_store
from tests.unit.api.transport import AppTransport

MAX_UPLOAD_BYTES = 3 * 1024 * 1024


@dataclass
class World:
    """The application on fakes, and a way to ask it."""

    store: FakeStore
    launcher: FakeLauncher
    artifacts: FakeArtifacts
    service: FakeService
    transport: AppTransport
    http: httpx.Client
    app: FastAPI
    is_broker_there: bool = True

    def say_public_url(self, url: str) -> None:
        self.app.state.deps = replace(self.app.state.deps, public_url=url)

    def ask(self, method: str, path: str, *, token: str | None = ADMIN_TOKEN, **options: Any) -> httpx.Response:
        headers = dict(options.pop("headers", {}))
        if token is not None:
            headers["Authorization"] = f"Bearer {token}"
        return self.http.request(method, path, headers=headers, **options)


@pytest.fixture(scope="session")
def routes() -> Iterator[tuple[FastAPI, AppTransport]]:
    app = build_routes()
    with AppTransport(app) as transport:
        yield app, transport


@pytest.fixture
def world(tmp_path: Path, routes: tuple[FastAPI, AppTransport]) -> World:
    app, transport = routes
    store, launcher, artifacts = seeded_store(), FakeLauncher(), FakeArtifacts(tmp_path)
    service = FakeService(store)
    http = httpx.Client(transport=transport, base_url="http://server.example", timeout=60)
    world = World(store, launcher, artifacts, service, transport, http, app)
    stand_on(
        app,
        ApiDependencies(
            store=cast(Any, store),
            artifacts=artifacts,
            launcher=launcher,
            service=cast(Any, service),
            max_upload_bytes=MAX_UPLOAD_BYTES,
            public_url="http://server.example:8420",
            broker_is_reachable=lambda: world.is_broker_there,
            allowed_hosts=("server.example",),
            limits=Limits(failing=Buckets(1000, 1000), joining=Buckets(1000, 1000)),
        ),
    )
    return world
