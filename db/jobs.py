"""Jobs: made once, listed, steered by verbs, read whole."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

from sqlalchemy import Connection, func, insert, select, tuple_, update
from sqlalchemy.dialects.postgresql import insert as upsert

from db import leases
from db.audit import note
from db.events import EventTables, append_event, lock_job
from db.ids import new_id
from db.mapping import (
    BUILD_COLUMNS,
    JOB_COLUMNS,
    PAUSED_S,
    TRIAL_COLUMNS,
    UNREAD_MEASUREMENT_COLUMNS,
    AnyRow,
    build_of,
    job_of,
    trial_of,
    unread_measurement_of,
)
from db.models import artifact, build, idempotency_key, job, measurement, trial
from db.pages import coerce_page_size, make_page, moment_in_token, read_page_token
from db.webhooks import note_end
from domain.access import SYSTEM, Principal
from domain.errors import Conflict, FieldProblem, Invalid, NotFound
from domain.job import EndedBy, Job, JobSpec, JobState, JobVerb, Stage, state_after
from domain.lazy import LazyRows
from domain.ports import JobSnapshot, Page
from domain.trial import Trial, TrialState

RUNNING_TRIAL = [TrialState.BUILDING, TrialState.MEASURING]


class JobTables(EventTables):
    """Jobs as users see them."""

    def create_job(
        self, spec: JobSpec, *, idempotency_key: str | None = None, by: Principal = SYSTEM
    ) -> tuple[Job, bool]:
        """Insert a job; returns (job, is_new). Same key and body: the first job.

        Raises:
            Invalid: ``idempotency_mismatch`` where the key was used with another body.
            Conflict: ``idempotency_in_progress`` where a request with the key is still under way.
        """
        job_id = new_id("job")
        with self._transaction() as connection:
            if idempotency_key is not None:
                first_id = _take_key(connection, by.name, idempotency_key, spec, job_id)
                if first_id != job_id:
                    return _job(connection, first_id), False
            values = {"id": job_id, "name": spec.name, "created_by": by.name, "spec": spec}
            values |= {"labels": spec.labels, "priority": spec.priority}
            connection.execute(insert(job).values(**values, state=JobState.QUEUED, stage=Stage.QUEUED))
            append_event(connection, job_id, "job.state", {"state": JobState.QUEUED.value})
            used = update(artifact).where(artifact.c.digest.in_(spec.inputs)).values(used_at=func.now())
            connection.execute(used)  # the collector leaves what is named anew alone
            note(connection, by, "job.create", job_id, {"name": spec.name})
            return _job(connection, job_id), True

    def job(self, job_id: str) -> Job:
        """Return a job. Raises NotFound."""
        with self._reading() as connection:
            return _job(connection, job_id)

    def jobs(
        self,
        *,
        states: Sequence[JobState] = (),
        labels: Mapping[str, str | None] | None = None,
        created_from: datetime | None = None,
        created_before: datetime | None = None,
        page_size: int = 50,
        page_token: str = "",
    ) -> Page[Job]:
        """Return a page of jobs, newest first; a label without a value matches any. Raises Invalid ``bad_page_token``."""
        wanted = dict(labels or {})
        list_name = self.list_of_jobs(states, wanted, created_from, created_before)
        after = read_page_token(list_name, page_token, str, str)
        size = coerce_page_size(page_size)
        query = select(*JOB_COLUMNS).order_by(job.c.created_at.desc(), job.c.id.desc()).limit(size + 1)
        if states:
            query = query.where(job.c.state.in_(states))
        exact = {key: value for key, value in wanted.items() if value is not None}
        if exact:
            query = query.where(job.c.labels.contains(exact))
        for key in wanted.keys() - exact.keys():
            query = query.where(job.c.labels.has_key(key))
        if created_from is not None:
            query = query.where(job.c.created_at >= created_from)
        if created_before is not None:
            query = query.where(job.c.created_at < created_before)
        if after is not None:
            created_at = moment_in_token(after[0])
            query = query.where(tuple_(job.c.created_at, job.c.id) < tuple_(created_at, after[1]))
        with self._reading() as connection:
            rows = connection.execute(query).all()
        return make_page(rows, size, job_of, list_name=list_name, key=lambda row: (row.created_at.isoformat(), row.id))

    @staticmethod
    def list_of_jobs(
        states: Sequence[JobState] = (),
        labels: Mapping[str, str | None] | None = None,
        created_from: datetime | None = None,
        created_before: datetime | None = None,
    ) -> str:
        """Return the name of a list, which its page tokens carry: one with other filters is another list."""
        filters = [sorted(set(states)), sorted((labels or {}).items()), _iso(created_from), _iso(created_before)]
        return f"jobs:{hashlib.sha256(json.dumps(filters).encode()).hexdigest()[:16]}"

    def trials(self, job_id: str, *, page_size: int = 100, page_token: str = "") -> Page[Trial]:
        """Return a page of a job's trials by number. Raises Invalid ``bad_page_token``, NotFound."""
        list_name = f"trials:{job_id}"
        after = read_page_token(list_name, page_token, int)
        size = coerce_page_size(page_size)
        query = select(*TRIAL_COLUMNS).where(trial.c.job_id == job_id).order_by(trial.c.number).limit(size + 1)
        if after is not None:
            query = query.where(trial.c.number > after[0])
        with self._reading() as connection:
            rows = connection.execute(query).all()
            if not rows:
                _job(connection, job_id)
        return make_page(rows, size, trial_of, list_name=list_name, key=lambda row: (row.number,))

    def snapshot(self, job_id: str) -> JobSnapshot:
        """Return a job with all its rows as they were at one moment, without raw samples. Raises NotFound."""
        with self._transaction(is_snapshot=True) as connection:
            row = connection.execute(select(*JOB_COLUMNS, job.c.event_seq).where(job.c.id == job_id)).one_or_none()
            if row is None:
                raise no_job(job_id)
            read = self._rows.read
            snapshot = JobSnapshot(
                job=job_of(row),
                trials=read(connection, trial, job_id, columns=TRIAL_COLUMNS, order=(trial.c.number,), parse=trial_of),
                builds=read(
                    connection,
                    build,
                    job_id,
                    columns=BUILD_COLUMNS,
                    order=(build.c.created_at, build.c.id),
                    parse=build_of,
                ),
                measurements=LazyRows(
                    read(
                        connection,
                        measurement,
                        job_id,
                        columns=UNREAD_MEASUREMENT_COLUMNS,
                        order=(measurement.c.created_at, measurement.c.id),
                        parse=unread_measurement_of,
                    )
                ),
            )
        self._saw(job_id, row.event_seq)
        return snapshot

    def apply_verb(self, job_id: str, verb: JobVerb, *, by: Principal = SYSTEM) -> Job:
        """Move a job by ``domain.job.state_after``; cancel also cancels its trials and work.

        Raises:
            WrongState: The job's state forbids the verb.
            NotFound: No such job.
        """
        with self._transaction() as connection:
            if lock_job(connection, job_id) is None:
                raise no_job(job_id)
            row = connection.execute(select(job.c.state, job.c.started_at).where(job.c.id == job_id)).one()
            before = JobState(row.state)
            after = state_after(verb, before, has_started=row.started_at is not None)
            if after.is_terminal:
                close_job(connection, job_id, after, ended_by=EndedBy.USER, reason=None)
            else:
                move_job(connection, job_id, after)
            note(connection, by, f"job.{verb.value}", job_id)
            return _job(connection, job_id)


def move_job(connection: Connection, job_id: str, state: JobState, **more: Any) -> None:
    """Write a locked job's new state and the time it was paused; waiting ends, so that a verb is heard at once."""
    is_paused = state is JobState.PAUSED
    values = {
        "state": state,
        "paused_s": PAUSED_S,
        "paused_at": func.now() if is_paused else None,
        "not_before": None,
        **more,
    }
    connection.execute(update(job).where(job.c.id == job_id).values(values))
    data = {"state": state.value, **{key: more[key] for key in ("ended_by", "reason") if more.get(key) is not None}}
    append_event(connection, job_id, "job.state", data)


def close_job(connection: Connection, job_id: str, state: JobState, *, ended_by: EndedBy, reason: str | None) -> None:
    """Move a locked job to a terminal state; what is left of its trials and work is cancelled with it."""
    left = (
        update(trial)
        .where(trial.c.job_id == job_id, trial.c.state.in_(RUNNING_TRIAL))
        .values(state=TrialState.CANCELLED, reason="The job ended before it was finished.", finished_at=func.now())
        .returning(trial.c.id, trial.c.number, trial.c.target)
    )
    for row in connection.execute(left).all():
        append_event(connection, job_id, "trial.finished", trial_event(row, TrialState.CANCELLED))
    for table in (build, measurement):
        leases.cancel_work(connection, table, job_id)
    note_end(connection, job_id)
    move_job(
        connection,
        job_id,
        state,
        ended_by=ended_by.value,
        reason=reason,
        stage=Stage.DONE,
        finished_at=func.now(),
    )


def trial_event(row: AnyRow, state: TrialState) -> dict[str, Any]:
    return {"trial_id": row.id, "trial": row.number, "target": row.target, "state": state.value}


def _take_key(connection: Connection, principal: str, key: str, spec: JobSpec, job_id: str) -> str:
    """Return the id of the job this key stands for: the given one where the key is new."""
    body = json.dumps(spec.model_dump(mode="json"), sort_keys=True, separators=(",", ":"))
    sha256 = hashlib.sha256(body.encode()).hexdigest()
    values = {"principal": principal, "key": key, "body_sha256": sha256, "job_id": job_id}
    known = select(idempotency_key).where(idempotency_key.c.principal == principal, idempotency_key.c.key == key)
    row = connection.execute(known).one_or_none()
    # A key whose first request is through needs no lock: those that repeat it are not in each other's way.
    if row is None:
        lock = func.pg_try_advisory_xact_lock(func.hashtextextended(f"{principal}\x1f{key}", 0))
        if not connection.execute(select(lock)).scalar_one():
            raise Conflict(
                "A request with this Idempotency-Key is still under way; send it again in a second to have its answer.",
                code="idempotency_in_progress",
                metadata={"retry_after_s": 1},
            )
        take = upsert(idempotency_key).values(values).on_conflict_do_nothing().returning(idempotency_key.c.job_id)
        if connection.execute(take).one_or_none() is not None:
            return job_id
        row = connection.execute(known).one()
    if row.body_sha256 != sha256:
        raise Invalid(
            "This Idempotency-Key was used with another body; send a new key with a new job.",
            code="idempotency_mismatch",
            fields=[FieldProblem("Idempotency-Key", "use each key with one body only")],
            metadata={"job_id": row.job_id},
        )
    return str(row.job_id)


def _job(connection: Connection, job_id: str) -> Job:
    row = connection.execute(select(*JOB_COLUMNS).where(job.c.id == job_id)).one_or_none()
    if row is None:
        raise no_job(job_id)
    return job_of(row)


def _iso(moment: datetime | None) -> str | None:
    return moment.isoformat() if moment is not None else None


def no_job(job_id: str) -> NotFound:
    return NotFound(f"There is no job {job_id}; GET /v1/jobs lists those there are.", metadata={"id": job_id})
