"""Claim: for the same wall-clock time, Pruneloop finds a better accuracy/latency front than other ways to prune.

Every method gets the same dense model, data, final recipe, machine and seconds; then all files are measured together and judged
(`report.HOW`). A finished run (method, task, seed, budget) is kept and not done again until its method's code changes.

    make bench-search                                                           # everything: hours
    python -m benchmarks.search_quality --method ours --task resnet --seed 0    # one run, its files measured, the table so far
    python -m benchmarks.search_quality --for-s 540                             # a piece of it; run it again and it goes on
    python -m benchmarks.search_quality --no-runs --report docs/benchmarks/search_quality.md
    python -m benchmarks.search_quality --ablation 'cut-anew={"PRUNELOOP_SEARCH_WITHOUT": ["inheritance"]}' \\
        --ablation 'channels={"levels": ["channel"]}'   # ours with a setting of the server, with keys laid over its job
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
import time
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from benchmarks import peers
from benchmarks.search_quality import ours
from benchmarks.search_quality.bench import Bench
from benchmarks.search_quality.cells import Cell, Result, Results, code_of
from benchmarks.search_quality.clock import Clock, TimeUp
from benchmarks.search_quality.joint import Joint
from benchmarks.search_quality.report import Judged, Said, render, table
from benchmarks.search_quality.scores import Point, Run
from benchmarks.search_quality.shelf import Shelf
from benchmarks.search_quality.tasks import DEFAULT_TASKS, TASKS, data_file, dense_files, open_task
from domain.artifact import digest_of_file

ROOT = Path(__file__).resolve().parents[2]
PRODUCT = ("domain", "search", "pruning", "bootstrap.py")  # what decides what is found; the rest carries it


def main() -> None:
    given = parser().parse_args()
    # A run of ours takes its servers with it.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("Ended by a signal."))
    given.results = given.results.resolve()  # the sandbox that measures works in a folder of its own
    # Torch-Pruning says so of a ViT's positions, at each ratio.
    warnings.filterwarnings("ignore", "Unwrapped parameters detected")
    given.task = [name for name in given.task if not says_missing(name, TASKS[name].missing)]
    until_s = time.monotonic() + given.for_s
    results = Results(given.results)
    begun = 0
    cells = [] if given.no_runs else asked(given)
    lacking = {method for method in {cell.method for cell in cells} if says_missing(method, peers.missing(method))}
    cells = [cell for cell in cells if cell.method not in lacking]
    for cell in cells:
        if time.monotonic() >= until_s:
            break
        begun += run_cell(cell, results)
    print(f"{begun} runs done now; {sum(not results.has(key_of(cell, results)) for cell in cells)} still to do.")
    if not given.no_scores:
        score(given, results, until_s)


def parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    names = (ours.METHOD, *peers.METHODS)
    parser.add_argument("--method", nargs="+", choices=names, default=names, metavar="METHOD", help=", ".join(names))
    parser.add_argument("--task", nargs="+", choices=tuple(TASKS), default=DEFAULT_TASKS)
    parser.add_argument(
        "--seed", nargs="+", type=int, help="Default: 0 1 2 for ours and the strongest peers, 0 for the rest."
    )
    parser.add_argument("--budget-s", type=float, default=150.0, help="Wall-clock seconds of a run.")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)), help="torch's, in a peer's run.")
    parser.add_argument("--for-s", type=float, default=float("inf"), help="Begin nothing new after this many seconds.")
    parser.add_argument("--results", type=Path, default=Path("build/search_quality"), help="Where all is kept.")
    parser.add_argument("--no-runs", action="store_true", help="Only measure what is kept, and judge it.")
    parser.add_argument("--no-scores", action="store_true", help="Only run.")
    parser.add_argument("--remeasure", action="store_true", help="Measure every file anew.")
    parser.add_argument("--report", type=Path, help="Write the report and its pictures here.")
    parser.add_argument(
        "--ablation",
        action="append",
        default=[],
        metavar="LABEL=JSON",
        help="Run ours, as a method of its own, with these keys laid over its job, those that begin with PRUNELOOP_ as settings "
        "of its server; may be given again.",
    )
    return parser


def asked(given: argparse.Namespace) -> list[Cell]:
    """Return the runs asked for, seed by seed: a run that is cut short has something of every method."""
    variants: list[tuple[str, str, Mapping[str, Any]]] = [(method, "", {}) for method in given.method]
    if given.ablation:
        variants = [
            (ours.METHOD, label, json.loads(text)) for label, _, text in (a.partition("=") for a in given.ablation)
        ]
    cells = []
    for task in given.task:
        for method, label, options in variants:
            for seed in given.seed or seeds_of(method, task):
                cells.append(Cell(method, task, seed, given.budget_s, given.threads, label, options))
    return sorted(cells, key=lambda cell: cell.seed)


def seeds_of(method: str, task: str) -> tuple[int, ...]:
    """Return the seeds a method is run with on a task where none are asked for."""
    return (0, 1, 2) if method in (ours.METHOD, *peers.strongest(task)) else (0,)


def says_missing(name: str, lack: str | None) -> bool:
    """Say so where a task or method cannot run here; returns whether."""
    if lack is not None:
        print(f"{name} is left out: {lack}.", file=sys.stderr)
    return lack is not None


def key_of(cell: Cell, results: Results) -> str:
    """Return a run's key: with its method's code and recipes, the weights it begins with."""
    sources, recipe = decided_by(cell)
    return cell.key(code=code_of(sources), weights=dense_files(TASKS[cell.task], results.folder).digest, recipe=recipe)


def decided_by(cell: Cell) -> tuple[list[Path], tuple[float, ...]]:
    """Return the code and the recipes that decide what a run finds: a peer's own file; of ours, what decides in the product."""
    task = TASKS[cell.task]
    if cell.method == ours.METHOD:
        return [Path(ours.__file__), *(ROOT / name for name in PRODUCT)], (task.final_epochs,)
    return [peers.source_of(cell.method)], task.recipe_key


def run_cell(cell: Cell, results: Results) -> bool:
    """Run a cell unless it is done; returns whether it was run."""
    torch.set_num_threads(cell.threads)
    key, task = key_of(cell, results), TASKS[cell.task]
    if results.has(key):
        return False
    dense = dense_files(task, results.folder)
    print(f"{cell.name}, {cell.task}, seed {cell.seed}, {cell.budget_s:g} s ...", file=sys.stderr, flush=True)
    folder = results.begin(key)
    if cell.method == ours.METHOD:
        shelf = Shelf(folder, Clock(cell.budget_s))
        data = data_file(task, results.folder) if task.is_uploaded else None
        took_s = ours.run(cell, dense.weights, data, shelf)
    else:
        opened = open_task(task, results.folder, cell.seed)
        shelf = Shelf(folder, Clock(cell.budget_s))
        try:
            peers.METHODS[cell.method](Bench(task, opened, shelf))
        except TimeUp:
            shelf.notes["ended_by"] = "time"
        took_s = shelf.clock.elapsed_s()
    result = results.finish(key, cell, weights=dense.digest, points=shelf.points, took_s=took_s, notes=shelf.notes)
    print(f"  {len(result.points)} files in {took_s:.1f} s", file=sys.stderr, flush=True)
    return True


def score(given: argparse.Namespace, results: Results, until_s: float) -> None:
    """Measure what is kept together, print the tables, and write the report if asked."""
    judged = []
    for name in given.task:
        weights = dense_files(TASKS[name], results.folder).digest
        kept = [
            result
            for result in results.all()
            if (result.cell.task, result.weights, result.cell.budget_s, result.cell.threads)
            == (name, weights, given.budget_s, given.threads)
        ]
        if not kept:
            continue
        joint = Joint(TASKS[name], results.folder, weights)
        if given.remeasure:
            joint.forget()
        files = {digest_of_file(path): path for result in kept for path in _files(result, results)}
        if not joint.measure(files, until_s=until_s):
            print(f"{name}: {len(files) - len(joint.scores.keys() & files.keys())} files still to measure.")
            continue
        judged.append(judge(name, kept, joint, results))
        print(f"\n{judged[-1].title}\n\n{table(judged[-1], ours.METHOD)}")
    if given.report and judged:
        from benchmarks.search_quality.plots import draw

        plots = {one.slug: draw(one, given.report.parent, ours.METHOD) for one in judged}
        command = "make bench-search"
        notes = "\n".join(filter(None, map(not_run, judged)))
        given.report.write_text(render(judged, ours=ours.METHOD, command=command, plots=plots, notes=notes))


def not_run(judged: Judged) -> str:
    """Return a line that names the peers, and the seeds of the strongest, that a task's table lacks; nothing where none."""
    done = {(run.method, run.seed) for run in judged.runs}
    wanted = [(method, seed) for method in peers.METHODS for seed in seeds_of(method, judged.task)]
    lacking = [f"{method} (seed {seed})" for method, seed in wanted if (method, seed) not in done]
    return f"- Not run so far, {judged.title}: {', '.join(lacking)}." if lacking else ""


def judge(name: str, kept: list[Result], joint: Joint, results: Results) -> Judged:
    """Join runs and measurements of one task."""
    task, dense, runs = TASKS[name], joint.dense, []
    assert dense is not None
    for result in kept:
        points = []
        for point in result.points:
            one = joint.scores[digest_of_file(results.path(result, point))]
            points.append(Point(point.found_s, one.speedup, one.low, one.high, one.val, one.test))
        in_time = tuple(point for point in points if point.found_s <= result.cell.budget_s)
        late = len(points) - len(in_time)
        runs.append(Run(result.cell.name, result.cell.seed, in_time, late, result.took_s, result.made_at))
    dense_ms = sorted(one.dense_ms for one in joint.scores.values())
    first = kept[0].cell
    params = ", ".join(f"{key} {value}" for key, value in task.params.items())
    return Judged(
        task=name,
        model=f"{task.model} ({params})" if params else task.model,
        data=task.data,
        final_epochs=task.final_epochs,
        budget_s=first.budget_s,
        threads=first.threads,
        runs=tuple(sorted(runs, key=lambda run: (run.method, run.seed))),
        dense_test=dense.test,
        test_samples=dense.test_samples,
        dense_ms=dense_ms[len(dense_ms) // 2] if dense_ms else float("nan"),
        said=tuple(
            sorted((said_by(one) for one in kept if one.cell.method == ours.METHOD), key=lambda s: (s.method, s.seed))
        ),
    )


def said_by(result: Result) -> Said:
    """Return what one of our jobs reported of itself."""
    told = result.notes.get("report") or {}
    predictor = (told.get("predictor") or {}).get("0") or {}
    return Said(
        method=result.cell.name,
        seed=result.cell.seed,
        trials=int((result.notes.get("trials") or {}).get("succeeded", 0)),
        error_median=predictor.get("error_median"),
        error_p90=predictor.get("error_p90"),
        overhead=told.get("overhead_fraction"),
    )


def _files(result: Result, results: Results) -> list[Path]:
    return [results.path(result, point) for point in result.points]


if __name__ == "__main__":
    main()
