"""TLS with a CA of one's own: agent and client speak over it, nobody trusts another CA's, and no log shows a secret."""

from __future__ import annotations

import json
import os
import re
import ssl
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import pytest
import trustme
from sqlalchemy import text
from sqlalchemy.engine import make_url

from client.api import PruneloopClient
from db.engine import make_engine, upgrade
from db.store import SqlJobStore
from domain.errors import Unavailable
from domain.messages import ClaimRequest
from tests.integration.db.samples import Seeds, new_measurement
from workers.agent.api import AgentApi
from workers.agent.settings import Identity
from workers.embedded import free_port

ROOT = Path(__file__).resolve().parents[3]
DATABASE_PASSWORD = "database-password-of-this-test"
BROKER_PASSWORD = "broker-password-of-this-test"


@dataclass
class TlsServer:
    """A real `pruneloop serve` with a certificate of a CA that only `ca_file` knows, and a reaper beside it."""

    url: str
    ca_file: Path
    other_ca_file: Path
    admin_token: str
    store: SqlJobStore
    log: Path
    reaper_log: Path


@pytest.fixture(scope="module")
def server(database_url: str, broker_url: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[TlsServer]:
    folder = tmp_path_factory.mktemp("tls")
    ca = trustme.CA()
    certificate = ca.issue_cert("localhost")
    certificate.cert_chain_pems[0].write_to_path(folder / "cert.pem")
    certificate.private_key_pem.write_to_path(folder / "key.pem")
    ca.cert_pem.write_to_path(folder / "ca.pem")
    trustme.CA().cert_pem.write_to_path(folder / "other.pem")
    name = f"tls_{uuid.uuid4().hex[:10]}"
    admin = make_engine(database_url)
    with admin.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.execute(text(f"CREATE DATABASE {name}"))
    own_url = make_url(database_url).set(database=name).render_as_string(hide_password=False)
    upgrade(own_url)
    port = free_port("127.0.0.1")
    # Neither server asks for a password on its socket, and both take one: it has to stay out of the logs all the same.
    told_url = make_url(own_url).set(password=DATABASE_PASSWORD).render_as_string(hide_password=False)
    environment = without_ours() | {
        "PRUNELOOP_DATABASE_URL": told_url,
        "PRUNELOOP_BROKER_URL": broker_url.replace("://", f"://default:{BROKER_PASSWORD}@", 1),
        "PRUNELOOP_LOG_FORMAT": "json",
        "PRUNELOOP_LOG_LEVEL": "DEBUG",
        "PRUNELOOP_ARTIFACT_DIR": str(folder / "artifacts"),
        "PRUNELOOP_ADMIN_TOKEN_FILE": str(folder / "admin-token"),
    }
    command = [sys.executable, "-m", "client", "serve", "--port", str(port)]
    command += ["--tls-cert", str(folder / "cert.pem"), "--tls-key", str(folder / "key.pem")]
    engine = make_engine(own_url)
    with (folder / "api.log").open("wb") as log:
        process = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=log, stderr=log)
    # What failed and is to be tried again later is woken by the reaper alone.
    reaping = [sys.executable, "-m", "workers.main", "reaper"]
    with (folder / "reaper.log").open("wb") as log:
        reaper = subprocess.Popen(reaping, cwd=ROOT, env=environment, stdout=log, stderr=log)
    try:
        url = f"https://localhost:{port}"
        wait_until_ready(url, folder / "ca.pem", process, folder / "api.log")
        token = (folder / "admin-token").read_text().strip()
        yield TlsServer(
            url,
            folder / "ca.pem",
            folder / "other.pem",
            token,
            SqlJobStore(engine),
            folder / "api.log",
            folder / "reaper.log",
        )
    finally:
        for one in (process, reaper):
            one.terminate()
            one.wait(20)
        engine.dispose()
        with admin.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
            connection.execute(text(f"DROP DATABASE {name} WITH (FORCE)"))
        admin.dispose()


def without_ours() -> dict[str, str]:
    return {key: value for key, value in os.environ.items() if not key.startswith("PRUNELOOP_") and "CERT" not in key}


def wait_until_ready(url: str, ca_file: Path, process: subprocess.Popen[bytes], log: Path) -> None:
    context = ssl.create_default_context(cafile=str(ca_file))
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        assert process.poll() is None, log.read_text()
        try:
            if httpx.get(f"{url}/readyz", verify=context, timeout=5).status_code == 200:
                return
        except httpx.TransportError:
            time.sleep(0.1)
    raise AssertionError(log.read_text())


def run(module: str, *words: str, environment: Mapping[str, str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", module, *words],
        cwd=ROOT, env={**without_ours(), **environment}, capture_output=True, text=True, timeout=120,
    )  # fmt: skip


def devices_add(server: TlsServer, environment: Mapping[str, str]) -> subprocess.CompletedProcess[str]:
    told = {"PRUNELOOP_URL": server.url, "PRUNELOOP_TOKEN": server.admin_token, **environment}
    return run("client", "devices", "add", "--token-only", environment=told)


def test_an_agent_joins_and_claims_over_tls(server: TlsServer, tmp_path: Path) -> None:
    token = devices_add(server, {"PRUNELOOP_CA_FILE": str(server.ca_file)})
    assert token.returncode == 0, token.stderr
    joined = run(
        "workers.agent", "join", "--server", server.url, "--token", token.stdout.strip(), "--state-dir", str(tmp_path),
        environment={"SSL_CERT_FILE": str(server.ca_file), "PRUNELOOP_AGENT_REPLAY": "synthetic"},
    )  # fmt: skip
    assert joined.returncode == 0, joined.stderr
    identity = Identity.load(tmp_path)
    assert identity.server_url == server.url
    _, lease = Seeds(server.store).job()
    wanted = server.store.add_measurement(lease, new_measurement("m", runtime="replay"))
    with AgentApi(server.url, identity.device_token.get_secret_value(), ca_file=server.ca_file) as api:
        answer = api.claim(identity.device_id, ClaimRequest())
    assert answer.claim is not None and answer.claim.measurement_id == wanted.id, answer.reason


def test_logs_of_a_run_are_json_with_ids_and_hold_no_secret(server: TlsServer, tmp_path: Path) -> None:
    token = devices_add(server, {"PRUNELOOP_CA_FILE": str(server.ca_file)}).stdout.strip()
    (tmp_path / "token").write_text(token)
    environment = {
        "SSL_CERT_FILE": str(server.ca_file), "PRUNELOOP_AGENT_REPLAY": "synthetic", "PRUNELOOP_LOG_FORMAT": "json",
        "PRUNELOOP_AGENT_LOG_LEVEL": "DEBUG", "PRUNELOOP_AGENT_SERVER_URL": server.url,
        "PRUNELOOP_AGENT_JOIN_TOKEN_FILE": str(tmp_path / "token"), "PRUNELOOP_AGENT_HEALTH_FILE": str(tmp_path / "healthy"),
    }  # fmt: skip
    _, lease = Seeds(server.store).job()
    wanted = server.store.add_measurement(lease, new_measurement("logged", runtime="replay"))
    with (tmp_path / "agent.log").open("wb") as log:
        command = [sys.executable, "-m", "workers.agent", "run", "--state-dir", str(tmp_path)]
        agent = subprocess.Popen(command, cwd=ROOT, env={**without_ours(), **environment}, stdout=log, stderr=log)
    try:
        deadline = time.monotonic() + 120
        while not server.store.measurement(wanted.id).state.is_terminal:
            assert agent.poll() is None and time.monotonic() < deadline, (tmp_path / "agent.log").read_text()[-3000:]
            time.sleep(0.2)
        assert (tmp_path / "healthy").exists()
    finally:
        agent.terminate()
        agent.wait(60)
    identity = Identity.load(tmp_path)
    secrets = {
        "admin token": server.admin_token,
        "join token": token,
        "device token": identity.device_token.get_secret_value(),
        "broker password of the device": str(urlsplit(identity.broker.url).password),
        "database password": DATABASE_PASSWORD,
        "broker password": BROKER_PASSWORD,
    }
    for log_file, ids in (
        (server.log, {"measurement_id", "device_id"}),
        (tmp_path / "agent.log", {"job_id", "device_id"}),
    ):
        said = log_file.read_text()
        assert [name for name, secret in secrets.items() if secret in said] == [], log_file
        lines = [json.loads(line) for line in said.splitlines() if line.startswith("{")]
        assert len(lines) > 5 and {line["role"] for line in lines} <= {"api", "agent"}
        about = [line for line in lines if line.get("measurement_id") == wanted.id]
        assert about and ids <= {key for line in about for key in line}
    said = server.reaper_log.read_text()
    assert '"role": "reaper"' in said and [name for name, secret in secrets.items() if secret in said] == []


def test_a_certificate_of_an_unknown_ca_is_refused_in_words(server: TlsServer, tmp_path: Path) -> None:
    refused = devices_add(server, {"PRUNELOOP_CA_FILE": str(server.other_ca_file)})
    assert refused.returncode == 3
    assert re.search(r"certificate of https://localhost:\d+ is not trusted here \(.+\)", refused.stderr), refused.stderr
    assert "PRUNELOOP_CA_FILE" in refused.stderr and "Traceback" not in refused.stderr
    refused = run(
        "workers.agent", "join", "--server", server.url, "--token", "plj_x", "--state-dir", str(tmp_path),
        environment={"PRUNELOOP_AGENT_REPLAY": "synthetic"},
    )  # fmt: skip
    assert refused.returncode == 1 and "PRUNELOOP_AGENT_CA_FILE" in refused.stderr, refused.stderr
    assert not (tmp_path / "agent.json").exists()


def test_a_certificate_for_another_name_is_refused(server: TlsServer) -> None:
    url = server.url.replace("localhost", "127.0.0.1")
    with (
        PruneloopClient(url, server.admin_token, ca_file=server.ca_file) as client,
        pytest.raises(Unavailable, match=r"not valid for '127\.0\.0\.1'"),
    ):
        client.devices()


def test_nothing_is_said_without_tls(server: TlsServer) -> None:
    with pytest.raises(httpx.TransportError):
        httpx.get(server.url.replace("https:", "http:") + "/healthz", timeout=5)


def test_a_ca_file_that_is_none_is_named(server: TlsServer, tmp_path: Path) -> None:
    (tmp_path / "empty.pem").write_text("nothing")
    with pytest.raises(Unavailable, match=r"empty\.pem holds no certificates"):
        PruneloopClient(server.url, server.admin_token, ca_file=tmp_path / "empty.pem")
