"""One round: a fresh system, jobs that keep coming, faults at random moments, peace, and a look at everything."""

from __future__ import annotations

import os
import random
import sys
import time
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from sqlalchemy import text
from sqlalchemy.exc import SQLAlchemyError

from tests.chaos import audit, invariants
from tests.chaos.faults import Chaos
from tests.chaos.jobs import User, small_job
from tests.chaos.recovery import ReaperWatch, times_of
from tests.chaos.system import Size, System

SETTLE_S = 240.0
TIDY_S = 45.0  # cancelled work of a holder that was killed is freed by its lease and a grace
MOST_LIVE_JOBS = 3
STEERED = (("cancel",), ("pause", "resume"), ("stop",), ("pause", "cancel"), ("pause", "stop"))


@dataclass
class Round:
    """What a round did and found, as kept in a file."""

    seed: int
    network: str
    disk: str
    wall_s: float = 0.0
    load: float = 0.0  # of the machine, with everything else on it: the average of a minute, at the end of the faults
    nice: int = 0  # priority of all processes of the system
    faults: list[dict[str, Any]] = field(default_factory=list)  # Fault, and its times
    counts: dict[str, int] = field(default_factory=dict)
    broken: dict[str, list[str]] = field(default_factory=dict)
    failed: list[str] = field(default_factory=list)  # jobs that ended FAILED, each with its reason

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


def run_round(
    seed: int,
    *,
    faults: int,
    jobs: int,
    mean_pause_s: float,
    size: Size | None = None,
    mix: dict[tuple[str, str], int] | None = None,
    trials: int = 6,
    logs: Path | None = None,
) -> Round:
    """Run a round and return what it found.

    Args:
        seed: Of everything that is chosen.
        faults: How many.
        jobs: At least so many are submitted; more while faults go on and too few are alive.
        mean_pause_s: Between two faults.
        size: Processes of each role.
        mix: (action, component) -> weight.
        trials: Of each job.
        logs: Where the processes' logs go if anything is broken.
    """
    began, dice = time.monotonic(), random.Random(seed)
    system = System(size or Size())
    found = Round(seed, system.network.name, system.disk.name)
    try:
        system.start()
        user, watch, chaos = User(system, seed), ReaperWatch(system.engine), Chaos(system, seed, mix)

        def submit() -> None:
            number = len(user.jobs)
            kind = "real" if number % 4 == 1 and system.size.reals else "replay"
            job_id = user.submit(small_job(f"chaos {seed}.{number}", kind=kind, seed=number, trials=trials))
            if number % 5 == 3:
                user.steer(job_id, *dice.choice(STEERED))

        while len(chaos.faults) < faults:
            if _live(system) < MOST_LIVE_JOBS:
                submit()
            time.sleep(chaos.next_pause_s(mean_pause_s))
            fault = chaos.strike()
            system.check()
            say(
                f"{time.monotonic() - began:6.1f} s  {len(chaos.faults):3}  {fault.action} {fault.component} {fault.victim}"
            )
        while len(user.jobs) < jobs:
            submit()
        found.load, found.nice = round(os.getloadavg()[0], 1), os.nice(0)
        chaos.settle()
        _wait(system, "SELECT count(*) FROM job WHERE finished_at IS NULL", SETTLE_S)
        _wait(
            system,
            "SELECT (SELECT count(*) FROM build WHERE state IN ('pending', 'leased'))"
            " + (SELECT count(*) FROM measurement WHERE state IN ('pending', 'leased'))",
            TIDY_S,
        )
        time.sleep(2.0)
        user.close()
        watch.close()
        changes = audit.read(system.engine)
        verdict = invariants.check(
            system.engine,
            changes,
            system.folder / "artifacts",
            submitted=list(user.jobs.values()),
            mismatched=user.mismatched,
            seen=user.seen,
        )
        found.broken, found.counts = verdict.broken, verdict.counts
        found.failed = _failed(system)
        found.faults = [fault.as_json() | {"times_s": times_of(fault, changes, watch.asked)} for fault in chaos.faults]
        found.wall_s = round(time.monotonic() - began, 1)
        if logs is not None and (found.broken or found.failed):
            system.keep_logs(logs)
        return found
    except BaseException:
        if logs is not None:
            system.keep_logs(logs)
        raise
    finally:
        system.close()


def say(line: str) -> None:
    sys.stderr.write(f"{line}\n")


def _live(system: System) -> int:
    try:
        return _count(system, "SELECT count(*) FROM job WHERE finished_at IS NULL")
    except SQLAlchemyError:  # the tables are away for a moment: then enough is going on
        return MOST_LIVE_JOBS


def _count(system: System, query: str) -> int:
    with system.engine.connect() as connection:
        return int(connection.execute(text(query)).scalar_one())


def _wait(system: System, query: str, timeout_s: float) -> None:
    """Wait until a count is zero, or time is up: then the invariants tell what is left."""
    until = time.monotonic() + timeout_s
    while time.monotonic() < until:
        system.check()
        with suppress(SQLAlchemyError):  # a database that was stopped at once may still be on its way back
            if not _count(system, query):
                return
        time.sleep(0.3)


def _failed(system: System) -> list[str]:
    with system.engine.connect() as connection:
        rows = connection.execute(text("SELECT name, reason FROM job WHERE state = 'FAILED' ORDER BY id"))
        return [f"{row.name}: {row.reason}" for row in rows]
