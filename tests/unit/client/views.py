"""Jobs as the API shows them, for tests of what is made of them."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from api.schemas.jobs import JobProgress, JobView
from domain.job import JobSpec, JobState, Stage

AT = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)


def view(
    *,
    elapsed_s: float = 0.0,
    finished: int = 0,
    stage: Stage = Stage.SEARCHING,
    state: JobState = JobState.RUNNING,
    trials: int = 40,
    wall_s: float = 900.0,
    targets: int = 1,
    report: dict[str, Any] | None = None,
) -> JobView:
    """Return a running job of 40 trials and 900 s."""
    spec = JobSpec.model_validate(
        {"model": {"name": "resnet8"}, "data": {"name": "mnist-5k"}, "targets": [{}] * targets, "name": "seen"}
    )
    progress = JobProgress(
        elapsed_s=elapsed_s,
        wall_budget_s=wall_s,
        trials_asked=finished,
        trials_finished=finished,
        finals_done=0,
        finals_wanted=0,
        trials_budget=trials,
        trials_by_state={},
        builds_waiting=0,
        builds_running=[],
        measurements_waiting=0,
        measurements_running=[],
    )
    return JobView(
        id="job1",
        name="seen",
        spec=spec,
        state=state,
        stage=stage,
        created_at=AT,
        started_at=AT,
        report=report or {},
        progress=progress,
    )
