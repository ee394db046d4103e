"""How far a job is, from counts of its rows."""

from __future__ import annotations

from collections.abc import Callable

from api.names import UNKNOWN_DEVICE
from api.schemas.jobs import JobProgress, JobView, RunningBuild, RunningMeasurement
from domain.job import Job
from domain.overview import JobStanding
from domain.ports import JobStore
from search.accounting import elapsed_s
from search.front import best_speedups, told_speedups


def best_of(store: JobStore, job: Job) -> dict[str, float]:
    """Return the best speed-up by target as the job's report tells it once it is over, and by its rows before."""
    best = told_speedups(job)
    if not best and "best_speedup" not in job.report and job.trials_asked > 0:
        best = best_speedups(store.snapshot(job.id))
    return {str(target): speedup for target, speedup in sorted(best.items())}


def view_of(standing: JobStanding, best: dict[str, float], *, device_name: Callable[[str], str]) -> JobView:
    """Return a job with its progress.

    Args:
        standing: The job, and counts of its rows.
        best: Speed-up by target, as ``best_of`` tells it.
        device_name: Name of a device by id.
    """
    job = standing.job
    progress = JobProgress(
        elapsed_s=round(elapsed_s(job, job.finished_at or standing.now), 3),
        wall_budget_s=job.spec.budget.wall_s,
        trials_asked=sum(standing.trials_by_state.values()),
        trials_finished=standing.trials_finished,
        finals_done=standing.finals_done,
        finals_wanted=standing.finals_wanted,
        trials_budget=job.spec.budget.trials,
        trials_by_state=dict(standing.trials_by_state),
        best_speedup=max(best.values(), default=None),
        best_speedup_by_target=best,
        builds_waiting=standing.builds_waiting,
        builds_running=[
            RunningBuild(
                build_id=build.id, kind=build.request.kind, progress=build.progress, started_at=build.started_at
            )
            for build in standing.builds_running
        ],
        measurements_waiting=standing.measurements_waiting,
        measurements_running=[
            RunningMeasurement(
                measurement_id=item.id,
                device_id=item.device_id,
                device=device_name(item.device_id) if item.device_id else UNKNOWN_DEVICE,
                target=item.target,
                attempt=item.attempt,
                started_at=item.started_at,
            )
            for item in standing.measurements_running
        ],
    )
    return JobView(**dict(job), progress=progress)
