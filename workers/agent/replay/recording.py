"""Measurements kept as JSON lines, one pass a line, and found again by what was measured.

What decides a number is its key: files by digest, runtime, precision, batch, threads. The plan is not part of it. Raw samples
are not kept, nor failures that say nothing of the files.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from domain.artifact import ArtifactRef, Digest
from domain.errors import Invalid
from domain.measurement import Measured, Measurement, MeasurementOutcome, MeasurementRequest
from domain.outcome import Blame, Failed
from domain.ports import Runner


class RecordingUnreadable(Invalid):
    """The file is no recording; the message names the line."""

    default_code = "recording_unreadable"


class Pass(BaseModel):
    """One recorded pass: what was asked, less what does not decide the number, and what came of it."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    version: Literal[1] = 1
    runtime: str
    precision: str
    batch: int
    threads: int
    baseline: Digest
    candidates: tuple[Digest, ...]
    outcome: MeasurementOutcome

    @classmethod
    def of(cls, request: MeasurementRequest, outcome: MeasurementOutcome) -> Pass | None:
        """Return what is worth keeping of a measurement; None where it says nothing of its files."""
        if isinstance(outcome, Failed) and outcome.blame is not Blame.CANDIDATE:
            return None
        if isinstance(outcome, Measured):
            bare = tuple(one.model_copy(update={"samples": None}) for one in outcome.candidates)
            outcome = outcome.model_copy(update={"candidates": bare})
        return cls(
            runtime=request.runtime,
            precision=request.precision,
            batch=request.batch,
            threads=request.threads,
            baseline=request.baseline.artifact.digest,
            candidates=tuple(file.artifact.digest for file in request.candidates),
            outcome=outcome,
        )


class Recording:
    """Passes by what they measured; a later pass of the same files stands in for an earlier one."""

    def __init__(self, passes: Iterable[Pass]) -> None:
        self.passes = tuple(passes)

    @classmethod
    def read(cls, path: Path) -> Recording:
        """Read a file of JSON lines.

        Raises:
            RecordingUnreadable: If it cannot be read, or a line is no pass.
        """
        try:
            lines = path.read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise RecordingUnreadable(f"The recording {path} cannot be read: {error}.") from error
        passes = []
        for number, line in enumerate(lines, start=1):
            if line.strip():
                try:
                    passes.append(Pass.model_validate_json(line))
                except ValidationError as error:
                    first = error.errors()[0]
                    place = ".".join(str(part) for part in first["loc"])
                    raise RecordingUnreadable(
                        f"{path}, line {number}: {place or 'the line'}: {first['msg']}; remove the line or record anew."
                    ) from error
        return cls(passes)

    def matching(self, request: MeasurementRequest, *, runtime: str | None) -> Iterator[Pass]:
        """Yield the passes of the same baseline under the same conditions, latest first; ``runtime`` None: of any."""
        for one in reversed(self.passes):
            if (
                one.baseline == request.baseline.artifact.digest
                and (one.precision, one.batch, one.threads) == (request.precision, request.batch, request.threads)
                and runtime in {None, one.runtime}
            ):
                yield one


def write_recording(path: Path, rows: Iterable[Measurement]) -> int:
    """Append finished measurements, as they stand in the tables, and return how many were worth keeping."""
    passes = (Pass.of(row.request, row.outcome) for row in rows if row.outcome is not None)
    lines = [one.model_dump_json() + "\n" for one in passes if one is not None]
    with path.open("a", encoding="utf-8") as file:
        file.writelines(lines)
    return len(lines)


class RecordingRunner:
    """Measures with another runner and appends every outcome to a file.

    Args:
        runner: What measures.
        path: JSON lines; made where absent.
    """

    def __init__(self, runner: Runner, path: Path) -> None:
        self._runner = runner
        self._path = path
        self._lock = threading.Lock()

    def run(
        self,
        request: MeasurementRequest,
        *,
        fetch: Callable[[ArtifactRef], Path],
        report_stage: Callable[[str], None],
        is_cancelled: Callable[[], bool],
    ) -> MeasurementOutcome:
        outcome = self._runner.run(request, fetch=fetch, report_stage=report_stage, is_cancelled=is_cancelled)
        kept = Pass.of(request, outcome)
        if kept is not None:
            with self._lock, self._path.open("a", encoding="utf-8") as file:
                file.write(kept.model_dump_json() + "\n")
        return outcome
