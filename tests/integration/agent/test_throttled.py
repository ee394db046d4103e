"""A real measurement on a fake board: one that is too hot, and one that counts its energy."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from domain.device import DeviceState
from domain.health import HealthAnswer, HealthCheck, HealthTrigger, HealthVerdict
from domain.measurement import Measured, MeasurementOutcome, MeasurementRequest
from domain.outcome import Blame, Failed
from workers.agent.health import HealthMonitor, golden_path, golden_request
from workers.agent.sandbox import SandboxLimits, SandboxRunner

REQUEST = golden_request("onnxruntime")
CROWDED = REQUEST.model_copy(update={"threads": (os.cpu_count() or 1) + 2})


def measured_on(
    board: Path,
    cool_down_s: float,
    request: MeasurementRequest = REQUEST,
    report_stage: Callable[[str], None] = lambda stage: None,
) -> MeasurementOutcome:
    runner = SandboxRunner(limits=SandboxLimits(cool_down_s=cool_down_s), root=board)
    return runner.run(request, fetch=golden_path, report_stage=report_stage, is_cancelled=lambda: False)


@pytest.fixture
def flag(tmp_path: Path) -> Path:
    """What a Raspberry Pi's firmware says of its throttling."""
    path = tmp_path / "sys/devices/platform/soc/soc:firmware/get_throttled"
    path.parent.mkdir(parents=True)
    path.write_text("4\n")
    return path


def test_a_board_that_stays_hot_gives_no_number_and_asks_for_a_health_check(tmp_path: Path, flag: Path) -> None:
    outcome = measured_on(tmp_path, cool_down_s=0.5)
    assert isinstance(outcome, Failed)
    assert (outcome.code, outcome.blame) == ("throttled", Blame.DEVICE)
    passed = HealthAnswer(verdict=HealthVerdict.PASSED, state=DeviceState.ACTIVE)
    monitor = HealthMonitor(SandboxRunner(), lambda check: passed, lambda: [])
    monitor.note(REQUEST, outcome)
    assert monitor.due is HealthTrigger.THROTTLED
    told: list[HealthCheck] = []
    monitor = HealthMonitor(SandboxRunner(), lambda check: told.append(check) or passed, lambda: [])
    monitor.note(REQUEST, outcome)
    monitor.check_due(is_cancelled=lambda: False)
    assert [(check.trigger, check.timing is not None) for check in told] == [(HealthTrigger.THROTTLED, True)]


def test_a_hot_board_that_cools_is_measured_all_the_same_and_its_energy_apart(tmp_path: Path, flag: Path) -> None:
    zone = tmp_path / "sys/class/powercap/intel-rapl:0"
    zone.mkdir(parents=True)
    (zone / "name").write_text("package-0\n")
    (zone / "max_energy_range_uj").write_text("262143328850\n")
    energy = zone / "energy_uj"
    energy.write_text("0")
    is_over, is_measuring = threading.Event(), threading.Event()

    def enter(stage: str) -> None:
        if stage == "measure":
            is_measuring.set()

    def burn() -> None:
        begin_s, hot_s = time.monotonic(), None
        while not is_over.wait(0.002):
            spent_s = time.monotonic() - begin_s
            fresh = energy.with_suffix(".new")
            fresh.write_text(str(int(spent_s * 10e6)))  # 10 W
            fresh.replace(energy)
            if is_measuring.is_set() and hot_s is None:
                hot_s = spent_s
            if hot_s is not None and spent_s > hot_s + 1.5:
                flag.write_text("0\n")

    thread = threading.Thread(target=burn)
    thread.start()
    try:
        outcome = measured_on(tmp_path, 30.0, CROWDED, enter)
    finally:
        is_over.set()
        thread.join()
    assert isinstance(outcome, Measured), outcome
    (candidate,) = outcome.candidates
    assert outcome.conditions["throttled"] is True
    assert candidate.discarded_pairs >= 4, "then it slept"
    assert any("cooled down" in warning for warning in outcome.warnings)
    assert any("threads on" in warning for warning in outcome.warnings)
    assert outcome.conditions["energy_source"] == "rapl"
    assert outcome.baseline.energy_mj is not None and candidate.timing.energy_mj is not None
    assert outcome.stages_s["energy"] < 10
    # 10 W: 10 mJ a millisecond, whatever the machine does meanwhile.
    assert outcome.baseline.energy_mj > 10 * outcome.baseline.latency_ms * 0.5
