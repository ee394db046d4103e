"""Every failure, injected where it happens, through the real API, tables and broker: nothing lost, nothing counted twice."""

from __future__ import annotations

import time
from pathlib import Path

import onnx
import pytest

from benchmarks.tiny_onnx import write_conv_net
from domain.measurement import Measured, MeasuredFile, Measurement, MeasurementPlan
from domain.messages import OutcomeMessage
from domain.outcome import Blame, Failed
from domain.work import LEASE_S, MAX_ATTEMPTS, WorkState
from tests.integration.agent.conftest import MakeAgent
from tests.integration.agent.plugins import install_frail
from tests.integration.agent.real_server import RealAgent, RealServer, wait_until

SHORT = MeasurementPlan(max_s=0.3, warmup_s=0.02, min_pairs=8, half_width=0.05, bootstrap=200)
LONG = MeasurementPlan(max_s=3.0, half_width=1e-9, bootstrap=200)
LONGER_THAN_A_LEASE = MeasurementPlan(max_s=LEASE_S + 1.0, half_width=1e-9, bootstrap=200)
ONCE = {"measurement_sample": 1, "stale_outcome": 0, "finished": 1}
NO_NUMBER = {"measurement_sample": 0, "stale_outcome": 0, "finished": 1}

# A machine whose clock is wrong: every process of the agent believes it, and it may be set while they run. Neither libfaketime
# nor root is needed: Python's own view of the wall clock is all that the agent and Celery ever ask.
WRONG_CLOCK = """
import datetime, pathlib, time
OFFSET = pathlib.Path({place!r})
right, right_ns, right_now = time.time, time.time_ns, datetime.datetime


def offset_s():
    return float(OFFSET.read_text())


class Wrong(right_now):
    @classmethod
    def now(cls, tz=None):
        return cls.fromtimestamp(time.time(), tz)

    @classmethod
    def utcnow(cls):
        return cls.now(datetime.timezone.utc).replace(tzinfo=None)


time.time = lambda: right() + offset_s()
time.time_ns = lambda: right_ns() + int(offset_s() * 1e9)
datetime.datetime = Wrong
"""


class WrongClock:
    """A machine's clock, so many seconds off; may be set while the machine works."""

    def __init__(self, folder: Path, offset_s: float) -> None:
        self._place = folder / "offset"
        self.set(offset_s)
        self.site = folder / "site"
        self.site.mkdir()
        (self.site / "sitecustomize.py").write_text(WRONG_CLOCK.format(place=str(self._place)))

    def set(self, offset_s: float) -> None:
        new = self._place.with_suffix(".new")
        new.write_text(str(offset_s))
        new.replace(self._place)


pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def files(server: RealServer, tmp_path_factory: pytest.TempPathFactory) -> dict[str, MeasuredFile]:
    folder = tmp_path_factory.mktemp("files")
    dense, pruned, other = (
        write_conv_net(folder / f"{name}.onnx", channels=channels, seed=seed)
        for name, channels, seed in (("dense", 16, 0), ("pruned", 4, 0), ("other", 4, 1))
    )
    (folder / "torn.onnx").write_bytes(pruned.path.read_bytes()[:-600])
    for vice in ("hang", "segfault", "hoard", "throw"):
        model = onnx.load(pruned.path)
        model.doc_string = f"vice: {vice}"
        onnx.save(model, folder / f"{vice}.onnx")
    return {
        "dense": server.file(dense.path, dense.check),
        "pruned": server.file(pruned.path, pruned.check),
        "torn": server.file(folder / "torn.onnx", pruned.check),
        "lies": server.file(pruned.path, other.check),
        **{vice: server.file(folder / f"{vice}.onnx", pruned.check) for vice in ("hang", "segfault", "hoard", "throw")},
    }


@pytest.fixture(scope="module")
def agent(make_agent: MakeAgent, tmp_path_factory: pytest.TempPathFactory) -> RealAgent:
    """An ordinary device, with runtimes that misbehave on it."""
    return make_agent(
        "ordinary",
        PYTHONPATH=str(install_frail(tmp_path_factory.mktemp("site"))),
        PRUNELOOP_AGENT_STAGE_TIMEOUT_S="4",
        PRUNELOOP_AGENT_MEMORY_LIMIT_BYTES=str(400 << 20),
    )


# --- files and runtimes that misbehave ---------------------------------------------------------------------------------
VICES = {
    "hang": ("hang", "timeout", 1),
    "segfault": ("segfault", "crashed", MAX_ATTEMPTS),
    "eats-memory": ("hoard", "out_of_memory", 1),
    "throws": ("throw", "runtime_error", 1),
    "corrupt-file": ("torn", "unreadable_artifact", 1),
    "wrong-output": ("lies", "wrong_output", 1),
}


@pytest.fixture(scope="module")
def misbehaved(server: RealServer, agent: RealAgent, files: dict[str, MeasuredFile]) -> dict[str, Measurement]:
    """All of them, one after the other on one device, and a good one last."""
    wait_until(lambda: server.store.device(agent.id).is_online, lambda: agent.log.read_text()[-2000:])
    rows = {
        name: server.add(agent.id, files["dense"], files[file], SHORT, "frail") for name, (file, _, _) in VICES.items()
    }
    rows["good"] = server.add(agent.id, files["dense"], files["pruned"], SHORT, "onnxruntime")
    return rows


@pytest.mark.parametrize("name", VICES)
def test_a_candidate_that_misbehaves_is_blamed_once(
    server: RealServer, misbehaved: dict[str, Measurement], name: str
) -> None:
    _, code, attempts = VICES[name]
    row = server.finished(misbehaved[name])
    assert row.state is WorkState.FAILED
    assert isinstance(row.outcome, Failed)
    assert (row.outcome.code, row.outcome.blame) == (code, Blame.CANDIDATE), row.outcome
    assert row.attempt == attempts
    assert server.counts(row) == NO_NUMBER


def test_the_device_goes_on_after_all_of_them(
    server: RealServer, agent: RealAgent, misbehaved: dict[str, Measurement]
) -> None:
    row = server.finished(misbehaved["good"])
    assert isinstance(row.outcome, Measured), row.outcome
    assert row.attempt == 1
    assert server.counts(row) == ONCE
    assert agent.is_running
    assert server.store.device(agent.id).state == "active"


# --- the way there and back --------------------------------------------------------------------------------------------
def test_an_agent_killed_while_it_measures_measures_again_when_it_is_back(
    server: RealServer, agent: RealAgent, files: dict[str, MeasuredFile]
) -> None:
    row = server.add(agent.id, files["dense"], files["pruned"], LONG, "onnxruntime")
    server.leased(row)
    wait_until(agent.is_measuring, lambda: agent.log.read_text()[-2000:])
    assert not agent.kill(), "a measuring process outlived its agent"
    assert server.store.measurement(row.id).state is WorkState.LEASED
    agent.run()
    done = server.finished(row)
    assert isinstance(done.outcome, Measured), done.outcome
    assert done.attempt == 2
    assert server.counts(done) == ONCE


def test_an_outcome_waits_for_an_api_that_is_gone_and_is_delivered_once(
    server: RealServer, agent: RealAgent, files: dict[str, MeasuredFile]
) -> None:
    row = server.add(agent.id, files["dense"], files["pruned"], LONG, "onnxruntime")
    server.leased(row)
    wait_until(agent.is_measuring, lambda: agent.log.read_text()[-2000:])
    server.kill_api()
    try:
        wait_until(lambda: agent.journal == [(row.id, 1)], lambda: agent.log.read_text()[-2000:])
        assert server.store.measurement(row.id).state is WorkState.LEASED
    finally:
        server.start()
    done = server.finished(row)
    assert isinstance(done.outcome, Measured), done.outcome
    assert done.attempt == 1, "it was measured anew though its outcome was kept"
    wait_until(lambda: agent.journal == [], lambda: agent.journal)
    assert server.counts(done) == ONCE


def test_an_outcome_sent_twice_counts_once(
    server: RealServer, agent: RealAgent, files: dict[str, MeasuredFile]
) -> None:
    row = server.finished(server.add(agent.id, files["dense"], files["pruned"], SHORT, "onnxruntime"))
    assert row.outcome is not None
    # The agent died between the server's yes and clearing its journal: it cannot know, and sends it again.
    agent.keep(row.id, OutcomeMessage(attempt=row.attempt, outcome=row.outcome))
    server.finished(server.add(agent.id, files["dense"], files["pruned"], SHORT, "onnxruntime"))
    wait_until(lambda: agent.journal == [], lambda: agent.journal)
    assert server.store.measurement(row.id) == row
    assert server.counts(row) == ONCE


# --- a device that is not well -----------------------------------------------------------------------------------------
def test_a_throttled_device_is_to_blame_and_the_work_is_done_once_it_is_cool(
    server: RealServer, make_agent: MakeAgent, files: dict[str, MeasuredFile], tmp_path: Path
) -> None:
    flag = tmp_path / "sys/devices/platform/soc/soc:firmware/get_throttled"
    flag.parent.mkdir(parents=True)
    flag.write_text("0\n")
    agent = make_agent("board", PRUNELOOP_AGENT_ROOT=str(tmp_path))
    wait_until(lambda: server.store.device(agent.id).is_online, lambda: agent.log.read_text()[-2000:])
    flag.write_text("4\n")
    row = server.add(agent.id, files["dense"], files["pruned"], SHORT, "onnxruntime")
    wait_until(lambda: ("measurement.retried", 1) in server.events(row), lambda: server.events(row))
    flag.write_text("0\n")
    done = server.finished(row)
    (told,) = [
        event.data["failure"]
        for event in server.store.events(row.job_id, limit=1000)
        if event.type == "measurement.retried" and event.data["measurement_id"] == row.id and event.data["attempt"] == 1
    ]
    assert isinstance(told, dict)
    assert (told["code"], told["blame"]) == ("throttled", "device")
    assert isinstance(done.outcome, Measured), done.outcome
    assert done.attempt in (2, 3)  # the second may have begun before the flag was down
    assert server.counts(done) == ONCE


@pytest.mark.parametrize("offset_s", [3600, -3600])
def test_a_clock_that_is_an_hour_off_is_told_and_decides_nothing(
    server: RealServer, make_agent: MakeAgent, files: dict[str, MeasuredFile], tmp_path: Path, offset_s: int
) -> None:
    clock = WrongClock(tmp_path, offset_s)
    agent = make_agent("late" if offset_s < 0 else "early", PYTHONPATH=str(clock.site))

    def is_idle() -> bool:
        device = server.store.device(agent.id)
        return device.is_online and device.current_measurement_id is None

    def asked(plan: MeasurementPlan) -> Measurement:
        """Ask once it has nothing in hand: it has to be woken by a message of a machine whose clock is right."""
        wait_until(is_idle, lambda: agent.log.read_text()[-2000:])
        time.sleep(1.0)
        return server.add(agent.id, files["dense"], files["pruned"], plan, "onnxruntime")

    begin = server.store.now()
    rows = [server.finished(asked(plan)) for plan in (SHORT, SHORT, LONGER_THAN_A_LEASE)]
    device = server.store.device(agent.id)
    assert device.clock_offset_ms == pytest.approx(offset_s * 1000, abs=5000)
    stepped = asked(LONG)
    server.leased(stepped)
    clock.set(0.0)  # somebody puts the clock right while it measures
    rows.append(server.finished(stepped))
    rows.append(server.finished(asked(SHORT)))
    wait_until(
        lambda: abs(server.store.device(agent.id).clock_offset_ms or offset_s) < 5000,
        lambda: server.store.device(agent.id),
    )
    end = server.store.now()
    device = server.store.device(agent.id)
    assert device.last_seen_at is not None and begin <= device.last_seen_at <= end
    for row in rows:
        assert isinstance(row.outcome, Measured), row.outcome
        assert row.attempt == 1
        assert row.started_at is not None and row.finished_at is not None
        assert begin <= row.started_at <= row.finished_at <= end
        assert 0 < row.outcome.baseline.latency_ms < 1000
        assert server.counts(row) == ONCE
    longest = rows[2]
    assert longest.started_at is not None and longest.finished_at is not None
    assert (longest.finished_at - longest.started_at).total_seconds() > LEASE_S, "its lease had to be extended"
    # Times that are shown are the database's; those that are measured are a clock's that nobody can set.
    assert "revoked" not in agent.log.read_text().lower(), "a wake was thrown away by the device's own clock"
