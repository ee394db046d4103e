"""Where a build's seconds go, waiting for quiet kept apart from work."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

from domain.ports import BuildProgress, Hold


class Stopwatch:
    """Adds up seconds per stage, tells progress, and knows which stage failed.

    Args:
        progress: Told ``(stage, fraction)``; what it raises goes through.
        hold: Entered around every batch; time spent waiting in it is counted as stage ``hold``, not as work.
    """

    def __init__(self, progress: BuildProgress, hold: Hold) -> None:
        self.stage = "load"
        self.stages_s: dict[str, float] = {}
        self._progress = progress
        self._hold = hold
        self._held_s = 0.0

    @contextmanager
    def measure(self, stage: str) -> Iterator[None]:
        """Time a stage; stages are not nested."""
        self.stage = stage
        self._progress(stage, 0.0)
        started, held = time.perf_counter(), self._held_s
        try:
            yield
        finally:
            waited = self._held_s - held
            self._add(stage, time.perf_counter() - started - waited)
            if waited > 0:
                self._add("hold", waited)

    def tell(self, fraction: float) -> None:
        """Tell how much of the present stage is done, 0..1."""
        self._progress(self.stage, fraction)

    @contextmanager
    def hold(self) -> Iterator[None]:
        """Wait for quiet, then let one batch of work run."""
        started = time.perf_counter()
        with self._hold():
            self._held_s += time.perf_counter() - started
            yield

    def _add(self, stage: str, seconds: float) -> None:
        self.stages_s[stage] = round(self.stages_s.get(stage, 0.0) + seconds, 4)
