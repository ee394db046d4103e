"""The real API, reaper, tables and broker as processes of their own, and real agents that join them."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import httpx
import psutil
from sqlalchemy import Engine, text

from db.artifacts import FileArtifactStore
from db.store import SqlJobStore
from domain.artifact import ArtifactKind, ArtifactRef
from domain.job import DeviceSelector
from domain.measurement import MeasuredFile, Measurement, MeasurementPlan, MeasurementRequest
from domain.messages import OutcomeMessage
from domain.ports import NewMeasurement, SearchLease
from tests.integration.db.samples import spec
from workers.agent.journal import Journal
from workers.agent.settings import Identity
from workers.embedded import free_port

ROOT = Path(__file__).resolve().parents[3]
ADMIN = "admin-of-this-test"
SEARCH_LEASE_S = 3600.0


def wait_until(holds: Callable[[], bool], what: Callable[[], object], timeout_s: float = 60.0) -> None:
    """Wait for something to be so; ``what`` is shown where it never is."""
    until_s = time.monotonic() + timeout_s
    while not holds():
        assert time.monotonic() < until_s, f"never happened: {what()}"
        time.sleep(0.05)


class RealServer:
    """API and reaper on given tables and a given broker; the test plays the search that holds a job."""

    def __init__(self, database_url: str, broker_url: str, folder: Path, engine: Engine) -> None:
        self.engine = engine
        self.store = SqlJobStore(engine)
        self.artifacts = FileArtifactStore(folder / "artifacts")
        self.folder = folder
        self.port = free_port("127.0.0.1")
        self.url = f"http://127.0.0.1:{self.port}"
        self._environment = {
            **{key: value for key, value in os.environ.items() if not key.startswith("PRUNELOOP_")},
            "PRUNELOOP_DATABASE_URL": database_url,
            "PRUNELOOP_BROKER_URL": broker_url,
            "PRUNELOOP_ARTIFACT_DIR": str(folder / "artifacts"),
            "PRUNELOOP_PORT": str(self.port),
        }
        self._api: subprocess.Popen[bytes] | None = None
        self._reaper: subprocess.Popen[bytes] | None = None
        self.store.set_token("admin", ADMIN, frozenset({"admin"}))
        job, _ = self.store.create_job(spec("failures"))
        lease = self.store.lease_search("the test", lease_s=SEARCH_LEASE_S, job_id=job.id)
        assert lease is not None
        self.lease: SearchLease = lease
        self._keys = 0

    def start(self) -> None:
        """Start what does not run, and wait until the API is ready."""
        if self._reaper is None:
            self._reaper = self._launch("reaper", "workers.main", "reaper")
        self._api = self._launch("api", "api.main")
        wait_until(self._is_ready, lambda: (self.folder / "api.log").read_text()[-2000:])

    def kill_api(self) -> None:
        assert self._api is not None
        self._api.send_signal(signal.SIGKILL)
        self._api.wait()

    def close(self) -> None:
        for process in (self._api, self._reaper):
            if process is not None and process.poll() is None:
                process.kill()
                process.wait()

    def join_command(self) -> tuple[str, str]:
        """Return a fresh join token and the command that the server prints with it."""
        answer = httpx.post(f"{self.url}/v1/join_tokens", headers={"Authorization": f"Bearer {ADMIN}"})
        assert answer.status_code == 201, answer.text
        return answer.json()["token"], answer.json()["command"]

    def file(self, path: Path, check: Path | None = None) -> MeasuredFile:
        """Store a file as a builder does."""
        return MeasuredFile(
            artifact=self._store(path, ArtifactKind.ONNX),
            check=self._store(check, ArtifactKind.CHECK) if check is not None else None,
        )

    def _store(self, path: Path, kind: ArtifactKind) -> ArtifactRef:
        ref = self.artifacts.put_file(path, kind)
        self.store.record_artifact(ref)
        return ref

    def add(
        self,
        device: str | DeviceSelector,
        baseline: MeasuredFile,
        candidate: MeasuredFile,
        plan: MeasurementPlan,
        runtime: str,
        batch: int = 1,
    ) -> Measurement:
        """Ask a device, by its id, or any of a class for a measurement; the reaper wakes whoever may do it."""
        self._keys += 1
        request = MeasurementRequest(
            runtime=runtime, batch=batch, baseline=baseline, candidates=(candidate,), plan=plan
        )
        selector = DeviceSelector(id=device) if isinstance(device, str) else device
        return self.store.add_measurement(
            self.lease, NewMeasurement(key=f"m{self._keys}", target=0, selector=selector, request=request)
        )

    def finished(self, measurement: Measurement, timeout_s: float = 60.0) -> Measurement:
        """Wait until a measurement is over."""
        wait_until(
            lambda: self.store.measurement(measurement.id).state.is_terminal,
            lambda: (self.store.measurement(measurement.id), self.events(measurement)),
            timeout_s,
        )
        return self.store.measurement(measurement.id)

    def leased(self, measurement: Measurement) -> None:
        wait_until(
            lambda: self.store.measurement(measurement.id).state == "leased",
            lambda: self.store.measurement(measurement.id),
        )

    def events(self, measurement: Measurement) -> list[tuple[str, int]]:
        """Return type and attempt of every event of a measurement, in order."""
        return [
            (event.type, int(str(event.data.get("attempt", 0))))
            for event in self.store.events(measurement.job_id, limit=1000)
            if event.data.get("measurement_id") == measurement.id
        ]

    def counts(self, measurement: Measurement) -> dict[str, int]:
        """Count the rows that hold a measurement's result, and the times its end was told."""
        with self.engine.connect() as connection:
            found = {
                table: connection.execute(
                    text(f"SELECT count(*) FROM {table} WHERE measurement_id = :id"), {"id": measurement.id}
                ).scalar_one()
                for table in ("measurement_sample", "stale_outcome")
            }
        ended = [type_ for type_, _ in self.events(measurement) if type_ == "measurement.finished"]
        return {**found, "finished": len(ended)}

    def _is_ready(self) -> bool:
        assert self._api is not None and self._api.poll() is None, (self.folder / "api.log").read_text()[-2000:]
        try:
            return httpx.get(f"{self.url}/readyz", timeout=5).status_code == 200
        except httpx.TransportError:
            return False

    def _launch(self, name: str, *module: str) -> subprocess.Popen[bytes]:
        with (self.folder / f"{name}.log").open("ab") as out:
            command = [sys.executable, "-m", *module]
            return subprocess.Popen(command, cwd=ROOT, env=self._environment, stdout=out, stderr=out)


class RealAgent:
    """A device that joined by the command line, with what its environment says."""

    def __init__(
        self, server: RealServer, folder: Path, environment: Mapping[str, str], labels: Sequence[str] = ()
    ) -> None:
        self.state_dir = folder / "state"
        self.log = folder / "agent.log"
        self._environment = {
            **{key: value for key, value in os.environ.items() if not key.startswith("PRUNELOOP_")},
            "PRUNELOOP_AGENT_PRESENCE_S": "0.3",
            "PRUNELOOP_AGENT_QUIET_FILE": str(folder / "quiet.lock"),
            **environment,
        }
        self._process: subprocess.Popen[bytes] | None = None
        token, _ = server.join_command()
        self._start(
            "join",
            "--server",
            server.url,
            "--token",
            token,
            "--name",
            folder.name,
            *(word for label in labels for word in ("--label", label)),
        )
        assert self._process is not None and self._process.wait(60) == 0, self.log.read_text()
        self.id = Identity.load(self.state_dir).device_id

    def run(self) -> None:
        self._start("run")

    def doctor(self) -> str:
        """Return what `doctor` says while the agent runs."""
        command = [sys.executable, "-m", "workers.agent", "doctor", "--state-dir", str(self.state_dir)]
        return subprocess.run(
            command, cwd=ROOT, env=self._environment, capture_output=True, text=True, timeout=120, check=True
        ).stdout

    def kill(self) -> list[psutil.Process]:
        """``kill -9``; return what is still alive of all it had started, a moment later."""
        assert self._process is not None and self._process.poll() is None, self.log.read_text()[-2000:]
        children = psutil.Process(self._process.pid).children(recursive=True)
        self._process.send_signal(signal.SIGKILL)
        self._process.wait()
        _, alive = psutil.wait_procs(children, timeout=10)
        return list(alive)

    def is_measuring(self) -> bool:
        assert self._process is not None
        return any(
            "workers.agent.measure_child" in child.cmdline() and child.cpu_times().user > 1
            for child in psutil.Process(self._process.pid).children(recursive=True)
        )

    @property
    def is_running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    @property
    def journal(self) -> list[tuple[str, int]]:
        """Return what waits to be delivered: measurement and attempt."""
        entries = Journal(self.state_dir / "journal.jsonl").entries()
        return [(entry.measurement_id, entry.message.attempt) for entry in entries]

    def keep(self, measurement_id: str, message: OutcomeMessage) -> None:
        """Write into the journal what was delivered already: a crash between delivery and clearing it."""
        Journal(self.state_dir / "journal.jsonl").append(measurement_id, message)

    def close(self) -> None:
        if self.is_running:
            self.kill()

    def _start(self, command: str, *arguments: str) -> None:
        with self.log.open("ab") as out:
            whole = [sys.executable, "-m", "workers.agent", command, "--state-dir", str(self.state_dir), *arguments]
            self._process = subprocess.Popen(whole, cwd=ROOT, env=self._environment, stdout=out, stderr=out)
