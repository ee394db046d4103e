"""A job that lives through kills ends with the same front as one that lived through none.

On a replay device a latency is a function of the file, and a search that asks one trial at a time is one of what came back; so
whatever differs at the end was made by the kills.
"""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

from tests.chaos.faults import Chaos
from tests.chaos.jobs import User, small_job
from tests.chaos.rounds import say
from tests.chaos.system import Size, System

SIZE = Size(searches=1, builders=1, reapers=1, replays=1, reals=0, is_sequential=True)
KILLS = {("kill", component): 1 for component in ("api", "search", "build", "reaper", "agent")}
TRIALS = 16  # long enough for ten kills
TIMEOUT_S = 400.0
OF_ONE_RUN = {
    "id",
    "measured_at",
    "manifest",
    "conditions",
    "target",
}  # names and moments; a device's id is in conditions


def compare(seed: int, *, kills: int, trials: int = TRIALS, logs: Path | None = None) -> dict[str, Any]:
    """Run one job twice, each on a fresh system; return both fronts' digests and whether they are the same, bit for bit."""
    calm, _ = front_after(seed, kills=0, trials=trials, logs=logs)
    hurt, done = front_after(seed, kills=kills, trials=trials, logs=logs)
    return {
        "seed": seed,
        "kills": done,
        "points": len(calm["items"]) + len(calm["dense"]),
        "is_same": bool(calm["items"]) and _text(calm) == _text(hurt),
        "calm": calm,
        "hurt": hurt,
    }


def front_after(seed: int, *, kills: int, trials: int, logs: Path | None = None) -> tuple[dict[str, Any], list[str]]:
    """Return the front of a job, less what names its run, and what was killed meanwhile."""
    system = System(SIZE)
    try:
        system.start()
        user, chaos = User(system, seed), Chaos(system, seed, KILLS)
        job_id = user.submit(small_job("the same", kind="replay", seed=seed, trials=trials))
        until = time.monotonic() + TIMEOUT_S
        while (state := user.state(job_id)) not in {"SUCCEEDED", "FAILED"} and time.monotonic() < until:
            if len(chaos.faults) < kills:
                fault = chaos.strike()
                say(f"{len(chaos.faults):3}  kill {fault.component} {fault.victim}")
            time.sleep(chaos.next_pause_s(3.0))
        if state != "SUCCEEDED" and logs is not None:
            system.keep_logs(logs)
        assert state == "SUCCEEDED", f"the job is {state}"
        front = user.front(job_id)
        user.close()
        return stripped(front), [f"{fault.component} {fault.victim}".strip() for fault in chaos.faults]
    finally:
        system.close()


def stripped(value: Any) -> Any:
    """Return JSON without what names a run."""
    if isinstance(value, dict):
        return {key: stripped(item) for key, item in value.items() if key not in OF_ONE_RUN}
    return [stripped(item) for item in value] if isinstance(value, list) else value


def _text(front: dict[str, Any]) -> str:
    return json.dumps(front, sort_keys=True)
