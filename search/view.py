"""Reading a snapshot: which build, measurement or trial is the one a decision is about. Pure; no Optuna, no clock."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from pydantic import BaseModel

from domain.build import Build, BuildResult, BuiltArtifact, CandidateRequest, FinalRequest, PrepareRequest
from domain.formats import ONNX
from domain.job import Job, JobSpec
from domain.lazy import by_name
from domain.measurement import CandidateTiming, Measured, MeasuredFile, Measurement
from domain.outcome import Failed
from domain.ports import JobSnapshot
from domain.trial import Trial, TrialState


@dataclass(frozen=True)
class View:
    """A snapshot with its rows at hand by id and key."""

    snapshot: JobSnapshot
    job: Job = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "job", self.snapshot.job)

    @property
    def spec(self) -> JobSpec:
        return self.job.spec

    @cached_property
    def builds(self) -> dict[str, Build]:
        return {build.key: build for build in self.snapshot.builds}

    @cached_property
    def builds_by_id(self) -> dict[str, Build]:
        return {build.id: build for build in self.snapshot.builds}

    @cached_property
    def measurements(self) -> Mapping[str, Measurement]:
        return by_name(self.snapshot.measurements, "key")

    @cached_property
    def measurements_by_id(self) -> Mapping[str, Measurement]:
        return by_name(self.snapshot.measurements, "id")

    @cached_property
    def trials_by_number(self) -> dict[int, Trial]:
        return {trial.number: trial for trial in self.snapshot.trials}

    @cached_property
    def _trials_by_target(self) -> dict[int, list[Trial]]:
        found: dict[int, list[Trial]] = {}
        for trial in sorted(self.snapshot.trials, key=lambda trial: trial.study_number):
            found.setdefault(trial.target, []).append(trial)
        return found

    @cached_property
    def memory(self) -> dict[object, Any]:
        """What functions of this snapshot found before, by whatever they like to call it: a turn asks many things twice."""
        return {}

    @cached_property
    def _identities(self) -> dict[int, set[object]]:
        return {
            target: {trial.candidate.identity for trial in trials} for target, trials in self._trials_by_target.items()
        }

    def identities_of(self, target: int) -> Container[object]:
        """Return the identities of all candidates a target was asked, to see whether one is new."""
        return self._identities.get(target, frozenset())

    def trials_of(self, target: int) -> list[Trial]:
        """Return a target's trials in the order they were asked."""
        return self._trials_by_target.get(target, [])

    def prepare_build(self, target: int) -> Build | None:
        """Return the prepare build of a target's batch, if it was added."""
        batch = self.spec.targets[target].batch
        for build in self.snapshot.builds:
            if isinstance(build.request, PrepareRequest) and build.request.batch == batch:
                return build
        return None

    def prepared(self, target: int) -> BuildResult | None:
        """Return the dense model as built for a target, once it is."""
        build = self.prepare_build(target)
        return build.outcome if build is not None and isinstance(build.outcome, BuildResult) else None

    def dense_of(self, target: int) -> BuildResult:
        """Return the dense model as built for a target; only for stages that come after preparing."""
        dense = self.prepared(target)
        if dense is None:
            raise LookupError(f"target {target} is not prepared")
        return dense

    def dense_accuracy(self, target: int, precision: str | None = None) -> float:
        """Return the dense file's accuracy on the search split, in a precision or the target's first."""
        dense = self.dense_of(target)
        wanted = precision or self.spec.targets[target].precision[0]
        own = deployable(dense, self.format_of(target), wanted).accuracy_search
        return dense.accuracy.search if own is None else own

    def format_of(self, target: int) -> str:
        """Return the format a target's runtime reads."""
        return self.spec.targets[target].file_format

    def formats_of(self, batch: int) -> tuple[str, ...]:
        """Return every format that targets of a batch read, in the order they do."""
        asked = (target.file_format for target in self.spec.targets if target.batch == batch)
        return tuple(dict.fromkeys(asked))

    def precisions_of(self, batch: int) -> tuple[str, ...]:
        """Return every precision that targets of a batch ask for, in the order they do."""
        asked = (precision for target in self.spec.targets if target.batch == batch for precision in target.precision)
        return tuple(dict.fromkeys(asked))

    def built(self, trial: Trial) -> BuildResult | None:
        build = self.builds_by_id.get(trial.build_id or "")
        return build.outcome if build is not None and isinstance(build.outcome, BuildResult) else None

    def measured(self, trial: Trial) -> tuple[Measurement, Measured, CandidateTiming] | None:
        """Return the trial's own measurement, if it gave a number."""
        measurement = self.measurements_by_id.get(trial.measurement_id or "")
        if measurement is None or not isinstance(measurement.outcome, Measured):
            return None
        return measurement, measurement.outcome, measurement.outcome.candidates[0]

    def original(self, trial: Trial) -> Trial:
        """Return the trial a duplicate stands for, or the trial itself."""
        while trial.duplicate_of is not None:
            trial = self.trials_by_number[trial.duplicate_of]
        return trial

    def dense_final(self, target: int) -> BuildResult | None:
        """Return the dense model run on the test split, once it was."""
        batch = self.spec.targets[target].batch
        for build in self.snapshot.builds:
            request = build.request
            if isinstance(request, FinalRequest) and request.candidate is None and request.batch == batch:
                return build.outcome if isinstance(build.outcome, BuildResult) else None
        return None

    def succeeded(self, target: int) -> list[Trial]:
        return [trial for trial in self.trials_of(target) if trial.state is TrialState.SUCCEEDED]

    def shaped(self, target: int) -> list[Trial]:
        """Return the measured trials that differ from the dense model by their shape alone: what predictors learn from."""
        return [trial for trial in self.succeeded(target) if not trial.candidate.zeros]


def prepare_request(view: View, batch: int) -> PrepareRequest:
    """Return what is asked of the builder first, for the targets of a batch."""
    spec = view.spec
    return PrepareRequest(
        model=spec.model,
        data=spec.data,
        metric=spec.objective.metric,
        batch=batch,
        seed=spec.seed,
        precisions=view.precisions_of(batch),
        formats=view.formats_of(batch),
        exports=tuple(sorted(set(spec.exports) - {ONNX, *view.formats_of(batch)})),
    )


def failure_of(work: Build | Measurement) -> Failed | None:
    return work.outcome if isinstance(work.outcome, Failed) else None


def deployable(result: BuildResult, format: str, precision: str | None = None) -> BuiltArtifact:
    """Return the file of a build that is measured and deployed, in a target's format; the dense model has one a precision.

    Raises:
        LookupError: Where the build made no such file: it was asked for others.
    """
    for built in result.artifacts:
        if built.format == format and precision in {None, built.precision}:
            return built
    raise LookupError(f"the build made no {format} file in {precision or 'any precision'}")


def measured_file(result: BuildResult, format: str, precision: str | None = None) -> MeasuredFile:
    built = deployable(result, format, precision)
    return MeasuredFile(artifact=built.artifact, check=built.check)


def content_key(request: BaseModel) -> str:
    """Return ``<kind>:<hash>`` of all that a request says: equal requests are one build, whichever job asks."""
    body = request.model_dump(mode="json")
    text = json.dumps(body, sort_keys=True, separators=(",", ":"))
    return f"{body['kind']}:{hashlib.sha256(text.encode()).hexdigest()[:32]}"


def candidate_key(request: CandidateRequest) -> str:
    """Like ``content_key``, less the sparsity asked: it says how widths came about, not what is built."""
    body = request.model_dump(mode="json", exclude={"candidate"})
    text = json.dumps([body, request.candidate.key], sort_keys=True, separators=(",", ":"))
    return f"candidate:{hashlib.sha256(text.encode()).hexdigest()[:32]}"


def trailing_duplicates(trials: Sequence[Trial]) -> int:
    """Return how many of the last asks needed no build, because the architecture was known."""
    count = 0
    for trial in reversed(trials):
        if trial.build_id is not None:
            break
        count += 1
    return count
