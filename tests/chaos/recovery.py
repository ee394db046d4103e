"""How long it took from a fault to the work going on again, read from the changes of the tables.

search, build, agent   the rows in the victim's hands at that moment: until each has a new lease, or has ended
api                    until the next write of an API process
reaper                 until the next query of a reaper (they write only where something is wrong)
valkey                 until the next lease on anything: every one of them follows a wake or the end of another
postgres               until the next write of anybody
"""

from __future__ import annotations

import math
import threading
import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from contextlib import suppress
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import Engine, text
from sqlalchemy.exc import SQLAlchemyError

from tests.chaos.audit import Change
from tests.chaos.faults import Fault

ENDED = {"SUCCEEDED", "STOPPED", "CANCELLED", "FAILED", "PAUSED", "done", "failed", "cancelled"}
HANDED = {"search", "build", "agent", "network"}


class ReaperWatch:
    """Notes when reapers ask the tables anything, from what the server shows of its connections."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._is_over = False
        self.asked: list[datetime] = []
        threading.Thread(target=self._watch, daemon=True).start()

    def close(self) -> None:
        self._is_over = True

    def _watch(self) -> None:
        query = text("SELECT max(query_start) FROM pg_stat_activity WHERE application_name = 'pruneloop reaper'")
        while not self._is_over:
            with suppress(SQLAlchemyError), self._engine.connect() as connection:
                last = connection.execute(query).scalar()
                if last is not None and (not self.asked or last > self.asked[-1]):
                    self.asked.append(last)
            time.sleep(0.1)


def times_of(fault: Fault, changes: Sequence[Change], reaper_asked: Sequence[datetime]) -> list[float]:
    """Return the seconds until the work went on, one a row that the victim held; none where nothing waited for it."""
    begin = fault.at
    assert begin is not None
    later = [change for change in changes if change.at > begin]
    if fault.component == "reaper":
        moments = [moment for moment in reaper_asked if moment > begin][:1]
    elif fault.component in HANDED:
        moments = [moment for row in fault.held if (moment := _taken_up(row, later)) is not None]
    elif fault.component == "api":
        moments = [change.at for change in later if change.app == "pruneloop api"][:1]
    elif fault.component == "valkey":
        moments = [change.at for change in later if change.is_claim][:1]
    elif fault.component == "postgres":
        moments = [change.at for change in later][:1]
    else:
        moments = []
    return [(moment - begin).total_seconds() for moment in moments]


def _taken_up(row: tuple[str, str, int], later: Sequence[Change]) -> datetime | None:
    table, row_id, attempt = row
    counter = "search_attempt" if table == "job" else "attempt"
    for change in later:
        is_it = (change.table, change.row_id) == (table, row_id)
        if is_it and (change.new[counter] > attempt or change.new["state"] in ENDED):
            return change.at
    return None


def alone_times(faults: Sequence[Mapping[str, Any]]) -> list[tuple[str, str, list[float]]]:
    """Return (action, component, times) of a round's faults, of each the times within which no other fault fell or still lasted."""
    spans = []
    for fault in faults:
        begin = datetime.fromisoformat(fault["at"])
        spans.append((begin, begin + timedelta(seconds=fault["lasts_s"])))
    found = []
    for index, fault in enumerate(faults):
        begin = spans[index][0]
        others = spans[:index] + spans[index + 1 :]

        def is_alone(
            time_s: float, begin: datetime = begin, others: Sequence[tuple[datetime, datetime]] = others
        ) -> bool:
            went_on = begin + timedelta(seconds=time_s)
            return all(end < begin or start > went_on for start, end in others)

        found.append((fault["action"], fault["component"], [time_s for time_s in fault["times_s"] if is_alone(time_s)]))
    return found


def percentile(values: Sequence[float], share: float) -> float:
    """Return the value that this share of them does not exceed (nearest rank)."""
    ordered = sorted(values)
    return ordered[max(0, math.ceil(share * len(ordered)) - 1)]


def by_kind(rows: Sequence[tuple[str, str, list[float]]]) -> dict[tuple[str, str], tuple[int, list[float]]]:
    """Return (action, component) -> (faults, all their times)."""
    found: dict[tuple[str, str], tuple[int, list[float]]] = defaultdict(lambda: (0, []))
    for action, component, times in rows:
        count, known = found[action, component]
        found[action, component] = (count + 1, known + times)
    return dict(found)
