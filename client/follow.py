"""A job's progress as it happens: one live block on a terminal, a line a change elsewhere."""

from __future__ import annotations

from datetime import UTC, datetime

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from api.schemas.jobs import JobView
from client.api import PruneloopClient
from client.pace import Pace, PaceMeter
from client.render import COLOUR_OF_STATE, duration
from domain.plan import QueuePlace

POLL_S = 0.5


def follow(client: PruneloopClient, job_id: str, console: Console, *, timeout_s: float | None = None) -> JobView:
    """Show a job's progress until it is over; return it.

    Args:
        client: Of the server that has the job.
        job_id: The job.
        console: Where to show it; control codes are written to a terminal only.
        timeout_s: Stop watching after this long; None: never.

    Raises:
        Unavailable: ``still_running`` where time is up; the job goes on.
    """
    meter = PaceMeter()
    if console.is_terminal:
        with Live(console=console, refresh_per_second=4, transient=False) as live:
            return client.wait(
                job_id,
                timeout_s=timeout_s,
                poll_s=POLL_S,
                on_change=lambda view: live.update(progress_block(view, meter.see(view))),
            )
    printer = LinePrinter(console, meter)
    return client.wait(job_id, timeout_s=timeout_s, poll_s=POLL_S, on_change=printer.show)


class LinePrinter:
    """Prints a line whenever what a person would want to know has changed."""

    def __init__(self, console: Console, meter: PaceMeter | None = None) -> None:
        self._console = console
        self._meter = meter or PaceMeter()
        self._last: tuple[object, ...] | None = None

    def show(self, view: JobView) -> None:
        progress = view.progress
        pace = self._meter.see(view)
        news = (
            view.state,
            view.stage,
            view.reason,
            progress.trials_asked,
            progress.trials_finished,
            progress.finals_done,
            progress.best_speedup,
            tuple(item.device for item in progress.measurements_running),
            tuple((build.kind, str(build.progress.get("stage"))) for build in progress.builds_running),
        )
        if news != self._last:
            self._last = news
            line = f"{duration(elapsed_s(view)):>7}  {summary_line(view, pace)}"
            self._console.print(line, markup=False, highlight=False, soft_wrap=True)


def summary_line(view: JobView, pace: Pace | None = None) -> str:
    """Return a job's progress in one line."""
    progress = view.progress
    state, stage = view.state.value.lower(), view.stage.value.replace("_", " ")
    parts = [
        state if stage in {state, "done"} else f"{state}: {stage}",
        f"trials {progress.trials_finished}/{progress.trials_budget}",
    ]
    if progress.finals_wanted:
        parts.append(f"finals {progress.finals_done}/{progress.finals_wanted}")
    if progress.best_speedup is not None:
        parts.append(f"best {progress.best_speedup:.2f}x")
    parts += [f"building {_build_stage(build.kind, build.progress)}" for build in progress.builds_running]
    parts += [f"{item.device} measures (target {item.target})" for item in progress.measurements_running]
    if view.queue is not None:
        parts.append(queue_text(view.queue))
    if pace is not None and (text := pace_text(pace)):
        parts.append(text)
    if view.reason:
        parts.append(view.reason)
    return "  |  ".join(parts)


def queue_text(queue: QueuePlace) -> str:
    """Return a place in the queue as people say it."""
    place = "next in the queue" if queue.ahead == 0 else f"{queue.ahead} before it in the queue"
    wait_s = queue.expected_wait_s
    return place if wait_s is None else f"{place}, its turn in about {duration(wait_s)}"


def pace_text(pace: Pace) -> str:
    """Return rate and time left as people say them; empty where neither is known."""
    parts = [] if pace.trials_per_min is None else [f"{pace.trials_per_min:.2g} trials/min"]
    if pace.left_s is not None:
        parts.append(
            f"at most {duration(pace.left_s)} left" if pace.is_budget else f"about {duration(pace.left_s)} left"
        )
    return ", ".join(parts)


def progress_block(view: JobView, pace: Pace | None = None) -> RenderableType:
    """Return a job's progress as a block of a few lines."""
    progress = view.progress
    head = Text.assemble(
        (view.name or view.id, "bold"),
        ("  " + view.id if view.name else "", "dim"),
        "  ",
        (view.state.value, COLOUR_OF_STATE.get(view.state, "")),
        "  ",
        view.stage.value.replace("_", " "),
        ("   " + duration(elapsed_s(view)), "dim"),
    )
    table = Table.grid(padding=(0, 2))
    table.add_column(style="dim", no_wrap=True)
    table.add_column()
    bar = Table.grid(padding=(0, 2))
    bar.add_row(
        ProgressBar(total=progress.trials_budget, completed=progress.trials_finished, width=32),
        f"{progress.trials_finished}/{progress.trials_budget}",
        Text(_states(progress.trials_by_state), style="dim"),
    )
    table.add_row("trials", bar)
    if pace is not None and (text := pace_text(pace)):
        table.add_row("pace", Text(text))
    if progress.finals_wanted:
        finals = Table.grid(padding=(0, 2))
        finals.add_row(
            ProgressBar(total=progress.finals_wanted, completed=progress.finals_done, width=32),
            f"{progress.finals_done}/{progress.finals_wanted}",
            Text("recovered at length", style="dim"),
        )
        table.add_row("finals", finals)
    if progress.best_speedup is None:
        table.add_row("best", Text("nothing measured within the allowed drop yet", style="dim"))
    else:
        table.add_row("best", Text(f"{progress.best_speedup:.2f}x faster, within the allowed drop", style="green"))
    builds = [_build_stage(build.kind, build.progress) for build in progress.builds_running]
    table.add_row("builders", _with_waiting(builds, progress.builds_waiting))
    now = datetime.now(UTC)
    measuring = [
        f"{item.device} measures target {item.target}"
        + (f" for {duration(max(0.0, (now - item.started_at).total_seconds()))}" if item.started_at else "")
        + (f" (attempt {item.attempt})" if item.attempt > 1 else "")
        for item in progress.measurements_running
    ]
    table.add_row("devices", _with_waiting(measuring, progress.measurements_waiting))
    if view.queue is not None:
        table.add_row("queue", Text(queue_text(view.queue)))
    if view.reason:
        table.add_row("why", Text(view.reason, style="yellow"))
    return Group(head, table)


def elapsed_s(view: JobView) -> float:
    """Return how long a job has been going, seconds; waiting in the queue is not counted."""
    start = view.started_at or view.created_at
    return max(0.0, ((view.finished_at or datetime.now(UTC)) - start).total_seconds())


def _build_stage(kind: str, progress: dict[str, object] | object) -> str:
    if not isinstance(progress, dict) or "stage" not in progress:
        return kind
    fraction = progress.get("fraction")
    share = f" {round(100 * fraction)} %" if isinstance(fraction, int | float) else ""
    return f"{kind}: {progress['stage']}{share}"


def _with_waiting(running: list[str], waiting: int) -> Text:
    text = Text("; ".join(running)) if running else Text("idle", style="dim")
    if waiting:
        text.append(f"   ({waiting} waiting)", style="dim")
    return text


def _states(by_state: dict[str, int]) -> str:
    return ", ".join(f"{number} {state}" for state, number in sorted(by_state.items()) if state != "succeeded")
