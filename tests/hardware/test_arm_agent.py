"""An aarch64 agent joins, measures and reports through the real server: API, tables, broker and reaper. Run: `make test-arm`."""

from __future__ import annotations

import threading
from pathlib import Path

import numpy as np
import pytest

from benchmarks.tiny_onnx import TinyNet
from domain.measurement import Measured, MeasurementPlan
from domain.outcome import Blame, Failed
from tests.hardware.conftest import PATIENCE_S, Agent, Desk, wait_for
from tests.hardware.emulated_board import CAPPED_KHZ, FULL_KHZ, MODEL, EmulatedBoard

pytestmark = [pytest.mark.arm, pytest.mark.timeout(int(3 * PATIENCE_S))]

SHORT = MeasurementPlan(instances=2, block_ms=1, min_pairs=4, max_s=3, half_width=0.5, bootstrap=100)
ALL_OF_IT = SHORT.model_copy(update={"half_width": 1e-9})  # never tight enough: goes on until its time is up


def test_it_joins_as_what_it_is(agent: Agent) -> None:
    device = wait_for(lambda: agent.device if agent.device.conditions else None, "the first heartbeat")
    assert device.is_online
    assert device.labels == {"arch": "aarch64"}
    assert (device.inventory.machine, device.inventory.cpu) == ("aarch64", MODEL)
    assert device.inventory.extra["board"] == MODEL
    assert device.inventory.python.startswith("3.11.")
    assert any(runtime.name == "onnxruntime" and runtime.available for runtime in device.inventory.runtimes)
    assert device.conditions["temperature_c"] == {"cpu-thermal": 48.3}
    assert device.conditions["governor"] == "ondemand"


def test_a_measurement_is_claimed_made_and_accepted(
    agent: Agent, board: EmulatedBoard, desk: Desk, nets: tuple[TinyNet, TinyNet]
) -> None:
    board.set_temperature(61.25)
    dense, narrow = (desk.file(net) for net in nets)
    measurement = desk.wait(desk.ask("plain", dense, narrow, SHORT))
    outcome = measurement.outcome
    assert isinstance(outcome, Measured), outcome
    assert (measurement.device_id, measurement.attempt) == (agent.device.id, 1)
    (timing,) = outcome.candidates
    assert timing.digest == narrow.artifact.digest
    assert timing.pairs >= SHORT.min_pairs and timing.discarded_pairs == 0
    assert timing.samples is not None and timing.samples.pairs == timing.pairs
    assert timing.latency_ms == pytest.approx(outcome.baseline.latency_ms / timing.speedup)
    seen = outcome.conditions
    assert (seen["machine"], seen["runtime"], seen["device"]) == ("aarch64", "onnxruntime", "pi")
    for moment in (seen["before"], seen["after"]):
        assert isinstance(moment, dict)
        assert moment["temperature_c"] == {"cpu-thermal": 61.25}
        assert set(moment["cpu_mhz"]) == {FULL_KHZ // 1000}  # type: ignore[arg-type]
    differences = seen["output_difference"]  # to what x86 computed, by the rules of the check
    assert isinstance(differences, list) and len(differences) == 2
    assert all(isinstance(difference, float) and difference < 1e-5 for difference in differences)


def test_a_file_that_answers_wrongly_on_arm_is_not_timed(
    desk: Desk, nets: tuple[TinyNet, TinyNet], tmp_path: Path
) -> None:
    dense, narrow = nets
    with np.load(narrow.check) as known:
        np.savez(tmp_path / "wrong.npz", input_x=known["input_x"], output_y=known["output_y"] + 0.5)
    wrong = TinyNet(narrow.path, tmp_path / "wrong.npz")
    outcome = desk.wait(desk.ask("wrong", desk.file(dense), desk.file(wrong), SHORT)).outcome
    assert isinstance(outcome, Failed)
    assert (outcome.code, outcome.blame, outcome.stage) == ("wrong_output", Blame.CANDIDATE, "check")


def test_a_throttled_board_says_so_and_measures_once_it_cooled_down(
    agent: Agent, board: EmulatedBoard, desk: Desk, nets: tuple[TinyNet, TinyNet]
) -> None:
    board.set_throttled(True)
    board.set_temperature(84.9)
    assert wait_for(lambda: agent.device.conditions["temperature_c"] == {"cpu-thermal": 84.9} or None, "its heartbeat")
    dense, narrow = (desk.file(net) for net in nets)
    asked = desk.ask("hot", dense, narrow, SHORT)
    failure = desk.wait_for_failure(asked)
    assert (failure["code"], failure["blame"]) == ("throttled", Blame.DEVICE)
    board.set_throttled(False)  # at once: a board whose golden model throttles twice in a row is quarantined
    board.set_temperature(55.0)
    measurement = desk.wait(asked)
    assert isinstance(measurement.outcome, Measured), measurement.outcome
    assert measurement.attempt > 1


@pytest.mark.parametrize("sign", ["flags", "clock"])
def test_pairs_of_a_board_that_throttles_now_and_then_are_discarded_and_counted(
    board: EmulatedBoard, desk: Desk, nets: tuple[TinyNet, TinyNet], sign: str
) -> None:
    is_over = threading.Event()

    def flicker() -> None:
        is_hot = False
        while not is_over.wait(0.7 if is_hot else 0.5):
            is_hot = not is_hot
            if sign == "flags":
                board.set_throttled(is_hot)
            else:
                board.set_clock(CAPPED_KHZ if is_hot else FULL_KHZ)

    dense, narrow = (desk.file(net) for net in nets)
    thread = threading.Thread(target=flicker)
    thread.start()
    try:
        outcome = desk.wait(desk.ask(f"flickering {sign}", dense, narrow, ALL_OF_IT)).outcome
    finally:
        is_over.set()
        thread.join()
        board.set_throttled(False)
        board.set_clock(FULL_KHZ)
    assert isinstance(outcome, Measured), outcome
    (timing,) = outcome.candidates
    assert timing.discarded_pairs > 0 and timing.pairs >= 4
    assert timing.is_noisy
    assert any("throttled" in warning for warning in outcome.warnings), outcome.warnings


def test_it_drains_when_asked_to_leave(agent: Agent) -> None:
    assert agent.stop() == []
    assert agent.process.returncode == 0
