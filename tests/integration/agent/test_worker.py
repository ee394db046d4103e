"""The agent as it runs: a real Celery worker on a real broker, as a user that can touch its own keys only."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from benchmarks.tiny_onnx import write_conv_net
from domain.artifact import ArtifactKind
from domain.measurement import Measured, MeasuredFile, MeasurementPlan, MeasurementRequest
from domain.messages import HeartbeatAction
from domain.outcome import Failed
from tests.integration.agent.server import FakeServer
from workers.agent.__main__ import join
from workers.agent.runtimes.names import TORCH_RUNTIMES
from workers.agent.settings import Identity
from workers.dispatch import CeleryLauncher

ROOT = Path(__file__).resolve().parents[3]
SHORT = MeasurementPlan(max_s=0.3, min_pairs=8, half_width=0.05, bootstrap=200)
ENDLESS = MeasurementPlan(max_s=120, half_width=1e-9)


@pytest.fixture
def launcher(broker_url: str) -> Iterator[CeleryLauncher]:
    made = CeleryLauncher(broker_url)
    yield made
    made.dismiss_device("dev_a")
    made.close()


@pytest.fixture
def server(launcher: CeleryLauncher) -> Iterator[FakeServer]:
    made = FakeServer(launcher.admit_device("dev_a", "s3cret"))
    yield made
    made.close()


@pytest.fixture
def state_dir(server: FakeServer, tmp_path: Path) -> Path:
    join(server.url, "join-token", "board", {"class": "edge"}, tmp_path / "state")
    return tmp_path / "state"


Start = Callable[[], "subprocess.Popen[bytes]"]


@pytest.fixture
def start(state_dir: Path, tmp_path: Path) -> Iterator[Start]:
    started: list[subprocess.Popen[bytes]] = []
    log = tmp_path / "agent.log"

    def begin() -> subprocess.Popen[bytes]:
        environment = {
            **os.environ,
            "PRUNELOOP_AGENT_PRESENCE_S": "0.2",
            "PRUNELOOP_AGENT_QUIET_FILE": str(tmp_path / "quiet.lock"),
        }
        with log.open("ab") as out:
            command = [sys.executable, "-m", "workers.agent", "run", "--state-dir", str(state_dir)]
            process = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=out, stderr=out)
        started.append(process)
        return process

    yield begin
    for process in started:
        if process.poll() is None:
            for child in psutil.Process(process.pid).children(recursive=True):
                child.kill()
            process.kill()
            process.wait()
    sys.stderr.write(log.read_text() if log.exists() else "")


@pytest.fixture
def request_of(server: FakeServer, tmp_path: Path) -> Callable[[MeasurementPlan], MeasurementRequest]:
    nets = [write_conv_net(tmp_path / f"{width}.onnx", channels=width) for width in (16, 4)]
    files = [
        MeasuredFile(artifact=server.add(net.path, ArtifactKind.ONNX), check=server.add(net.check, ArtifactKind.CHECK))
        for net in nets
    ]
    return lambda plan: MeasurementRequest(runtime="onnxruntime", baseline=files[0], candidates=(files[1],), plan=plan)


RequestOf = Callable[[MeasurementPlan], MeasurementRequest]


def stopped_in_s(process: subprocess.Popen[bytes], timeout_s: float = 20.0) -> float:
    begin_s = time.monotonic()
    process.terminate()
    process.wait(timeout_s)
    return time.monotonic() - begin_s


def test_joining_tells_the_server_what_this_machine_is(server: FakeServer, state_dir: Path) -> None:
    (told,) = server.joined
    assert told.labels == {"class": "edge"}
    assert any(runtime.name == "onnxruntime" and runtime.available for runtime in told.inventory.runtimes)
    identity = Identity.load(state_dir)
    assert (identity.device_id, identity.server_url) == ("dev_a", server.url)
    assert server.tokens == {"Bearer join-token"}


def test_work_is_found_at_start_then_by_wakes_and_the_worker_leaves_when_asked(
    server: FakeServer, start: Start, request_of: RequestOf, launcher: CeleryLauncher
) -> None:
    server.waiting.append(request_of(SHORT))
    process = start()
    server.wait_until(lambda: len(server.outcomes) == 1)  # nobody waked it
    ident, message = server.outcomes[0]
    assert ident == "m1"
    assert isinstance(message.outcome, Measured), message.outcome
    assert message.outcome.conditions["device_id"] == "dev_a"
    assert set(message.outcome.stages_s) >= {"fetch", "wait_for_quiet", "load", "check", "warm_up", "measure"}

    server.waiting += [request_of(SHORT), request_of(SHORT)]
    begin_s = time.monotonic()
    launcher.wake_device("dev_a")
    launcher.wake_device("dev_a")  # a doubled wake does no harm
    server.wait_until(lambda: len(server.outcomes) == 3)
    assert time.monotonic() - begin_s < 15
    assert [ident for ident, _ in server.outcomes] == ["m1", "m2", "m3"]

    server.wait_until(lambda: any(beat.inventory for beat in server.beats))
    assert any(beat.conditions.get("load_1m") is not None and beat.clock for beat in server.beats)
    assert server.tokens == {"Bearer join-token", "Bearer device-token"}

    # With nothing left to do it checks itself, with every runtime that reads ONNX and starts at once.
    able = {r.name for r in server.joined[0].inventory.runtimes if r.available and "onnx" in r.formats}
    able -= set(TORCH_RUNTIMES)
    server.wait_until(lambda: {check.runtime for check in server.checks} >= able, timeout_s=60)
    assert all(check.timing is not None for check in server.checks), server.checks
    server.wait_until(lambda: server.empty_claims >= 2)
    time.sleep(0.5)  # the wake that found nothing more is over
    children = psutil.Process(process.pid).children(recursive=True)
    assert children
    assert stopped_in_s(process) < 1
    assert process.returncode == 0
    _, alive = psutil.wait_procs(children, timeout=5)
    assert not alive, "the spare child outlived its worker"


def test_what_is_being_measured_is_finished_when_asked_to_leave(
    server: FakeServer, start: Start, request_of: RequestOf
) -> None:
    plan = MeasurementPlan(max_s=2.0, half_width=1e-9)
    server.waiting += [request_of(plan), request_of(plan), request_of(plan)]
    process = start()
    server.wait_until(lambda: server.claims == 1)
    time.sleep(0.5)
    stopped_in_s(process)
    assert process.returncode == 0
    assert server.claims == 1
    # Begun before the signal: measured; not yet begun: handed back.
    assert len(server.outcomes) + len(server.released) == 1
    assert all(isinstance(message.outcome, Measured) for _, message in server.outcomes)


def test_a_cancellation_by_heartbeat_kills_the_measurement(
    server: FakeServer, start: Start, request_of: RequestOf
) -> None:
    server.action = HeartbeatAction.CANCEL
    server.waiting.append(request_of(ENDLESS))
    start()
    server.wait_until(lambda: len(server.outcomes) == 1)
    outcome = server.outcomes[0][1].outcome
    assert isinstance(outcome, Failed)
    assert outcome.code == "cancelled"


def test_a_killed_worker_takes_its_measurement_with_it(
    server: FakeServer, start: Start, request_of: RequestOf, tmp_path: Path
) -> None:
    server.waiting.append(request_of(ENDLESS))
    process = start()
    server.wait_until(lambda: any(beat.stage == "measure" for beat in server.beats))
    children = psutil.Process(process.pid).children(recursive=True)
    assert any("workers.agent.measure_child" in child.cmdline() for child in children)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    _, alive = psutil.wait_procs(children, timeout=10)
    assert not alive
    # Its quiet died with it: the next worker measures at once.
    server.waiting.append(request_of(SHORT))
    start()
    server.wait_until(lambda: len(server.outcomes) == 1)
    assert isinstance(server.outcomes[0][1].outcome, Measured)


def test_a_broker_that_is_away_at_start_is_waited_for_and_the_worker_still_leaves_when_asked(
    server: FakeServer, start: Start, state_dir: Path, tmp_path: Path
) -> None:
    identity = Identity.load(state_dir)
    away = identity.broker.model_copy(update={"url": f"redis+socket://{tmp_path}/nothing.sock?virtual_host=0"})
    identity.model_copy(update={"broker": away}).save(state_dir)
    process = start()
    server.wait_until(lambda: len(server.beats) >= 2)  # the server knows of it all the same
    time.sleep(2.0)
    assert process.poll() is None
    assert stopped_in_s(process) < 1
