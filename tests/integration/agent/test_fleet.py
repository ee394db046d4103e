"""Devices of one class share the work, each held against its own dense model; and a device that loses a runtime goes on."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from statistics import median

import pytest

from benchmarks.tiny_onnx import write_conv_net
from domain.device import DeviceState
from domain.job import DeviceSelector
from domain.measurement import Measured, MeasuredFile, MeasurementPlan
from tests.integration.agent.conftest import MakeAgent
from tests.integration.agent.plugins import install_bad_golden, install_paced
from tests.integration.agent.real_server import RealServer, wait_until

pytestmark = pytest.mark.slow

PLAN = MeasurementPlan(max_s=1.0, warmup_s=0.05, min_pairs=20, half_width=0.02, bootstrap=200)
SLOWER = 3
ROWS = 8


@pytest.fixture(scope="module")
def files(server: RealServer, tmp_path_factory: pytest.TempPathFactory) -> tuple[MeasuredFile, MeasuredFile]:
    folder = tmp_path_factory.mktemp("files")
    dense, narrow = (write_conv_net(folder / f"{width}.onnx", channels=width) for width in (24, 8))
    return server.file(dense.path, dense.check), server.file(narrow.path, narrow.check)


def test_two_devices_of_a_class_share_the_work_and_each_is_its_own_yardstick(
    server: RealServer, make_agent: MakeAgent, files: tuple[MeasuredFile, MeasuredFile], tmp_path: Path
) -> None:
    site = str(install_paced(tmp_path))
    agents = {
        times: make_agent(f"times{times}", "class=pair", PYTHONPATH=site, PACED_RUNS=str(times))
        for times in (1, SLOWER)
    }
    for agent in agents.values():
        wait_until(
            lambda agent=agent: server.store.device(agent.id).is_online,  # type: ignore[misc]
            lambda agent=agent: agent.log.read_text()[-2000:],  # type: ignore[misc]
        )
    anyone = DeviceSelector(labels={"class": "pair"})
    asked = [server.add(anyone, *files, PLAN, "paced") for _ in range(ROWS)]
    rows = [server.finished(row, 120.0) for row in asked]
    done = Counter(row.device_id for row in rows)
    assert set(done) == {agent.id for agent in agents.values()}, "one device did it all"
    assert all(row.attempt == 1 and server.counts(row)["finished"] == 1 for row in rows)
    baseline_ms, speedup = {}, {}
    for times, agent in agents.items():
        mine = [row.outcome for row in rows if row.device_id == agent.id and isinstance(row.outcome, Measured)]
        assert len(mine) == done[agent.id]
        assert {outcome.conditions["device_id"] for outcome in mine} == {agent.id}
        baseline_ms[times] = median(outcome.baseline.latency_ms for outcome in mine)
        speedup[times] = median(outcome.candidates[0].speedup for outcome in mine)
        for outcome in mine:
            (timing,) = outcome.candidates
            assert timing.latency_ms == pytest.approx(outcome.baseline.latency_ms / timing.speedup)
            assert timing.throughput_per_s == pytest.approx(1000.0 / timing.latency_ms)
    assert baseline_ms[SLOWER] / baseline_ms[1] == pytest.approx(SLOWER, rel=0.4), "two devices, two dense models"
    assert speedup[SLOWER] == pytest.approx(speedup[1], rel=0.1), "and one speed-up"
    for agent in agents.values():
        wait_until(
            lambda agent=agent: bool(server.store.health(agent.id).items),  # type: ignore[misc]
            lambda agent=agent: agent.log.read_text()[-2000:],  # type: ignore[misc]
        )


def test_throughput_is_of_the_batch_that_was_measured(
    server: RealServer, make_agent: MakeAgent, tmp_path: Path
) -> None:
    agent = make_agent("batches")
    net = write_conv_net(tmp_path / "net.onnx", channels=16)
    file = server.file(net.path)
    found = {}
    for batch in (1, 8):
        row = server.finished(server.add(agent.id, file, file, PLAN, "onnxruntime", batch=batch))
        assert isinstance(row.outcome, Measured), row.outcome
        (timing,) = row.outcome.candidates
        assert row.outcome.conditions["batch"] == batch
        assert timing.throughput_per_s == pytest.approx(batch * 1000.0 / timing.latency_ms)
        assert row.outcome.baseline.throughput_per_s == pytest.approx(batch * 1000.0 / row.outcome.baseline.latency_ms)
        found[batch] = timing.latency_ms
    assert found[8] > 2 * found[1], "eight were computed, not one"


def test_a_runtime_that_cannot_run_the_golden_model_is_lost_and_the_device_measures_on(
    server: RealServer, make_agent: MakeAgent, files: tuple[MeasuredFile, MeasuredFile], tmp_path: Path
) -> None:
    agent = make_agent("narrow", PYTHONPATH=str(install_bad_golden(tmp_path)))
    wait_until(
        lambda: "narrow" in server.store.device(agent.id).lost_runtimes, lambda: agent.log.read_text()[-2000:], 120.0
    )
    device = server.store.device(agent.id)
    assert device.state is DeviceState.ACTIVE
    assert "MatMul is not implemented here" in device.lost_runtimes["narrow"].reason
    waits = server.add(agent.id, *files, PLAN, "narrow")
    row = server.finished(server.add(agent.id, *files, PLAN, "onnxruntime"))
    assert isinstance(row.outcome, Measured), row.outcome
    assert server.store.measurement(waits.id).state == "pending", "nobody measures in a runtime that is lost"
    said = agent.doctor()
    assert "golden model with narrow" in said and "MatMul is not implemented here" in said
