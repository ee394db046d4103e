"""What pictures of jobs are drawn from: a line a job, trials as columns, the timeline, one trial whole, what matters most."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Depends, Path, Query, Request, Response

from api.auth import require_read
from api.deps import Deps, Paging
from api.http import NOT_MODIFIED, JobId, with_etag
from api.names import DeviceNames
from api.progress import best_of
from api.routes.jobs import Filters
from api.schemas.capabilities import CapabilitiesView
from api.schemas.lists import Listing
from domain.errors import NotFound
from domain.job import Job
from domain.overview import (
    DeviceName,
    JobSummary,
    JobTally,
    JobTimeline,
    ParameterImportance,
    TrialColumns,
    TrialDetail,
)
from domain.ports import JobStore
from search.importance import parameter_importance
from search.table import timeline, trial_columns, trial_detail
from search.view import View

router = APIRouter(prefix="/v1", tags=["overview"], dependencies=[Depends(require_read)])

MOST_ROWS_READ = 200  # trials of an ended job that are read for its best speed-up, where its report does not tell

TargetIndex = Annotated[int, Query(ge=0, lt=32, description="Index of the target in the job.")]


@router.get(
    "/job_summaries",
    operation_id="listJobSummaries",
    summary="Jobs as a list shows them, newest first",
    description="The filters and pages of `GET /v1/jobs`, with progress, devices and the best speed-up; without specs and reports.",
    response_model=Listing[JobSummary],
    responses=NOT_MODIFIED,
)
def list_job_summaries(deps: Deps, request: Request, paging: Paging, filters: Filters) -> Response:
    page = filters.page(deps, paging)
    tallies = deps.store.tallies([job.id for job in page.items])
    names = DeviceNames(deps.store)
    items = [_summary(deps.store, job, tallies[job.id], names) for job in page.items]
    return with_etag(request, Listing[JobSummary](items=items, next_page_token=page.next_page_token))


@router.get(
    "/capabilities",
    operation_id="getCapabilities",
    summary="What jobs may ask for here",
    description="Empty `models` and `datasets`: not known to this server, which holds no builder.",
)
def get_capabilities(deps: Deps) -> CapabilitiesView:
    return CapabilitiesView.model_validate(deps.service.capabilities)


@router.get(
    "/jobs/{job_id}/trial_columns",
    operation_id="getTrialColumns",
    summary="All trials of a target as columns",
    description="Everything that plots of a job need in one answer; of a thousand trials a third of a megabyte.",
    response_model=TrialColumns,
    responses=NOT_MODIFIED,
)
def get_trial_columns(deps: Deps, request: Request, job_id: JobId, target: TargetIndex = 0) -> Response:
    return with_etag(request, trial_columns(_view_of_target(deps.store, job_id, target), target))


@router.get(
    "/jobs/{job_id}/importance",
    operation_id="getImportance",
    summary="Which groups and blocks decide accuracy and latency",
    response_model=ParameterImportance,
    responses=NOT_MODIFIED,
)
def get_importance(deps: Deps, request: Request, job_id: JobId, target: TargetIndex = 0) -> Response:
    return with_etag(request, parameter_importance(_view_of_target(deps.store, job_id, target), target))


@router.get(
    "/jobs/{job_id}/timeline",
    operation_id="getTimeline",
    summary="Who did what when: builds and measurements as spans",
)
def get_timeline(deps: Deps, job_id: JobId) -> JobTimeline:
    view = View(deps.store.snapshot(job_id))
    return timeline(view, deps.store.now(), device_name=DeviceNames(deps.store))


@router.get(
    "/jobs/{job_id}/trials/{number}",
    operation_id="getTrial",
    summary="A trial with its builds and measurements",
    description="Raw samples of a measurement: `GET /v1/measurements/{id}`.",
)
def get_trial(deps: Deps, job_id: JobId, number: Annotated[int, Path(ge=0, lt=2**31)]) -> TrialDetail:
    view = View(deps.store.snapshot(job_id))
    trial = view.trials_by_number.get(number)
    if trial is None:
        raise NotFound(
            f"The job has no trial {number}; GET /v1/jobs/{job_id}/trials lists them.",
            code="unknown_trial",
            metadata={"trial": number},
        )
    return trial_detail(view, trial)


def _view_of_target(store: JobStore, job_id: str, target: int) -> View:
    view = View(store.snapshot(job_id))
    count = len(view.spec.targets)
    if target >= count:
        raise NotFound(
            f"The job has no target {target}; it has {count}, numbered from 0.",
            code="unknown_target",
            metadata={"target": target, "targets": count},
        )
    return view


def _summary(store: JobStore, job: Job, tally: JobTally, names: DeviceNames) -> JobSummary:
    best = _best(store, job)
    spec = job.spec
    return JobSummary(
        **job.model_dump(include={"id", "name", "state", "stage", "reason", "ended_by", "trials_asked"}),
        created_at=job.created_at,
        started_at=job.started_at,
        finished_at=job.finished_at,
        labels=dict(spec.labels),
        priority=spec.priority,
        model=spec.model.name or spec.model.source,
        targets=spec.targets,
        max_drop=spec.objective.max_drop,
        trials_budget=spec.budget.trials,
        wall_budget_s=spec.budget.wall_s,
        trials_by_state=tally.trials_by_state,
        devices=tuple(DeviceName(id=device_id, name=names(device_id)) for device_id in tally.device_ids),
        best_speedup=max(best.values(), default=None),
        best_speedup_by_target=best,
    )


def _best(store: JobStore, job: Job) -> dict[str, float]:
    """Return the best speed-ups, where a list of jobs can afford to look."""
    if "best_speedup" not in job.report and job.state.is_terminal and job.trials_asked > MOST_ROWS_READ:
        return {}
    return best_of(store, job)
