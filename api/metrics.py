"""Prometheus text of what the tables say: a worker's exporter sees processes, not jobs that wait."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from typing import TypeVar

from domain.job import TERMINAL_STATES, JobState
from domain.ports import JobStore, Page

T = TypeVar("T")

MAX_PAGES = 20
PAGE_SIZE = 500
LIVE_STATES = tuple(state for state in JobState if state not in TERMINAL_STATES)


def render_metrics(store: JobStore) -> str:
    """Return the exposition text: live jobs by state and stage, devices by state, the queue of each device."""
    jobs = Counter(
        (job.state.value, job.stage.value)
        for job in _all(lambda token: store.jobs(states=LIVE_STATES, page_size=PAGE_SIZE, page_token=token))
    )
    devices = list(_all(lambda token: store.devices(page_size=PAGE_SIZE, page_token=token)))
    lines = ["# HELP pruneloop_jobs Jobs that are not over.", "# TYPE pruneloop_jobs gauge"]
    lines += [f'pruneloop_jobs{{state="{state}",stage="{stage}"}} {n}' for (state, stage), n in sorted(jobs.items())]
    lines += ["# HELP pruneloop_devices Devices that joined.", "# TYPE pruneloop_devices gauge"]
    counted = Counter((device.state.value, device.is_online) for device in devices)
    lines += [
        f'pruneloop_devices{{state="{state}",online="{str(is_online).lower()}"}} {n}'
        for (state, is_online), n in sorted(counted.items())
    ]
    lines += [
        "# HELP pruneloop_device_queue_depth Measurements that wait and that this device may do.",
        "# TYPE pruneloop_device_queue_depth gauge",
    ]
    lines += [
        f'pruneloop_device_queue_depth{{device="{_escaped(device.name)}",device_id="{device.id}"}} {device.queue_depth}'
        for device in devices
    ]
    return "\n".join(lines) + "\n"


def _all(page_of: Callable[[str], Page[T]]) -> Iterator[T]:
    token = ""
    for _ in range(MAX_PAGES):
        page = page_of(token)
        yield from page.items
        token = page.next_page_token
        if not token:
            return


def _escaped(text: str) -> str:
    return text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
