"""What others do with the same two files and the same total time: one file, then the other, each on its own.

Both run the very session the agent runs (same runtime options, inputs in memory, pinned to a core that is idle when they begin);
only how it is timed differs. They get a present: their process has imported everything before the clock starts, ours pays for its
child out of the same total.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from torch.utils.benchmark import Timer

from workers.agent.affinity import CoreLoad, choose_cores
from workers.agent.runtimes.base import RuntimeSession
from workers.agent.runtimes.onnxruntime import OnnxRuntime

WARM_UP_RUNS = 10


def by_torch(baseline: Path, candidate: Path, total_s: float) -> float:
    """Return candidate / baseline time by ``torch.utils.benchmark``: ``blocked_autorange`` on each file, its median."""
    return _one_after_the_other(_torch_median_s, baseline, candidate, total_s)


def by_two_medians(baseline: Path, candidate: Path, total_s: float) -> float:
    """Return candidate / baseline time by the script everybody writes: warm up, median of as many runs as there is time for."""
    return _one_after_the_other(_median_s, baseline, candidate, total_s)


def _one_after_the_other(
    time_s: Callable[[RuntimeSession, float], float], baseline: Path, candidate: Path, total_s: float
) -> float:
    found = []
    with _pinned():
        for path in (baseline, candidate):
            begin_s = time.perf_counter()
            session = _load(path)
            found.append(time_s(session, total_s / 2 - (time.perf_counter() - begin_s)))
    return found[1] / found[0]


@contextmanager
def _pinned() -> Iterator[None]:
    """Pin this thread as the agent pins its child; choosing the core is not counted as the rival's time."""
    cores = choose_cores(1, CoreLoad())
    if cores is None:
        yield
        return
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, cores)
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def _torch_median_s(session: RuntimeSession, budget_s: float) -> float:
    begin_s = time.perf_counter()
    timer: Any = Timer("session.run()", globals={"session": session}, num_threads=1)
    # Its search for a block size comes out of the same time, as everything else.
    for _ in range(WARM_UP_RUNS):
        session.run()
    return float(timer.blocked_autorange(min_run_time=max(0.05, budget_s - (time.perf_counter() - begin_s))).median)


def _median_s(session: RuntimeSession, budget_s: float) -> float:
    until_s = time.perf_counter() + budget_s
    for _ in range(WARM_UP_RUNS):
        session.run()
    runs_s: list[float] = []
    while not runs_s or time.perf_counter() < until_s:
        begin_s = time.perf_counter()
        session.run()
        runs_s.append(time.perf_counter() - begin_s)
    return float(np.median(runs_s))


def _load(path: Path) -> RuntimeSession:
    session = OnnxRuntime().load(path, threads=1, precision="fp32", batch=1)
    rng = np.random.default_rng(0)
    session.bind(
        {spec.name: rng.standard_normal([size or 1 for size in spec.shape], np.float32) for spec in session.inputs}
    )
    return session


def fastest_ms(path: Path, runs: int) -> float:
    """Return the fastest of some runs: what a file that does nothing costs all the same."""
    session = _load(path)
    runs_ms = []
    for _ in range(runs):
        begin_ns = time.perf_counter_ns()
        session.run()
        runs_ms.append((time.perf_counter_ns() - begin_ns) / 1e6)
    return min(runs_ms)
