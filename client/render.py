"""Tables for people: jobs, devices, fronts. Everything is measured here; nothing predicted is ever shown."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence, Set
from datetime import UTC, datetime

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from domain.device import Device, DeviceState
from domain.front import Front, Point
from domain.job import Job, JobSpec, JobState
from domain.scores import LOWER_IS_BETTER

WIDTH_OF_A_PIPE = 120
COLOUR_OF_STATE = {
    JobState.RUNNING: "cyan",
    JobState.QUEUED: "dim",
    JobState.PAUSED: "yellow",
    JobState.STOPPING: "yellow",
    JobState.SUCCEEDED: "green",
    JobState.STOPPED: "green",
    JobState.CANCELLED: "dim",
    JobState.FAILED: "red",
}


def make_console() -> Console:
    """Return a console on standard output; piped, it is wide enough for the tables and writes no control codes."""
    return Console() if sys.stdout.isatty() else Console(width=WIDTH_OF_A_PIPE, color_system=None)


def jobs_table(jobs: Sequence[Job]) -> Table:
    rows = [
        (
            job.id,
            job.name or "-",
            Text(job.state.value, style=COLOUR_OF_STATE.get(job.state, "")),
            job.stage.value.replace("_", " "),
            f"{job.trials_asked}/{job.spec.budget.trials}",
            age(job.created_at),
            job.reason or "",
        )
        for job in jobs
    ]
    return table_of(("job", "name", "state", "stage", ">trials", ">age", "note"), rows, folding={"name", "note"})


def devices_table(devices: Sequence[Device]) -> Table:
    rows = []
    for device in devices:
        runtimes = [
            f"{item.name} {item.version or ''}".strip() + (" (lost)" if item.name in device.lost_runtimes else "")
            for item in device.inventory.runtimes
            if item.available
        ]
        is_well = device.state is DeviceState.ACTIVE
        rows.append(
            (
                device.id,
                device.name,
                Text(device.state.value, style="green" if is_well else "yellow"),
                Text("yes", style="green") if device.is_online else Text("no", style="red"),
                " ".join(f"{key}={value}" for key, value in sorted(device.labels.items())) or "-",
                ", ".join(runtimes) or "none",
                str(device.queue_depth),
                age(device.last_seen_at) if device.last_seen_at else "never",
                "; ".join(filter(None, (device.note, *(lost.reason for lost in device.lost_runtimes.values())))),
            )
        )
    columns = ("device", "name", "state", "online", "labels", "runtimes", ">queue", ">seen", "note")
    return table_of(columns, rows, folding={"name", "labels", "runtimes", "note"})


def front_table(front: Front, spec: JobSpec | None = None, *, files: Mapping[str, str] | None = None) -> Table:
    """Return the dense rows and the front of one target, fastest first.

    Args:
        front: What was measured.
        spec: The job, for the title.
        files: Digest -> where its file lies; else the digest itself is shown.
    """
    kind = "final" if front.is_final else "provisional: the finals are not measured yet"
    metric = front_metric(front)
    columns = ("trial", "prec.", f">{metric}", ">latency ms", ">speed-up", "", ">params", ">MACs", ">size", "file")
    rows = [_cells(point, "", files) for point in front.dense]
    for index, point in enumerate(front.items):
        neighbours = [front.items[i] for i in (index - 1, index + 1) if 0 <= i < len(front.items)]
        rows.append(_cells(point, "≈" if any(overlap(point, other) for other in neighbours) else "", files))
    table = table_of(columns, rows, folding={"file"}, section_after=len(front.dense))
    table.title = Text(f"{_target_name(front, spec)} ({kind})")
    table.caption = Text("\n".join(_notes(front, spec)))
    table.title_justify = table.caption_justify = "left"
    return table


def overlap(one: Point, other: Point) -> bool:
    """Tell whether the speed-up intervals of two points overlap: then neither is called the faster."""
    if one.precision != other.precision:
        low_one, high_one = one.latency_ci_ms
        low_other, high_other = other.latency_ci_ms
    else:
        low_one, high_one = one.speedup_ci
        low_other, high_other = other.speedup_ci
    return low_one <= high_other and low_other <= high_one


def front_metric(front: Front) -> str:
    """Return the name of what a front's points are scored by."""
    return next((point.metric for point in (*front.dense, *front.items)), "accuracy")


def metric_text(point: Point) -> str:
    """Return a point's metric in its own unit, on the test split where that was touched."""
    score = point.accuracy if point.accuracy is not None else point.accuracy_search
    value = score if point.metric_value is None else point.metric_value
    return f"{value:.4f}" if abs(value) < 1000 else f"{value:.6g}"


def age(moment: datetime, now: datetime | None = None) -> str:
    """Return how long ago a moment was, in its largest unit."""
    return duration(max(0.0, ((now or datetime.now(UTC)) - moment).total_seconds()))


def duration(seconds: float) -> str:
    """Return a time span as people say it: 42 s, 3:07, 2 h 05, 4 d."""
    whole = int(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60}:{whole % 60:02d}"
    if whole < 86400:
        return f"{whole // 3600} h {whole % 3600 // 60:02d}"
    return f"{whole // 86400} d"


def count(number: float) -> str:
    """Return a large count with three digits and a unit: 272 k, 41.3 M."""
    for factor, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(number) >= factor:
            return f"{number / factor:.3g} {unit}"
    return f"{number:.0f}"


def size(size_bytes: int) -> str:
    return f"{count(size_bytes)}B" if size_bytes >= 1000 else f"{size_bytes} B"


def _cells(point: Point, tie: str, files: Mapping[str, str] | None) -> tuple[str, ...]:
    low_ms, high_ms = point.latency_ci_ms
    low, high = point.speedup_ci
    is_dense = point.trial is None
    marks = (
        ("*" if point.accuracy is None else "")
        + tie
        + ("!" if point.is_noisy else "")
        + ("" if point.within_max_drop else "↓")
    )
    digits = _digits(point.latency_ms)
    artifact = point.artifacts[0].digest if point.artifacts else ""
    return (
        "dense" if is_dense else str(point.trial),
        point.precision,
        metric_text(point),
        f"{point.latency_ms:.{digits}f} [{low_ms:.{digits}f}, {high_ms:.{digits}f}]",
        "1.00x" if is_dense else f"{point.speedup:.2f}x [{low:.2f}, {high:.2f}]",
        marks,
        count(point.params),
        count(point.macs),
        size(point.size_bytes),
        (files or {}).get(artifact) or artifact.removeprefix("sha256:")[:12],
    )


def _digits(latency_ms: float) -> int:
    return 4 if latency_ms < 1 else 3 if latency_ms < 10 else 2 if latency_ms < 100 else 1


def _target_name(front: Front, spec: JobSpec | None) -> str:
    if spec is None or front.target >= len(spec.targets):
        return f"target {front.target}"
    target = spec.targets[front.target]
    threads = "1 thread" if target.threads == 1 else f"{target.threads} threads"
    where = target.device.id or " ".join(f"{k}={v}" for k, v in sorted(target.device.labels.items())) or "any device"
    return f"target {front.target}: {target.runtime} on {where}, batch {target.batch}, {threads}"


def _notes(front: Front, spec: JobSpec | None) -> list[str]:
    points = [*front.dense, *front.items]
    metric = front_metric(front)
    notes = []
    tested = next((point.test_samples for point in points if point.test_samples), None)
    if tested:
        notes.append(f"{metric}: the file itself, run in its runtime on {tested} test samples the search never saw")
    if metric in LOWER_IS_BETTER:
        notes.append(f"{metric}: in the labels' unit, less is better")
    if any(point.accuracy is None for point in points):
        notes.append(f"* {metric} on the search split; the test split is touched once, by the finals")
    notes.append("[low, high]: 95 % interval; speed-up: paired with the dense model in the same runtime and precision")
    if any(overlap(a, b) for a, b in zip(front.items, front.items[1:], strict=False)):
        notes.append("≈ a tie with its neighbour: the intervals overlap")
    if any(point.is_noisy for point in points):
        notes.append("! the device was too noisy for a tight interval")
    if any(not point.within_max_drop for point in points):
        drop = f" of {spec.objective.max_drop:g}" if spec is not None else ""
        unit = " times the labels' standard deviation" if drop and metric in LOWER_IS_BETTER else ""
        notes.append(f"↓ loses more {metric} than the allowed drop{drop}{unit}")
    return notes


def table_of(
    columns: Sequence[str], rows: Sequence[Sequence[str | Text]], *, folding: Set[str], section_after: int = 0
) -> Table:
    """Return a table in which only the folding columns give way when the terminal is narrow."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
    for index, column in enumerate(columns):
        name = column.removeprefix(">")
        longest = max((len(row[index]) for row in rows), default=0)
        table.add_column(
            name,
            justify="right" if column.startswith(">") else "left",
            no_wrap=name not in folding,
            overflow="fold",
            min_width=None if name in folding else max(longest, len(name)),
        )
    for index, row in enumerate(rows, 1):
        cells = [Text(cell) if isinstance(cell, str) else cell for cell in row]  # text of users is no markup
        table.add_row(*cells, end_section=index == section_after)
    return table
