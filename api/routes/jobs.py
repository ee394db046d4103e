"""Jobs: submit, read, steer, and follow."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Annotated

from fastapi import APIRouter, Depends, Header, Query, Request, Response
from fastapi.sse import EventSourceResponse, ServerSentEvent

from api.auth import AdminPrincipal, require_admin
from api.body import body_of, request_body
from api.deps import Deps, Paging, slice_of
from api.events import EventStreams
from api.http import IdempotencyKey, JobId, with_etag
from api.progress import UNKNOWN_DEVICE, view_of
from api.schemas.jobs import JobArtifact, JobView
from api.schemas.lists import Listing
from domain.errors import NotFound
from domain.front import Front
from domain.job import Job, JobSpec, JobState, JobVerb
from domain.ports import JobSnapshot
from domain.trial import Trial

router = APIRouter(prefix="/v1/jobs", tags=["jobs"], dependencies=[Depends(require_admin)])

SubmittedJob = Annotated[JobSpec, Depends(body_of(JobSpec, allow_yaml=True))]


@router.post(
    "",
    operation_id="createJob",
    summary="Submit a job",
    status_code=201,
    openapi_extra=request_body(JobSpec, allow_yaml=True),
)
def create_job(
    deps: Deps,
    principal: AdminPrincipal,
    spec: SubmittedJob,
    response: Response,
    idempotency_key: IdempotencyKey = None,
) -> Job:
    job, is_new = deps.service.create_job(spec, idempotency_key=idempotency_key, principal=principal.name)
    response.headers["Location"] = f"/v1/jobs/{job.id}"
    if not is_new:
        response.headers["Idempotency-Replayed"] = "true"
    return job


@router.get("", operation_id="listJobs", summary="Jobs, newest first")
def list_jobs(
    deps: Deps,
    paging: Paging,
    state: Annotated[list[JobState] | None, Query(description="Only these states; may be given again.")] = None,
) -> Listing[Job]:
    page = deps.store.jobs(states=tuple(state or ()), page_size=paging.size, page_token=paging.token)
    return Listing[Job](items=list(page.items), next_page_token=page.next_page_token)


@router.get(
    "/{job_id}",
    operation_id="getJob",
    summary="A job and how far it is",
    response_model=JobView,
    responses={304: {"description": "You have it already (`If-None-Match`)."}},
)
def get_job(deps: Deps, request: Request, job_id: JobId) -> Response:
    return with_etag(request, _view(deps, deps.store.snapshot(job_id)))


@router.post("/{job_id}/pause", operation_id="pauseJob", summary="Ask no new trials; running ones go on")
def pause_job(deps: Deps, job_id: JobId) -> Job:
    return deps.service.apply_verb(job_id, JobVerb.PAUSE)


@router.post("/{job_id}/resume", operation_id="resumeJob", summary="Go on after a pause")
def resume_job(deps: Deps, job_id: JobId) -> Job:
    return deps.service.apply_verb(job_id, JobVerb.RESUME)


@router.post("/{job_id}/stop", operation_id="stopJob", summary="Finish what runs, keep the front, end")
def stop_job(deps: Deps, job_id: JobId) -> Job:
    return deps.service.apply_verb(job_id, JobVerb.STOP)


@router.post("/{job_id}/cancel", operation_id="cancelJob", summary="Kill what runs and end now")
def cancel_job(deps: Deps, job_id: JobId) -> Job:
    return deps.service.apply_verb(job_id, JobVerb.CANCEL)


@router.get("/{job_id}/trials", operation_id="listTrials", summary="Trials of a job, by number")
def list_trials(deps: Deps, job_id: JobId, paging: Paging) -> Listing[Trial]:
    deps.store.job(job_id)
    page = deps.store.trials(job_id, page_size=paging.size, page_token=paging.token)
    return Listing[Trial](items=list(page.items), next_page_token=page.next_page_token)


@router.get(
    "/{job_id}/front",
    operation_id="getFront",
    summary="The measured front of one target",
    response_model=Front,
    responses={304: {"description": "You have it already (`If-None-Match`)."}},
)
def get_front(
    deps: Deps,
    request: Request,
    job_id: JobId,
    target: Annotated[int, Query(ge=0, lt=32, description="Index of the target in the job.")] = 0,
) -> Response:
    return with_etag(request, deps.service.front(job_id, target))


@router.get("/{job_id}/artifacts", operation_id="listJobArtifacts", summary="Files that belong to a job")
def list_job_artifacts(deps: Deps, job_id: JobId, paging: Paging) -> Listing[JobArtifact]:
    items = [JobArtifact.model_validate(item) for item in deps.service.job_artifacts(job_id)]
    return slice_of(items, paging)


def _last_seen(
    last_event_id: Annotated[
        str | None, Header(alias="Last-Event-ID", pattern=r"^\d{1,18}$", description="Go on after this event.")
    ] = None,
) -> int:
    return int(last_event_id or 0)


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


def _view(deps: Deps, snapshot: JobSnapshot) -> JobView:
    names: dict[str, str] = {}

    def name_of(device_id: str) -> str:
        if device_id not in names:
            try:
                names[device_id] = deps.store.device(device_id).name
            except NotFound:
                names[device_id] = UNKNOWN_DEVICE
        return names[device_id]

    return view_of(snapshot, now=deps.store.now(), device_name=name_of)
