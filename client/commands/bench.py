"""``pruneloop bench``: the paired measurement on this machine, no server; how anyone reproduces a number."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from client.commands.shared import Json, make_console, write_json


def register(app: typer.Typer) -> None:
    """Add the command to the application."""
    app.command()(bench)


def bench(
    candidate: Annotated[Path, typer.Argument(metavar="CANDIDATE.onnx", help="The file to judge.")],
    against: Annotated[Path, typer.Option("--against", metavar="BASELINE.onnx", help="What it is compared with.")],
    runtime: Annotated[str, typer.Option("--runtime", help="What executes both.")] = "onnxruntime",
    threads: Annotated[int, typer.Option("--threads", min=1, help="Threads of the runtime.")] = 1,
    as_json: Json = False,
) -> None:
    """Measure two files against each other on this machine: paired, interleaved, with an interval."""
    from workers.agent import bench as agent_bench

    found = agent_bench.bench(candidate, against, runtime=runtime, threads=threads)
    if as_json:
        write_json(found)
        return
    low, high = found["speedup_ci"]
    console = make_console()
    console.print(f"{found['speedup']:.3f}x [{low:.3f}, {high:.3f}]  {found['verdict']}", highlight=False)
    console.print(
        f"candidate {found['latency_ms']:.4f} ms, baseline {found['baseline_latency_ms']:.4f} ms, "
        f"{found['pairs']} pairs in {found['wall_s']:.1f} s",
        highlight=False,
    )
