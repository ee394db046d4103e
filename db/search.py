"""The search's side: one lease a job, and writes that hold only under it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import JsonValue
from sqlalchemy import Connection, ScalarSelect, func, or_, select, update
from sqlalchemy.dialects.postgresql import insert as upsert

from db.events import append_event
from db.files import record_files
from db.ids import new_id
from db.jobs import close_job, move_job, trial_event
from db.leases import in_seconds
from db.mapping import (
    BUILD_COLUMNS,
    JOB_COLUMNS,
    MEASUREMENT_COLUMNS,
    TRIAL_COLUMNS,
    AnyRow,
    as_json,
    build_of,
    measurement_of,
    plain,
    trial_of,
)
from db.models import build, job, measurement, trial
from db.transactions import Transactions
from domain.build import Build, BuildResult
from domain.errors import Conflict, NotFound, StaleAttempt, WrongState
from domain.job import JOB_TRANSITIONS, EndedBy, JobState, Stage
from domain.measurement import Measurement
from domain.ports import NewBuild, NewMeasurement, NewTrial, SearchLease
from domain.trial import TRIAL_TRANSITIONS, Trial, TrialState, TrialValues
from domain.work import WorkState

SEARCHED = (JobState.QUEUED, JobState.RUNNING, JobState.STOPPING)


class SearchTables(Transactions):
    """What the loop writes. Every write locks the job first, so that it and a user's verb come one after the other."""

    # --- the lease --------------------------------------------------------------------------------------------------
    def lease_search(self, owner: str, *, lease_s: float, job_id: str | None = None) -> SearchLease | None:
        """Take the first job in the queue without a live lease, or the given one if it has none; QUEUED becomes RUNNING.

        The queue goes by priority, then by who waits longest.

        An owner that asks again before its lease ran out gets its own job back, as a new attempt.
        """
        is_free = or_(job.c.search_until.is_(None), job.c.search_until < func.now(), job.c.search_owner == owner)
        query = (
            select(job.c.id, job.c.state, job.c.started_at)
            .where(job.c.state.in_(SEARCHED), is_free)
            .where(or_(job.c.not_before.is_(None), job.c.not_before <= func.now()))
            .order_by(job.c.priority.desc(), job.c.waiting_since, job.c.id)
            .limit(1)
            # A given job is waited for; of many, one that is busy for a moment is passed over.
            .with_for_update(key_share=True, skip_locked=job_id is None)
        )
        if job_id is not None:
            query = query.where(job.c.id == job_id)
        with self._transaction() as connection:
            row = connection.execute(query).one_or_none()
            if row is None:
                return None
            values = {
                "search_owner": owner,
                "search_until": in_seconds(lease_s),
                "search_attempt": job.c.search_attempt + 1,
                "not_before": None,
            }
            taken = update(job).where(job.c.id == row.id).values(values).returning(job.c.search_attempt)
            attempt = connection.execute(taken).scalar_one()
            if row.state == JobState.QUEUED:
                move_job(connection, row.id, JobState.RUNNING, started_at=row.started_at or func.now())
            return SearchLease(job_id=row.id, owner=owner, attempt=attempt)

    def renew_search(self, lease: SearchLease, *, lease_s: float) -> JobState:
        """Extend the lease; returns the job's state, a terminal one too. Raises StaleAttempt."""
        with self._transaction() as connection:
            held = job.c.id == lease.job_id, job.c.search_attempt == lease.attempt, job.c.search_owner == lease.owner
            values = {"search_until": in_seconds(lease_s)}
            state = connection.execute(update(job).where(*held).values(values).returning(job.c.state)).scalar()
            if state is None:
                raise _lost(lease)
            return JobState(state)

    def release_search(self, lease: SearchLease, *, retry_after_s: float = 0.0) -> None:
        """Give the job back; it queues behind the others, and nobody takes it before ``retry_after_s``. Raises StaleAttempt."""
        with self._transaction() as connection:
            _hold(connection, lease)
            values = {
                "search_owner": None,
                "search_until": None,
                "waiting_since": func.now(),
                "not_before": in_seconds(retry_after_s) if retry_after_s > 0 else None,
            }
            connection.execute(update(job).where(job.c.id == lease.job_id).values(values))

    # --- the job ----------------------------------------------------------------------------------------------------
    def set_stage(self, lease: SearchLease, stage: Stage, *, reason: str | None = None) -> None:
        """Show where the job is, and why it waits. Raises StaleAttempt."""
        with self._transaction() as connection:
            row = _hold_live(connection, lease)
            reason = plain(reason)
            if (row.stage, row.reason) == (stage, reason):
                return
            connection.execute(update(job).where(job.c.id == row.id).values(stage=stage, reason=reason))
            append_event(connection, row.id, "job.stage", {"stage": stage.value, "reason": reason})

    def merge_report(self, lease: SearchLease, report: Mapping[str, JsonValue]) -> None:
        """Merge top-level keys into the job's report, also after its end. Raises StaleAttempt."""
        with self._transaction() as connection:
            row = _hold(connection, lease)
            connection.execute(update(job).where(job.c.id == row.id).values(report={**row.report, **as_json(report)}))

    def end_job(self, lease: SearchLease, state: JobState, *, ended_by: EndedBy, reason: str | None = None) -> None:
        """End the job and cancel what is left of its work. One that was asked to stop meanwhile ends STOPPED, not SUCCEEDED.

        Raises:
            StaleAttempt: The lease is lost, the job is over already, or it was paused since it was looked at.
            WrongState: A job in this state never ends so.
        """
        with self._transaction() as connection:
            row = _hold_live(connection, lease)
            before = JobState(row.state)
            if before is JobState.PAUSED:
                raise StaleAttempt(f"Job {row.id} was paused meanwhile; it ends once it is resumed.")
            if before is JobState.STOPPING and state is JobState.SUCCEEDED:
                state, ended_by = JobState.STOPPED, EndedBy.USER
            if state not in JOB_TRANSITIONS[before] or not state.is_terminal:
                raise WrongState(
                    f"A job in state {before} cannot end as {state}; read its state and decide anew.",
                    metadata={"state": before.value, "wanted": state.value},
                )
            close_job(connection, row.id, state, ended_by=ended_by, reason=plain(reason))

    # --- trials and their work --------------------------------------------------------------------------------------
    def add_trial(self, lease: SearchLease, trial: NewTrial) -> Trial:
        """Insert a trial, BUILDING, and its build, if any, in one transaction.

        Raises:
            StaleAttempt: The lease is lost, or the job is over.
            Conflict: ``trial_exists`` where the target's study has this number already.
        """
        with self._transaction() as connection:
            row = _hold_live(connection, lease)
            build_id = _insert_build(connection, row.id, trial.build).id if trial.build is not None else None
            return _insert_trial(connection, row.id, row.trials_asked, trial, build_id)

    def add_build(self, lease: SearchLease, build: NewBuild) -> Build:
        """Queue a build; the same key in the job is the same build. Raises StaleAttempt."""
        with self._transaction() as connection:
            row = _hold_live(connection, lease)
            return build_of(_insert_build(connection, row.id, build))

    def find_build(self, key: str) -> Build | None:
        """Return the latest finished build of any job with this key; None if there is none."""
        query = (
            select(*BUILD_COLUMNS)
            .join_from(build, job, job.c.id == build.c.job_id)
            .where(build.c.key == key, build.c.state == WorkState.DONE)
            .where(job.c.kept_files.is_(None))  # files of a collected job may be gone
            .order_by(build.c.finished_at.desc(), build.c.id.desc())
            .limit(1)
        )
        with self._transaction() as connection:
            row = connection.execute(query).one_or_none()
            return build_of(row) if row is not None else None

    def adopt_build(self, lease: SearchLease, build: Build) -> Build:
        """Write another job's finished build into this job as done. Raises StaleAttempt, WrongState where it is not finished."""
        if build.state is not WorkState.DONE or build.outcome is None:
            raise WrongState(f"Build {build.id} is {build.state}; only a finished one can be adopted.")
        with self._transaction() as connection:
            row = _hold_live(connection, lease)
            if isinstance(build.outcome, BuildResult):
                record_files(connection, build.outcome.files)  # in use again
            new = NewBuild(build.key, build.request)
            return build_of(_insert_build(connection, row.id, new, adopted=build))

    def add_measurement(
        self, lease: SearchLease, measurement: NewMeasurement, *, trial_id: str | None = None
    ) -> Measurement:
        """Queue a measurement; the same key in the job is the same one. With ``trial_id`` the trial moves to MEASURING with it.

        Raises:
            StaleAttempt: The lease is lost, or the job is over.
            WrongState: The trial is not BUILDING.
        """
        with self._transaction() as connection:
            row = _hold_live(connection, lease)
            queued = _insert_measurement(connection, row.id, measurement)
            if trial_id is not None:
                held = _trial(connection, row.id, trial_id)
                if (held.state, held.measurement_id) != (TrialState.MEASURING, queued.id):
                    _move_trial(connection, held, TrialState.MEASURING, measurement_id=queued.id)
            return measurement_of(queued)

    def finish_trial(
        self,
        lease: SearchLease,
        trial_id: str,
        state: TrialState,
        *,
        values: TrialValues | None = None,
        reason: str | None = None,
    ) -> None:
        """End a trial. Ending it once more in the same state changes nothing.

        Raises:
            StaleAttempt: The lease is lost, or the job is over.
            WrongState: The trial may not move so.
            NotFound: The job has no such trial.
        """
        with self._transaction() as connection:
            row = _hold_live(connection, lease)
            held = _trial(connection, row.id, trial_id)
            if held.state == state and state.is_terminal:
                return
            _move_trial(connection, held, state, told=values, reason=plain(reason), finished_at=func.now())
            data = trial_event(held, state)
            if values is not None:
                data["values"] = as_json(values)
            append_event(connection, row.id, "trial.finished", {**data, "reason": reason})


def _hold(connection: Connection, lease: SearchLease) -> AnyRow:
    """Lock the leased job and return it. Raises StaleAttempt where the lease is lost."""
    query = select(*JOB_COLUMNS, job.c.search_attempt, job.c.search_owner).where(job.c.id == lease.job_id)
    row = connection.execute(query.with_for_update(key_share=True, of=job)).one_or_none()
    if row is None or (row.search_attempt, row.search_owner) != (lease.attempt, lease.owner):
        raise _lost(lease)
    return row


def _hold_live(connection: Connection, lease: SearchLease) -> AnyRow:
    """As ``_hold``, and the job is not over: nothing may be added to one that is."""
    row = _hold(connection, lease)
    if JobState(row.state).is_terminal:
        raise StaleAttempt(
            f"Job {lease.job_id} is {row.state}; its search has nothing more to write.", metadata={"id": lease.job_id}
        )
    return row


def _lost(lease: SearchLease) -> StaleAttempt:
    return StaleAttempt(
        f"Attempt {lease.attempt} of {lease.owner} no longer has the search of job {lease.job_id}; leave it to the next.",
        metadata={"id": lease.job_id, "attempt": lease.attempt},
    )


def _insert_trial(connection: Connection, job_id: str, number: int, new: NewTrial, build_id: str | None) -> Trial:
    values = {
        "id": new_id("trial"),
        "job_id": job_id,
        "number": number,
        "target": new.target,
        "study_number": new.study_number,
        "state": TrialState.BUILDING,
        "params": new.params,
        "distributions": new.distributions,
        "seed_name": new.seed_name,
        "candidate": new.candidate,
        "build_id": build_id,
        "duplicate_of": new.duplicate_of,
    }
    added = connection.execute(upsert(trial).values(values).on_conflict_do_nothing().returning(*TRIAL_COLUMNS))
    row = added.one_or_none()
    if row is None:
        raise Conflict(
            f"Target {new.target} has a trial {new.study_number} already; read the job again before asking.",
            code="trial_exists",
            metadata={"target": new.target, "study_number": new.study_number},
        )
    connection.execute(update(job).where(job.c.id == job_id).values(trials_asked=number + 1))
    data = {**trial_event(row, TrialState.BUILDING), "seed_name": new.seed_name, "duplicate_of": new.duplicate_of}
    append_event(connection, job_id, "trial.added", data)
    return trial_of(row)


def _priority_of(job_id: str) -> ScalarSelect[int]:
    return select(job.c.priority).where(job.c.id == job_id).scalar_subquery()


def _insert_build(connection: Connection, job_id: str, new: NewBuild, adopted: Build | None = None) -> AnyRow:
    values: dict[str, Any] = {
        "id": new_id("build"),
        "job_id": job_id,
        "key": new.key,
        "kind": new.request.kind,
        "request": new.request,
        "priority": _priority_of(job_id),
        "state": WorkState.PENDING,
    }
    if adopted is not None:
        values |= {"state": WorkState.DONE, "outcome": adopted.outcome, "adopted_from": adopted.id}
        values["finished_at"] = func.now()
    added = connection.execute(upsert(build).values(values).on_conflict_do_nothing().returning(build.c.id))
    is_new = added.one_or_none() is not None
    same = build.c.job_id == job_id, build.c.key == new.key
    row = connection.execute(select(*BUILD_COLUMNS).where(*same)).one()
    if is_new and adopted is not None:
        data = {"build_id": row.id, "key": new.key, "kind": new.request.kind.value, "adopted_from": adopted.id}
        append_event(connection, job_id, "build.finished", {**data, "state": WorkState.DONE.value})
    return row


def _insert_measurement(connection: Connection, job_id: str, new: NewMeasurement) -> AnyRow:
    values = {
        "id": new_id("measurement"),
        "job_id": job_id,
        "key": new.key,
        "target": new.target,
        "selector_id": new.selector.id,
        "selector_labels": new.selector.labels,
        "runtime": new.request.runtime,
        "request": new.request,
        "priority": _priority_of(job_id),
        "state": WorkState.PENDING,
    }
    connection.execute(upsert(measurement).values(values).on_conflict_do_nothing())
    same = measurement.c.job_id == job_id, measurement.c.key == new.key
    return connection.execute(select(*MEASUREMENT_COLUMNS).where(*same)).one()


def _trial(connection: Connection, job_id: str, trial_id: str) -> AnyRow:
    query = select(*TRIAL_COLUMNS).where(trial.c.id == trial_id, trial.c.job_id == job_id)
    row = connection.execute(query.with_for_update(key_share=True, of=trial)).one_or_none()
    if row is None:
        raise NotFound(f"Job {job_id} has no trial {trial_id}.", metadata={"id": trial_id})
    return row


def _move_trial(connection: Connection, row: AnyRow, state: TrialState, **more: Any) -> None:
    before = TrialState(row.state)
    if state not in TRIAL_TRANSITIONS[before]:
        raise WrongState(
            f"Trial {row.number} is {before} and cannot become {state}; read the job again.",
            metadata={"state": before.value, "wanted": state.value},
        )
    connection.execute(update(trial).where(trial.c.id == row.id).values(state=state, **more))
