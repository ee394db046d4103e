"""One measurement, inside its own process: load, check, warm up, time; every failure becomes a value with its blame."""

from __future__ import annotations

import os
import resource
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from pydantic import BaseModel, ConfigDict, JsonValue

from domain.artifact import Digest
from domain.errors import PruneloopError
from domain.measurement import (
    CandidateTiming,
    FileTiming,
    Measured,
    MeasuredFile,
    MeasurementOutcome,
    MeasurementRequest,
    Samples,
)
from domain.outcome import Blame, Failed
from workers.agent.checks import Check, feeds_for, read_check, verify
from workers.agent.energy import energy_mj_per_run, find_counter
from workers.agent.memory import PeakMemory, limit_memory
from workers.agent.nvml import Nvml
from workers.agent.observers import ThrottleWatch
from workers.agent.runtimes.base import Array, Runtime, RuntimeSession, UnreadableArtifact, random_feeds
from workers.agent.runtimes.registry import get_runtime
from workers.agent.statistics import Floats, median_interval, pack_samples, percentiles
from workers.agent.timing import NS_PER_MS, Contender, Pairs, Pass, measure
from workers.agent.traps import ClockDrift, CoolDown, OtherLoad, denormal_inputs, machine_warnings

THREAD_VARIABLES = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMEXPR_NUM_THREADS")
INSTANCES_MEMORY = 0.5  # of the limit: what all instances together may take
BASELINE = 0  # index of a file: the baseline, then the candidates as asked

# Whose fault a coded error is; anything else thrown while a file is worked on is the file's.
BLAME = {"runtime_missing": Blame.DEVICE, "check_unreadable": Blame.SYSTEM}


class ChildJob(BaseModel):
    """What the child is told: the request, where the files lie, and its limits."""

    model_config = ConfigDict(frozen=True)

    request: MeasurementRequest
    paths: dict[Digest, Path]
    cores: tuple[int, ...] | None = None
    memory_bytes: int | None = None
    cool_down_s: float = 10.0
    root: Path = Path("/")


Report = Callable[[str, int], None]
"""``(stage, index of the file)``: told before each step, so that the parent knows what a crash was about."""


@dataclass
class _File:
    """A file, its instances, and what loading them took."""

    index: int
    asked: MeasuredFile
    path: Path
    check: Check | None = None
    sessions: list[RuntimeSession] = field(default_factory=list)
    load_ms: list[float] = field(default_factory=list)
    first_ms: list[float] = field(default_factory=list)
    peak_memory_bytes: int | None = None
    difference: float | None = None
    energy_mj: float | None = None


@dataclass
class _Place:
    """Where the work stands, for a failure's sake."""

    report: Report
    stage: str = "load"
    index: int = BASELINE
    stages_s: dict[str, float] = field(default_factory=dict)

    def at(self, stage: str, index: int) -> None:
        self.stage, self.index = stage, index
        self.report(stage, index)

    @contextmanager
    def timed(self, stage: str) -> Iterator[None]:
        begin_s = time.perf_counter()
        yield
        self.stages_s[stage] = time.perf_counter() - begin_s


def carry_out(job: ChildJob, report: Report) -> MeasurementOutcome:
    """Measure; never raises for anything a file, a runtime or the device did."""
    place = _Place(report)
    try:
        return _measure(job, place)
    except PruneloopError as error:
        return failure(place.stage, place.index, error.message, BLAME.get(error.code, Blame.CANDIDATE), error.code)
    except MemoryError:
        return failure(
            place.stage, place.index, "It asked for more memory than allowed.", Blame.CANDIDATE, "out_of_memory"
        )
    except Exception as error:  # the boundary of the child: foreign runtimes throw what they like
        traceback.print_exc(file=sys.stderr)
        return failure(place.stage, place.index, f"{type(error).__name__}: {error}", Blame.CANDIDATE, "runtime_error")


def failure(stage: str, index: int, reason: str, blame: Blame, code: str, *, retryable: bool | None = None) -> Failed:
    """Make a failure; what the baseline does wrong is never a candidate's fault, but says something of the device."""
    if index == BASELINE and blame is Blame.CANDIDATE:
        blame, reason = Blame.DEVICE, f"The dense model fails on this device: {reason}"
    return Failed(
        stage=stage,
        reason=reason,
        blame=blame,
        retryable=(blame is not Blame.CANDIDATE) if retryable is None else retryable,
        code=code,
    )


def _measure(job: ChildJob, place: _Place) -> MeasurementOutcome:
    request = job.request
    for variable in THREAD_VARIABLES:
        os.environ[variable] = str(request.threads)  # before the runtime's libraries are loaded
    if job.cores is not None:
        os.sched_setaffinity(0, job.cores)
    if job.memory_bytes is not None:
        limit_memory(job.memory_bytes)
    files = [
        _File(index, asked, job.paths[asked.artifact.digest])
        for index, asked in enumerate((request.baseline, *request.candidates))
    ]
    for file in files:
        place.at("check", file.index)
        if file.asked.check is not None:
            file.check = read_check(job.paths[file.asked.check.digest])
    place.at("load", BASELINE)
    runtime = get_runtime(request.runtime)
    warnings: list[str] = []
    with place.timed("load"):
        _load_all(files, runtime, job, place, warnings)
    with place.timed("check"):
        for file in files:
            place.at("check", file.index)
            if file.check is not None:
                file.difference = verify(file.sessions[0], file.check, batch=request.batch, precision=request.precision)
                file.sessions[0].bind(_feeds(file, file.sessions[0], request))
    cores = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else list(range(os.cpu_count() or 1))
    gpus = Nvml.found() if _is_on_gpu(files[BASELINE].sessions[0]) else None
    cpu_watch = ThrottleWatch(cores, job.root)

    def watch() -> bool:
        return cpu_watch() or (gpus is not None and gpus.is_throttled())

    warnings += machine_warnings(threads=request.threads, cores=len(cores), root=job.root)
    for file in files:
        for name in denormal_inputs(_feeds(file, file.sessions[0], request)):
            warnings.append(f"input {name} of file {file.index} holds denormal numbers, which some CPUs are slow with")
    cool_down, others, drift = (
        CoolDown(watch, budget_s=job.cool_down_s),
        OtherLoad(job.root),
        ClockDrift(cores, job.root),
    )
    preempted_before, cpu_before_s = _preemptions(), time.process_time()
    timed = measure(
        files[BASELINE].sessions,
        [file.sessions for file in files[1:]],
        request.plan,
        report_stage=place.at,
        is_disturbed=watch,
        cool_down=cool_down,
    )
    other_cores, moved = others.cores(), drift.warning()
    warnings += [moved] if moved else []
    place.stages_s |= {"warm_up": timed.warm_up_s, "measure": timed.measure_s}
    conditions: dict[str, JsonValue] = {
        **files[BASELINE].sessions[0].conditions,
        "precision": request.precision,
        "batch": request.batch,
        "threads": request.threads,
        "cores": list(job.cores) if job.cores is not None else None,
        "instances": len(files[BASELINE].sessions),
        "runs_per_block": timed.runs_per_block,
        "warm_up_runs": [side.warm_up_runs for side in (timed.baseline, *timed.candidates)],
        "block_ms": request.plan.block_ms,
        "seed": request.plan.seed,
        "output_difference": [file.difference for file in files],
        "preemptions": _preemptions() - preempted_before,
        "cpu_share": round((time.process_time() - cpu_before_s) / max(timed.warm_up_s + timed.measure_s, 1e-9), 3),
        "numpy_version": np.__version__,
        "other_cores_busy": other_cores,
        "throttled": timed.is_throttled or cool_down.slept_s > 0,
        "cooled_s": cool_down.slept_s,
    }
    counter = gpus or find_counter(job.root)
    if counter is not None:
        place.at("energy", len(files) - 1)
        with place.timed("energy"):
            for file in files:
                file.energy_mj = energy_mj_per_run(file.sessions[0].run, counter)
        conditions["energy_source"] = counter.name
    if not all(side.is_steady for side in (timed.baseline, *timed.candidates)):
        warnings.append(
            f"not steady after warm-up: two 5-run medians did not agree within 2 % in {request.plan.warmup_s} s"
        )
    if timed.is_throttled:
        warnings.append("the device throttled while measuring: let it cool, or give it a fan")
    elif cool_down.slept_s:
        warnings.append(f"the device throttled and cooled down for {cool_down.slept_s:.1f} s in between")
    return _measured(files, timed, request, place, conditions, tuple(warnings))


def _load_all(files: list[_File], runtime: Runtime, job: ChildJob, place: _Place, warnings: list[str]) -> None:
    """Load as many instances of each file as asked, in random order a round, so that no side is always loaded first."""
    request = job.request
    for file in files:
        place.at("load", file.index)
        kind = str(file.asked.artifact.kind)
        if kind not in runtime.formats:
            raise UnreadableArtifact(
                f"{runtime.name} loads {', '.join(runtime.formats)}, not {kind}; export the model in such a format."
            )
    # Its libraries and a GPU's context are no file's: the first would be said to take a gigabyte, and seconds.
    runtime.probe()
    rng = np.random.default_rng(request.plan.seed)
    instances = request.plan.instances
    for done in range(request.plan.instances):
        if done >= instances:
            break
        for position in rng.permutation(len(files)):
            _load_one(files[position], runtime, job, place)
        if done == 0 and job.memory_bytes is not None:
            each_bytes = sum(file.peak_memory_bytes or 0 for file in files)
            most = max(1, int(INSTANCES_MEMORY * job.memory_bytes / max(each_bytes, 1)))
            if most < instances:
                instances = most
                warnings.append(f"{most} instances of each file, not {request.plan.instances}: memory allows no more")


def _load_one(file: _File, runtime: Runtime, job: ChildJob, place: _Place) -> None:
    request = job.request
    place.at("load", file.index)
    memory = PeakMemory()
    if not file.sessions:
        memory.start()
    begin_ns = time.perf_counter_ns()
    session = runtime.load(file.path, threads=request.threads, precision=request.precision, batch=request.batch)
    loaded_ns = time.perf_counter_ns()
    session.bind(_feeds(file, session, request))
    bound_ns = time.perf_counter_ns()
    session.run()
    file.load_ms.append((loaded_ns - begin_ns) / NS_PER_MS)
    file.first_ms.append((time.perf_counter_ns() - bound_ns) / NS_PER_MS)
    if not file.sessions:
        file.peak_memory_bytes = memory.stop()
    file.sessions.append(session)


def _feeds(file: _File, session: RuntimeSession, request: MeasurementRequest) -> dict[str, Array]:
    if file.check is None:
        return random_feeds(session.inputs, batch=request.batch, seed=request.plan.seed)
    return feeds_for(session.inputs, file.check.inputs, batch=request.batch)


def _measured(
    files: list[_File],
    timed: Pass,
    request: MeasurementRequest,
    place: _Place,
    conditions: dict[str, JsonValue],
    warnings: tuple[str, ...],
) -> MeasurementOutcome:
    counted = [np.asarray(pairs.baseline_ms)[pairs.counts] for pairs in timed.pairs]
    baseline_blocks_ms = np.concatenate(counted) if counted else np.zeros(0)
    baseline_ms = float(np.median(baseline_blocks_ms)) if len(baseline_blocks_ms) else 0.0
    candidates = []
    for file, side, pairs in zip(files[1:], timed.candidates, timed.pairs, strict=True):
        if pairs.interval is None:
            return failure("measure", file.index, f"No pair could be kept: {pairs.unmet}.", Blame.DEVICE, "throttled")
        ratio, counts = pairs.interval, pairs.counts
        candidates.append(
            CandidateTiming(
                digest=file.asked.artifact.digest,
                timing=_timing(file, side, np.asarray(pairs.candidate_ms)[counts], request),
                latency_ms=baseline_ms / ratio.value,
                latency_ci_ms=(baseline_ms / ratio.high, baseline_ms / ratio.low),
                throughput_per_s=_per_second(request.batch, baseline_ms / ratio.value),
                speedup=ratio.value,
                speedup_ci=(ratio.low, ratio.high),
                verdict=ratio.verdict,
                pairs=int(counts.sum()),
                discarded_pairs=pairs.discarded + int((~counts).sum()),
                is_noisy=pairs.unmet is not None,
                unmet=pairs.unmet,
                samples=_samples(pairs),
            )
        )
    return Measured(
        baseline=_timing(files[BASELINE], timed.baseline, baseline_blocks_ms, request),
        candidates=tuple(candidates),
        conditions=conditions,
        stages_s=place.stages_s,
        warnings=warnings,
    )


def _samples(pairs: Pairs) -> Samples:
    return pack_samples(np.asarray(pairs.baseline_ms), np.asarray(pairs.candidate_ms), np.asarray(pairs.start_s))


def _timing(file: _File, side: Contender, blocks_ms: Floats, request: MeasurementRequest) -> FileTiming:
    latency_ms = float(np.median(blocks_ms))
    p50_ms, p90_ms, p99_ms = percentiles(np.asarray(side.single_ms))
    return FileTiming(
        load_ms=float(np.median(file.load_ms)),  # the median: the first one pays what the whole process pays once
        first_ms=float(np.median(file.first_ms)),
        latency_ms=latency_ms,
        latency_ci_ms=median_interval(blocks_ms, confidence=request.plan.confidence),
        throughput_per_s=_per_second(request.batch, latency_ms),
        p50_ms=p50_ms,
        p90_ms=p90_ms,
        p99_ms=p99_ms,
        runs=side.timed_runs,
        peak_memory_bytes=file.peak_memory_bytes,
        energy_mj=file.energy_mj,
    )


def _per_second(batch: int, latency_ms: float) -> float | None:
    return batch * 1000.0 / latency_ms if latency_ms > 0 else None


def _is_on_gpu(session: RuntimeSession) -> bool:
    said = f"{session.conditions.get('provider', '')} {session.conditions.get('device', '')}".lower()
    return "cuda" in said or "tensorrt" in said


def _preemptions() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_nivcsw
