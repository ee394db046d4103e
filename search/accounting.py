"""Where a job's time went: what is left of the budget, what to keep for the finals, and how much was overhead. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import datetime

from pydantic import JsonValue

from domain.build import Build, BuildKind, BuildResult
from domain.measurement import Measured, Measurement
from search.view import View

Interval = tuple[datetime, datetime]

FINAL_PLAN_S = 6.0  # timed region a final candidate gets at most; most are tight enough in half of it
MOST_FOR_FINALS = (
    0.4  # of the wall budget: past that a search for fewer finals serves better than many finals of no search
)
SESSION_S = 6.0  # load, check and warm-up of a measuring session


def waiting_s(view: View, now: datetime) -> float:
    """Return the seconds spent waiting for a device that could take the work."""
    waited = view.job.report.get("waiting_s")
    total = float(waited) if isinstance(waited, int | float) else 0.0
    since = view.job.report.get("waiting_since")
    return total + ((now - datetime.fromisoformat(since)).total_seconds() if isinstance(since, str) else 0.0)


def elapsed_s(view: View, now: datetime) -> float:
    """Return the part of the wall budget that is used: since the start, less pauses and waits for a device."""
    started = view.job.started_at
    if started is None:
        return 0.0
    return max(0.0, (now - started).total_seconds() - view.job.paused_s - waiting_s(view, now))


def final_build_s(view: View) -> float | None:
    """Return the seconds one final build should take, from candidate builds seen; None before the first.

    Recovery grows with the epochs; the rest (load, surgery, export) stays. Evaluation on test is about one on val.
    """
    totals, recoveries = [], []
    for build in view.snapshot.builds:
        if build.request.kind is not BuildKind.CANDIDATE or not isinstance(build.outcome, BuildResult):
            continue
        if build.started_at is None or build.finished_at is None:
            continue
        recover = build.outcome.stages_s.get("recover", 0.0)
        recoveries.append(recover)
        totals.append(max(recover, (build.finished_at - build.started_at).total_seconds()))
    if not totals:
        return None
    recover_s = sum(recoveries) / len(recoveries)
    other_s = sum(totals) / len(totals) - recover_s
    epochs = view.spec.recovery.epochs
    per_epoch_s = recover_s / epochs if epochs > 0 else 0.0
    return other_s + per_epoch_s * view.spec.final.epochs


def reserve_s(view: View, *, keep: int) -> float:
    """Return the seconds to keep back for the finals of every target; 0 while no build has shown what one costs."""
    each = final_build_s(view)
    if each is None:
        return 0.0
    targets = len(view.spec.targets)
    sessions = sum(len(target.precision) for target in view.spec.targets)
    return targets * keep * (each + FINAL_PLAN_S / 2) + sessions * SESSION_S + each


def search_ends_s(view: View) -> float:
    """Return the used seconds of the wall budget at which asking ends, so that the finals fit in the rest."""
    wall_s = view.spec.budget.wall_s
    return wall_s - min(reserve_s(view, keep=view.spec.final.keep), MOST_FOR_FINALS * wall_s)


def keep_that_fits(view: View, now: datetime) -> int:
    """Return how many finals a target may have within the time left: at least one, at most what was asked."""
    left = view.spec.budget.wall_s - elapsed_s(view, now)
    keep = view.spec.final.keep
    while keep > 1 and reserve_s(view, keep=keep) > left:
        keep -= 1
    return keep


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
    paused_s, waited_s = view.job.paused_s, waiting_s(view, now)
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
