"""Puts an agent together from its settings and its identity: the only place that knows every part."""

from __future__ import annotations

import platform

from pydantic import JsonValue

from domain.device import Inventory
from domain.ports import Runner
from workers.agent.api import AgentApi
from workers.agent.fetch import ArtifactCache
from workers.agent.health import READS, HealthMonitor
from workers.agent.inventory import agent_version, collect_inventory, probe_runtimes
from workers.agent.journal import Journal
from workers.agent.nvml import Nvml
from workers.agent.observers import default_observers, observe
from workers.agent.presence import Presence
from workers.agent.replay.device import describe_replay, make_replay
from workers.agent.replay.recording import RecordingRunner
from workers.agent.runtimes.names import TORCH_RUNTIMES
from workers.agent.sandbox import SandboxLimits, SandboxRunner
from workers.agent.session import AgentSession
from workers.agent.settings import AgentSettings, Identity


def make_api(settings: AgentSettings, identity: Identity) -> AgentApi:
    return AgentApi(
        settings.server_url or identity.server_url,
        identity.device_token.get_secret_value(),
        ca_file=settings.ca_file,
    )


def make_inventory(settings: AgentSettings) -> Inventory:
    """Return what this device is; one that plays measurements back has the runtime ``replay`` and no other."""
    runtimes = None if settings.replay is None else (describe_replay(settings.replay),)
    return collect_inventory(interpreter=settings.interpreter, root=settings.root, runtimes=runtimes)


def make_runner(settings: AgentSettings, *, facts: dict[str, JsonValue] | None = None) -> Runner:
    """Return what measures: child processes, or a replay; recorded where the settings ask for it."""
    if settings.replay is not None:
        return make_replay(settings.replay)
    runner = SandboxRunner(
        interpreter=settings.interpreter,
        limits=SandboxLimits(
            start_s=settings.start_timeout_s,
            stage_s=settings.stage_timeout_s,
            memory_bytes=settings.memory_limit_bytes,
        ),
        observers=(*default_observers(settings.root), *((gpus,) if (gpus := Nvml.found()) is not None else ())),
        facts=facts,
        keep_spare=settings.keep_spare,
        root=settings.root,
    )
    return runner if settings.record_file is None else RecordingRunner(runner, settings.record_file)


def make_session(settings: AgentSettings, identity: Identity) -> AgentSession:
    """Return what a wake works with; made once in the pool's child process."""
    api = make_api(settings, identity)
    cache = ArtifactCache(settings.state_dir / "artifacts", api.download, max_bytes=settings.cache_max_bytes)
    observers = default_observers(settings.root)
    runner = make_runner(
        settings,
        facts={
            "device_id": identity.device_id,
            "device": identity.name,
            "machine": platform.machine(),
            "agent_version": agent_version(),
        },
    )
    return AgentSession(
        identity.device_id,
        api,
        runner,
        cache.fetch,
        Journal(settings.state_dir / "journal.jsonl"),
        quiet_file=settings.quiet_file,
        drain_file=settings.drain_file,
        conditions=lambda: observe(observers)[0],
        wake_s=settings.wake_s,
        health=None  # what is played back says nothing of this machine
        if settings.replay is not None
        else HealthMonitor(
            runner,
            lambda check: api.tell_health(identity.device_id, check),
            lambda: [
                found.name
                for found in probe_runtimes(interpreter=settings.interpreter)
                # torch takes seconds to start, and half a minute where it compiles: checked once it is used.
                if found.available and READS in found.formats and found.name not in TORCH_RUNTIMES
            ],
            every=settings.health_every,
        ),
    )


def make_presence(settings: AgentSettings, identity: Identity) -> Presence:
    """Return what the worker's main process says while nothing is measured."""
    observers = default_observers(settings.root)
    return Presence(
        make_api(settings, identity),
        identity.device_id,
        conditions=lambda: observe(observers)[0],
        inventory=lambda: make_inventory(settings),
        interval_s=settings.presence_s,
    )
