"""The hostile corpus against a server process of its own: refused in time, memory flat, nothing left behind."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx
import psutil
import pytest
from sqlalchemy import Engine, text

from db.engine import make_engine
from db.store import SqlJobStore
from tests.integration.api.hostile import MEBIBYTE, corpus
from tests.unit.api.test_access import JOINING

ROOT = Path(__file__).resolve().parents[3]
ADMIN = "hostile-admin"
CPU_S = 5.0  # of the server, for one request: what a wall clock says depends on what else the machine does
MAX_UPLOAD_BYTES = 16 * MEBIBYTE
GROWTH_BYTES = 150 * MEBIBYTE  # the largest body that is read whole has 8 MiB; the largest file 17


@dataclass
class Target:
    """A server process and what it may leave traces in."""

    http: httpx.Client
    process: psutil.Process
    engine: Engine
    temporary: Path
    artifacts: Path
    tokens: dict[str, str]
    device_id: str

    def rows(self) -> dict[str, int]:
        with self.engine.connect() as connection:
            tables = ("job", "artifact", "device", "api_token", "web_session", "join_token", "audit", "device_health")
            return {table: connection.execute(text(f"SELECT count(*) FROM {table}")).scalar_one() for table in tables}


@pytest.fixture(scope="module")
def target(fresh_database: str, broker_url: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Target]:
    folder = tmp_path_factory.mktemp("hostile")
    temporary, artifacts = folder / "tmp", folder / "artifacts"
    temporary.mkdir()
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    engine = make_engine(fresh_database)
    SqlJobStore(engine).set_token("admin", ADMIN, frozenset({"admin"}))
    environment = {
        **{key: value for key, value in os.environ.items() if not key.startswith("PRUNELOOP_")},
        "PRUNELOOP_DATABASE_URL": fresh_database,
        "PRUNELOOP_BROKER_URL": broker_url,
        "PRUNELOOP_ARTIFACT_DIR": str(artifacts),
        "PRUNELOOP_PORT": str(port),
        "PRUNELOOP_MAX_UPLOAD_BYTES": str(MAX_UPLOAD_BYTES),
        "TMPDIR": str(temporary),
    }
    with (folder / "api.log").open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "api.main"], cwd=ROOT, env=environment, stdout=log, stderr=log
        )
    try:
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", trust_env=False, timeout=300) as http:
            wait_until_ready(http, folder / "api.log")
            as_admin = {"Authorization": f"Bearer {ADMIN}"}

            def join_token(uses: int) -> str:
                return str(http.post("/v1/join_tokens", json={"uses": uses}, headers=as_admin).json()["token"])

            joined = http.post("/v1/devices", json=JOINING, headers={"Authorization": f"Bearer {join_token(1)}"}).json()
            tokens = {"admin": ADMIN, "device": joined["device_token"], "join": join_token(10_000)}
            yield Target(http, psutil.Process(process.pid), engine, temporary, artifacts, tokens, joined["device_id"])
    finally:
        process.terminate()
        process.wait(120)
        engine.dispose()


def wait_until_ready(http: httpx.Client, log: Path) -> None:
    until = time.monotonic() + 90
    while time.monotonic() < until:
        try:
            if http.get("/readyz").status_code == 200:
                return
        except httpx.TransportError:
            time.sleep(0.2)
    raise AssertionError(log.read_text()[-3000:])


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_everything_hostile_is_refused_in_time_and_leaves_nothing(target: Target) -> None:
    requests = corpus()
    assert len(requests) >= 300
    for item in requests[:20]:  # whatever is loaded at first use is loaded
        send(target, item.method, item.path, item.caller, item.content, item.headers)
    rows, memory_bytes, files = target.rows(), target.process.memory_info().rss, target.process.num_fds()
    peak_bytes, slowest = memory_bytes, (0.0, "")
    wrong = []
    for item in requests:
        began = cpu_s(target)
        answer = send(target, item.method, item.path, item.caller, item.content, item.headers)
        took_s = cpu_s(target) - began
        slowest = max(slowest, (took_s, item.name))
        peak_bytes = max(peak_bytes, target.process.memory_info().rss)
        if answer.status_code not in item.statuses:
            wrong.append((item.name, answer.status_code, answer.text[:200]))
        elif answer.headers["content-type"] != "application/problem+json" and answer.status_code != 431:
            wrong.append((item.name, answer.status_code, answer.headers["content-type"]))
    print(
        f"\n{len(requests)} requests; dearest {slowest[0]:.2f} s of the processor ({slowest[1]}); "
        f"memory {memory_bytes / MEBIBYTE:.0f} MiB, at most {peak_bytes / MEBIBYTE:.0f} MiB"
    )
    assert not wrong, "\n".join(map(str, wrong))
    assert slowest[0] < CPU_S, slowest
    assert peak_bytes - memory_bytes < GROWTH_BYTES
    assert target.rows() == rows
    assert not list(target.temporary.iterdir())
    assert not [path for path in target.artifacts.rglob("*") if path.is_file()]
    assert target.process.num_fds() <= files + 4
    assert target.http.get("/readyz").status_code == 200


def cpu_s(target: Target) -> float:
    used = target.process.cpu_times()
    return float(used.user + used.system)


def send(
    target: Target, method: str, path: str, caller: str, content: bytes, headers: dict[str, str]
) -> httpx.Response:
    sent = {"Authorization": f"Bearer {target.tokens[caller]}", **headers}
    if "Idempotency-Key" not in sent and path == "/v1/jobs":
        sent["Idempotency-Key"] = uuid.uuid4().hex
    url = path.replace("OWN", target.device_id)
    return target.http.request(method, url, content=content, headers=sent)
