"""Who may measure a target, and what to tell a person when nobody can. Pure, but for ``all_devices``."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from datetime import datetime, timedelta

from domain.device import Device, DeviceState
from domain.job import DeviceSelector, TargetSpec
from domain.ports import JobStore
from domain.work import WorkState
from search.view import View

# A device that sleeps between heartbeats looks away for a moment: only work left lying this long means nobody comes.
PATIENCE = timedelta(seconds=6)


def can_run(device: Device, selector: DeviceSelector, runtime: str, precisions: Collection[str] = ()) -> bool:
    """Return whether a device takes work, matches, and has the runtime in working order for all the precisions."""
    return (
        device.state is DeviceState.ACTIVE
        and selector.matches(device.id, device.labels)
        and runtime not in device.lost_runtimes
        and any(
            info.name == runtime and info.available and set(precisions) <= set(info.precisions)
            for info in device.inventory.runtimes
        )
    )


def why_no_device(target: TargetSpec, index: int, devices: Sequence[Device]) -> str | None:
    """Return why no device can measure a target, with the next step; None if one can."""
    if any(can_run(device, target.device, target.runtime, target.precision) for device in devices):
        return None
    wanted = _describe(target.device)
    known = [device for device in devices if device.state is not DeviceState.REMOVED]
    matching = [device for device in known if target.device.matches(device.id, device.labels)]
    if not matching:
        return (
            f"Target {index}: no device matches {wanted}. "
            f"Join one with the line of `pruneloop devices add{_options(target.device)}`, "
            f"or change the target's `device`; other devices known: {len(known)}."
        )
    names = ", ".join(device.name for device in matching[:5])
    active = [device for device in matching if device.state is DeviceState.ACTIVE]
    if not active:
        states = ", ".join(sorted({str(device.state) for device in matching}))
        notes = "".join(f" {device.name}: {device.note}." for device in matching[:5] if device.note)
        return f"Target {index}: every device that matches {wanted} is {states} ({names}). Resume one to go on.{notes}"
    if any(can_run(device, target.device, target.runtime) for device in active):
        return (
            f"Target {index}: the runtime {target.runtime} of no matching device ({names}) takes "
            f"{' and '.join(target.precision)}. Change the target's `precision`, or join a device that does."
        )
    lost = [
        f" {d.name}: {d.lost_runtimes[target.runtime].reason}." for d in active if target.runtime in d.lost_runtimes
    ]
    return (
        f"Target {index}: no matching device ({names}) has a working runtime {target.runtime}. "
        f"Run `pruneloop agent doctor` there to see what to install or to mend.{''.join(lost[:5])}"
    )


def why_stuck(view: View, devices: Sequence[Device], now: datetime) -> str | None:
    """Return why measurements lie untouched while nothing else goes on; None if something does."""
    if any(not build.state.is_terminal for build in view.snapshot.builds):
        return None
    waiting = [m for m in view.snapshot.measurements if not m.state.is_terminal]
    if not waiting or any(m.state is WorkState.LEASED for m in waiting):
        return None
    oldest = min(waiting, key=lambda m: m.created_at)
    if now - oldest.created_at < PATIENCE:
        return None
    target = view.spec.targets[oldest.target]
    missing = why_no_device(target, oldest.target, devices)
    if missing is not None:
        return missing
    able = [device for device in devices if can_run(device, target.device, target.runtime, target.precision)]
    if any(device.is_online for device in able):
        return None
    names = ", ".join(device.name for device in able[:5])
    return (
        f"Target {oldest.target}: no matching device is online ({names}). Start `pruneloop agent run` there to go on."
    )


def all_devices(store: JobStore) -> tuple[Device, ...]:
    """Return every device, page by page."""
    devices: list[Device] = []
    token = ""
    while True:
        page = store.devices(page_size=100, page_token=token)
        devices.extend(page.items)
        token = page.next_page_token
        if not token:
            return tuple(devices)


def _options(selector: DeviceSelector) -> str:
    return "".join(f" --label {key}={value}" for key, value in sorted(selector.labels.items()))


def _describe(selector: DeviceSelector) -> str:
    if selector.id is not None:
        return f"id {selector.id}"
    if selector.labels:
        return "labels " + ", ".join(f"{key}={value}" for key, value in sorted(selector.labels.items()))
    return "any label"
