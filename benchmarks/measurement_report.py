"""The table of `benchmarks.measurement`: what was asked for, what came out, on which machine."""

from __future__ import annotations

import os
import platform
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

import numpy as np

OURS, TORCH, TWO_MEDIANS = "Pruneloop", "torch.utils.benchmark", "two medians of N"
METHODS = (OURS, TORCH, TWO_MEDIANS)
WITHIN = 0.01
TIMES_SMALLER = 3.0
LONGEST_VERDICT_S = 3.0


@dataclass(frozen=True)
class Row:
    """One measurement. ``ratio``: candidate / baseline time; the last five are ours alone."""

    method: str
    truth: float
    seed: int
    ratio: float
    total_s: float
    half_width: float | None = None
    is_covered: bool | None = None
    verdict: str | None = None
    is_noisy: bool | None = None
    baseline_ms: float | None = None

    @property
    def error(self) -> float:
        """Relative and absolute."""
        return abs(self.ratio / self.truth - 1)


def render(rows: Sequence[Row], fixed_ms: float) -> str:
    """Return the whole report as Markdown.

    Args:
        rows: At least one of each method and truth.
        fixed_ms: What a call of a file with no repeats costs.
    """
    truths = sorted({row.truth for row in rows})
    ours = [row for row in rows if row.method == OURS]
    model_ms = float(np.median([row.baseline_ms for row in ours if row.baseline_ms is not None]))
    bias = fixed_ms / model_ms * (max(truths) - 1) / max(truths)
    parts = [
        "# The measurement, measured",
        _machine(model_ms),
        "## What was asked for",
        _targets(rows, truths),
        "## Side by side",
        "Candidate / baseline time, while another process loads one core in bursts of 10 to 400 ms. Every pair is measured by one "
        "method after the other, in the same total time. Error: |ratio / truth - 1|.",
        _side_by_side(rows, truths),
        "## What ours says of itself",
        _ours(ours, truths),
        "## How it was done",
        "- The truth holds by construction: both files run the same block in an ONNX `Loop`, 400 times the one, 400, 408, 420 or "
        "480 times the other; they differ in that integer alone. Only what a call costs whatever the file "
        f"({fixed_ms * 1000:.0f} µs of {model_ms:.2f} ms) is not multiplied: it makes the true ratio of the last pair "
        f"{bias * 100:.2f} % smaller than it is said to be, and less for the others. That counts as error here.\n"
        "- Ours is a whole measurement, with its child process, four fresh sessions a side, checks and warm-up. The others get as "
        "many seconds, in a process that has imported everything, with fresh sessions of the same options: half of it for "
        "one file, then half for the other. All three pin themselves to a core that is idle when they begin, "
        "chosen by the same code.\n"
        "- `torch.utils.benchmark`: `Timer(...).blocked_autorange(min_run_time=half)` of each file, ratio of its medians.\n"
        "- Two medians: ten runs to warm up, then the median of as many single runs as there is time for; their ratio.",
        "Again: `make bench-measurement`.",
    ]
    return "\n\n".join(parts) + "\n"


def _machine(model_ms: float) -> str:
    return (
        f"`python -m benchmarks.measurement`, {datetime.now(UTC):%Y-%m-%d}. {_cpu()}, {os.cpu_count()} cores, "
        f"{platform.system()} {platform.machine()}, Python {platform.python_version()}, ONNX Runtime "
        f"{version('onnxruntime')}, torch {version('torch')}; one thread, a model of {model_ms:.2f} ms. "
        f"Load average at the end: {os.getloadavg()[0]:.1f}."
    )


def _cpu() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.machine())


def _targets(rows: Sequence[Row], truths: Sequence[float]) -> str:
    ours = [row for row in rows if row.method == OURS]
    lines = ["| target | here | |", "|---|---|---|"]
    same = [row for row in ours if row.truth == 1]
    false = sum(row.verdict != "tie" for row in same)
    near = sum(row.error <= WITHIN for row in same)
    lines += [
        _line("A/A: at most 3 % false verdicts", f"{false} of {len(same)}", false <= 0.03 * len(same)),
        _line("A/A: 95 % within 1 % of 1", f"{near} of {len(same)}", near >= 0.95 * len(same)),
    ]
    for truth in truths:
        if truth != 1:
            own = [row for row in ours if row.truth == truth]
            near = sum(row.error <= WITHIN for row in own)
            lines.append(
                _line(f"{truth:g} times slower: 95 % within 1 %", f"{near} of {len(own)}", near >= 0.95 * len(own))
            )
    for name, figure in (("median", 50), ("p95", 95)):
        for method in (TORCH, TWO_MEDIANS):
            times = _error(rows, method, figure) / _error(rows, OURS, figure)
            lines.append(
                _line(
                    f"{name} error at least 3 times smaller than by {method}, all pairs together",
                    f"{times:.1f} times",
                    times >= TIMES_SMALLER,
                )
            )
    verdict_s = float(np.median([row.total_s for row in ours]))
    lines.append(_line("median time of a verdict at most 3 s", f"{verdict_s:.2f} s", verdict_s <= LONGEST_VERDICT_S))
    return "\n".join(lines)


def _line(target: str, here: str, is_met: bool) -> str:
    return f"| {target} | {here} | {'met' if is_met else '**missed**'} |"


def _error(rows: Sequence[Row], method: str, percentile: float) -> float:
    return float(np.percentile([row.error for row in rows if row.method == method], percentile))


def _side_by_side(rows: Sequence[Row], truths: Sequence[float]) -> str:
    lines = [
        "| truth | method | median ratio | within 1 % | error: median | p95 | worst | total s, median |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for truth in (*truths, None):
        for method in METHODS:
            own = [row for row in rows if row.method == method and truth in (None, row.truth)]
            errors = np.array([row.error for row in own]) * 100
            ratio = f"{np.median([row.ratio for row in own]):.4f}" if truth is not None else ""
            lines.append(
                f"| {truth if truth is not None else 'all'} | {method} | {ratio} "
                f"| {(errors <= WITHIN * 100).sum()} of {len(own)} | {np.median(errors):.2f} % "
                f"| {np.percentile(errors, 95):.2f} % | {errors.max():.1f} % | {np.median([row.total_s for row in own]):.2f} |"
            )
    return "\n".join(lines)


def _ours(ours: Sequence[Row], truths: Sequence[float]) -> str:
    lines = [
        "| truth | slower | tie | faster | truth inside the interval | half-width, median | noisy | total s, median / p95 |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for truth in truths:
        own = [row for row in ours if row.truth == truth]
        verdicts = " | ".join(str(sum(row.verdict == name for row in own)) for name in ("slower", "tie", "faster"))
        half = np.median([row.half_width for row in own if row.half_width is not None])
        totals = [row.total_s for row in own]
        lines.append(
            f"| {truth} | {verdicts} | {sum(bool(row.is_covered) for row in own)} of {len(own)} | ±{half * 100:.2f} % "
            f"| {sum(bool(row.is_noisy) for row in own)} | {np.median(totals):.2f} / {np.percentile(totals, 95):.2f} |"
        )
    return "\n".join(lines)
