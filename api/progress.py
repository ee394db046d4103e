"""How far a job is, from one snapshot of its rows."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

from api.schemas.jobs import JobProgress, JobView, RunningBuild, RunningMeasurement
from domain.ports import JobSnapshot
from domain.trial import TrialState
from domain.work import WorkState

UNKNOWN_DEVICE = "a device that is gone"


def view_of(snapshot: JobSnapshot, *, device_name: Callable[[str], str]) -> JobView:
    """Return a job with its progress.

    Args:
        snapshot: All rows of the job.
        device_name: Name of a device by id.
    """
    best = best_speedups(snapshot)
    progress = JobProgress(
        trials_asked=len(snapshot.trials),
        trials_finished=sum(trial.state.is_terminal for trial in snapshot.trials),
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


def best_speedups(snapshot: JobSnapshot) -> dict[int, float]:
    """Return target -> the largest measured speed-up among trials that hold every constraint."""
    best: dict[int, float] = {}
    for trial in snapshot.trials:
        if trial.state is not TrialState.SUCCEEDED or trial.values is None or trial.values.latency_ratio <= 0:
            continue
        if any(excess > 0 for excess in trial.values.constraints.values()):
            continue
        best[trial.target] = max(best.get(trial.target, 0.0), 1.0 / trial.values.latency_ratio)
    return best
