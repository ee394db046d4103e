"""The table of `benchmarks.search_quality`: who found what, on which machine."""

from __future__ import annotations

import os
import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

from benchmarks.search_quality.scores import (
    DEPTH,
    Box,
    Point,
    Run,
    Summary,
    best_peer,
    box_of,
    is_ours,
    summaries,
)


@dataclass(frozen=True)
class Said:
    """What one of our jobs says of itself: trials measured, how far its latency predictions were off, what its machinery cost."""

    method: str
    seed: int
    trials: int
    error_median: float | None
    error_p90: float | None
    overhead: float | None


@dataclass(frozen=True)
class Judged:
    """One task, one budget: all runs, and what they were measured against."""

    task: str
    model: str
    data: str
    final_epochs: float
    budget_s: float
    threads: int
    runs: tuple[Run, ...]
    dense_test: float
    test_samples: int
    dense_ms: float
    said: tuple[Said, ...] = ()

    @property
    def box(self) -> Box:
        return box_of(self.runs, self.dense_test)

    @property
    def title(self) -> str:
        return f"{self.model} on {self.data}, {self.budget_s:g} s"

    @property
    def slug(self) -> str:
        return f"{self.task}-{self.budget_s:g}s"


def render(judged: Sequence[Judged], *, ours: str, command: str, plots: Mapping[str, Sequence[str]], notes: str) -> str:
    """Return the report as Markdown.

    Args:
        judged: At least one run each.
        ours: Prefix of the methods that are not peers.
        command: What makes this table again.
        plots: Slug -> image files beside the report.
        notes: What else a reader must know, a list in Markdown; may be empty.
    """
    parts = [
        "# Search quality, measured",
        machine(command),
        "What one gets for the same dense model, data, final recovery recipe, machine and wall-clock time. The time of a method "
        "holds all that it does: scoring, fine-tuning, its own measurements, and for Pruneloop everything from the job's "
        "submission through the public client to its front, on the real embedded system. Afterwards all files of all methods are "
        "measured together, each paired with the dense model, and run in ONNX Runtime on the test split.",
    ]
    for one in judged:
        parts += [
            f"## {one.title}",
            _facts(one),
            table(one, ours),
            _sentence(one, ours),
            ablations(one, ours),
            said(one),
        ]
        parts += [f"![{Path(plot).stem}]({plot})" for plot in plots.get(one.slug, ())]
    parts += ["## How it was done", HOW, *([notes] if notes else [])]
    return "\n\n".join(part for part in parts if part) + "\n"


HOW = (
    "- Hypervolume: the share of a box that a front dominates, speed-up from 1 to the largest that any method reached, accuracy on "
    f"test from {DEPTH * 100:.0f} points below the dense model to the dense model.\n"
    "- A method is judged by what it would hand over: files that none of its own beats in speed-up and in accuracy on val. Test "
    "decides what they are worth and chooses nothing.\n"
    "- A file found after the budget's end does not count (*late*). A peer's training is stopped when its time is over. "
    "Those that search for a while and then train finals keep two fifths of their time for these at most, as ours does, and go on "
    "with finals until it is over.\n"
    "- *Settled* is the second from which the files found by then, measured in the joint session, dominate as much as the method's "
    "own do at its end; *reached*, as much as the best peer's do at its end, on average over seeds.\n"
    "- Peers use all the cores for torch. Where they ask for a latency, they get paired blocks against the dense model in their "
    "own process, a quarter of a second each. Surgery (but that of Torch-Pruning and ModelOpt), batch-norm re-estimation, "
    "training and export are the same code for all.\n"
    "- A narrow network's final recovery is longer by the root of how much less its work is (three times at most) and its rate "
    "higher by the square of that, whoever made it. Ours may have chosen a rate higher by up to half.\n"
    "- Predictions are those of the later half of each search, each made before its candidate was measured.\n"
    "- Our clock starts once the freshly started device has checked its runtimes: starting is nobody's time."
)


def table(judged: Judged, ours: str) -> str:
    """Return who found what, best first."""
    found = [one for one in summaries(judged.runs, judged.box, ours) if not _is_variant(one.method, ours)]
    best = best_peer({one.method: one.mean for one in found}, ours)
    level = next((one.mean for one in found if one.method == best), 0.0)
    lines = [
        "| method | seeds | hypervolume, mean | least | to the best peer | settled s | reached s | fastest within 1 point "
        "| interval | its loss | files | late |",
        "|---|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for one in found:
        name = f"**{one.method}**" if is_ours(one.method, ours) else one.method
        ratio = f"{one.mean / level:.2f}" if level > 0 else "-"
        lines.append(
            f"| {name} | {one.seeds} | {one.mean:.3f} | {one.least:.3f} | {ratio} | {_seconds(one.settled_s)} "
            f"| {_seconds(one.reached_s)} "
            f"| {_near(one, judged.box)} | {one.points} | {one.late} |"
        )
    return "\n".join(lines)


def ablations(judged: Judged, ours: str) -> str:
    """Return what our search is worth with a part left out, beside the whole with the same seeds; nothing where none was run."""
    found = {one.method: one for one in summaries(judged.runs, judged.box, ours)}
    seeds = {
        method: tuple(run.seed for run in judged.runs if run.method == method) for method in found
    }  # in the order of a summary's figures
    made_at = {(run.method, run.seed): run.made_at for run in judged.runs}
    lines, is_any_older = [], False
    for method in sorted(found):
        if not _is_variant(method, ours) or ours not in found:
            continue
        same = [index for index, seed in enumerate(seeds[ours]) if seed in seeds[method]]
        whole = [found[ours].areas[index] for index in same]
        if not whole:
            continue
        one, mine = found[method], found[ours]
        # The whole is run anew when its code changes, and only then.
        is_older = any(made_at[method, seeds[ours][at]] < made_at[ours, seeds[ours][at]] for at in same)
        is_any_older |= is_older
        lines.append(
            f"| {method.partition(':')[2]}{'*' * is_older} | {len(whole)} | {one.mean:.3f} | {sum(whole) / len(whole):.3f} "
            f"| {_seconds(one.reached_s)} | {_seconds([mine.reached_s[index] for index in same])} "
            f"| {_fastest(one.near)} | {_fastest([mine.near[index] for index in same])} |"
        )
    if not lines:
        return ""
    head = [
        "With a part of the search left out, beside the whole with the same seeds:",
        "",
        "| left out | seeds | hypervolume | of the whole | reached s | by the whole | fastest within 1 point | by the whole |",
        "|---|---|---|---|---|---|---|---|",
    ]
    foot = ["", "\\* Run with earlier code than the whole beside it."] if is_any_older else []
    return "\n".join([*head, *lines, *foot])


def _is_variant(method: str, ours: str) -> bool:
    return is_ours(method, ours) and method != ours


def _fastest(near: Sequence[Point | None]) -> str:
    return ", ".join("none" if point is None else f"{point.speedup:.2f}" for point in near)


def said(judged: Judged) -> str:
    """Return what our own jobs report of the task; nothing where none was run."""
    if not judged.said:
        return ""
    lines = [
        "| job | seed | trials measured | predicted latency off by, median | p90 | neither built nor measured |",
        "|---|---|---|---|---|---|",
    ]
    for one in judged.said:
        if ":" in one.method:
            continue  # a variant: see what it found
        figures = " | ".join(
            "-" if share is None else f"{share * 100:.1f} %"
            for share in (one.error_median, one.error_p90, one.overhead)
        )
        lines.append(f"| {one.method} | {one.seed} | {one.trials} | {figures} |")
    return "\n".join(lines)


def _seconds(seconds: Sequence[float | None]) -> str:
    return ", ".join("never" if second is None else f"{second:.0f}" for second in seconds)


def _near(one: Summary, box: Box) -> str:
    """Return three cells of the seed in the middle: speed-up, interval, points of accuracy lost on test."""
    ordered: list[Point | None] = sorted(one.near, key=lambda point: point.speedup if point else 1.0)
    middle = ordered[(len(ordered) - 1) // 2]
    if middle is None:
        return "none | | "
    lost = (box.dense - middle.test) * 100
    return f"{middle.speedup:.2f} | {middle.low:.2f} to {middle.high:.2f} | {lost:+.1f} points"


def _facts(one: Judged) -> str:
    return (
        f"Dense: {one.dense_test * 100:.1f} % of {one.test_samples} test images, {one.dense_ms:.2f} ms. Final recipe: "
        f"{one.final_epochs:g} epochs with distillation, up to three times as many for narrow networks. Largest speed-up of "
        f"any method in the box: {one.box.fastest:.2f}. "
        f"{one.threads} threads a method. *Fastest within 1 point*, its interval and its loss are those of the seed in the middle."
    )


def _sentence(one: Judged, ours: str) -> str:
    found = {summary.method: summary for summary in summaries(one.runs, one.box, ours)}
    best = best_peer({name: summary.mean for name, summary in found.items()}, ours)
    if best is None or ours not in found:
        return ""
    mine = found[ours]
    if found[best].mean <= 0:
        return f"No peer dominates anything; Pruneloop {mine.mean:.3f}."
    ratio = mine.mean / found[best].mean
    word = "ahead of" if ratio > 1 else "behind"
    return f"Pruneloop is {word} the best peer, {best}: {ratio:.2f} times its mean hypervolume."


def machine(command: str) -> str:
    """Return command, date and machine in a line."""
    return (
        f"`{command}`, {datetime.now(UTC):%Y-%m-%d}. {_cpu()}, {os.cpu_count()} cores, {platform.system()} {platform.machine()}, "
        f"Python {platform.python_version()}, torch {version('torch')}, ONNX Runtime {version('onnxruntime')}, Torch-Pruning "
        f"{version('torch-pruning')}, Optuna {version('optuna')}. Load average at the end: {os.getloadavg()[0]:.1f}."
    )


def _cpu() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.machine())
