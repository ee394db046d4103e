"""The images and the composition do what they say: a job on a device in a container, and nothing left open."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import time
from collections.abc import Callable

import pytest

from domain.job import JobState
from tests.image.conftest import Running
from tests.image.podman import HERE, Podman

pytestmark = [pytest.mark.image, pytest.mark.slow, pytest.mark.timeout(1800)]

FORBIDDEN = {
    "server": ("torch", "onnxruntime"),
    "agent": ("torch", "sqlalchemy", "psycopg", "fastapi", "optuna", "alembic", "onnx"),
    "build": ("fastapi", "optuna"),
}
ENTRIES = {"server": "client.__main__, api.main, workers.main", "agent": "workers.agent.tasks", "build": "workers.main"}


@pytest.mark.parametrize("role", sorted(FORBIDDEN))
def test_an_image_holds_its_role_and_no_more(images: Podman, role: str) -> None:
    code = (
        f"import {ENTRIES[role]}, importlib.util as u, os, json; print(json.dumps([os.getuid(), "
        f"[name for name in {FORBIDDEN[role]!r} if u.find_spec(name)], os.access('/app', os.W_OK)]))"
    )
    answer = images(
        "run", "--rm", "--network=none", "--read-only", "--ulimit", "nofile=20000:20000", "--ulimit", "nproc=1024:1024",
        f"docker.io/pruneloop/{role}:latest", "python3", "-c", code,
    )  # fmt: skip
    assert json.loads(answer.splitlines()[-1]) == [10001, [], False]


def test_every_service_is_well_and_unprivileged(running: Running) -> None:
    for service in running.composition.services:
        for container in running.composition.containers(service):
            if service in {"migrate", "enrol"}:
                continue
            assert running.composition.is_well(container), container
            if service != "postgres":  # its image begins as root and steps down, as the real one does
                users = set(running.podman("exec", container, "sh", "-c", "cat /proc/[0-9]*/status").split("\n"))
                ids = {line.split()[2] for line in users if line.startswith("Uid:")}
                assert "0" not in ids, (container, ids)


def test_only_the_api_is_published(running: Running) -> None:
    published = {
        container: running.podman("port", container)
        for service in running.composition.services
        for container in running.composition.containers(service)
        if running.podman("port", container)
    }
    (api,) = running.composition.containers("api")
    assert set(published) == {api}
    assert published[api].startswith("8420/tcp -> 127.0.0.1:")


def test_the_agent_reaches_api_and_broker_and_not_the_database(running: Running) -> None:
    (agent,) = running.composition.containers("agent")
    (search,) = running.composition.containers("search")

    def reaches(container: str, host: str, port: int) -> bool:
        code = f"import socket; socket.create_connection(('{host}', {port}), 3)"
        return running.podman.holds("exec", container, "python3", "-c", code)

    assert reaches(agent, "api", 8420) and reaches(agent, "broker", 6379)
    assert not reaches(agent, "postgres", 5432)
    assert reaches(search, "postgres", 5432)


def test_the_broker_lets_nobody_in_without_its_password(running: Running) -> None:
    (broker,) = running.composition.containers("broker")
    assert "NOAUTH" in running.podman("exec", broker, "valkey-cli", "ping")
    shell = 'REDISCLI_AUTH="$(cat /run/secrets/broker_password)" valkey-cli --user pruneloop'
    for command in ("flushall", "keys '*'", "config get dir", "set other 1"):
        answer = running.podman("exec", broker, "sh", "-c", f"{shell} {command} 2>&1", check=False)
        assert "NOPERM" in answer, (command, answer)


def test_a_job_on_the_containers_device_ends_with_a_front(running: Running) -> None:
    begin_s = time.monotonic()
    with running.client() as client:
        (device,) = client.devices()
    assert device.name == "compose-host" and device.is_online
    running.cli("submit", str(HERE / "job.yaml"), "--watch")
    with running.client() as client:
        (job,) = client.jobs()
        view = client.job(job.id)
        assert view.state is JobState.SUCCEEDED, view.reason
        front = client.front(job.id, 0)
    assert front.is_final and front.dense and front.items
    assert front.items[0].speedup_ci[0] <= front.items[0].speedup <= front.items[0].speedup_ci[1]
    sys.stderr.write(f"\n{running.cli('front', job.id)}\njob: {time.monotonic() - begin_s:.0f} s\n")


def test_logs_are_json_with_ids_and_hold_no_secret(running: Running) -> None:
    secrets = {name: running.secret(name) for name in ("postgres_password", "broker_password", "admin_token")}
    (agent,) = running.composition.containers("agent")
    identity = json.loads(running.podman("exec", agent, "cat", "/data/agent/agent.json"))
    secrets["device_token"] = identity["device_token"]
    secrets["device_broker_url"] = re.search(r":([^:@/]+)@", identity["broker"]["url"])[1]  # type: ignore[index]
    seen: dict[str, set[str]] = {}
    for service in running.composition.services:
        for container in running.composition.containers(service):
            log = running.podman.logs(container)
            for name, secret in secrets.items():
                assert secret not in log, f"{container} shows {name}"
            if service in {"api", "search", "build", "reaper", "agent"}:
                lines = [json.loads(line) for line in log.splitlines() if line.startswith("{")]
                seen[service] = {key for line in lines for key in line}
    assert {"job_id", "build_id"} <= seen["build"]
    assert {"job_id", "trial", "measurement_id", "device_id"} <= seen["agent"]
    assert {"job_id", "measurement_id", "device_id"} <= seen["api"]


def test_secrets_are_in_no_image_and_no_environment(running: Running) -> None:
    values = [running.secret(name) for name in ("postgres_password", "broker_password", "admin_token")]
    for service in running.composition.services:
        for container in running.composition.containers(service):
            told = json.dumps(running.podman.inspect(container))
            assert not [value for value in values if value in told], container


def test_what_is_killed_comes_back_and_work_goes_on(running: Running) -> None:
    """SIGKILL of every server process at once; the restart policy brings them back and a new job succeeds."""
    with running.client() as client:
        before = len(client.jobs())
        job = client.submit((HERE / "job.yaml").read_bytes())
    for service in ("api", "search", "build", "reaper", "agent", "broker"):
        for container in running.composition.containers(service):
            pid = int(running.podman("inspect", "--format", "{{.State.Pid}}", container))
            subprocess.run(["kill", "-KILL", str(pid)], check=True)
    wait_for(lambda: all(running.composition.is_well(one) for one in running.composition.containers("api")))
    with running.client() as client:
        assert client.wait(job.id, timeout_s=400).state is JobState.SUCCEEDED
        assert len(client.jobs()) == before + 1


def wait_for(holds: Callable[[], bool], timeout_s: float = 90) -> None:
    deadline = time.monotonic() + timeout_s
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.5)
