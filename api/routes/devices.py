"""Devices, as people see and steer them, and the way one joins."""

from __future__ import annotations

import logging
import secrets
from typing import Annotated

from fastapi import APIRouter, Depends, Request, Response

from api.auth import AdminPrincipal, JoinToken, OwnDeviceId, address_of, require_read, require_reader_or_own_device
from api.body import body_of, request_body
from api.deps import Deps, Paging
from api.http import NOT_MODIFIED, DevicePathId, listing, with_etag
from api.schemas.devices import DeviceNote
from api.schemas.lists import Listing
from domain.device import Device, DeviceState
from domain.errors import Unavailable
from domain.health import HealthAnswer, HealthCheck, HealthRecord
from domain.messages import PROTOCOL, JoinAnswer, JoinRequest, check_protocol
from domain.ports import Registration

log = logging.getLogger(__name__)

router = APIRouter(prefix="/v1/devices", tags=["devices"])

Joining = Annotated[JoinRequest, Depends(body_of(JoinRequest))]
Checked = Annotated[HealthCheck, Depends(body_of(HealthCheck))]
Note = Annotated[DeviceNote, Depends(body_of(DeviceNote, is_optional=True))]


@router.post(
    "",
    operation_id="joinDevice",
    summary="Join with a join token",
    description="The bearer is a join token. The answer's device token is shown this once; its hash is kept.",
    status_code=201,
    openapi_extra=request_body(JoinRequest),
)
def join_device(deps: Deps, request: Request, join_token: JoinToken, joining: Joining) -> JoinAnswer:
    check_protocol(joining.protocol, "agent")
    # Asked first: a broker that is away must not cost the token its use.
    if deps.broker_is_reachable is not None and not deps.broker_is_reachable():
        raise Unavailable("The broker is away, so no device can be woken; try again when /readyz says ready.")
    registration = Registration(
        name=joining.name or joining.inventory.hostname,
        labels=joining.labels,
        inventory=joining.inventory,
        device_token=f"pld_{secrets.token_urlsafe(32)}",
        broker_secret=secrets.token_urlsafe(32),
    )
    device = deps.store.register_device(join_token, registration, address=address_of(request))
    try:
        broker = deps.launcher.admit_device(device.id, registration.broker_secret)
    except Unavailable:
        deps.store.set_device_state(device.id, DeviceState.REMOVED, note="the broker went away while it joined")
        raise
    log.info("device %s (%s) joined", device.id, device.name)
    return JoinAnswer(
        device_id=device.id, name=device.name, device_token=registration.device_token, broker=broker, protocol=PROTOCOL
    )


@router.get(
    "",
    operation_id="listDevices",
    summary="Devices",
    dependencies=[Depends(require_read)],
    response_model=Listing[Device],
    responses=NOT_MODIFIED,
)
def list_devices(deps: Deps, request: Request, paging: Paging) -> Response:
    return listing(request, deps.store.devices(page_size=paging.size, page_token=paging.token), Device)


@router.get(
    "/{device_id}",
    operation_id="getDevice",
    summary="State, health, conditions, queue depth",
    dependencies=[Depends(require_reader_or_own_device)],
    response_model=Device,
    responses=NOT_MODIFIED,
)
def get_device(deps: Deps, request: Request, device_id: DevicePathId) -> Response:
    return with_etag(request, deps.store.device(device_id))


@router.post(
    "/{device_id}/health",
    operation_id="reportHealth",
    summary="A device tells a check of its golden model",
    description=(
        "Judged by the history of the device: out of its band twice in a row, or wrong once, it is quarantined; "
        "where that is not the main runtime, only the runtime is lost."
    ),
    openapi_extra=request_body(HealthCheck),
)
def report_health(deps: Deps, own_id: OwnDeviceId, device_id: DevicePathId, body: Checked) -> HealthAnswer:
    answer = deps.store.record_health(own_id, body)
    if not answer.verdict.is_good:
        log.warning("device %s is %s: %s", own_id, answer.state.value, answer.reason)
    return answer


@router.get(
    "/{device_id}/health",
    operation_id="listHealth",
    summary="A device's health checks, the latest first",
    dependencies=[Depends(require_reader_or_own_device)],
)
def list_health(deps: Deps, device_id: DevicePathId, paging: Paging) -> Listing[HealthRecord]:
    page = deps.store.health(device_id, page_size=paging.size, page_token=paging.token)
    return Listing[HealthRecord](items=list(page.items), next_page_token=page.next_page_token)


@router.post(
    "/{device_id}/pause",
    operation_id="pauseDevice",
    summary="Take no new measurements; the running one goes on",
    openapi_extra=request_body(DeviceNote, is_optional=True),
)
def pause_device(deps: Deps, principal: AdminPrincipal, device_id: DevicePathId, body: Note) -> Device:
    return deps.store.set_device_state(device_id, DeviceState.PAUSED, note=body.note, by=principal)


@router.post(
    "/{device_id}/resume",
    operation_id="resumeDevice",
    summary="Take measurements again; also clears a quarantine and lost runtimes",
    openapi_extra=request_body(DeviceNote, is_optional=True),
)
def resume_device(deps: Deps, principal: AdminPrincipal, device_id: DevicePathId, body: Note) -> Device:
    device = deps.store.set_device_state(device_id, DeviceState.ACTIVE, note=body.note, by=principal)
    deps.launcher.wake_device(device_id)
    return device


@router.post(
    "/{device_id}/drain",
    operation_id="drainDevice",
    summary="Finish the running measurement, then leave",
    openapi_extra=request_body(DeviceNote, is_optional=True),
)
def drain_device(deps: Deps, principal: AdminPrincipal, device_id: DevicePathId, body: Note) -> Device:
    return deps.store.set_device_state(device_id, DeviceState.DRAINING, note=body.note, by=principal)


@router.delete(
    "/{device_id}",
    operation_id="removeDevice",
    summary="Take the device's tokens away; its measurements stay",
    status_code=204,
)
def remove_device(deps: Deps, principal: AdminPrincipal, device_id: DevicePathId) -> None:
    deps.store.set_device_state(device_id, DeviceState.REMOVED, by=principal)
    deps.launcher.dismiss_device(device_id)
