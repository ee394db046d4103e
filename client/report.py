"""What a finished job says of itself: why it is not faster, the best model for all targets, what moved, how far to trust it.

The report is an open mapping of the server; what is here is read from it where it is there, so that a client and a server of
different releases still talk.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TypeVar

from pydantic import BaseModel, JsonValue, ValidationError
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from client.render import duration, table_of
from domain.job import Job

M = TypeVar("M", bound=BaseModel)


class NextStep(BaseModel):
    kept: int
    saves_ms: float


class GroupAccount(BaseModel):
    """What the channels that one group lost bought on the target; predicted."""

    group: str
    channels: int
    kept: int
    bought_ms: float
    free_channels: int = 0
    next_step: NextStep | None = None


class TargetWhy(BaseModel):
    """A target's account: the time no pruning removes, and a list a finalist."""

    fixed_ms: float
    trials: dict[str, list[GroupAccount]]


class JointPoint(BaseModel):
    """One model on every target."""

    trial: int
    accuracy_search: float
    speedups: list[float]
    least_speedup: float
    mean_speedup: float


class PredictorError(BaseModel):
    """How far predictions were off for trials that the predictor had not seen; fractions of the measured latency."""

    trials: int
    alignment: int
    error_median: float
    error_p90: float


class Move(BaseModel):
    """How far a group may be pruned, moved by what trials lost."""

    group: str
    trials: int
    ceiling: tuple[float, float]
    factor: tuple[float, float]
    reason: str


class Ranges(BaseModel):
    ceilings: dict[str, float]
    moves: list[Move] = []


class ZerosProbe(BaseModel):
    """What a pattern of zeros did for a target: the dense model with it, against the dense model without."""

    trial: int
    speedup: float
    speedup_ci: tuple[float, float]
    pays: bool
    accuracy_search: float
    compressed_bytes: int | None = None
    dense_compressed_bytes: int | None = None
    says: str


class JobReport(BaseModel):
    """The parts of a report that are shown; empty where the server has not written them (yet)."""

    why: dict[str, TargetWhy] = {}
    joint: list[JointPoint] = []
    predictor: dict[str, PredictorError] = {}
    ranges: dict[str, Ranges] = {}
    weights: dict[str, dict[str, ZerosProbe]] = {}
    wall_s: float | None = None
    overhead_s: float | None = None
    stages_s: dict[str, float] = {}
    unprunable: list[dict[str, str]] = []
    notes: list[str] = []
    problems: list[JsonValue] = []


def read_report(report: Mapping[str, JsonValue]) -> JobReport:
    """Return the parts that are understood; a part in an unknown form is left out, the others stay."""
    known: dict[str, JsonValue] = {}
    for name in JobReport.model_fields:
        if name in report:
            try:
                JobReport.model_validate({name: report[name]})
            except ValidationError:
                continue
            known[name] = report[name]
    return JobReport.model_validate(known)


def report_block(
    job: Job, *, trial: int | None = None, target: int | None = None, fastest: Mapping[int, int] | None = None
) -> RenderableType:
    """Return the report of a job for a terminal.

    Args:
        job: The job.
        trial: Which finalist's account is shown; None: of each target the fastest one's.
        target: Only this target; None: all.
        fastest: Target -> the trial of its fastest point.
    """
    report = read_report(job.report)
    parts: list[RenderableType] = []
    for index in range(len(job.spec.targets)):
        if target in (None, index) and str(index) in report.why:
            parts += _why(job, index, report.why[str(index)], trial, (fastest or {}).get(index))
    if report.joint:
        parts += _joint(job, report.joint)
    if report.predictor:
        parts += _predictor(report.predictor)
    if any(one.moves for one in report.ranges.values()):
        parts += _moves(report.ranges)
    if report.weights:
        parts += _weights(report.weights)
    parts += _rest(report)
    if not parts:
        return Text(f"No report yet: job {job.id} is {job.state.value}. It is written when the search ends.")
    return Group(*parts)


def _why(job: Job, index: int, why: TargetWhy, trial: int | None, fastest: int | None) -> list[RenderableType]:
    names = (
        [str(trial)] if trial is not None else [str(fastest)] if str(fastest) in why.trials else list(why.trials)[:1]
    )
    runtime = job.spec.targets[index].runtime
    parts: list[RenderableType] = []
    for name in names:
        if name not in why.trials:
            continue
        rows = [
            (
                one.group,
                f"{one.kept}/{one.channels}",
                f"{one.bought_ms:.4f}",
                str(one.free_channels) if one.free_channels else "-",
                f"{one.next_step.kept} saves {one.next_step.saves_ms:.4f} ms" if one.next_step else "nothing more",
            )
            for one in why.trials[name]
        ]
        table = table_of(("group", ">kept", ">bought ms", ">free back", "next step"), rows, folding={"group"})
        others = ", ".join(sorted(set(why.trials) - {name}, key=int))
        notes = [
            "bought: what the channels this group lost save together; the least rewarding removals first; all of it predicted",
            "free back: channels that could return at no predicted cost, since the target packs them",
            f"{why.fixed_ms:.4f} ms are the calls themselves: no pruning of channels removes them",
        ]
        if others:
            notes.append(f"other finalists: --trial {others}")
        parts += _section(f"Why not faster: target {index} ({runtime}), trial {name}", table, *notes)
    return parts


def _section(title: str, table: Table, *notes: str) -> list[RenderableType]:
    # Not the table's own title and caption: those are folded to the width of a narrow table.
    return [Text(title, style="bold"), table, *(Text(note, style="dim") for note in notes), Text()]


def _joint(job: Job, points: Sequence[JointPoint]) -> list[RenderableType]:
    columns = [
        "trial",
        ">score (search)",
        *(f">target {i}" for i in range(len(job.spec.targets))),
        ">least",
        ">mean",
    ]
    rows = [
        (
            str(point.trial),
            f"{point.accuracy_search:.4f}",
            *(f"{one:.2f}x" for one in point.speedups),
            f"{point.least_speedup:.2f}x",
            f"{point.mean_speedup:.2f}x",
        )
        for point in points
    ]
    table = table_of(columns, rows, folding=set())
    note = "measured in the search, after a short recovery; mean: geometric"
    return _section("One model for all targets: the best of those measured on each", table, note)


def _predictor(errors: Mapping[str, PredictorError]) -> list[RenderableType]:
    rows = [
        (name, str(one.trials), str(one.alignment), f"{one.error_median:.1%}", f"{one.error_p90:.1%}")
        for name, one in sorted(errors.items())
    ]
    table = table_of(("target", ">trials", ">channels a step", ">median", ">p90"), rows, folding=set())
    note = "|predicted − measured| / measured, of later trials, each predicted from those before it"
    return _section("How far the latency predictor was off", table, note)


def _moves(ranges: Mapping[str, Ranges]) -> list[RenderableType]:
    rows = [
        (name, move.group, str(move.trials), f"{move.ceiling[0]:.2f} → {move.ceiling[1]:.2f}", move.reason)
        for name, one in sorted(ranges.items())
        for move in one.moves
    ]
    columns = ("target", "group", ">after trials", "at most pruned", "because")
    table = table_of(columns, rows, folding={"group", "because"})
    return _section("How far groups may be pruned, and why that moved", table)


def _weights(probes: Mapping[str, Mapping[str, ZerosProbe]]) -> list[RenderableType]:
    rows = [
        (
            name,
            pattern,
            f"{one.speedup:.2f}x [{one.speedup_ci[0]:.2f}, {one.speedup_ci[1]:.2f}]",
            f"{one.compressed_bytes / one.dense_compressed_bytes:.0%}"
            if one.compressed_bytes and one.dense_compressed_bytes
            else "-",
            f"{one.accuracy_search:.4f}",
            one.says,
        )
        for name, found in sorted(probes.items())
        for pattern, one in found.items()
    ]
    columns = ("target", "zeros", ">speed-up", ">size when compressed", ">accuracy (search)", "says")
    note = "the dense model with these weights set to zero, against the dense model without; measured, after a short recovery"
    return _section("Single weights set to zero", table_of(columns, rows, folding={"says"}), note)


def _rest(report: JobReport) -> list[RenderableType]:
    lines: list[RenderableType] = []
    if report.wall_s is not None and report.overhead_s is not None:
        longest = sorted(report.stages_s.items(), key=lambda item: -item[1])[:5]
        lines.append(
            Text(
                f"Took {duration(report.wall_s)}; {report.overhead_s:.1f} s of it was neither building nor measuring. "
                + "Longest: "
                + ", ".join(f"{name.replace('.', ' ').replace('_', ' ')} {duration(s)}" for name, s in longest)
            )
        )
    lines += [Text(f"{one.get('name')} stays whole: {one.get('reason')}") for one in report.unprunable]
    lines += [Text(note) for note in report.notes]
    lines += [Text(str(problem), style="yellow") for problem in report.problems]
    return lines
