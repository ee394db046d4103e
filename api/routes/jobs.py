"""Jobs: submit, read, steer, and follow."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass
from datetime import datetime
from typing import Annotated

from fastapi import APIRouter, Depends, Header, Query, Request, Response
from fastapi.responses import JSONResponse
from fastapi.sse import EventSourceResponse, ServerSentEvent
from pydantic import StringConstraints

from api.auth import SubmitPrincipal, require_read
from api.body import body_of, request_body, validated
from api.deps import ApiDependencies, Deps, PageRequest, Paging, slice_of
from api.events import EventStreams
from api.http import NOT_MODIFIED, IdempotencyKey, JobId, Moment, listing, with_etag
from api.names import DeviceNames
from api.progress import best_of, view_of
from api.schemas.jobs import JobArtifact, JobChanges, JobView
from api.schemas.lists import Listing
from api.tracing import tell_job
from domain.access import Principal
from domain.errors import FieldProblem, Invalid
from domain.front import Front
from domain.job import LABEL_KEY, MAX_LABELS, Job, JobSpec, JobState, JobVerb
from domain.plan import JobPlan
from domain.ports import Page
from domain.trial import Trial

router = APIRouter(prefix="/v1/jobs", tags=["jobs"], dependencies=[Depends(require_read)])

LabelFilter = Annotated[
    str, StringConstraints(pattern=LABEL_KEY.removesuffix("$") + r"(=[^\x00-\x1f]{0,255})?$", max_length=320)
]
ClonedWith = Annotated[JobChanges, Depends(body_of(JobChanges, allow_yaml=True, is_optional=True))]
SubmittedJob = Annotated[JobSpec, Depends(body_of(JobSpec, allow_yaml=True))]


@dataclass(frozen=True)
class JobFilters:
    """Which jobs are asked for."""

    states: tuple[JobState, ...]
    labels: dict[str, str | None]
    created_from: datetime | None
    created_before: datetime | None

    def page(self, deps: ApiDependencies, paging: PageRequest) -> Page[Job]:
        """Return the jobs asked for, newest first."""
        return deps.store.jobs(
            states=self.states,
            labels=self.labels,
            created_from=self.created_from,
            created_before=self.created_before,
            page_size=paging.size,
            page_token=paging.token,
        )


async def _filters(
    state: Annotated[
        list[JobState] | None, Query(max_length=8, description="Only these states; may be given again.")
    ] = None,
    label: Annotated[
        list[LabelFilter] | None,
        Query(max_length=MAX_LABELS, description="`key=value`, or `key` for any value; several must all be there."),
    ] = None,
    created_from: Annotated[Moment | None, Query(description="Submitted then or later.")] = None,
    created_before: Annotated[Moment | None, Query(description="Submitted before.")] = None,
) -> JobFilters:
    return JobFilters(tuple(state or ()), labels_of(label or []), created_from, created_before)


Filters = Annotated[JobFilters, Depends(_filters)]


@router.post(
    "",
    operation_id="createJob",
    summary="Submit a job",
    description="With `validate_only` nothing is stored: the answer tells the groups, the devices and the cost.",
    status_code=201,
    response_model=Job,
    responses={200: {"model": JobPlan, "description": "What the job would do (`validate_only`)."}},
    openapi_extra=request_body(JobSpec, allow_yaml=True),
)
def create_job(
    deps: Deps,
    principal: SubmitPrincipal,
    spec: SubmittedJob,
    response: Response,
    idempotency_key: IdempotencyKey = None,
    validate_only: Annotated[
        bool, Query(description="Check the job and tell what it would do; store nothing.")
    ] = False,
) -> Job | Response:
    if validate_only:
        return JSONResponse(deps.service.plan(spec).model_dump(mode="json"))
    return _submit(deps, principal, spec, response, idempotency_key)


@router.get(
    "",
    operation_id="listJobs",
    summary="Jobs, newest first",
    response_model=Listing[Job],
    responses=NOT_MODIFIED,
)
def list_jobs(deps: Deps, request: Request, paging: Paging, filters: Filters) -> Response:
    return listing(request, filters.page(deps, paging), Job)


@router.get(
    "/{job_id}",
    operation_id="getJob",
    summary="A job and how far it is",
    response_model=JobView,
    responses=NOT_MODIFIED,
)
def get_job(deps: Deps, request: Request, job_id: JobId) -> Response:
    return with_etag(request, _view(deps, job_id))


@router.post(
    "/{job_id}/clone",
    operation_id="cloneJob",
    summary="Submit the same job again, with changes",
    description="The body holds top-level fields of the job that differ; the others are taken as they were.",
    status_code=201,
    openapi_extra=request_body(JobChanges, is_optional=True),
)
def clone_job(
    deps: Deps,
    principal: SubmitPrincipal,
    job_id: JobId,
    changes: ClonedWith,
    response: Response,
    idempotency_key: IdempotencyKey = None,
) -> Job:
    first = deps.store.job(job_id).spec.model_dump(mode="json", exclude_unset=True)
    spec = validated(JobSpec, {**first, **(changes.__pydantic_extra__ or {})})
    return _submit(deps, principal, spec, response, idempotency_key)


@router.post("/{job_id}/pause", operation_id="pauseJob", summary="Ask no new trials; running ones go on")
def pause_job(deps: Deps, principal: SubmitPrincipal, job_id: JobId) -> Job:
    return deps.service.apply_verb(job_id, JobVerb.PAUSE, by=principal)


@router.post("/{job_id}/resume", operation_id="resumeJob", summary="Go on after a pause")
def resume_job(deps: Deps, principal: SubmitPrincipal, job_id: JobId) -> Job:
    return deps.service.apply_verb(job_id, JobVerb.RESUME, by=principal)


@router.post("/{job_id}/stop", operation_id="stopJob", summary="Finish what runs, keep the front, end")
def stop_job(deps: Deps, principal: SubmitPrincipal, job_id: JobId) -> Job:
    return deps.service.apply_verb(job_id, JobVerb.STOP, by=principal)


@router.post("/{job_id}/cancel", operation_id="cancelJob", summary="Kill what runs and end now")
def cancel_job(deps: Deps, principal: SubmitPrincipal, job_id: JobId) -> Job:
    return deps.service.apply_verb(job_id, JobVerb.CANCEL, by=principal)


@router.get(
    "/{job_id}/trials",
    operation_id="listTrials",
    summary="Trials of a job, by number",
    response_model=Listing[Trial],
    responses=NOT_MODIFIED,
)
def list_trials(deps: Deps, request: Request, job_id: JobId, paging: Paging) -> Response:
    return listing(request, deps.store.trials(job_id, page_size=paging.size, page_token=paging.token), Trial)


@router.get(
    "/{job_id}/front",
    operation_id="getFront",
    summary="The measured front of one target",
    response_model=Front,
    responses=NOT_MODIFIED,
)
def get_front(
    deps: Deps,
    request: Request,
    job_id: JobId,
    target: Annotated[int, Query(ge=0, lt=32, description="Index of the target in the job.")] = 0,
) -> Response:
    return with_etag(request, deps.service.front(job_id, target))


@router.get(
    "/{job_id}/artifacts",
    operation_id="listJobArtifacts",
    summary="Files that belong to a job",
    response_model=Listing[JobArtifact],
    responses=NOT_MODIFIED,
)
def list_job_artifacts(deps: Deps, request: Request, job_id: JobId, paging: Paging) -> Response:
    items = [JobArtifact.model_validate(item) for item in deps.service.job_artifacts(job_id)]
    return listing(request, slice_of(items, paging, f"artifacts:{job_id}"), JobArtifact)


async def _last_seen(
    last_event_id: Annotated[
        str, Header(alias="Last-Event-ID", pattern=r"^[0-9]{1,18}$", description="Go on after this event.")
    ] = "0",
) -> int:
    return int(last_event_id)


def _existing_job(deps: Deps, job_id: JobId) -> str:
    # Before the stream starts: afterwards a problem could not be told any more.
    return deps.store.job(job_id).id


@router.get(
    "/{job_id}/events",
    operation_id="streamEvents",
    summary="What happens to a job, as server-sent events",
    description="Resumable with `Last-Event-ID`. The stream ends when the job is over and everything has been sent.",
    response_class=EventSourceResponse,
)
async def stream_events(
    request: Request, job_id: Annotated[str, Depends(_existing_job)], after: Annotated[int, Depends(_last_seen)]
) -> AsyncIterator[ServerSentEvent]:
    streams: EventStreams = request.app.state.event_streams
    async for event in streams.follow(job_id, after=after):
        yield event


def _submit(deps: Deps, principal: Principal, spec: JobSpec, response: Response, key: str | None) -> Job:
    job, is_new = deps.service.create_job(spec, idempotency_key=key, by=principal)
    response.headers["Location"] = f"/v1/jobs/{job.id}"
    if is_new:
        tell_job(job)
    else:
        response.headers["Idempotency-Replayed"] = "true"
    return job


def labels_of(filters: list[str]) -> dict[str, str | None]:
    """Return key -> value, None for any. Raises Invalid where a key is given two values, which no job has."""
    found: dict[str, str | None] = {}
    for text in filters:
        key, equals, value = text.partition("=")
        wanted = value if equals else None
        if found.get(key, wanted) != wanted and None not in (found[key], wanted):
            problem = FieldProblem("label", f"{key} cannot have two values at once; ask for one")
            raise Invalid("No job can match.", fields=[problem])
        found[key] = wanted if wanted is not None else found.get(key)
    return found


def _view(deps: Deps, job_id: str) -> JobView:
    standing = deps.store.standing(job_id)
    view = view_of(standing, best_of(deps.store, standing.job), device_name=DeviceNames(deps.store))
    if view.state is JobState.QUEUED:
        view = view.model_copy(update={"queue": deps.store.queue_place(job_id=job_id)})
    return view
