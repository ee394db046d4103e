"""One wake: claim, fetch, ask for quiet, measure, hand in; again while there is work, for a minute at most.

loop     the wake itself, in the pool's child process
beats    a thread beside it: extends the lease and hears of a cancellation, which kills the measuring process
drain    a file whose existence means: finish what you hold, begin nothing
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType

from pydantic import JsonValue

from domain.artifact import ArtifactRef
from domain.errors import Conflict, Forbidden, Invalid, NotFound, PruneloopError, Unauthorized, Unavailable
from domain.health import HealthTrigger
from domain.logs import current_ids, log_context
from domain.measurement import Measured, MeasurementOutcome
from domain.messages import (
    PROTOCOL,
    Claim,
    ClaimRequest,
    HeartbeatAction,
    HeartbeatRequest,
    OutcomeMessage,
    check_protocol,
)
from domain.outcome import Blame, Failed
from domain.ports import Runner
from domain.work import HEARTBEAT_S
from workers.agent import quiet
from workers.agent.api import AgentApi
from workers.agent.health import HealthMonitor
from workers.agent.journal import Journal
from workers.agent.sandbox import references

log = logging.getLogger(__name__)

DRAINING = "draining"  # never told as an outcome: the measurement is released

Conditions = Callable[[], dict[str, JsonValue]]


@dataclass(frozen=True)
class WakeReport:
    """What one wake did; ``has_more`` asks for another one."""

    measured: int = 0
    failed: int = 0
    has_more: bool = False


class Heartbeats:
    """Keeps a lease alive from a thread while its measurement runs."""

    def __init__(
        self, api: AgentApi, device_id: str, claim: Claim, *, conditions: Conditions, interval_s: float = HEARTBEAT_S
    ) -> None:
        self.stage = "claimed"
        self.is_last = False
        self._api = api
        self._device_id = device_id
        self._claim = claim
        self._conditions = conditions
        self._interval_s = min(interval_s, claim.lease_s / 3)
        self._is_over = threading.Event()
        self._is_cancelled = threading.Event()
        self._thread = threading.Thread(target=self._run, name="heartbeats", daemon=True)

    def is_cancelled(self) -> bool:
        return self._is_cancelled.is_set()

    def enter(self, stage: str) -> None:
        self.stage = stage

    def __enter__(self) -> Heartbeats:
        self._ids = current_ids()
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._is_over.set()
        self._thread.join()

    def _run(self) -> None:
        with log_context(**self._ids):
            self._beat()

    def _beat(self) -> None:
        while not self._is_over.wait(self._interval_s):
            request = HeartbeatRequest(
                measurement_id=self._claim.measurement_id,
                attempt=self._claim.attempt,
                stage=self.stage,
                clock=datetime.now(UTC),
                conditions=self._conditions(),
            )
            try:
                answer = self._api.heartbeat(self._device_id, request)
            except (Conflict, NotFound, Unauthorized, Forbidden) as error:
                log.warning("lease of %s is lost: %s", self._claim.measurement_id, error)
                self._is_cancelled.set()
            except PruneloopError as error:
                log.warning("heartbeat not delivered: %s", error)  # the lease holds for a few more of them
            else:
                if answer.action is HeartbeatAction.CANCEL:
                    self._is_cancelled.set()
                self.is_last = answer.action is HeartbeatAction.DRAIN


class AgentSession:
    """A device at work.

    Args:
        device_id: Who we are.
        api: The server.
        runner: What measures.
        fetch: Gives a verified local path of an artifact; raises PruneloopError.
        journal: Keeps outcomes while the server is away.
        quiet_file: Lock of this host's quiet; None: the default one.
        drain_file: No new work once it exists.
        conditions: What to tell with each heartbeat.
        wake_s: One wake claims for at most this long.
        heartbeat_s: Between two beats of a running measurement.
        health: Checks this device with the golden model; None: never.
    """

    def __init__(
        self,
        device_id: str,
        api: AgentApi,
        runner: Runner,
        fetch: Callable[[ArtifactRef], Path],
        journal: Journal,
        *,
        quiet_file: Path | None = None,
        drain_file: Path | None = None,
        conditions: Conditions = dict,
        wake_s: float = 60.0,
        heartbeat_s: float = HEARTBEAT_S,
        health: HealthMonitor | None = None,
    ) -> None:
        self._device_id = device_id
        self._api = api
        self._health = health
        self._runner = runner
        self._fetch = fetch
        self._journal = journal
        self._quiet_file = quiet_file
        self._drain_file = drain_file
        self._conditions = conditions
        self._wake_s = wake_s
        self._heartbeat_s = heartbeat_s

    def wake(self) -> WakeReport:
        """Work until there is none, time is up, or we are asked to leave. A server that is away ends the wake, no more."""
        begin_s = time.monotonic()
        measured = failed = 0
        while not self._is_draining():
            if time.monotonic() - begin_s >= self._wake_s:
                return WakeReport(measured, failed, has_more=True)
            try:
                if self._journal.replay(lambda ident, message: self._api.put_outcome(ident, message, tries=2)):
                    break
                if self._health is not None and self._health.due is not None:
                    self._check_health(self._health)
                    if self._is_draining():
                        break
                answer = self._api.claim(self._device_id, ClaimRequest(clock=datetime.now(UTC), protocol=PROTOCOL))
                check_protocol(answer.protocol, "server")
            except PruneloopError as error:
                log.warning("no work claimed: %s", error)
                break
            if answer.claim is None:
                if self._health is not None and (answer.check_health or self._health.is_unchecked):
                    asked = HealthTrigger.ASKED if answer.check_health else HealthTrigger.START
                    self._check_health(self._health, asked)
                if answer.reason:
                    log.info("nothing to do: %s", answer.reason)
                break
            outcome, is_last = self._carry(answer.claim)
            if self._health is not None:
                self._health.note(answer.claim.request, outcome)
            if isinstance(outcome, Measured):
                measured += 1
            else:
                failed += 1
            if is_last:
                break
        return WakeReport(measured, failed)

    def _check_health(self, health: HealthMonitor, asked: HealthTrigger | None = None) -> None:
        def quietly() -> AbstractContextManager[float]:
            return quiet.measuring(self._quiet_file, is_cancelled=self._is_draining)

        try:
            if asked is None:
                health.check_due(is_cancelled=self._is_draining, quietly=quietly)
            else:
                health.check_all(asked, is_cancelled=self._is_draining, quietly=quietly)
        except Unavailable as error:
            log.warning("no health check: %s", error)  # it stays due

    def _is_draining(self) -> bool:
        return self._drain_file is not None and self._drain_file.exists()

    def _carry(self, claim: Claim) -> tuple[MeasurementOutcome, bool]:
        ids = {"job_id": claim.job_id, "trial": claim.trial, "measurement_id": claim.measurement_id}
        with log_context(**ids, attempt=claim.attempt):
            log.info("measuring")
            return self._carry_logged(claim)

    def _carry_logged(self, claim: Claim) -> tuple[MeasurementOutcome, bool]:
        with Heartbeats(
            self._api, self._device_id, claim, conditions=self._conditions, interval_s=self._heartbeat_s
        ) as beats:
            try:
                outcome = self._measure(claim, beats)
            except Exception as error:  # the task's boundary: a fault of ours is told to the server, not only to a log
                log.exception("measurement %s", claim.measurement_id)
                outcome = _system(beats.stage, f"The agent failed: {type(error).__name__}: {error}", "agent_error")
            self._hand_in(claim, outcome)
        return outcome, beats.is_last

    def _measure(self, claim: Claim, beats: Heartbeats) -> MeasurementOutcome:
        begin_s = time.monotonic()
        beats.enter("fetch")
        try:
            paths = {ref.digest: self._fetch(ref) for ref in references(claim.request)}
        except PruneloopError as error:
            return _system("fetch", error.message, error.code)
        fetch_s = time.monotonic() - begin_s
        if self._is_draining():
            return _draining("fetch")
        beats.enter("wait_for_quiet")
        try:
            with quiet.measuring(
                self._quiet_file, is_cancelled=lambda: beats.is_cancelled() or self._is_draining()
            ) as waited_s:
                outcome = self._runner.run(
                    claim.request,
                    fetch=lambda ref: paths[ref.digest],
                    report_stage=beats.enter,
                    is_cancelled=beats.is_cancelled,
                )
        except Unavailable as error:
            if beats.is_cancelled():
                return _system("wait_for_quiet", "Cancelled.", "cancelled", retryable=False)
            if self._is_draining():
                return _draining("wait_for_quiet")
            return _system("wait_for_quiet", error.message, error.code)
        if isinstance(outcome, Measured):
            stages_s = {**outcome.stages_s, "fetch": fetch_s, "wait_for_quiet": waited_s}
            outcome = outcome.model_copy(update={"stages_s": stages_s})
        return outcome

    def _hand_in(self, claim: Claim, outcome: MeasurementOutcome) -> None:
        if isinstance(outcome, Failed):
            log.warning("measurement %s failed in %s: %s", claim.measurement_id, outcome.stage, outcome.reason)
            if outcome.code == DRAINING:
                self._release(claim)
                return
        message = OutcomeMessage(attempt=claim.attempt, outcome=outcome)
        try:
            self._api.put_outcome(claim.measurement_id, message)
        except Unavailable as error:
            log.warning("outcome of %s is kept until the server is back: %s", claim.measurement_id, error)
            self._journal.append(claim.measurement_id, message)
        except Invalid as error:
            self._own_up(claim, error)
        except PruneloopError as error:
            log.warning("outcome of %s is not taken: %s", claim.measurement_id, error)

    def _own_up(self, claim: Claim, error: Invalid) -> None:
        """Tell that what we measured was refused: silence would look like a crash, and the reason would be lost."""
        fields = "; ".join(f"{problem.field} {problem.message}" for problem in error.fields)
        reason = f"The server refused the outcome: {error.message} {fields}".strip()
        failed = Failed(stage="hand_in", reason=reason, blame=Blame.DEVICE, retryable=True, code=error.code)
        log.error("measurement %s: %s", claim.measurement_id, reason)
        try:
            self._api.put_outcome(claim.measurement_id, OutcomeMessage(attempt=claim.attempt, outcome=failed))
        except PruneloopError as again:
            log.warning("outcome of %s is not taken: %s", claim.measurement_id, again)

    def _release(self, claim: Claim) -> None:
        """Hand it back untouched: leaving costs no attempt. If nobody hears us, the lease runs out."""
        try:
            self._api.release(claim.measurement_id, claim.attempt)
        except PruneloopError as error:
            log.warning("measurement %s is not released: %s", claim.measurement_id, error)


def _draining(stage: str) -> Failed:
    return _system(stage, "The device is leaving; the measurement may begin anew, here or elsewhere.", DRAINING)


def _system(stage: str, reason: str, code: str, *, retryable: bool = True) -> Failed:
    return Failed(stage=stage, reason=reason, blame=Blame.SYSTEM, retryable=retryable, code=code)
