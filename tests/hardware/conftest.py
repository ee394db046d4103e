"""A real server without an agent of its own, and an emulated board that joined it."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import TypeVar

import psutil
import pytest

from benchmarks.tiny_onnx import TinyNet, write_conv_net
from client.api import PruneloopClient
from db.artifacts import FileArtifactStore
from db.engine import make_engine
from db.store import SqlJobStore
from domain.artifact import ArtifactKind, ArtifactRef
from domain.device import Device
from domain.job import DataSpec, DeviceSelector, JobSpec, JobVerb, ModelSpec, TargetSpec
from domain.measurement import MeasuredFile, Measurement, MeasurementPlan, MeasurementRequest
from domain.ports import NewMeasurement, SearchLease
from domain.work import WorkState
from tests.e2e.conftest import System, started
from tests.hardware.emulated_board import EmulatedBoard, missing_tools
from workers.servers.folders import prepare_folders
from workers.servers.postgres import start_postgres

ASKED = "PRUNELOOP_TEST_ARM"  # set by `make test-arm`: then a missing tool is a failure, not a reason to skip
PATIENCE_S = 240.0
LEASE = timedelta(hours=1)

T = TypeVar("T")


@pytest.fixture(scope="session")
def tools() -> None:
    missing = missing_tools()
    if missing and os.environ.get(ASKED):
        pytest.fail(missing)
    if missing:
        pytest.skip(missing)


@pytest.fixture(scope="session")
def board(tools: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmulatedBoard]:
    made = EmulatedBoard.made(tmp_path_factory.mktemp("board") / "root")
    yield made
    shutil.rmtree(made.root, ignore_errors=True)


@pytest.fixture(scope="session")
def server(tools: None) -> Iterator[System]:
    with started("--no-agent") as running:
        yield running


@dataclass
class Agent:
    """The worker on the board, and the device the server knows."""

    process: subprocess.Popen[bytes]
    client: PruneloopClient

    @property
    def device(self) -> Device:
        (device,) = self.client.devices()
        return device

    def stop(self) -> list[psutil.Process]:
        """Ask it to leave; return those of its processes that are still there."""
        children = psutil.Process(self.process.pid).children(recursive=True)
        self.process.terminate()
        self.process.wait(60)
        return psutil.wait_procs(children, timeout=10)[1]


@pytest.fixture(scope="session")
def agent(board: EmulatedBoard, server: System, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Agent]:
    """Joined with a token of the server, then run as a service would."""
    place = tmp_path_factory.mktemp("agent")
    environment = board.environment(
        state_dir=str(place / "state"),
        quiet_file=str(place / "quiet.lock"),
        start_timeout_s=str(PATIENCE_S),
        stage_timeout_s=str(PATIENCE_S),
    )
    module = [board.python, "-m", "workers.agent"]
    with server.client() as client:
        token = client.create_join_token().token
        joining = [*module, "join", "--server", server.url, "--token", token, "--name", "pi", "--label", "arch=aarch64"]
        joined = subprocess.run(joining, env=environment, cwd=place, capture_output=True, text=True, timeout=PATIENCE_S)
        assert joined.returncode == 0, joined.stderr
        log = place / "agent.log"
        with log.open("wb") as out:
            process = subprocess.Popen([*module, "run"], env=environment, cwd=place, stdout=out, stderr=out)
        agent = Agent(process, client)
        # The golden model is measured while there is nothing else to do. Later, on a board that a test made hot, that check would
        # throttle as well, and a board whose check fails twice in a row is quarantined.
        wait_for(lambda: any(client.health(device.id) for device in client.devices()) or None, "the first health check")
        yield agent
        if process.poll() is None:
            for left in agent.stop():
                left.kill()
    sys.stderr.write(log.read_text(errors="replace")[-4000:])


class Desk:
    """Puts measurements into the tables as the search does, and reads what became of them."""

    def __init__(
        self, store: SqlJobStore, artifacts: FileArtifactStore, client: PruneloopClient, selector: DeviceSelector
    ) -> None:
        self._store = store
        self._artifacts = artifacts
        self._client = client
        self._selector = selector
        self.lease = self._take_job()

    @property
    def job_id(self) -> str:
        return self.lease.job_id

    def _take_job(self) -> SearchLease:
        """Hold a job before the server's own search worker does: this one's measurements are ours to choose."""
        target = TargetSpec(device=self._selector)
        spec = JobSpec(model=ModelSpec(name="resnet8"), data=DataSpec(name="mnist-5k"), targets=(target,))
        for _ in range(10):
            job, _ = self._store.create_job(spec)
            lease = self._store.lease_search("test", lease_s=LEASE.total_seconds(), job_id=job.id)
            if lease is not None:
                return lease
            self._store.apply_verb(job.id, JobVerb.CANCEL)
        raise AssertionError("the search worker was quicker ten times")

    def close(self) -> None:
        self._store.apply_verb(self.job_id, JobVerb.CANCEL)

    def file(self, net: TinyNet) -> MeasuredFile:
        return MeasuredFile(
            artifact=self._client.upload_artifact(net.path, ArtifactKind.ONNX),
            check=self._check(net.check),
        )

    def _check(self, path: Path) -> ArtifactRef:
        """Store a check as the builder does: nobody else may."""
        ref = self._artifacts.put_file(path, ArtifactKind.CHECK)
        self._store.record_artifact(ref)
        return ref

    def ask(self, key: str, dense: MeasuredFile, candidate: MeasuredFile, plan: MeasurementPlan) -> str:
        request = MeasurementRequest(runtime="onnxruntime", baseline=dense, candidates=(candidate,), plan=plan)
        new = NewMeasurement(key=key, target=0, selector=self._selector, request=request)
        return self._store.add_measurement(self.lease, new).id

    def wait(self, measurement_id: str) -> Measurement:
        def ended() -> Measurement | None:
            measurement = self._store.measurement(measurement_id)
            return measurement if measurement.state in {WorkState.DONE, WorkState.FAILED} else None

        return wait_for(ended, f"measurement {measurement_id} to end")

    def wait_for_failure(self, measurement_id: str) -> Mapping[str, object]:
        """Return the failure of an attempt after which the server tries again."""

        def failure() -> Mapping[str, object] | None:
            for event in self._store.events(self.job_id, limit=1000):
                if event.type == "measurement.retried" and event.data["measurement_id"] == measurement_id:
                    told = event.data["failure"]
                    assert isinstance(told, dict)
                    return told
            return None

        return wait_for(failure, f"measurement {measurement_id} to fail")


@pytest.fixture(scope="session")
def desk(server: System, agent: Agent) -> Iterator[Desk]:
    engine = make_engine(start_postgres(prepare_folders(server.data_dir)))
    artifacts = FileArtifactStore(server.data_dir / "artifacts")
    made = Desk(SqlJobStore(engine), artifacts, agent.client, DeviceSelector(id=agent.device.id))
    yield made
    made.close()
    engine.dispose()


@pytest.fixture(scope="session")
def nets(tmp_path_factory: pytest.TempPathFactory) -> tuple[TinyNet, TinyNet]:
    """A dense net and a narrower one, with the outputs that an x86 machine computed for them."""
    place = tmp_path_factory.mktemp("nets")
    dense, narrow = (write_conv_net(place / f"{width}.onnx", channels=width, depth=2, size=14) for width in (16, 4))
    return dense, narrow


def wait_for(look: Callable[[], T | None], what: str) -> T:
    deadline = time.monotonic() + PATIENCE_S
    while time.monotonic() < deadline:
        found = look()
        if found is not None:
            return found
        time.sleep(0.1)
    raise AssertionError(f"waited {PATIENCE_S:.0f} s for {what}")
