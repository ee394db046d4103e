"""Outcomes that could not be delivered: kept line by line on disk, delivered when the server is back.

The server takes the same outcome twice as once and fences stale ones, so a line may be sent again after a crash in between.
"""

from __future__ import annotations

import logging
import os
import tempfile
from collections.abc import Callable
from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError

from domain.errors import PruneloopError, Unavailable
from domain.messages import OutcomeMessage

log = logging.getLogger(__name__)

Send = Callable[[str, OutcomeMessage], None]
"""``(measurement id, message)``; raises Unavailable while the server is away, another error where it refuses."""


class Entry(BaseModel):
    """One undelivered outcome."""

    model_config = ConfigDict(frozen=True)

    measurement_id: str
    message: OutcomeMessage


class Journal:
    """A JSONL file of one process at a time."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def append(self, measurement_id: str, message: OutcomeMessage) -> None:
        """Keep an outcome; it is on disk when this returns."""
        self._path.parent.mkdir(parents=True, exist_ok=True)
        line = Entry(measurement_id=measurement_id, message=message).model_dump_json()
        with self._path.open("ab") as file:
            # Begin on a line of its own, whatever a crash left of the last one.
            file.write(("\n" if file.tell() else "").encode() + line.encode() + b"\n")
            file.flush()
            os.fsync(file.fileno())

    def entries(self) -> list[Entry]:
        """Return what waits, in order, each attempt once; a line torn by a crash is skipped."""
        try:
            lines = self._path.read_bytes().splitlines()
        except FileNotFoundError:
            return []
        found: dict[tuple[str, int], Entry] = {}
        for line in filter(None, lines):
            try:
                entry = Entry.model_validate_json(line)
            except ValidationError:
                log.warning("a torn line of %s is skipped; its measurement will be done again", self._path)
                continue
            found[(entry.measurement_id, entry.message.attempt)] = entry
        return list(found.values())

    def replay(self, send: Send) -> int:
        """Deliver what waits until the server is away again; return how many are left.

        What the server refuses (stale, unknown) is dropped: it has been done elsewhere or is not wanted any more.
        """
        entries = self.entries()
        left: list[Entry] = []
        for index, entry in enumerate(entries):
            try:
                send(entry.measurement_id, entry.message)
            except Unavailable:
                left = entries[index:]
                break
            except PruneloopError as error:
                log.info("kept outcome of %s is not wanted any more: %s", entry.measurement_id, error)
        if len(left) != len(entries):
            self._rewrite(left)
        return len(left)

    def _rewrite(self, entries: list[Entry]) -> None:
        if not entries:
            self._path.unlink(missing_ok=True)
            return
        handle, name = tempfile.mkstemp(dir=self._path.parent, prefix=".journal-")
        with os.fdopen(handle, "w") as file:
            file.writelines(entry.model_dump_json() + "\n" for entry in entries)
            file.flush()
            os.fsync(file.fileno())
        Path(name).replace(self._path)
