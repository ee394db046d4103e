"""The golden model: the files themselves, when they are measured, what is told, and how the server judges."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest

from benchmarks import make_golden
from domain.artifact import ArtifactRef, digest_of_file
from domain.device import DeviceState
from domain.errors import Unavailable
from domain.health import (
    GoldenTiming,
    HealthAnswer,
    HealthCheck,
    HealthTrigger,
    HealthVerdict,
    band_of,
    judge,
)
from domain.measurement import FileTiming, Measured, MeasurementOutcome, MeasurementRequest
from domain.outcome import Blame, Failed
from workers.agent import health
from workers.agent.health import DIGESTS, HealthMonitor, check_of, golden_path, golden_request
from workers.agent.sandbox import SandboxRunner, references

PASSED = HealthAnswer(verdict=HealthVerdict.PASSED, state=DeviceState.ACTIVE)
MEASURED = Measured(
    baseline=FileTiming(load_ms=1, first_ms=1, latency_ms=1, runs=1), candidates=(), conditions={}, stages_s={}
)


def never() -> bool:
    return False


def failed(code: str) -> Failed:
    return Failed(stage="measure", reason="it broke", blame=Blame.CANDIDATE, code=code)


def timing(ratio: float, half: float = 0.01) -> GoldenTiming:
    return GoldenTiming(latency_ms=ratio / 10, yardstick_ms=0.1, ratio=ratio, ratio_ci=(ratio - half, ratio + half))


def checked(ratio: float | None, half: float = 0.01, code: str | None = None) -> HealthCheck:
    return HealthCheck(
        runtime="onnxruntime",
        golden=DIGESTS["golden.onnx"],
        trigger=HealthTrigger.PERIODIC,
        timing=timing(ratio, half) if ratio is not None else None,
        code=code,
        reason="so it was",
    )


# --- the files ------------------------------------------------------------------------------------------------------
def test_the_shipped_files_are_those_the_script_makes(tmp_path: Path) -> None:
    make_golden.main(tmp_path)
    assert {path.name: digest_of_file(path) for path in health.FOLDER.iterdir()} == DIGESTS
    assert {path.name for path in tmp_path.iterdir()} == set(DIGESTS)
    for made in tmp_path.iterdir():
        shipped = health.FOLDER / made.name
        if made.suffix == ".onnx":
            assert made.read_bytes() == shipped.read_bytes()
        else:  # what a processor computes differs from another's in the last digits
            with np.load(made) as new, np.load(shipped) as old:
                assert set(new) == set(old)
                for name in old:
                    np.testing.assert_allclose(new[name], old[name], rtol=1e-4, atol=1e-6)
    assert sum(path.stat().st_size for path in tmp_path.iterdir()) < 16_000


def test_a_changed_file_is_not_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(health, "FOLDER", tmp_path)
    (tmp_path / "golden.onnx").write_bytes(b"something else")
    with pytest.raises(Unavailable, match="install pruneloop again"):
        golden_path(golden_request("onnxruntime").baseline.artifact)


def test_a_real_check_gives_a_ratio_and_right_outputs() -> None:
    told: list[HealthCheck] = []

    def tell(check: HealthCheck) -> HealthAnswer:
        told.append(check)
        return PASSED

    monitor = HealthMonitor(SandboxRunner(), tell, lambda: ["onnxruntime"])
    monitor.check_all(HealthTrigger.START, is_cancelled=never)
    assert not monitor.is_unchecked
    (check,) = told
    assert check.timing is not None, check.reason
    assert check.timing.ratio == pytest.approx(check.timing.latency_ms / check.timing.yardstick_ms, rel=1e-6)
    assert check.timing.ratio > 1
    assert check.runtime_version


def test_a_runtime_that_computes_something_else_is_told_as_wrong(tmp_path: Path) -> None:
    """The yardstick in the golden file's place: it loads, it runs, and its outputs are others."""

    def mixed_up(ref: ArtifactRef) -> Path:
        path = golden_path(ref)
        return health.FOLDER / "yardstick.onnx" if path.name == "golden.onnx" else path

    outcome = SandboxRunner().run(
        golden_request("onnxruntime"), fetch=mixed_up, report_stage=lambda stage: None, is_cancelled=never
    )
    check = check_of("onnxruntime", HealthTrigger.START, outcome)
    assert (check.code, check.timing) == ("wrong_output", None)
    assert judge(check, []).verdict is HealthVerdict.WRONG_OUTPUT


# --- when -----------------------------------------------------------------------------------------------------------
class Golden:
    """A runner that counts the checks asked of it."""

    def __init__(self, *outcomes: MeasurementOutcome) -> None:
        self.outcomes = list(outcomes)
        self.asked: list[str] = []

    def run(
        self, request: MeasurementRequest, *, fetch: Callable[[ArtifactRef], Path], **_: object
    ) -> MeasurementOutcome:
        assert all(fetch(ref).is_file() for ref in references(request))
        self.asked.append(request.runtime)
        return self.outcomes.pop(0) if self.outcomes else failed("runtime_error")


def monitor_of(runner: Golden, answers: Sequence[HealthAnswer | Exception] = (), **more: object) -> HealthMonitor:
    waiting = list(answers)

    def tell(check: HealthCheck) -> HealthAnswer:
        answer = waiting.pop(0) if waiting else PASSED
        if isinstance(answer, Exception):
            raise answer
        return answer

    return HealthMonitor(runner, tell, lambda: ["onnxruntime", "openvino"], **more)  # type: ignore[arg-type]


ASKED = golden_request("onnxruntime")


@pytest.mark.parametrize(
    ("outcome", "due"),
    [
        (MEASURED, None),
        (failed("wrong_output"), None),
        (failed("crashed"), HealthTrigger.CRASHED),
        (failed("killed"), HealthTrigger.CRASHED),
        (failed("throttled"), HealthTrigger.THROTTLED),
        (MEASURED.model_copy(update={"conditions": {"throttled": True}}), HealthTrigger.THROTTLED),
    ],
)
def test_trouble_asks_for_a_check(outcome: MeasurementOutcome, due: HealthTrigger | None) -> None:
    monitor = monitor_of(Golden())
    monitor.check_all(HealthTrigger.START, is_cancelled=never)
    monitor.note(ASKED, outcome)
    assert monitor.due is due


def test_a_device_that_finds_work_is_checked_after_its_first_measurement_with_what_it_used() -> None:
    runner = Golden()
    monitor = monitor_of(runner)
    monitor.check_due(is_cancelled=never)
    assert runner.asked == []
    monitor.note(ASKED, MEASURED)
    assert monitor.due is HealthTrigger.START
    monitor.check_due(is_cancelled=never)
    assert runner.asked == ["onnxruntime"]
    assert monitor.is_unchecked, "the other runtimes wait for an idle moment"
    monitor.note(ASKED, MEASURED)
    assert monitor.due is None


def test_every_so_many_measurements_ask_for_a_check() -> None:
    runner = Golden()
    monitor = monitor_of(runner, every=3)
    monitor.check_all(HealthTrigger.START, is_cancelled=never)
    assert runner.asked == ["onnxruntime", "openvino"]
    for expected in (None, None, HealthTrigger.PERIODIC):
        monitor.note(ASKED, MEASURED)
        assert monitor.due is expected
    monitor.check_due(is_cancelled=never)
    assert runner.asked[2:] == ["onnxruntime"]
    monitor.note(ASKED, MEASURED)
    assert monitor.due is None, "the count began anew"


def test_a_check_out_of_band_is_repeated_after_a_cool_down() -> None:
    slept_s: list[float] = []
    out = HealthAnswer(verdict=HealthVerdict.OUT_OF_BAND, state=DeviceState.ACTIVE, repeat_after_s=2.0)
    runner = Golden()
    monitor = monitor_of(runner, [out], sleep=slept_s.append)
    monitor.check_all(HealthTrigger.START, is_cancelled=never)
    assert runner.asked == ["onnxruntime", "onnxruntime", "openvino"]
    assert sum(slept_s) == pytest.approx(2.0)


def test_a_server_that_is_away_or_old_leaves_the_check_due() -> None:
    monitor = monitor_of(Golden(), [Unavailable("away"), Unavailable("away")])
    monitor.check_all(HealthTrigger.START, is_cancelled=never)
    assert monitor.is_unchecked
    monitor.note(ASKED, MEASURED)
    monitor.check_due(is_cancelled=never)
    assert monitor.due is HealthTrigger.START


def test_a_device_that_leaves_tells_nothing() -> None:
    runner = Golden(failed("cancelled"))
    monitor = monitor_of(runner, [AssertionError("told")])
    monitor.check_all(HealthTrigger.START, is_cancelled=never)
    assert len(runner.asked) == 1
    assert monitor.is_unchecked


# --- the judgement --------------------------------------------------------------------------------------------------
def test_the_band_is_three_mads_and_five_per_cent_at_least() -> None:
    assert band_of([3.0] * 4) is None
    assert band_of([3.0] * 5) == pytest.approx((2.85, 3.15))
    assert band_of([2.0, 2.5, 3.0, 3.5, 4.0]) == pytest.approx((1.5, 4.5))  # MAD 0.5
    assert band_of([3.0, 3.0, 3.0, 3.0, 30.0]) == pytest.approx((2.85, 3.15)), "one wild value moves nothing"


def test_nothing_is_judged_before_five_good_checks() -> None:
    assert judge(checked(99.0), [timing(3.0)] * 4).verdict is HealthVerdict.LEARNING
    assert judge(checked(99.0), [timing(3.0)] * 5).verdict is HealthVerdict.OUT_OF_BAND


@pytest.mark.parametrize("ratio", [2.6, 3.4])
def test_only_a_ratio_whose_whole_interval_is_out_is_out(ratio: float) -> None:
    good = [timing(3.0)] * 5
    found = judge(checked(ratio), good)
    assert found.verdict is HealthVerdict.OUT_OF_BAND
    assert f"{ratio:.3f}" in found.reason and "band 2.850 to 3.150" in found.reason and "0.300 ms" in found.reason
    assert judge(checked(ratio, half=0.3), good).verdict is HealthVerdict.PASSED, "merely noisy"


def test_a_file_that_does_not_run_or_computes_wrongly_is_told_apart() -> None:
    good = [timing(3.0)] * 5
    assert judge(checked(None, code="crashed"), good).verdict is HealthVerdict.FAILED
    assert judge(checked(None, code="wrong_output"), good).verdict is HealthVerdict.WRONG_OUTPUT
