"""A release rolls out under load: the previous release's server and agent and this one's work together at every step.

The previous release is a commit of this repository, named in previous.json, run from `git archive`: its own code, not a mock.
"""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
import tarfile
import time
import uuid
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import pytest
from sqlalchemy import text
from sqlalchemy.engine import make_url

from db.engine import make_engine
from workers.embedded import free_port

NEW = Path(__file__).resolve().parents[3]
PREVIOUS = json.loads((Path(__file__).parent / "previous.json").read_text())["commit"]
ADMIN = "admin-of-this-test"
# Run inside a tree, with its code: each release writes the tables as it does.
DESK = """
import json, os, pathlib, sys, tempfile
from benchmarks.tiny_onnx import write_conv_net
from db.artifacts import FileArtifactStore
from db.engine import make_engine
from db.store import SqlJobStore
from domain.artifact import ArtifactKind, ArtifactRef
from domain.job import DeviceSelector
from domain.measurement import MeasuredFile, MeasurementPlan, MeasurementRequest
from domain.ports import NewMeasurement, SearchLease
from tests.integration.db.samples import spec
url, action, *words = sys.argv[1:]
store = SqlJobStore(make_engine(url))
if action == "begin":
    store.set_token("admin", words[0], frozenset({"admin"}))
    artifacts = FileArtifactStore(pathlib.Path(os.environ["PRUNELOOP_ARTIFACT_DIR"]))
    files = []
    for width in (24, 8):
        net = write_conv_net(pathlib.Path(tempfile.mkdtemp()) / "net.onnx", channels=width)
        files.append(artifacts.put_file(net.path, ArtifactKind.ONNX))
        store.record_artifact(files[-1])
    job, _ = store.create_job(spec("rolling"))
    lease = store.lease_search("the test", lease_s=3600.0, job_id=job.id)
    held = {"job_id": lease.job_id, "owner": lease.owner, "attempt": lease.attempt}
    print(json.dumps([held, [file.model_dump(mode="json") for file in files]]))
else:
    held, files = json.loads(words[0])
    dense, narrow = (MeasuredFile(artifact=ArtifactRef.model_validate(file)) for file in files)
    plan = MeasurementPlan(max_s=0.5, warmup_s=0.05, min_pairs=10, half_width=0.05, bootstrap=100)
    request = MeasurementRequest(runtime="onnxruntime", baseline=dense, candidates=(narrow,), plan=plan)
    for key, device_id in (word.split("=") for word in words[1:]):
        new = NewMeasurement(key=key, target=0, selector=DeviceSelector(id=device_id), request=request)
        print(store.add_measurement(SearchLease(**held), new).id)
"""


@dataclass
class Tree:
    """The code of one release, its processes told apart by names."""

    folder: Path
    environment: Mapping[str, str]
    log_dir: Path
    processes: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)

    def run(self, *words: str) -> str:
        done = subprocess.run(
            [sys.executable, *words], cwd=self.folder, env=self._environment(), capture_output=True, text=True, timeout=120
        )  # fmt: skip
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def start(self, name: str, *words: str) -> None:
        with (self.log_dir / f"{name}-{self.folder.name}.log").open("ab") as log:
            command = [sys.executable, "-m", *words]
            self.processes[name] = subprocess.Popen(
                command, cwd=self.folder, env=self._environment(), stdout=log, stderr=log
            )

    def stop(self, *names: str) -> None:
        for name in names:
            self.processes[name].send_signal(signal.SIGTERM)
        for name in names:
            self.processes.pop(name).wait(60)

    def close(self) -> None:
        for process in self.processes.values():
            process.kill()
            process.wait()

    def _environment(self) -> Mapping[str, str]:
        return {**self.environment, "PYTHONPATH": str(self.folder)}


@pytest.fixture
def old_folder(tmp_path: Path) -> Path:
    archived = subprocess.run(["git", "archive", PREVIOUS], cwd=NEW, capture_output=True, check=False)
    if archived.returncode != 0:
        pytest.skip(
            f"the previous release, commit {PREVIOUS[:8]}, is not in this checkout's history: git fetch --unshallow"
        )
    folder = tmp_path / "previous"
    with tarfile.open(fileobj=io.BytesIO(archived.stdout)) as archive:
        archive.extractall(folder, filter="data")
    return folder


@pytest.fixture
def own_database(database_url: str) -> Iterator[str]:
    name = f"rolling_{uuid.uuid4().hex[:10]}"
    server = make_engine(database_url).execution_options(isolation_level="AUTOCOMMIT")
    with server.connect() as connection:
        connection.execute(text(f"CREATE DATABASE {name}"))
    yield make_url(database_url).set(database=name).render_as_string(hide_password=False)
    with server.connect() as connection:
        connection.execute(text(f"DROP DATABASE {name} WITH (FORCE)"))
    server.dispose()


@pytest.fixture
def trees(old_folder: Path, own_database: str, broker_url: str, tmp_path: Path) -> Iterator[tuple[Tree, Tree]]:
    environment = {
        **{key: value for key, value in os.environ.items() if not key.startswith("PRUNELOOP_")},
        "PRUNELOOP_DATABASE_URL": own_database,
        "PRUNELOOP_BROKER_URL": broker_url,
        "PRUNELOOP_ARTIFACT_DIR": str(tmp_path / "artifacts"),
        "PRUNELOOP_PORT": str(free_port("127.0.0.1")),
        "PRUNELOOP_AGENT_QUIET_FILE": str(tmp_path / "quiet.lock"),
        "PRUNELOOP_AGENT_PRESENCE_S": "0.5",
    }
    made = tuple(Tree(folder, environment, tmp_path) for folder in (old_folder, NEW))
    yield made[0], made[1]
    for tree in made:
        tree.close()


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_releases_are_mixed_while_one_rolls_out(trees: tuple[Tree, Tree], own_database: str, tmp_path: Path) -> None:
    old, new = trees
    url = f"http://127.0.0.1:{old.environment['PRUNELOOP_PORT']}"
    old.run("-m", "client", "db", "upgrade")
    lease = old.run("-c", DESK, own_database, "begin", ADMIN)
    old.start("api", "api.main")
    old.start("reaper", "workers.main", "reaper")
    await_api(url, "/readyz")
    devices = {}
    for name, tree in (("old", old), ("new", new)):  # this release's agent joins the previous release's server
        state_dir = str(tmp_path / f"agent-{name}")
        tree.run("-m", "workers.agent", "join", "--server", url, "--token", join_token(url), "--state-dir", state_dir)
        devices[name] = json.loads((tmp_path / f"agent-{name}" / "agent.json").read_text())["device_id"]
        tree.start("agent", "workers.agent", "run", "--state-dir", state_dir)

    engine = make_engine(own_database)

    def measure(tree: Tree, phase: str) -> None:
        """Have both devices measure something, asked for by a release."""
        asked = [f"{phase}-{name}={device}" for name, device in devices.items()]
        ids = tree.run("-c", DESK, own_database, "ask", lease, *asked).split()
        deadline = time.monotonic() + 120
        states: list[str] = []
        while states != ["done"] * len(ids):
            assert "failed" not in states and time.monotonic() < deadline, (phase, states, logs(tmp_path))
            time.sleep(0.2)
            with engine.connect() as connection:
                query = text("SELECT state FROM measurement WHERE id = ANY(:ids)")
                states = list(connection.execute(query, {"ids": ids}).scalars())

    measure(old, "old-server-old-schema")
    new.run("-m", "client", "db", "upgrade")
    measure(new, "old-server-new-schema")
    old.stop("api")
    new.start("api", "api.main")  # at the same address, as a restart in place does
    await_api(url, "/readyz")
    measure(new, "new-server-old-reaper")
    old.stop("reaper")
    new.start("reaper", "workers.main", "reaper")
    measure(new, "new-server")
    old.stop("agent")
    engine.dispose()
    metrics = httpx.get(f"{url}/metrics", headers={"Authorization": f"Bearer {ADMIN}"}).text
    assert 'pruneloop_measurements_ended_total{state="done"} 8.0' in metrics
    assert 'pruneloop_fenced_writes_total{lease="measurement"} 0.0' in metrics


def await_api(url: str, path: str) -> None:
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        try:
            if httpx.get(f"{url}{path}", timeout=5).status_code == 200:
                return
        except httpx.TransportError:
            pass
        time.sleep(0.1)
    raise AssertionError(f"{url} is not ready")


def join_token(url: str) -> str:
    answer = httpx.post(f"{url}/v1/join_tokens", headers={"Authorization": f"Bearer {ADMIN}"}, timeout=30)
    assert answer.status_code == 201, answer.text
    return str(answer.json()["token"])


def logs(folder: Path) -> str:
    return "\n".join(f"== {path.name}\n{path.read_text()[-4000:]}" for path in sorted(folder.glob("*.log")))
