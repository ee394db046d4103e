"""One wake with a fake server and a fake runner: claims, cancellations, drains, lost servers."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import httpx
import pytest

from domain.artifact import ArtifactKind, ArtifactRef, digest_of
from domain.device import DeviceState
from domain.errors import NotFound
from domain.health import HealthAnswer, HealthCheck, HealthTrigger, HealthVerdict
from domain.measurement import FileTiming, Measured, MeasuredFile, MeasurementOutcome, MeasurementRequest
from domain.messages import Claim, ClaimAnswer, HeartbeatAction, HeartbeatAnswer, OutcomeMessage
from domain.outcome import Blame, Failed
from workers.agent.api import AgentApi
from workers.agent.health import HealthMonitor
from workers.agent.journal import Journal
from workers.agent.session import AgentSession

REF = ArtifactRef(digest=digest_of(b"x"), size_bytes=1, kind=ArtifactKind.ONNX)
REQUEST = MeasurementRequest(
    runtime="onnxruntime", baseline=MeasuredFile(artifact=REF), candidates=(MeasuredFile(artifact=REF),)
)
MEASURED = Measured(
    baseline=FileTiming(load_ms=1, first_ms=1, latency_ms=1, runs=1),
    candidates=(),
    conditions={},
    stages_s={"measure": 1.0},
)


class Server:
    """What the API would say."""

    def __init__(self, claims: int) -> None:
        self.claims = claims
        self.given = 0
        self.released: list[str] = []
        self.checks: list[HealthCheck] = []
        self.health = HealthAnswer(verdict=HealthVerdict.PASSED, state=DeviceState.ACTIVE)
        self.asks_for_check = False
        self.outcomes: list[tuple[str, OutcomeMessage]] = []
        self.beats: list[dict[str, object]] = []
        self.action = HeartbeatAction.CONTINUE
        self.is_away = False
        self.beat_status = 200
        self.outcome_status = 204
        self.refusals = 0

    def __call__(self, request: httpx.Request) -> httpx.Response:
        if self.is_away:
            raise httpx.ConnectError("refused")
        path = request.url.path
        if path.endswith("/claim"):
            if self.given >= self.claims:
                return _json(ClaimAnswer(reason="nothing waits", check_health=self.asks_for_check))
            self.given += 1
            claim = Claim(measurement_id=f"m{self.given}", attempt=1, lease_s=15, request=REQUEST)
            return _json(ClaimAnswer(claim=claim))
        if path.endswith("/heartbeat"):
            self.beats.append(json.loads(request.content))
            if self.beat_status != 200:
                return httpx.Response(self.beat_status, json={"code": "stale_attempt"})
            return _json(HeartbeatAnswer(action=self.action, server_time=datetime.now(UTC)))
        if path.endswith("/release"):
            assert json.loads(request.content) == {"attempt": 1}
            self.released.append(path.split("/")[3])
            return httpx.Response(204)
        if path.endswith("/health"):
            self.checks.append(HealthCheck.model_validate_json(request.content))
            return httpx.Response(200, content=self.health.model_dump_json())
        self.outcomes.append((path.split("/")[3], OutcomeMessage.model_validate_json(request.content)))
        if self.refusals:
            self.refusals -= 1
            problem = {"code": "implausible_outcome", "detail": "It does not answer the request."}
            return httpx.Response(422, json=problem)
        return httpx.Response(self.outcome_status, json={"code": "stale_attempt"})


def _json(model: ClaimAnswer | HeartbeatAnswer) -> httpx.Response:
    return httpx.Response(200, json=model.model_dump(mode="json"))


class Runner:
    """Measures nothing; does what the test says while it 'measures'."""

    def __init__(self, meanwhile: Callable[[Callable[[], bool]], MeasurementOutcome] = lambda cancelled: MEASURED):
        self.meanwhile = meanwhile
        self.runs = 0

    def run(
        self,
        request: MeasurementRequest,
        *,
        fetch: Callable[[ArtifactRef], Path],
        report_stage: Callable[[str], None],
        is_cancelled: Callable[[], bool],
    ) -> MeasurementOutcome:
        self.runs += 1
        assert fetch(REF) == Path("somewhere")
        report_stage("measure")
        return self.meanwhile(is_cancelled)


def until_cancelled(is_cancelled: Callable[[], bool]) -> MeasurementOutcome:
    until_s = time.monotonic() + 5
    while not is_cancelled():
        assert time.monotonic() < until_s, "never cancelled"
        time.sleep(0.005)
    return Failed(stage="measure", reason="Cancelled.", blame=Blame.SYSTEM, code="cancelled")


def session(server: Server, runner: Runner, tmp_path: Path, **more: object) -> AgentSession:
    settings: dict[str, object] = {
        "quiet_file": tmp_path / "quiet",
        "heartbeat_s": 0.02,
        "drain_file": tmp_path / "drain",
        **more,
    }
    fetch = settings.pop("fetch", lambda ref: Path("somewhere"))
    api = AgentApi("http://server", "t", transport=httpx.MockTransport(server), sleep=lambda pause_s: None)
    return AgentSession("dev", api, runner, fetch, Journal(tmp_path / "journal"), **settings)  # type: ignore[arg-type]


def test_a_wake_works_until_nothing_waits(tmp_path: Path) -> None:
    server = Server(claims=3)
    report = session(server, Runner(), tmp_path).wake()
    assert (report.measured, report.failed, report.has_more) == (3, 0, False)
    assert [ident for ident, _ in server.outcomes] == ["m1", "m2", "m3"]
    stages_s = server.outcomes[0][1].outcome.stages_s  # type: ignore[union-attr]
    assert set(stages_s) == {"fetch", "wait_for_quiet", "measure"}


def test_a_wake_ends_in_time_and_asks_for_another(tmp_path: Path) -> None:
    def slow(is_cancelled: Callable[[], bool]) -> MeasurementOutcome:
        time.sleep(0.1)
        return MEASURED

    report = session(Server(claims=100), Runner(slow), tmp_path, wake_s=0.25).wake()
    assert report.has_more
    assert 1 <= report.measured <= 4


def test_the_lease_is_kept_alive_with_the_stage(tmp_path: Path) -> None:
    server = Server(claims=1)

    def slow(is_cancelled: Callable[[], bool]) -> MeasurementOutcome:
        until_s = time.monotonic() + 5
        while len(server.beats) < 3 and time.monotonic() < until_s:
            time.sleep(0.01)
        return MEASURED

    session(server, Runner(slow), tmp_path).wake()
    assert len(server.beats) >= 3
    assert server.beats[0]["measurement_id"] == "m1"
    assert server.beats[0]["attempt"] == 1
    assert server.beats[-1]["stage"] == "measure"
    assert server.beats[0]["clock"]


def test_a_cancellation_reaches_the_runner(tmp_path: Path) -> None:
    server = Server(claims=1)
    server.action = HeartbeatAction.CANCEL
    report = session(server, Runner(until_cancelled), tmp_path).wake()
    assert report.failed == 1
    assert server.outcomes[0][1].outcome.code == "cancelled"  # type: ignore[union-attr]


def test_a_lost_lease_ends_the_measurement_and_not_the_wake(tmp_path: Path) -> None:
    server = Server(claims=1)
    server.beat_status = 409
    server.outcome_status = 409
    report = session(server, Runner(until_cancelled), tmp_path).wake()
    assert report.failed == 1
    assert not (tmp_path / "journal").exists()


def test_an_outcome_waits_for_a_server_that_went_away_and_goes_first_when_it_is_back(tmp_path: Path) -> None:
    server = Server(claims=2)

    def cut(is_cancelled: Callable[[], bool]) -> MeasurementOutcome:
        server.is_away = True
        return MEASURED

    runner = Runner(cut)
    agent = session(server, runner, tmp_path)
    assert agent.wake().measured == 1
    assert server.outcomes == []
    assert agent.wake().measured == 0
    server.is_away = False
    runner.meanwhile = lambda cancelled: MEASURED
    assert agent.wake().measured == 1
    assert [ident for ident, _ in server.outcomes] == ["m1", "m2"]


def test_a_drained_device_claims_nothing(tmp_path: Path) -> None:
    (tmp_path / "drain").touch()
    server = Server(claims=1)
    assert session(server, Runner(), tmp_path).wake().measured == 0
    assert server.given == 0


def test_what_is_measured_when_the_drain_begins_is_finished_and_nothing_after_it(tmp_path: Path) -> None:
    server = Server(claims=5)

    def drained(is_cancelled: Callable[[], bool]) -> MeasurementOutcome:
        (tmp_path / "drain").touch()
        return MEASURED

    assert session(server, Runner(drained), tmp_path).wake().measured == 1
    assert server.given == 1


def test_a_server_that_asks_for_a_drain_gets_what_is_in_hand_and_no_more(tmp_path: Path) -> None:
    server = Server(claims=5)
    server.action = HeartbeatAction.DRAIN

    def until_told(is_cancelled: Callable[[], bool]) -> MeasurementOutcome:
        until_s = time.monotonic() + 5
        while not server.beats and time.monotonic() < until_s:
            time.sleep(0.005)
        time.sleep(0.02)
        return MEASURED

    assert session(server, Runner(until_told), tmp_path).wake().measured == 1
    assert server.given == 1


def test_a_claim_not_begun_when_the_drain_begins_is_let_go(tmp_path: Path) -> None:
    server, runner = Server(claims=1), Runner()

    def fetch(ref: ArtifactRef) -> Path:
        (tmp_path / "drain").touch()
        return Path("somewhere")

    session(server, runner, tmp_path, fetch=fetch).wake()
    assert server.released == ["m1"], "handed back: leaving costs no attempt"
    assert server.outcomes == []
    assert runner.runs == 0


def test_a_missing_artifact_is_nobody_on_the_devices_fault(tmp_path: Path) -> None:
    def fetch(ref: ArtifactRef) -> Path:
        raise NotFound("no such artifact")

    server, runner = Server(claims=1), Runner()
    session(server, runner, tmp_path, fetch=fetch).wake()
    outcome = server.outcomes[0][1].outcome
    assert isinstance(outcome, Failed)
    assert (outcome.stage, outcome.blame, outcome.retryable) == ("fetch", Blame.SYSTEM, True)


def test_a_fault_of_our_own_is_told_to_the_server(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    def broken(is_cancelled: Callable[[], bool]) -> MeasurementOutcome:
        raise RuntimeError("a bug")

    server = Server(claims=2)
    report = session(server, Runner(broken), tmp_path).wake()
    assert report.failed == 2
    assert server.outcomes[0][1].outcome.code == "agent_error"  # type: ignore[union-attr]


def test_an_outcome_that_is_refused_is_told_as_a_failure_with_the_reason(tmp_path: Path) -> None:
    server = Server(claims=1)
    server.refusals = 1
    session(server, Runner(), tmp_path).wake()
    (_, refused), (name, told) = server.outcomes
    assert isinstance(refused.outcome, Measured)
    assert (name, told.attempt) == ("m1", 1)
    assert isinstance(told.outcome, Failed)
    assert (told.outcome.stage, told.outcome.code, told.outcome.blame) == (
        "hand_in",
        "implausible_outcome",
        Blame.DEVICE,
    )
    assert "does not answer the request" in told.outcome.reason


def test_no_heartbeat_thread_is_left_behind(tmp_path: Path) -> None:
    session(Server(claims=2), Runner(), tmp_path).wake()
    assert not [thread for thread in threading.enumerate() if thread.name == "heartbeats"]


def test_a_device_checks_itself_after_its_first_work_when_idle_and_when_it_is_asked(tmp_path: Path) -> None:
    server = Server(claims=1)
    api = AgentApi("http://server", "t", transport=httpx.MockTransport(server), sleep=lambda pause_s: None)
    cannot = Failed(stage="load", reason="no such kernel", blame=Blame.DEVICE, code="unreadable_artifact")
    measuring = Golden(cannot)
    monitor = HealthMonitor(measuring, lambda check: api.tell_health("dev", check), lambda: ["openvino"])
    worker = session(server, Runner(), tmp_path, health=monitor)
    worker.wake()
    told = [(check.trigger, check.runtime, check.reason) for check in server.checks]
    assert told == [
        (HealthTrigger.START, "onnxruntime", "no such kernel"),  # after the measurement
        (HealthTrigger.START, "openvino", "no such kernel"),  # when nothing was left to do
    ]
    worker.wake()
    assert len(server.checks) == 2, "an idle wake costs nothing"
    server.asks_for_check = True
    worker.wake()
    assert server.checks[-1].trigger is HealthTrigger.ASKED


class Golden:
    """A runner for checks that gives what it was given."""

    def __init__(self, outcome: MeasurementOutcome) -> None:
        self.outcome = outcome

    def run(self, request: MeasurementRequest, **_: object) -> MeasurementOutcome:
        return self.outcome
