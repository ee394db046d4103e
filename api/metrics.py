"""Prometheus text of what the tables say: a worker's exporter sees processes, not jobs that wait."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence

from prometheus_client import CollectorRegistry
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4, generate_latest
from prometheus_client.metrics_core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)
from prometheus_client.registry import Collector

from domain.device import DeviceState
from domain.metrics import DURATION_BOUNDS_S, DeviceNumbers, Durations, ProductNumbers

CONTENT_TYPE = CONTENT_TYPE_PLAIN_0_0_4
Sample = tuple[Sequence[str], float]
# A series exists from the start, at zero: a rate of what never happened is 0 and not "no data".
ENDS = {
    "job": ("SUCCEEDED", "STOPPED", "CANCELLED", "FAILED"),
    "trial": ("succeeded", "rejected", "infeasible", "failed", "duplicate", "cancelled"),
    "build": ("done", "failed", "cancelled", "retried"),
    "measurement": ("done", "failed", "cancelled", "retried"),
}
LEASED = ("search", "build", "measurement")


def render_metrics(numbers: ProductNumbers) -> bytes:
    """Return the exposition text, version 0.0.4."""
    registry = CollectorRegistry()
    registry.register(_Numbers(numbers))
    return generate_latest(registry)


class _Numbers(Collector):
    def __init__(self, numbers: ProductNumbers) -> None:
        self._numbers = numbers

    def collect(self) -> Iterator[Metric]:
        numbers = self._numbers
        yield _gauge("jobs", "Jobs that are not over.", ("state", "stage"), sorted(numbers.jobs.items()))
        trials = [((state,), numbers.open_trials.get(state, 0)) for state in ("building", "measuring")]
        yield _gauge("trials_open", "Trials that are not over.", ("state",), trials)
        queues = sorted(numbers.queues.items())
        depths = [((name,), queue.depth) for name, queue in queues]
        yield _gauge("queue_depth", "Work that somebody could take up now.", ("queue",), depths)
        ages = [((name,), queue.oldest_s) for name, queue in queues]
        yield _gauge("queue_oldest_seconds", "How long the oldest of that work waits.", ("queue",), ages)
        yield from _counters(numbers)
        for what, durations in sorted(numbers.durations.items()):
            yield _histogram(f"{what}_seconds", f"From the claim of a {what} to its outcome, of those done.", durations)
        yield from _devices(numbers.devices)


def _counters(numbers: ProductNumbers) -> Iterator[Metric]:
    for what, ends in ENDS.items():
        found = {how: n for (one, how), n in numbers.ended.items() if one == what}
        yield _counter(
            f"{what}s_ended",
            f"{what.capitalize()}s by how they ended{', or were tried again' if 'retried' in ends else ''}.",
            "state",
            {how: found.get(how, 0) for how in (*ends, *sorted(set(found) - set(ends)))},
        )
    asked = CounterMetricFamily("pruneloop_trials_asked", "Trials the search asked for.")
    asked.add_metric([], numbers.asked)
    yield asked
    verdicts = {how: n for (what, how), n in numbers.ended.items() if what == "health"}
    yield _counter("health_checks", "Golden-model checks of devices by verdict.", "verdict", verdicts)
    expired = {name: numbers.expired.get(name, 0) for name in LEASED}
    yield _counter("lease_expiries", "Leases whose holder fell silent.", "lease", expired)
    fenced = {name: numbers.fenced.get(name, 0) for name in LEASED}
    yield _counter("fenced_writes", "Writes refused because their lease had gone to somebody else.", "lease", fenced)


def _devices(devices: Sequence[DeviceNumbers]) -> Iterator[Metric]:
    together: dict[tuple[str, str], float] = {}
    for one in devices:
        key = (one.state.value, str(one.is_online).lower())
        together[key] = together.get(key, 0) + 1
    yield _gauge("devices", "Devices that joined.", ("state", "online"), sorted(together.items()))
    named = ("device", "device_id")

    def each(name: str, help_text: str, values: Iterable[tuple[DeviceNumbers, float | None]]) -> GaugeMetricFamily:
        known = [((one.name, one.id), value) for one, value in values if value is not None]
        return _gauge(f"device_{name}", help_text, named, known)

    yield each("online", "1: heard of lately.", ((one, float(one.is_online)) for one in devices))
    is_bad = ((one, float(one.state is DeviceState.QUARANTINED)) for one in devices)
    yield each("quarantined", "1: failed its health check and takes no work.", is_bad)
    yield each("lost_runtimes", "Runtimes whose check failed.", ((one, one.lost_runtimes) for one in devices))
    yield each("silent_seconds", "Since it was last heard of.", ((one, one.silent_s) for one in devices))
    offsets = ((one, None if one.clock_offset_ms is None else one.clock_offset_ms / 1000) for one in devices)
    yield each("clock_offset_seconds", "Its clock less the database's.", offsets)
    depths = ((one, one.queue.depth) for one in devices)
    yield each("queue_depth", "Measurements that wait and that this device may do.", depths)
    yield each(
        "queue_oldest_seconds", "How long the oldest of them waits.", ((one, one.queue.oldest_s) for one in devices)
    )
    count = CounterMetricFamily("pruneloop_device_measurements", "Measurements it finished.", labels=named)
    seconds = CounterMetricFamily("pruneloop_device_measurement_seconds", "Seconds it spent on them.", labels=named)
    for one in devices:
        count.add_metric((one.name, one.id), one.measured)
        seconds.add_metric((one.name, one.id), one.measured_s)
    yield count
    yield seconds


def _gauge(name: str, help_text: str, labels: Sequence[str], samples: Iterable[Sample]) -> GaugeMetricFamily:
    family = GaugeMetricFamily(f"pruneloop_{name}", help_text, labels=labels)
    for values, number in samples:
        family.add_metric(values, number)
    return family


def _counter(name: str, help_text: str, label: str, samples: Mapping[str, int]) -> CounterMetricFamily:
    family = CounterMetricFamily(f"pruneloop_{name}", help_text, labels=(label,))
    for value, number in samples.items():
        family.add_metric((value,), number)
    return family


def _histogram(name: str, help_text: str, durations: Durations) -> HistogramMetricFamily:
    buckets, so_far = [], 0
    for bound, number in zip((*map(str, DURATION_BOUNDS_S), "+Inf"), durations.counts, strict=True):
        so_far += number
        buckets.append((bound, so_far))
    family = HistogramMetricFamily(f"pruneloop_{name}", help_text)
    family.add_metric([], buckets, durations.total_s)
    return family
