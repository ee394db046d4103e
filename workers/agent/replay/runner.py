"""Plays a recording back: the same question always gets the same answer, and nothing is timed."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from domain.artifact import ArtifactRef
from domain.measurement import Measured, MeasurementOutcome, MeasurementRequest
from domain.outcome import Blame, Failed
from workers.agent.replay.recording import Pass, Recording, RecordingUnreadable
from workers.agent.runtimes.names import REPLAY


class ReplayRunner:
    """Answers from a recording; implements ``domain.ports.Runner``.

    A request for the runtime ``replay`` is answered by passes of any one runtime. A pass of the same files is played back as it
    was; else one is put together from passes that each hold one of the candidates, against the same baseline.

    Args:
        path: What ``RecordingRunner`` or ``write_recording`` wrote; read at the first question.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._recording: Recording | None = None

    def run(
        self,
        request: MeasurementRequest,
        *,
        fetch: Callable[[ArtifactRef], Path],
        report_stage: Callable[[str], None],
        is_cancelled: Callable[[], bool],
    ) -> MeasurementOutcome:
        report_stage("measure")
        if is_cancelled():
            return _failed("Cancelled.", Blame.SYSTEM, "cancelled")
        try:
            if self._recording is None:
                self._recording = Recording.read(self._path)
        except RecordingUnreadable as error:
            return _failed(error.message, Blame.DEVICE, error.code)
        return self._answer(request, self._recording)

    def _answer(self, request: MeasurementRequest, recording: Recording) -> MeasurementOutcome:
        found = list(recording.matching(request, runtime=None if request.runtime == REPLAY else request.runtime))
        runtimes = sorted({one.runtime for one in found})
        if len(runtimes) > 1:
            return _failed(
                f"{self._path} holds these files under {' and '.join(runtimes)}: keep the lines of one in a file of their own.",
                Blame.DEVICE,
                "ambiguous_recording",
            )
        wanted = tuple(file.artifact.digest for file in request.candidates)
        whole = next((one for one in found if one.candidates == wanted), None)
        if whole is not None:
            return self._played(whole.outcome, whole.runtime)
        # A pass that failed says nothing of any one of several files.
        clear = [one for one in found if isinstance(one.outcome, Measured) or len(one.candidates) == 1]
        parts = [next((one for one in clear if digest in one.candidates), None) for digest in wanted]
        if any(part is None for part in parts):
            missing = [digest for digest, part in zip(wanted, parts, strict=True) if part is None]
            return _failed(
                f"{self._path} holds no measurement of {', '.join(missing)} against {request.baseline.artifact.digest} "
                f"at batch {request.batch}, {request.threads} threads, {request.precision}: record the job on a device first.",
                Blame.DEVICE,
                "not_recorded",
            )
        return self._put_together(request, [part for part in parts if part is not None])

    def _put_together(self, request: MeasurementRequest, parts: list[Pass]) -> MeasurementOutcome:
        """Make one pass of several: every latency is that of the first one's baseline over the recorded speed-up."""
        first, timings = None, []
        for file, part in zip(request.candidates, parts, strict=True):
            if isinstance(part.outcome, Failed):
                return self._played(part.outcome, part.runtime)
            first = first or part
            timings.append(part.outcome.candidates[part.candidates.index(file.artifact.digest)])
        assert first is not None and isinstance(first.outcome, Measured)
        baseline_ms = first.outcome.baseline.latency_ms
        outcome = first.outcome.model_copy(
            update={
                "candidates": tuple(
                    one.model_copy(
                        update={
                            "latency_ms": baseline_ms / one.speedup,
                            "latency_ci_ms": (baseline_ms / one.speedup_ci[1], baseline_ms / one.speedup_ci[0]),
                        }
                    )
                    for one in timings
                )
            }
        )
        return self._played(outcome, first.runtime)

    def _played(self, outcome: MeasurementOutcome, runtime: str) -> MeasurementOutcome:
        if isinstance(outcome, Failed):
            return outcome
        return outcome.model_copy(
            update={
                "conditions": {
                    **outcome.conditions,
                    "runtime": REPLAY,
                    "recorded_runtime": runtime,
                    "recording": self._path.name,
                },
                "warnings": (*outcome.warnings, "played back from a recording: nothing was timed now"),
            }
        )


def _failed(reason: str, blame: Blame, code: str) -> Failed:
    return Failed(stage="measure", reason=reason, blame=blame, retryable=False, code=code)
