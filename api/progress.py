"""How far a job is, from one snapshot of its rows."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from datetime import datetime

from api.names import UNKNOWN_DEVICE
from api.schemas.jobs import JobProgress, JobView, RunningBuild, RunningMeasurement
from domain.build import BuildKind
from domain.ports import JobSnapshot
from domain.work import WorkState
from search.accounting import elapsed_s
from search.front import best_speedups, told_speedups
from search.view import View


def view_of(snapshot: JobSnapshot, *, now: datetime, device_name: Callable[[str], str]) -> JobView:
    """Return a job with its progress.

    Args:
        snapshot: All rows of the job.
        now: The store's time.
        device_name: Name of a device by id.
    """
    best = told_speedups(snapshot.job) or best_speedups(snapshot)
    finals = [build for build in snapshot.builds if build.request.kind is BuildKind.FINAL]
    progress = JobProgress(
        elapsed_s=round(elapsed_s(View(snapshot), snapshot.job.finished_at or now), 3),
        wall_budget_s=snapshot.job.spec.budget.wall_s,
        trials_asked=len(snapshot.trials),
        trials_finished=sum(trial.build_id is not None and trial.state.is_terminal for trial in snapshot.trials),
        finals_done=sum(build.state.is_terminal for build in finals),
        finals_wanted=len(finals),
        trials_budget=snapshot.job.spec.budget.trials,
        trials_by_state=dict(Counter(trial.state.value for trial in snapshot.trials)),
        best_speedup=max(best.values(), default=None),
        best_speedup_by_target={str(target): speedup for target, speedup in sorted(best.items())},
        builds_waiting=sum(build.state is WorkState.PENDING for build in snapshot.builds),
        builds_running=[
            RunningBuild(
                build_id=build.id, kind=build.request.kind, progress=build.progress, started_at=build.started_at
            )
            for build in snapshot.builds
            if build.state is WorkState.LEASED
        ],
        measurements_waiting=sum(item.state is WorkState.PENDING for item in snapshot.measurements),
        measurements_running=[
            RunningMeasurement(
                measurement_id=item.id,
                device_id=item.device_id,
                device=device_name(item.device_id) if item.device_id else UNKNOWN_DEVICE,
                target=item.target,
                attempt=item.attempt,
                started_at=item.started_at,
            )
            for item in snapshot.measurements
            if item.state is WorkState.LEASED
        ],
    )
    return JobView(**dict(snapshot.job), progress=progress)
