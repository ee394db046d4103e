"""Where a job stands in the queue, and how long work took lately."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sqlalchemy import Select, Table, and_, bindparam, exists, false, func, literal, or_, select, union_all
from sqlalchemy.sql.elements import BindParameter, ColumnElement

from db.jobs import no_job
from db.mapping import BUILD_COLUMNS, JOB_COLUMNS, MEASUREMENT_COLUMNS, build_of, job_of, measurement_of
from db.models import build, job, measurement, trial
from db.transactions import Transactions
from domain.build import BuildKind
from domain.job import JobState
from domain.overview import JobStanding, JobTally
from domain.plan import Pace, QueuePlace
from domain.trial import TrialState
from domain.work import SEARCH_SLICE_S, WorkState

OF: BindParameter[str] = bindparam("of")
JOB_NOW = select(*JOB_COLUMNS, func.clock_timestamp().label("now")).where(job.c.id == OF)
BUILDS_RUNNING = (
    select(*BUILD_COLUMNS)
    .where(build.c.job_id == OF, build.c.state == WorkState.LEASED)
    .order_by(build.c.created_at, build.c.id)
)
MEASURED_NOW = (
    select(*MEASUREMENT_COLUMNS)
    .where(measurement.c.job_id == OF, measurement.c.state == WorkState.LEASED)
    .order_by(measurement.c.created_at, measurement.c.id)
)


def _counts(what: str, table: Table, marked: ColumnElement[bool]) -> Select[Any]:
    number, of_those = func.count().label("number"), func.count().filter(marked).label("marked")
    counts = select(literal(what).label("what"), table.c.state, number, of_those)
    return counts.where(table.c.job_id == OF).group_by(table.c.state)


COUNTS = union_all(
    _counts("trial", trial, trial.c.build_id.is_not(None)),
    _counts("build", build, build.c.kind == BuildKind.FINAL),
    _counts("measurement", measurement, false()),
)

LATELY = 200  # rows of a kind that an expectation rests on


class QueueTables(Transactions):
    """Expectations, read from the rows."""

    def queue_place(self, *, job_id: str | None = None, priority: int = 0) -> QueuePlace:
        """Return the place of a queued job, or of one of a priority that would be submitted now."""
        is_free = or_(job.c.search_until.is_(None), job.c.search_until < func.now())
        waits = and_(job.c.state.in_([JobState.QUEUED, JobState.RUNNING, JobState.STOPPING]), is_free)
        goes_first = job.c.priority >= priority
        if job_id is not None:
            own = job.alias("own")
            mine = own.c.id == job_id
            before = or_(
                job.c.priority > own.c.priority,
                and_(
                    job.c.priority == own.c.priority,
                    or_(
                        job.c.waiting_since < own.c.waiting_since,
                        and_(job.c.waiting_since == own.c.waiting_since, job.c.id < own.c.id),
                    ),
                ),
            )
            goes_first = exists().where(mine, before)
        is_due = or_(job.c.not_before.is_(None), job.c.not_before <= func.now())
        count = select(func.count()).select_from(job).where(waits, is_due, goes_first)
        held = select(func.count(func.distinct(job.c.search_owner))).where(job.c.search_until >= func.now())
        with self._reading() as connection:
            ahead = connection.execute(count).scalar_one()
            searchers = connection.execute(held).scalar_one()
        expected_s = round(ahead / searchers * SEARCH_SLICE_S, 1) if searchers else None
        return QueuePlace(ahead=ahead, searchers=searchers, expected_wait_s=expected_s)

    def tallies(self, job_ids: Sequence[str]) -> dict[str, JobTally]:
        """Return counts of the rows of some jobs, by id; a job without rows has an empty tally."""
        wanted = list(dict.fromkeys(job_ids))
        states = (
            select(trial.c.job_id, trial.c.state, func.count().label("number"))
            .where(trial.c.job_id.in_(wanted))
            .group_by(trial.c.job_id, trial.c.state)
        )
        devices = (
            select(measurement.c.job_id, measurement.c.device_id)
            .where(measurement.c.job_id.in_(wanted), measurement.c.device_id.is_not(None))
            .distinct()
        )
        with self._reading() as connection:
            counted = connection.execute(states).all()
            found = connection.execute(devices).all()
        return {
            job_id: JobTally(
                trials_by_state={row.state: row.number for row in counted if row.job_id == job_id},
                device_ids=tuple(sorted(row.device_id for row in found if row.job_id == job_id)),
            )
            for job_id in wanted
        }

    def standing(self, job_id: str) -> JobStanding:
        """Return a job with counts of its rows, whatever their number. Raises NotFound."""
        with self._transaction(is_snapshot=True) as connection:
            row = connection.execute(JOB_NOW, {"of": job_id}).one_or_none()
            if row is None:
                raise no_job(job_id)
            counted = connection.execute(COUNTS, {"of": job_id}).all()
            waiting, leased = (
                {row.what: row.number for row in counted if row.state == state}
                for state in (WorkState.PENDING, WorkState.LEASED)
            )
            builds = connection.execute(BUILDS_RUNNING, {"of": job_id}).all() if leased.get("build") else ()
            measured = connection.execute(MEASURED_NOW, {"of": job_id}).all() if leased.get("measurement") else ()
        trials = [row for row in counted if row.what == "trial"]
        finals = [row for row in counted if row.what == "build"]
        return JobStanding(
            job=job_of(row),
            now=row.now,
            trials_by_state={row.state: row.number for row in trials},
            trials_finished=sum(row.marked for row in trials if TrialState(row.state).is_terminal),
            finals_done=sum(row.marked for row in finals if WorkState(row.state).is_terminal),
            finals_wanted=sum(row.marked for row in finals),
            builds_waiting=waiting.get("build", 0),
            measurements_waiting=waiting.get("measurement", 0),
            builds_running=tuple(build_of(row) for row in builds),
            measurements_running=tuple(measurement_of(row) for row in measured),
        )

    def pace(self) -> Pace:
        """Return the median seconds of the candidate builds and the measurements that were finished last."""
        with self._reading() as connection:
            builds = connection.execute(_median(build, build.c.kind == BuildKind.CANDIDATE)).one()
            measurements = connection.execute(_median(measurement)).one()
        return Pace(
            builds=builds.number,
            build_s=_rounded(builds.middle_s),
            measurements=measurements.number,
            measurement_s=_rounded(measurements.middle_s),
        )


def _median(table: Table, *which: Any) -> Any:
    took_s = func.extract("epoch", table.c.finished_at - table.c.started_at)
    is_done = and_(table.c.state == WorkState.DONE, table.c.started_at.is_not(None), *which)
    lately = select(took_s.label("took_s")).where(is_done).order_by(table.c.id.desc()).limit(LATELY).subquery()
    middle = func.percentile_cont(0.5).within_group(lately.c.took_s)
    return select(func.count().label("number"), middle.label("middle_s")).select_from(lately)


def _rounded(seconds: Any) -> float | None:
    return round(float(seconds), 3) if seconds is not None else None
