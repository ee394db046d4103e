"""Build work: claim, build with a heartbeat beside it, write the outcome fenced by the attempt; hand back when draining."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from dataclasses import dataclass, field

from domain.build import Build
from domain.errors import PruneloopError, StaleAttempt
from domain.messages import HeartbeatAction
from domain.ports import BuildAbandoned, Builder, Hold, JobStore, Launcher
from domain.work import HEARTBEAT_S, LEASE_S

log = logging.getLogger(__name__)


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

    def run(self) -> int:
        """Build until nothing waits; return how many builds were worked on."""
        done = 0
        while not self.is_draining():
            build = self.store.claim_build(self.owner, lease_s=self.lease_s)
            if build is None:
                break
            self._work_on(build)
            self.launcher.wake_search()
            done += 1
        return done

    def _work_on(self, build: Build) -> None:
        pulse = _Pulse(self, build)
        pulse.start()
        try:
            outcome = self.builder.build(build.request, progress=pulse.progress, hold=self.hold)
            pulse.stop()
            self.store.finish_build(build.id, build.attempt, outcome)
        except BuildAbandoned:
            pulse.stop()
            if not pulse.is_lost:
                self.store.release_build(build.id, build.attempt)
        except StaleAttempt:
            log.warning("build %s attempt %s lost its lease; its work is dropped", build.id, build.attempt)
        finally:
            pulse.stop()


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
        self._thread = threading.Thread(target=self._beat, name="heartbeat", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        self._stop.set()
        self._thread.join(timeout=10)

    def progress(self, stage: str, fraction: float) -> None:
        self._latest = {"stage": stage, "fraction": round(fraction, 3)}
        if self.is_lost or self.is_cancelled or self.work.is_draining():
            raise BuildAbandoned

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
