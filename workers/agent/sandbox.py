"""Every measurement in a process of its own, so that no file can take the agent down.

Implements ``domain.ports.Runner``. A crash, a hang, too much memory, a corrupt file, a wrong answer: each comes back as a
``Failed`` with its stage and whom to blame, and the next measurement starts from a fresh process.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil
from pydantic import JsonValue, TypeAdapter

from domain.artifact import ArtifactRef
from domain.errors import PruneloopError
from domain.measurement import Measured, MeasurementOutcome, MeasurementRequest
from domain.outcome import Blame, Failed
from workers.agent.affinity import CoreLoad, choose_cores
from workers.agent.carry_out import BASELINE, ChildJob, failure
from workers.agent.child import Ended, MeasuredProcess, child_environment
from workers.agent.observers import Observer, observe, throttled_between

OUTCOME: TypeAdapter[MeasurementOutcome] = TypeAdapter(MeasurementOutcome)
POLL_S = 0.1  # how soon a cancellation or too much memory is seen
MEMORY_SHARE = 0.8  # of what is free when the measurement begins, where no limit is set
ROUGH_ENDS = frozenset({"SIGSEGV", "SIGABRT", "SIGBUS", "SIGILL", "SIGFPE", "SIGSYS", "SIGTRAP"})


@dataclass(frozen=True)
class SandboxLimits:
    """Limits of one child. ``stage_s``: longest silence between two stages; ``start_s``: until it has imported everything;
    ``cool_down_s``: slept in all where the device throttles."""

    start_s: float = 60.0
    stage_s: float = 120.0
    memory_bytes: int | None = None
    cool_down_s: float = 10.0


@dataclass
class _Watched:
    """Where a running child stands, as far as its parent knows."""

    stage: str = "start"
    index: int = BASELINE
    deadline_s: float = 0.0
    limit_s: float = 0.0

    def enter(self, stage: str, index: int, limit_s: float) -> None:
        self.stage, self.index, self.limit_s = stage, index, limit_s
        self.deadline_s = time.monotonic() + limit_s


class SandboxRunner:
    """Times files in child processes.

    Args:
        interpreter: Command that runs Python; a prefix such as an emulator's goes first.
        limits: Time and memory of one child.
        observers: What to note of the machine before and after.
        facts: Put into the conditions of every measurement: who this device is.
        environment: Added to the child's.
        keep_spare: Start the next child as soon as one is used up, so that its imports are paid while the agent talks to the
            server. It waits in a read, costs no time on a core, and ends with this process.
        root: What /proc and /sys hang under.
    """

    def __init__(
        self,
        *,
        interpreter: Sequence[str] = (sys.executable,),
        limits: SandboxLimits = SandboxLimits(),
        observers: Sequence[Observer] = (),
        facts: Mapping[str, JsonValue] | None = None,
        environment: Mapping[str, str] | None = None,
        keep_spare: bool = False,
        root: Path = Path("/"),
    ) -> None:
        self._interpreter = tuple(interpreter)
        self._limits = limits
        self._observers = tuple(observers)
        self._facts = dict(facts or {})
        self._environment = dict(environment or {})
        self._keep_spare = keep_spare
        self._root = root
        self._spare: MeasuredProcess | None = None

    def run(
        self,
        request: MeasurementRequest,
        *,
        fetch: Callable[[ArtifactRef], Path],
        report_stage: Callable[[str], None],
        is_cancelled: Callable[[], bool],
    ) -> MeasurementOutcome:
        """Measure; every failure is a value. The child is gone when this returns, whatever happened."""
        report_stage("fetch")
        begin_s = time.monotonic()
        child = self._take()
        try:
            try:
                paths = {ref.digest: fetch(ref) for ref in references(request)}
            except PruneloopError as error:
                return Failed(stage="fetch", reason=error.message, blame=Blame.SYSTEM, retryable=True, code=error.code)
            fetch_s = time.monotonic() - begin_s
            before, warnings = observe(self._observers)
            memory_bytes = self._limits.memory_bytes or int(MEMORY_SHARE * psutil.virtual_memory().available)
            cores = choose_cores(request.threads, CoreLoad(self._root), self._root)
            job = ChildJob(
                request=request,
                paths=paths,
                cores=cores,
                memory_bytes=memory_bytes,
                cool_down_s=self._limits.cool_down_s,
                root=self._root,
            )
            outcome = self._supervise(child, job, memory_bytes, report_stage, is_cancelled)
        finally:
            child.end()
        if self._keep_spare:
            self.warm()
        if isinstance(outcome, Measured):
            after, later_warnings = observe(self._observers)
            throttled = throttled_between(before, after)
            later_warnings += () if throttled is None else (throttled,)
            outcome = outcome.model_copy(
                update={
                    "conditions": {**self._facts, **outcome.conditions, "before": before, "after": after},
                    "stages_s": {"fetch": fetch_s, **outcome.stages_s},
                    "warnings": (*warnings, *later_warnings, *outcome.warnings),
                }
            )
        return outcome

    def warm(self) -> None:
        """Start the child of the next measurement now."""
        if self._spare is None or not self._spare.is_alive:
            self.close()
            self._spare = self._start()

    def close(self) -> None:
        """End the spare child, if there is one."""
        if self._spare is not None:
            self._spare.end()
            self._spare = None

    def _take(self) -> MeasuredProcess:
        spare, self._spare = self._spare, None
        if spare is not None and spare.is_alive:
            return spare
        if spare is not None:
            spare.end()
        return self._start()

    def _start(self) -> MeasuredProcess:
        return MeasuredProcess(self._interpreter, child_environment(self._environment))

    def _supervise(
        self,
        child: MeasuredProcess,
        job: ChildJob,
        memory_bytes: int,
        report_stage: Callable[[str], None],
        is_cancelled: Callable[[], bool],
    ) -> MeasurementOutcome:
        watched = _Watched()
        watched.enter("start", BASELINE, self._limits.start_s)
        child.send(job.model_dump_json())
        while True:
            message = child.receive(POLL_S)
            if isinstance(message, Ended):
                return _explain(message, watched)
            if message is None:
                if is_cancelled():
                    return failure(
                        watched.stage, watched.index, "Cancelled.", Blame.SYSTEM, "cancelled", retryable=False
                    )
                resident_bytes = child.resident_bytes()
                if resident_bytes > memory_bytes:
                    return _too_much_memory(watched, resident_bytes, memory_bytes)
                if time.monotonic() > watched.deadline_s:
                    return _too_slow(watched)
            elif "outcome" in message:
                return OUTCOME.validate_python(message["outcome"])
            elif "stage" in message:
                self._enter(watched, job, str(message["stage"]), int(message["file"]), report_stage)

    def _enter(
        self, watched: _Watched, job: ChildJob, stage: str, index: int, report_stage: Callable[[str], None]
    ) -> None:
        limit_s = self._limits.stage_s
        plan = job.request.plan
        if stage == "warm_up":
            limit_s += plan.warmup_s * plan.instances * (1 + len(job.request.candidates))
        elif stage == "measure":
            limit_s += self._limits.cool_down_s + 2 * plan.max_s * len(job.request.candidates)
        if stage != watched.stage:
            report_stage(stage)
        watched.enter(stage, index, limit_s)


def references(request: MeasurementRequest) -> tuple[ArtifactRef, ...]:
    """Return every file a measurement needs, each once."""
    files = (request.baseline, *request.candidates)
    refs = [ref for file in files for ref in (file.artifact, file.check) if ref is not None]
    return tuple({ref.digest: ref for ref in refs}.values())


def _explain(ended: Ended, watched: _Watched) -> Failed:
    """Say why a child is gone that gave no outcome."""
    words = f" Last words: {ended.last_words}" if ended.last_words else ""
    name = ended.signal_name
    if name == "SIGKILL":
        reason = "The measuring process was killed from outside, most likely by the kernel for lack of memory."
        return failure(watched.stage, watched.index, reason + words, Blame.CANDIDATE, "killed", retryable=True)
    if watched.stage == "start":
        reason = (
            f"The measuring process did not start ({name or f'exit {ended.returncode}'}); run `pruneloop agent doctor`."
        )
        return failure(watched.stage, watched.index, reason + words, Blame.DEVICE, "child_failed")
    if name is not None:
        reason = f"The runtime crashed ({name}) in stage {watched.stage}."
        # Once more, in case the device was at fault; the attempts are counted by the server.
        is_rough = name in ROUGH_ENDS
        return failure(watched.stage, watched.index, reason + words, Blame.CANDIDATE, "crashed", retryable=is_rough)
    reason = f"The runtime ended its process (exit {ended.returncode}) in stage {watched.stage}."
    return failure(watched.stage, watched.index, reason + words, Blame.CANDIDATE, "crashed")


def _too_slow(watched: _Watched) -> Failed:
    if watched.stage == "start":
        reason = f"The measuring process was not ready within {watched.limit_s:.0f} s; run `pruneloop agent doctor`."
        return failure(watched.stage, watched.index, reason, Blame.DEVICE, "timeout")
    reason = f"Stage {watched.stage} was not over within {watched.limit_s:.0f} s; the process was killed."
    return failure(watched.stage, watched.index, reason, Blame.CANDIDATE, "timeout")


def _too_much_memory(watched: _Watched, resident_bytes: int, limit_bytes: int) -> Failed:
    reason = (
        f"It took {resident_bytes / 2**20:.0f} MiB in stage {watched.stage}, "
        f"{limit_bytes / 2**20:.0f} MiB are allowed; the process was killed."
    )
    return failure(watched.stage, watched.index, reason, Blame.CANDIDATE, "out_of_memory")
