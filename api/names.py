"""Names of devices by id, asked once each."""

from __future__ import annotations

from domain.errors import NotFound
from domain.ports import JobStore

UNKNOWN_DEVICE = "a device that is gone"


class DeviceNames:
    """A lookup for the length of one request."""

    def __init__(self, store: JobStore) -> None:
        self._store = store
        self._known: dict[str, str] = {}

    def __call__(self, device_id: str) -> str:
        if device_id not in self._known:
            try:
                self._known[device_id] = self._store.device(device_id).name
            except NotFound:
                self._known[device_id] = UNKNOWN_DEVICE
        return self._known[device_id]
