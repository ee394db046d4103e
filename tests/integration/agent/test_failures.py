"""Every failure, injected where it happens, through the real API, tables and broker: nothing lost, nothing counted twice."""

from __future__ import annotations

import sys
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import onnx
import pytest
from sqlalchemy import text
from sqlalchemy.engine import make_url

from benchmarks.tiny_onnx import write_conv_net
from db.engine import make_engine, upgrade
from domain.measurement import Measured, MeasuredFile, Measurement, MeasurementPlan
from domain.messages import OutcomeMessage
from domain.outcome import Blame, Failed
from domain.work import MAX_ATTEMPTS, WorkState
from tests.integration.agent.plugins import install_frail
from tests.integration.agent.real_server import RealAgent, RealServer, wait_until

SHORT = MeasurementPlan(max_s=0.3, warmup_s=0.02, min_pairs=8, half_width=0.05, bootstrap=200)
LONG = MeasurementPlan(max_s=3.0, half_width=1e-9, bootstrap=200)
ONCE = {"measurement_sample": 1, "stale_outcome": 0, "finished": 1}
NO_NUMBER = {"measurement_sample": 0, "stale_outcome": 0, "finished": 1}

# A machine whose clock is wrong: every process of the agent believes it. Neither libfaketime nor root is needed.
WRONG_CLOCK = """
import datetime, time
OFFSET_S = {offset_s}
right, right_now = time.time, datetime.datetime


class Wrong(right_now):
    @classmethod
    def now(cls, tz=None):
        return cls.fromtimestamp(time.time(), tz)

    @classmethod
    def utcnow(cls):
        return cls.now(datetime.timezone.utc).replace(tzinfo=None)


time.time = lambda: right() + OFFSET_S
datetime.datetime = Wrong
"""

pytestmark = pytest.mark.slow

MakeAgent = Callable[..., RealAgent]


@pytest.fixture(scope="module")
def server(database_url: str, broker_url: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RealServer]:
    name = f"failures_{uuid.uuid4().hex[:12]}"
    url = make_url(database_url)
    admin = make_engine(database_url)
    with admin.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.execute(text(f"CREATE DATABASE {name}"))
    own_url = url.set(database=name).render_as_string(hide_password=False)
    upgrade(own_url)
    engine = make_engine(own_url)
    made = RealServer(own_url, broker_url, tmp_path_factory.mktemp("server"), engine)
    made.start()
    yield made
    made.close()
    engine.dispose()
    with admin.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.execute(text(f"DROP DATABASE {name} WITH (FORCE)"))
    admin.dispose()


@pytest.fixture(scope="module")
def make_agent(server: RealServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[MakeAgent]:
    made: list[RealAgent] = []

    def make(name: str, **environment: str) -> RealAgent:
        agent = RealAgent(server, tmp_path_factory.mktemp(name), environment)
        made.append(agent)
        agent.run()
        return agent

    yield make
    for agent in made:
        agent.close()
        sys.stderr.write(agent.log.read_text()[-4000:])


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
    (tmp_path / "sitecustomize.py").write_text(WRONG_CLOCK.format(offset_s=offset_s))
    agent = make_agent("late" if offset_s < 0 else "early", PYTHONPATH=str(tmp_path))
    begin = server.store.now()
    rows = []
    for _ in range(2):  # the second time it has to be woken by a message of a machine whose clock is right
        wait_until(
            lambda: (device := server.store.device(agent.id)).is_online and device.current_measurement_id is None,
            lambda: agent.log.read_text()[-2000:],
        )
        rows.append(server.finished(server.add(agent.id, files["dense"], files["pruned"], SHORT, "onnxruntime")))
        time.sleep(1.0)
    end = server.store.now()
    device = server.store.device(agent.id)
    assert device.clock_offset_ms == pytest.approx(offset_s * 1000, abs=5000)
    assert device.last_seen_at is not None and begin <= device.last_seen_at <= end
    for row in rows:
        assert isinstance(row.outcome, Measured), row.outcome
        assert row.attempt == 1
        assert row.started_at is not None and row.finished_at is not None
        assert begin <= row.started_at <= row.finished_at <= end
        assert server.counts(row) == ONCE
