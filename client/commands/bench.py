"""``pruneloop bench``: the paired measurement on this machine, no server; how anyone reproduces a number."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from pydantic import BaseModel

from client.commands.shared import Json, say, write_json


class BenchResult(BaseModel):
    """What a person is shown of it; JSON has everything."""

    speedup: float
    speedup_ci: tuple[float, float]
    verdict: str
    latency_ms: float
    baseline_latency_ms: float
    pairs: int
    wall_s: float
    unmet: str | None = None
    warnings: tuple[str, ...] = ()


def register(app: typer.Typer) -> None:
    """Add the command to the application."""
    app.command(rich_help_panel="Devices")(bench)


def bench(
    candidate: Annotated[Path, typer.Argument(metavar="CANDIDATE.onnx", help="The file to judge.")],
    against: Annotated[Path, typer.Option("--against", metavar="BASELINE.onnx", help="What it is compared with.")],
    runtime: Annotated[str, typer.Option("--runtime", help="What executes both.")] = "onnxruntime",
    threads: Annotated[int, typer.Option("--threads", min=1, help="Threads of the runtime.")] = 1,
    batch: Annotated[int, typer.Option("--batch", min=1, help="Samples a run.")] = 1,
    as_json: Json = False,
) -> None:
    """Measure two files against each other on this machine: paired, interleaved, with an interval."""
    from workers.agent.bench import bench as measure

    found = measure(candidate, against, runtime=runtime, threads=threads, batch=batch)
    if as_json:
        write_json(found)
        return
    result = BenchResult.model_validate(found)
    low, high = result.speedup_ci
    say(f"{result.speedup:.3f}x [{low:.3f}, {high:.3f}]  {result.verdict}")
    say(f"candidate {result.latency_ms:.4f} ms, baseline {result.baseline_latency_ms:.4f} ms (batch {batch})")
    say(f"{result.pairs} pairs in {result.wall_s:.1f} s" + (f"; {result.unmet}" if result.unmet else ""))
    for warning in result.warnings:
        say(f"warning: {warning}")
