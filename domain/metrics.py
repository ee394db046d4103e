"""What is true of the product in numbers: what waits and since when, what was done, what went wrong."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from domain.device import DeviceState

# Upper bounds of the classes that durations are counted in, seconds; the last class has no bound.
DURATION_BOUNDS_S = (0.5, 1.0, 2.0, 5.0, 10.0, 20.0, 30.0, 60.0, 120.0, 300.0, 600.0, 1800.0)


@dataclass(frozen=True)
class Queue:
    """Work that somebody could take up now; ``oldest_s`` is how long the oldest of it waits, 0 where none does."""

    depth: int = 0
    oldest_s: float = 0.0


@dataclass(frozen=True)
class Durations:
    """Seconds that work took, by class. ``counts`` has one more item than ``DURATION_BOUNDS_S``."""

    counts: tuple[int, ...]
    total_s: float


@dataclass(frozen=True)
class DeviceNumbers:
    """One device. ``silent_s``: since it was last heard of; None: never."""

    id: str
    name: str
    state: DeviceState
    is_online: bool
    queue: Queue
    lost_runtimes: int
    clock_offset_ms: float | None
    silent_s: float | None
    measured: int = 0
    measured_s: float = 0.0


@dataclass(frozen=True)
class ProductNumbers:
    """One reading of the tables.

    Args:
        jobs: Jobs that are not over, by (state, stage).
        open_trials: Trials that are not over, by state.
        queues: search, build, measurement.
        devices: Those not removed.
        ended: How often something ended so, since the first start: (what, how) -> number, with what = job, trial, build,
            measurement (its ``retried`` too) or health (by verdict).
        asked: Trials asked for.
        expired: Leases that ran out: search, build, measurement.
        fenced: Writes of a lost lease that were refused: search, build, measurement.
        durations: build, measurement: of those done, from claim to outcome.
    """

    jobs: Mapping[tuple[str, str], int] = field(default_factory=dict)
    open_trials: Mapping[str, int] = field(default_factory=dict)
    queues: Mapping[str, Queue] = field(default_factory=dict)
    devices: tuple[DeviceNumbers, ...] = ()
    ended: Mapping[tuple[str, str], int] = field(default_factory=dict)
    asked: int = 0
    expired: Mapping[str, int] = field(default_factory=dict)
    fenced: Mapping[str, int] = field(default_factory=dict)
    durations: Mapping[str, Durations] = field(default_factory=dict)
