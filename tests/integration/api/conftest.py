"""The API on a real PostgreSQL, served over a real socket."""

from __future__ import annotations

import socket
import threading
import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest
import uvicorn
from fastapi import FastAPI
from sqlalchemy import text
from sqlalchemy.engine import make_url

from api.app import create_app
from api.deps import LONGEST_STREAM_S, ApiDependencies
from api.limits import Buckets, Limits
from client.api import PruneloopClient
from db.artifacts import FileArtifactStore
from db.engine import make_engine, upgrade
from db.store import SqlJobStore
from search.service import Capabilities, JobService
from tests.unit.api.fakes import FakeLauncher

ADMIN = "integration-admin"


@dataclass
class Live:
    """A server that listens, the store under it, and a client."""

    url: str
    store: SqlJobStore
    launcher: FakeLauncher
    client: PruneloopClient
    http: httpx.Client


@pytest.fixture(scope="module")
def fresh_database(database_url: str) -> Iterator[str]:
    name = f"api_{uuid.uuid4().hex[:12]}"
    server = make_engine(database_url)
    with server.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.execute(text(f"CREATE DATABASE {name}"))
    url = make_url(database_url).set(database=name).render_as_string(hide_password=False)
    upgrade(url)
    yield url
    with server.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.execute(text(f"DROP DATABASE {name} WITH (FORCE)"))
    server.dispose()


@pytest.fixture(scope="module")
def live(fresh_database: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Live]:
    engine = make_engine(fresh_database)
    store, launcher = SqlJobStore(engine), FakeLauncher()
    store.set_token("admin", ADMIN, frozenset({"admin"}))
    app = make_app(store, launcher, tmp_path_factory.mktemp("artifacts"))
    with (
        serving(app) as url,
        httpx.Client(base_url=url, trust_env=False, timeout=30) as http,
        PruneloopClient(url, ADMIN) as client,
    ):
        yield Live(url, store, launcher, client, http)
    engine.dispose()


def make_app(
    store: SqlJobStore, launcher: FakeLauncher, folder: Path, *, longest_stream_s: float = LONGEST_STREAM_S
) -> FastAPI:
    artifacts = FileArtifactStore(folder)
    return create_app(
        ApiDependencies(
            store=store,
            artifacts=artifacts,
            launcher=launcher,
            service=JobService(store, artifacts, launcher, Capabilities()),
            max_upload_bytes=16 * 1024 * 1024,
            public_url="http://127.0.0.1",
            limits=wide_limits(),
            longest_stream_s=longest_stream_s,
        )
    )


def wide_limits() -> Limits:
    """Return limits that a test's thousands of wrong tokens do not reach."""
    return Limits(failing=Buckets(1e9, 1e9), joining=Buckets(1e9, 1e9))


class serving:  # noqa: N801 - reads as a word in a with statement
    """Serve an application on a free port of this machine, from a thread."""

    def __init__(self, app: FastAPI) -> None:
        self._socket = socket.socket()
        self._socket.bind(("127.0.0.1", 0))
        config = uvicorn.Config(app, log_level="warning", lifespan="off", ws="none", timeout_graceful_shutdown=2)
        self._server = uvicorn.Server(config)
        self._thread = threading.Thread(target=self._server.run, kwargs={"sockets": [self._socket]}, daemon=True)

    def __enter__(self) -> str:
        self._thread.start()
        deadline = time.monotonic() + 10
        while not self._server.started and time.monotonic() < deadline:
            time.sleep(0.01)
        assert self._server.started
        return f"http://127.0.0.1:{self._socket.getsockname()[1]}"

    def __exit__(self, *_: object) -> None:
        self._server.should_exit = True
        self._thread.join(10)
        self._socket.close()
        assert not self._thread.is_alive()
