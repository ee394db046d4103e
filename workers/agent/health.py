"""The golden model: a fixed file, timed against a second fixed file, to tell whether this device is still the one it was.

The device only measures and tells; the server judges by the history it keeps. A check is an ordinary measurement of about a
second, in the same sandbox and with the same code as any other: golden file as baseline, yardstick as candidate.

Made by ``benchmarks/make_golden.py``; the hashes are fixed here because a history is good for one file only.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

from domain.artifact import ArtifactKind, ArtifactRef, digest_of_file
from domain.errors import PruneloopError, Unavailable
from domain.health import GoldenTiming, HealthAnswer, HealthCheck, HealthTrigger
from domain.measurement import Measured, MeasuredFile, MeasurementOutcome, MeasurementPlan, MeasurementRequest
from domain.outcome import Failed
from domain.ports import Runner

log = logging.getLogger(__name__)

FOLDER = Path(__file__).resolve().parent / "golden"
DIGESTS = {
    "golden.onnx": "sha256:1bf380a9f94ce32a4b7355fd1527e24dfb2ecf638593e4538129793a7a26e942",
    "golden.npz": "sha256:069d31bdd8c1d9cf662aea2e4e7e6d1372374efac5e89654f41cf75b1cd40951",
    "yardstick.onnx": "sha256:fe6843768e5ca2373f527ceb84546ae5997783faeeed32305b81fdf2723b59dd",
    "yardstick.npz": "sha256:f129989b1fe514e753c6778d943728a8c1bc094b262ae769219ffaaa236a4840",
}
PLAN = MeasurementPlan(warmup_s=0.1, min_pairs=30, max_s=1.0, half_width=0.01, bootstrap=500)
READS = ArtifactKind.ONNX.value  # a runtime that loads such files can be checked
LONGEST_COOL_DOWN_S = 60.0
STEP_S = 0.2
CRASHES = frozenset({"crashed", "killed", "timeout", "child_failed"})
NOT_THE_DEVICE = frozenset({"cancelled", "agent_error"})  # then there is nothing to tell
KEPT_CONDITIONS = ("runtime", "runtime_version", "provider", "cores", "before", "after", "cpu_share", "preemptions")

Tell = Callable[[HealthCheck], HealthAnswer]
Quietly = Callable[[], AbstractContextManager[object]]
"""Entered around each check, not around a cool-down: the host's builders wait meanwhile."""


def golden_request(runtime: str) -> MeasurementRequest:
    """Return the measurement that a check is."""

    def file(name: str) -> MeasuredFile:
        return MeasuredFile(
            artifact=_ref(f"{name}.onnx", ArtifactKind.ONNX), check=_ref(f"{name}.npz", ArtifactKind.CHECK)
        )

    return MeasurementRequest(runtime=runtime, baseline=file("golden"), candidates=(file("yardstick"),), plan=PLAN)


def golden_path(ref: ArtifactRef) -> Path:
    """Return the file of a reference.

    Raises:
        Unavailable: ``artifact_corrupt``: the installed file is not the one whose history is kept.
    """
    name = next(name for name, digest in DIGESTS.items() if digest == ref.digest)
    path = FOLDER / name
    if not path.is_file() or digest_of_file(path) != ref.digest:
        raise Unavailable(f"{path} is missing or was changed; install pruneloop again.", code="artifact_corrupt")
    return path


def check_of(runtime: str, trigger: HealthTrigger, outcome: MeasurementOutcome) -> HealthCheck:
    """Return what to tell of a check's outcome."""
    golden = DIGESTS["golden.onnx"]
    if isinstance(outcome, Failed):
        return HealthCheck(
            runtime=runtime, golden=golden, trigger=trigger, code=outcome.code[:100], reason=outcome.reason[:2000]
        )
    (yardstick,) = outcome.candidates
    return HealthCheck(
        runtime=runtime,
        runtime_version=str(outcome.conditions.get("runtime_version", "")),
        golden=golden,
        trigger=trigger,
        timing=GoldenTiming(
            latency_ms=outcome.baseline.latency_ms,
            yardstick_ms=yardstick.latency_ms,
            ratio=yardstick.speedup,
            ratio_ci=yardstick.speedup_ci,
        ),
        conditions={key: outcome.conditions[key] for key in KEPT_CONDITIONS if key in outcome.conditions},
    )


class HealthMonitor:
    """Knows when a check is due, makes it, and cools down where the server wants it repeated.

    A device that starts with nothing to do is checked at once, with every runtime; one that finds work is checked after its first
    measurement, with the runtime that was used: nobody waits for a check, and a bad one makes that measurement suspect.

    Args:
        runner: What measures.
        tell: Sends a check to the server; raises PruneloopError.
        find_runtimes: Gives the names of this device's runtimes that read ONNX; may take a second.
        every: Measurements between two checks; 0: only at the start, after trouble and when asked.
        sleep: For tests.
    """

    def __init__(
        self,
        runner: Runner,
        tell: Tell,
        find_runtimes: Callable[[], Sequence[str]],
        *,
        every: int = 100,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._runner = runner
        self._tell = tell
        self._find_runtimes = find_runtimes
        self._every = every
        self._sleep = sleep
        self._since_last = 0
        self._in_use: set[str] = set()
        self.due: HealthTrigger | None = None
        self.is_unchecked = True

    def note(self, request: MeasurementRequest, outcome: MeasurementOutcome) -> None:
        """Take notice of a measurement: some of them ask for a check."""
        if request.baseline.artifact.kind is not ArtifactKind.ONNX:
            return  # a runtime that may not read the golden file
        self._since_last += 1
        is_first = request.runtime not in self._in_use
        self._in_use.add(request.runtime)
        if isinstance(outcome, Failed) and outcome.code in CRASHES:
            self.due = HealthTrigger.CRASHED
        elif _is_throttled(outcome):
            self.due = HealthTrigger.THROTTLED
        elif self.due is None and is_first and self.is_unchecked:
            self.due = HealthTrigger.START
        elif self.due is None and 0 < self._every <= self._since_last:
            self.due = HealthTrigger.PERIODIC

    def check_due(self, *, is_cancelled: Callable[[], bool], quietly: Quietly = nullcontext) -> None:
        """Make the check that is due, if one is, with the runtimes in use. What cannot be told stays due."""
        if self.due is not None and self._check(sorted(self._in_use), self.due, is_cancelled, quietly):
            self.due, self._since_last = None, 0

    def check_all(
        self, trigger: HealthTrigger, *, is_cancelled: Callable[[], bool], quietly: Quietly = nullcontext
    ) -> None:
        """Check every runtime now: the device has nothing to do, or the server asks."""
        if self._check(self._find_runtimes(), trigger, is_cancelled, quietly):
            self.due, self._since_last, self.is_unchecked = None, 0, False

    def _check(
        self, runtimes: Sequence[str], trigger: HealthTrigger, is_cancelled: Callable[[], bool], quietly: Quietly
    ) -> bool:
        for runtime in runtimes:
            answer = self._once(runtime, trigger, is_cancelled, quietly)
            if answer is not None and answer.repeat_after_s is not None:
                log.warning("%s; checking again in %.0f s", answer.reason, answer.repeat_after_s)
                self._cool_down(answer.repeat_after_s, is_cancelled)
                answer = self._once(runtime, HealthTrigger.REPEAT, is_cancelled, quietly)
            if answer is None:
                return False
            log.info("health of %s: %s, %s", runtime, answer.verdict.value, answer.reason)
        return True

    def _once(
        self, runtime: str, trigger: HealthTrigger, is_cancelled: Callable[[], bool], quietly: Quietly
    ) -> HealthAnswer | None:
        if is_cancelled():
            return None
        with quietly():
            outcome = self._runner.run(
                golden_request(runtime), fetch=golden_path, report_stage=lambda stage: None, is_cancelled=is_cancelled
            )
        if isinstance(outcome, Failed) and outcome.code in NOT_THE_DEVICE:
            return None
        try:
            return self._tell(check_of(runtime, trigger, outcome))
        except PruneloopError as error:
            log.warning("the health check of %s is not told: %s", runtime, error)
            return None

    def _cool_down(self, seconds: float, is_cancelled: Callable[[], bool]) -> None:
        left_s = min(seconds, LONGEST_COOL_DOWN_S)
        while left_s > 0 and not is_cancelled():
            self._sleep(min(STEP_S, left_s))
            left_s -= STEP_S


def _is_throttled(outcome: MeasurementOutcome) -> bool:
    if isinstance(outcome, Measured):
        return outcome.conditions.get("throttled") is True
    return outcome.code == "throttled"


def _ref(name: str, kind: ArtifactKind) -> ArtifactRef:
    return ArtifactRef(digest=DIGESTS[name], size_bytes=0, kind=kind)
