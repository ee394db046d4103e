"""Build work: claim, build with a heartbeat beside it, write the outcome fenced by the attempt; hand back when draining."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from domain.build import Build, BuilderSpent, BuildOutcome
from domain.errors import PruneloopError, StaleAttempt, Unavailable
from domain.logs import current_ids, log_context
from domain.messages import HeartbeatAction
from domain.outcome import Failed
from domain.ports import BuildAbandoned, Builder, Hold, JobStore, Launcher
from domain.work import HEARTBEAT_S, LEASE_S
from workers.tracing import fail, job_span

log = logging.getLogger(__name__)

TELL_FOR_S = 120.0  # a finished build waits this long for tables that are away: it may have taken an hour


@dataclass
class BuildWork:
    """Everything one build process needs; ``is_draining`` is looked at between batches."""

    store: JobStore
    builder: Builder
    launcher: Launcher
    hold: Hold
    owner: str
    is_draining: Callable[[], bool]
    heartbeat_s: float = HEARTBEAT_S
    lease_s: float = LEASE_S
    tell_every_s: float = 1.0
    is_spent: bool = False  # this process is to be replaced before it builds again

    def run(self) -> int:
        """Build until nothing waits; return how many builds were worked on."""
        done = 0
        while not self.is_draining() and not self.is_spent:
            try:
                build = self.store.claim_build(self.owner, lease_s=self.lease_s)
                if build is None:
                    break
                ids: dict[str, str | int] = {"build_id": build.id, "attempt": build.attempt}
                with (
                    log_context(job_id=build.job_id, build_key=build.key, **ids),
                    job_span("build", build.job_id, kind=build.request.kind, **ids) as span,
                ):
                    log.info("building")
                    self._work_on(build, span)
            except Unavailable as error:  # the tables are away: the reaper wakes us when they are back
                log.warning("build: %s", error)
                break
            self.launcher.wake_search()
            done += 1
        return done

    def _work_on(self, build: Build, span: Any) -> None:
        pulse = _Pulse(self, build)
        pulse.start()
        try:
            try:
                outcome = self.builder.build(build.request, progress=pulse.progress, hold=self.hold)
            except BuilderSpent as spent:
                outcome, self.is_spent = spent.outcome, True
            self._tell(build, outcome)
            if isinstance(outcome, Failed):
                log.warning("failed in %s: %s", outcome.stage, outcome.reason)
                fail(span, f"{outcome.stage}: {outcome.reason}")
            else:
                log.info("built")
        except BuildAbandoned:
            pulse.stop()
            if not pulse.is_lost:
                self._release(build)
        except StaleAttempt:
            log.warning("build %s attempt %s lost its lease; its work is dropped", build.id, build.attempt)
        finally:
            pulse.stop()

    def _release(self, build: Build) -> None:
        """Hand it back untouched. If nobody hears us, the lease runs out."""
        try:
            self.store.release_build(build.id, build.attempt)
        except PruneloopError as error:
            log.warning("build %s is not released: %s", build.id, error)

    def _tell(self, build: Build, outcome: BuildOutcome) -> None:
        """Write the outcome, again and again while the tables are away; the heartbeats go on meanwhile."""
        give_up_at = time.monotonic() + TELL_FOR_S
        while True:
            try:
                self.store.finish_build(build.id, build.attempt, outcome)
                return
            except Unavailable as error:
                if time.monotonic() > give_up_at or self.is_draining():
                    raise
                log.warning("outcome of build %s is kept until the tables are back: %s", build.id, error)
                time.sleep(self.tell_every_s)


@dataclass
class _Pulse:
    """Extends the lease from a thread of its own (torch lets go of the interpreter while it computes)."""

    work: BuildWork
    build: Build
    is_lost: bool = False
    is_cancelled: bool = False
    _latest: dict[str, str | float] = field(default_factory=dict)
    _stop: threading.Event = field(default_factory=threading.Event)

    def start(self) -> None:
        self._thread = threading.Thread(target=self._run, args=(current_ids(),), name="heartbeat", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        self._stop.set()
        self._thread.join(timeout=10)

    def progress(self, stage: str, fraction: float) -> None:
        self._latest = {"stage": stage, "fraction": round(fraction, 3)}
        if self.is_lost or self.is_cancelled or self.work.is_draining():
            raise BuildAbandoned

    def _run(self, ids: Mapping[str, str | int]) -> None:
        with log_context(**ids):
            self._beat()

    def _beat(self) -> None:
        while not self._stop.wait(self.work.heartbeat_s):
            try:
                action = self.work.store.heartbeat_build(
                    self.build.id, self.build.attempt, lease_s=self.work.lease_s, progress=dict(self._latest)
                )
                self.is_cancelled = self.is_cancelled or action is HeartbeatAction.CANCEL
            except StaleAttempt:
                self.is_lost = True
                return
            except PruneloopError as error:  # the database is away: the lease decides, not we
                log.warning("heartbeat of build %s: %s", self.build.id, error)
