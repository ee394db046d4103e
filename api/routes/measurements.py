"""The agent's side: claim, heartbeat, outcome. A device's token reaches its own rows only; every write is fenced."""

from __future__ import annotations

import logging
from typing import Annotated

from fastapi import APIRouter, Depends

from api.auth import DeviceId, OwnDeviceId, require_read
from api.body import body_of, request_body
from api.deps import Deps
from api.http import DevicePathId, MeasurementId
from api.plausible import check_outcome
from api.schemas.devices import ReleaseRequest
from api.tracing import tell_measurement
from domain.device import DeviceState
from domain.errors import StaleAttempt
from domain.logs import log_context
from domain.measurement import Measurement
from domain.messages import (
    PROTOCOL,
    ClaimAnswer,
    ClaimRequest,
    HeartbeatAction,
    HeartbeatAnswer,
    HeartbeatRequest,
    OutcomeMessage,
    check_protocol,
)
from domain.work import LEASE_S

MAX_OUTCOME_BYTES = 8 * 1024 * 1024  # raw samples of up to a few dozen candidates

log = logging.getLogger(__name__)

router = APIRouter(prefix="/v1", tags=["measurements"])

Claiming = Annotated[ClaimRequest, Depends(body_of(ClaimRequest, is_optional=True))]
Beat = Annotated[HeartbeatRequest, Depends(body_of(HeartbeatRequest, is_optional=True))]
Told = Annotated[OutcomeMessage, Depends(body_of(OutcomeMessage, max_bytes=MAX_OUTCOME_BYTES))]
Released = Annotated[ReleaseRequest, Depends(body_of(ReleaseRequest))]


@router.post(
    "/devices/{device_id}/claim",
    operation_id="claimMeasurement",
    summary="Lease the next measurement for this device",
    description="A device that asks again while it holds one gets its own back, as a new attempt.",
    openapi_extra=request_body(ClaimRequest, is_optional=True),
)
def claim_measurement(deps: Deps, own_id: OwnDeviceId, device_id: DevicePathId, body: Claiming) -> ClaimAnswer:
    check_protocol(body.protocol, "agent")
    device = deps.store.touch_device(own_id, clock=body.clock, inventory=body.inventory)
    if device.state is not DeviceState.ACTIVE:
        return ClaimAnswer(
            reason=f"this device is {device.state.value}: {device.note or 'ask the operator to resume it'}",
            check_health=deps.store.is_health_check_due(own_id),
            protocol=PROTOCOL,
        )
    claim = deps.store.claim_measurement(own_id, lease_s=LEASE_S)
    if claim is not None:
        with log_context(job_id=claim.job_id, trial=claim.trial, measurement_id=claim.measurement_id):
            log.info("claimed, attempt %s", claim.attempt)
        return ClaimAnswer(claim=claim, protocol=PROTOCOL)
    is_due = bool(device.lost_runtimes) and deps.store.is_health_check_due(own_id)
    return ClaimAnswer(reason="nothing waits for this device", check_health=is_due, protocol=PROTOCOL)


@router.post(
    "/devices/{device_id}/heartbeat",
    operation_id="heartbeat",
    summary="Alive; extends the lease of the running measurement",
    description="The answer carries cancellations: `cancel` kills the measuring child, `drain` takes no more after this.",
    openapi_extra=request_body(HeartbeatRequest, is_optional=True),
)
def heartbeat(deps: Deps, own_id: OwnDeviceId, device_id: DevicePathId, body: Beat) -> HeartbeatAnswer:
    device = deps.store.touch_device(
        own_id, clock=body.clock, conditions=body.conditions or None, inventory=body.inventory
    )
    action, lease_s = HeartbeatAction.CONTINUE, None
    if body.measurement_id is not None and body.attempt is not None:
        action = deps.store.heartbeat_measurement(body.measurement_id, own_id, body.attempt, lease_s=LEASE_S)
        lease_s = LEASE_S
    if action is HeartbeatAction.CONTINUE and device.state is DeviceState.DRAINING:
        action = HeartbeatAction.DRAIN
    return HeartbeatAnswer(action=action, lease_s=lease_s, server_time=deps.store.now())


@router.get(
    "/measurements/{measurement_id}",
    operation_id="getMeasurement",
    summary="A measurement with its raw samples",
    dependencies=[Depends(require_read)],
)
def get_measurement(deps: Deps, measurement_id: MeasurementId) -> Measurement:
    return deps.store.measurement(measurement_id)


@router.put(
    "/measurements/{measurement_id}/outcome",
    operation_id="putOutcome",
    summary="Tell the outcome of a leased measurement",
    description="Accepted once: the same outcome again is 204, a lease that went to somebody else 409 `stale_attempt`.",
    status_code=204,
    openapi_extra=request_body(OutcomeMessage),
)
def put_outcome(deps: Deps, device_id: DeviceId, measurement_id: MeasurementId, body: Told) -> None:
    measurement = deps.store.measurement(measurement_id)
    check_outcome(measurement.request, body.outcome)
    with log_context(job_id=measurement.job_id, device_id=device_id):
        try:
            deps.store.finish_measurement(measurement_id, device_id, body.attempt, body.outcome)
        except StaleAttempt:
            log.warning("a late outcome of attempt %s is fenced off", body.attempt)
            raise
        log.info("outcome of attempt %s: %s", body.attempt, body.outcome.status)
        tell_measurement(measurement, device_id, body.attempt, body.outcome)
    deps.launcher.wake_search()


@router.post(
    "/measurements/{measurement_id}/release",
    operation_id="releaseMeasurement",
    summary="Hand a leased measurement back untouched",
    description="For an agent that must leave at once: the work waits again and the attempt does not count.",
    status_code=204,
    openapi_extra=request_body(ReleaseRequest),
)
def release_measurement(deps: Deps, device_id: DeviceId, measurement_id: MeasurementId, body: Released) -> None:
    deps.store.release_measurement(measurement_id, device_id, body.attempt)
