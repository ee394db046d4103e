"""Use cases of a job, for the API and the command line: create, steer, read. Loads neither the loop nor Optuna."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from pydantic import BaseModel, ConfigDict

from domain.access import SYSTEM, Principal
from domain.artifact import Digest
from domain.errors import FieldProblem, Invalid, NotFound
from domain.formats import FORMATS, READ_BY, why_not
from domain.front import Front
from domain.job import Job, JobSpec, JobVerb
from domain.plan import JobPlan
from domain.ports import ArtifactStore, JobStore, Launcher
from search.front import build_front
from search.planning import Trace, make_plan, no_builder_here


@dataclass(frozen=True)
class Capabilities:
    """What this installation can do; a spec that asks for more is refused with the field and what would do.

    ``models`` and ``datasets`` name the built-in ones; empty: not known here, so not checked.
    ``why_no_export`` says what a known format lacks, as far as can be told where the API runs; the builder looks again.
    """

    levels: tuple[str, ...] = ("block", "channel", "weight")
    precisions: tuple[str, ...] = ("fp32", "fp16", "int8")
    runtimes: tuple[str, ...] = ("onnxruntime",)
    exports: tuple[str, ...] = tuple(FORMATS)
    metrics: tuple[str, ...] = ("accuracy",)
    models: tuple[str, ...] = ()
    datasets: tuple[str, ...] = ()
    why_no_export: Callable[[str], str | None] = lambda name: None


class JobArtifact(BaseModel):
    """A file on a job's front and the point it belongs to; ``trial`` is null for the dense model."""

    model_config = ConfigDict(frozen=True)

    trial: int | None
    target: int
    stage: str
    format: str
    digest: Digest
    size_bytes: int
    manifest: Digest | None = None


class JobService:
    """Jobs as a user handles them.

    Args:
        store: The tables.
        artifacts: Files that a spec may name.
        launcher: Woken after a commit.
        capabilities: What may be asked for.
        trace: Finds a model's groups for ``plan``; default: says that no builder is installed here.
    """

    def __init__(
        self,
        store: JobStore,
        artifacts: ArtifactStore,
        launcher: Launcher,
        capabilities: Capabilities,
        *,
        trace: Trace = no_builder_here,
    ) -> None:
        self._store = store
        self._artifacts = artifacts
        self._launcher = launcher
        self._capabilities = capabilities
        self._trace = trace

    @property
    def capabilities(self) -> Capabilities:
        """What jobs may ask for here."""
        return self._capabilities

    def create_job(
        self, spec: JobSpec, *, idempotency_key: str | None = None, by: Principal = SYSTEM
    ) -> tuple[Job, bool]:
        """Check and insert a job, then wake a search worker; returns (job, is_new).

        Raises:
            Invalid: ``precision_not_available``, ``runtime_not_available``, ``format_not_available``,
                ``batch_not_available``, ``export_not_available``, ``exporter_missing``,
                ``metric_not_available``, ``unknown_model``, ``unknown_dataset``,
                ``unknown_artifact``, or ``idempotency_mismatch``. Every failing field is named; the code is the first's.
            Conflict: ``idempotency_in_progress``.
        """
        self._check(spec)
        job, is_new = self._store.create_job(spec, idempotency_key=idempotency_key, by=by)
        if is_new:
            self._launcher.wake_search()
        return job, is_new

    def plan(self, spec: JobSpec) -> JobPlan:
        """Check a job as ``create_job`` does and tell what it would do; nothing is stored. Raises what ``create_job`` raises."""
        self._check(spec)
        return make_plan(spec, self._store, self._trace)

    def apply_verb(self, job_id: str, verb: JobVerb, *, by: Principal = SYSTEM) -> Job:
        """Pause, resume, stop or cancel a job, and wake whoever has to act on it. Raises WrongState, NotFound."""
        job = self._store.apply_verb(job_id, verb, by=by)
        if verb in {JobVerb.RESUME, JobVerb.STOP}:
            self._launcher.wake_search()
        return job

    def front(self, job_id: str, target: int) -> Front:
        """Return a target's front. Raises NotFound ``unknown_target`` with how many there are."""
        snapshot = self._store.snapshot(job_id)
        count = len(snapshot.job.spec.targets)
        if not 0 <= target < count:
            raise NotFound(
                f"The job has no target {target}; it has {count}, numbered from 0.",
                code="unknown_target",
                metadata={"target": target, "targets": count},
            )
        return build_front(snapshot, target)

    def job_artifacts(self, job_id: str) -> tuple[JobArtifact, ...]:
        """Return every file on the job's fronts, each target's dense model first, then fastest first."""
        snapshot = self._store.snapshot(job_id)
        found = []
        for target in range(len(snapshot.job.spec.targets)):
            front = build_front(snapshot, target)
            for point in (*front.dense, *front.items):
                for artifact in point.artifacts:
                    found.append(
                        JobArtifact(
                            trial=point.trial,
                            target=target,
                            stage=point.stage,
                            format=artifact.format,
                            digest=artifact.digest,
                            size_bytes=artifact.size_bytes,
                            manifest=point.manifest,
                        )
                    )
        return tuple(found)

    def _check(self, spec: JobSpec) -> None:
        problems = self._problems(spec)
        if problems:
            raise Invalid(
                " ".join(problem.message for _, problem in problems),
                code=problems[0][0],
                fields=[problem for _, problem in problems],
            )

    def _problems(self, spec: JobSpec) -> list[tuple[str, FieldProblem]]:
        can = self._capabilities
        problems: list[tuple[str, FieldProblem]] = []

        def check(value: str, known: tuple[str, ...], field: str, what: str, code: str) -> None:
            if value not in known:
                text = f"{what} {value!r} is not available here; use one of: {', '.join(sorted(known)) or 'none'}."
                problems.append((code, FieldProblem(field, text)))

        for index, target in enumerate(spec.targets):
            check(target.runtime, can.runtimes, f"targets.{index}.runtime", "The runtime", "runtime_not_available")
            if target.format is not None:
                check(target.format, can.exports, f"targets.{index}.format", "The format", "format_not_available")
            for place, precision in enumerate(target.precision):
                field = f"targets.{index}.precision.{place}"
                check(precision, can.precisions, field, "The precision", "precision_not_available")
        for index, export in enumerate(spec.exports):
            check(export, can.exports, f"exports.{index}", "The export format", "export_not_available")
        made = [(f"targets.{index}.runtime", target.file_format) for index, target in enumerate(spec.targets)]
        made += [(f"exports.{index}", export) for index, export in enumerate(spec.exports)]
        for field, name in made:
            missing = can.why_no_export(name)
            if missing is not None:
                problems.append(("exporter_missing", FieldProblem(field, missing)))
        problems += _cannot_be_held(spec)
        check(spec.objective.metric, can.metrics, "objective.metric", "The metric", "metric_not_available")
        if spec.model.source == "builtin" and can.models:
            check(spec.model.name or "", can.models, "model.name", "The built-in model", "unknown_model")
        if spec.data.source == "builtin" and can.datasets:
            check(spec.data.name or "", can.datasets, "data.name", "The built-in dataset", "unknown_dataset")
        named = (
            ("model.weights", spec.model.weights),
            ("model.artifact", spec.model.artifact),
            ("data.artifact", spec.data.artifact),
        )
        for field, digest in named:
            if digest is not None and not self._artifacts.exists(digest):
                text = f"No artifact {digest} is stored here; upload it with POST /v1/artifacts first."
                problems.append(("unknown_artifact", FieldProblem(field, text)))
        return problems


def _cannot_be_held(spec: JobSpec) -> list[tuple[str, FieldProblem]]:
    """Return what the formats of a job's targets and exports cannot hold: a precision, a batch."""
    problems = []
    for index, target in enumerate(spec.targets):
        reads = READ_BY.get(target.runtime)
        if target.format is not None and reads is not None and target.format not in reads:
            text = f"{target.runtime} does not read {target.format}; ask for one of: {', '.join(reads)}."
            problems.append(("format_not_available", FieldProblem(f"targets.{index}.format", text)))
        places = [(f"targets.{index}.precision.{place}", precision) for place, precision in enumerate(target.precision)]
        asked = [(field, target.file_format, precision, 1) for field, precision in places]
        asked.append((f"targets.{index}.batch", target.file_format, "fp32", target.batch))
        for place, export in enumerate(spec.exports):
            # What the target reads was looked at; the other files are made of its points too.
            others = [(f"exports.{place}", export, precision, target.batch) for precision in target.precision]
            asked += others if export != target.file_format else []
        for field, name, precision, batch in asked:
            refused = why_not(name, precision=precision, batch=batch)
            if refused is not None:
                text = refused[1] if field.startswith("targets") else f"Target {index}: {refused[1]}"
                problems.append((refused[0], FieldProblem(field, text)))
    return problems
