"""Where a job's time went, and how much of it was overhead. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import datetime

from pydantic import JsonValue

from domain.build import Build, BuildResult
from domain.job import Job
from domain.measurement import Measured, Measurement
from search.view import View

Interval = tuple[datetime, datetime]

FINAL_PLAN_S = 3.0  # timed region of a final's file at most: half more than a trial's


def waiting_s(job: Job, now: datetime) -> float:
    """Return the seconds spent waiting for a device that could take the work."""
    waited = job.report.get("waiting_s")
    total = float(waited) if isinstance(waited, int | float) else 0.0
    since = job.report.get("waiting_since")
    return total + ((now - datetime.fromisoformat(since)).total_seconds() if isinstance(since, str) else 0.0)


def elapsed_s(job: Job, now: datetime) -> float:
    """Return the part of the wall budget that is used: since the start, less pauses and waits for a device."""
    started = job.started_at
    if started is None:
        return 0.0
    return max(0.0, (now - started).total_seconds() - job.paused_s - waiting_s(job, now))


def union_s(intervals: Iterable[Interval]) -> float:
    """Return the seconds covered by at least one interval."""
    total = 0.0
    end: datetime | None = None
    for start, stop in sorted(intervals):
        if stop <= start:
            continue
        if end is None or start > end:
            total += (stop - start).total_seconds()
            end = stop
        elif stop > end:
            total += (stop - end).total_seconds()
            end = stop
    return total


def time_report(view: View, now: datetime) -> dict[str, JsonValue]:
    """Return the report's account of time: wall, work, overhead and seconds a stage of builds and measurements.

    Overhead is the job's wall time in which nothing was built and nothing measured, less pauses and waits for a device.
    """
    start = view.job.started_at or view.job.created_at
    work: Sequence[Build | Measurement] = (*view.snapshot.builds, *view.snapshot.measurements)
    spans = [
        (max(start, row.started_at), min(now, row.finished_at or now))
        for row in work
        if row.started_at is not None and row.finished_at is not None
    ]
    wall_s = max(0.0, (now - start).total_seconds())
    work_s = union_s(spans)
    paused_s, waited_s = view.job.paused_s, waiting_s(view.job, now)
    overhead_s = max(0.0, wall_s - work_s - paused_s - waited_s)
    counted_s = max(wall_s - paused_s - waited_s, 1e-9)
    return {
        "wall_s": round(wall_s, 3),
        "work_s": round(work_s, 3),
        "paused_s": round(paused_s, 3),
        "waited_for_device_s": round(waited_s, 3),
        "overhead_s": round(overhead_s, 3),
        "overhead_fraction": round(overhead_s / counted_s, 4),
        "stages_s": _stages_s(view),
    }


def _stages_s(view: View) -> dict[str, JsonValue]:
    totals: dict[str, float] = {}
    for build in view.snapshot.builds:
        if isinstance(build.outcome, BuildResult):
            for stage, seconds in build.outcome.stages_s.items():
                name = f"{build.request.kind}.{stage}"
                totals[name] = totals.get(name, 0.0) + seconds
    for measurement in view.snapshot.measurements:
        if isinstance(measurement.outcome, Measured):
            for stage, seconds in measurement.outcome.stages_s.items():
                name = f"measurement.{stage}"
                totals[name] = totals.get(name, 0.0) + seconds
    return {name: round(seconds, 3) for name, seconds in sorted(totals.items())}
