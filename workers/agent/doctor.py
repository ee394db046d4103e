"""Is this machine fit to be a device? One finding a line, each with what to do about it."""

from __future__ import annotations

import os
import platform
import time
from enum import StrEnum
from itertools import pairwise
from pathlib import Path

from pydantic import BaseModel, ConfigDict

from domain.device import Device, DeviceState, Inventory, QuarantineCause
from domain.errors import NotFound, PruneloopError, Unavailable
from domain.messages import HeartbeatRequest
from workers.agent import quiet
from workers.agent.assembly import make_api, make_inventory
from workers.agent.observers import default_observers, observe
from workers.agent.settings import AgentSettings, Identity


class Level(StrEnum):
    """``ERROR`` keeps the device from measuring; ``WARNING`` makes its numbers worse; ``MISSING`` could be had."""

    OK = "ok"
    MISSING = "missing"
    WARNING = "warning"
    ERROR = "error"


class Finding(BaseModel):
    """One thing that was looked at."""

    model_config = ConfigDict(frozen=True)

    name: str
    level: Level
    detail: str


class Diagnosis(BaseModel):
    """All findings; ``is_fit`` where none is an error."""

    model_config = ConfigDict(frozen=True)

    findings: tuple[Finding, ...]
    inventory: Inventory

    @property
    def is_fit(self) -> bool:
        return all(finding.level is not Level.ERROR for finding in self.findings)


def diagnose(settings: AgentSettings) -> Diagnosis:
    """Look at everything a measurement needs."""
    inventory = make_inventory(settings)
    return Diagnosis(
        findings=(
            Finding(
                name="python", level=Level.OK, detail=f"{platform.python_version()}, agent {inventory.agent_version}"
            ),
            *_runtimes(inventory),
            _timer(),
            _machine(settings),
            _state_dir(settings.state_dir),
            _quiet(settings),
            *_server(settings),
        ),
        inventory=inventory,
    )


def _runtimes(inventory: Inventory) -> list[Finding]:
    has_any = any(runtime.available for runtime in inventory.runtimes)
    return [
        Finding(
            name=f"runtime {runtime.name}",
            # One that is missing hurts only where there is no other.
            level=Level.OK if runtime.available else (Level.MISSING if has_any else Level.ERROR),
            detail=f"{runtime.version}: {runtime.detail}" if runtime.available else runtime.detail,
        )
        for runtime in inventory.runtimes
    ]


def _timer() -> Finding:
    stamps = [time.perf_counter_ns() for _ in range(2000)]
    step_ns = min(later - earlier for earlier, later in pairwise(stamps) if later > earlier)
    level = Level.OK if step_ns < 5000 else Level.WARNING
    detail = f"{step_ns} ns a step" + ("" if level is Level.OK else "; latencies below 1 ms will be coarse")
    return Finding(name="timer", level=level, detail=detail)


def _machine(settings: AgentSettings) -> Finding:
    seen, warnings = observe(default_observers(settings.root))
    notes = list(warnings)
    cores = os.cpu_count() or 1
    load = seen.get("load_1m")
    if isinstance(load, float) and load > cores / 2:
        notes.append(f"load {load:.1f} on {cores} cores: stop what else runs here, or expect wide intervals")
    governor = seen.get("governor")
    if isinstance(governor, str) and governor != "performance":
        notes.append(f"governor {governor}: `cpupower frequency-set -g performance` makes numbers steadier")
    return Finding(
        name="machine", level=Level.WARNING if notes else Level.OK, detail="; ".join(notes) or f"{cores} cores, quiet"
    )


def _state_dir(state_dir: Path) -> Finding:
    place = state_dir
    while not place.exists() and place != place.parent:
        place = place.parent
    if os.access(place, os.W_OK | os.X_OK):
        return Finding(name="state folder", level=Level.OK, detail=str(state_dir))
    return Finding(
        name="state folder", level=Level.ERROR, detail=f"{state_dir} cannot be written; set PRUNELOOP_AGENT_STATE_DIR"
    )


def _quiet(settings: AgentSettings) -> Finding:
    path = settings.quiet_file or quiet.default_path()
    try:
        with quiet.building(path):
            return Finding(name="quiet lock", level=Level.OK, detail=str(path))
    except (Unavailable, OSError) as error:
        return Finding(name="quiet lock", level=Level.ERROR, detail=f"{error}; set PRUNELOOP_AGENT_QUIET_FILE")


def _standing(device: Device) -> list[Finding]:
    """Say what the server holds against this device."""
    findings = []
    if device.state is not DeviceState.ACTIVE:
        detail = f"{device.state.value}, takes no work: {device.note or 'ask the operator to resume it'}"
        findings.append(Finding(name="state", level=Level.WARNING, detail=detail))
    for name, lost in sorted(device.lost_runtimes.items()):
        ends = (
            "it is checked again from time to time" if lost.cause is QuarantineCause.LATENCY else "mend it, then resume"
        )
        detail = f"takes no work ({ends}; the others do): {lost.reason}"
        findings.append(Finding(name=f"golden model with {name}", level=Level.WARNING, detail=detail))
    return findings


def _server(settings: AgentSettings) -> list[Finding]:
    try:
        identity = Identity.load(settings.state_dir)
    except NotFound as error:
        return [Finding(name="server", level=Level.WARNING, detail=error.message)]
    except PruneloopError as error:
        return [Finding(name="server", level=Level.ERROR, detail=error.message)]
    try:
        with make_api(settings, identity) as api:
            answer = api.heartbeat(identity.device_id, HeartbeatRequest())
            device = api.device(identity.device_id)
    except PruneloopError as error:
        return [Finding(name="server", level=Level.ERROR, detail=error.message)]
    offset_s = time.time() - answer.server_time.timestamp()
    findings = [Finding(name="server", level=Level.OK, detail=f"{identity.server_url} knows us as {identity.name}")]
    findings += _standing(device)
    if abs(offset_s) > 2:
        findings.append(
            Finding(name="clock", level=Level.WARNING, detail=f"{offset_s:+.1f} s off the server's; leases do not care")
        )
    return findings
