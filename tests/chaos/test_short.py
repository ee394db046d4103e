"""A few faults on a small system, in the default run; `make chaos` does two hundred."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.chaos.rounds import run_round
from tests.chaos.system import Size

SMALL = Size(searches=1, builders=1, reapers=1, replays=1, reals=0, privileged=False)
MIX = {
    ("kill", "api"): 1,
    ("kill", "search"): 1,
    ("kill", "build"): 1,
    ("kill", "agent"): 1,
    ("kill and lose", "valkey"): 1,
    ("stop at once", "postgres"): 1,
    ("cut", "network"): 1,
    ("fill", "disk"): 1,
}


@pytest.mark.slow
@pytest.mark.e2e
@pytest.mark.timeout(300)
def test_nothing_is_lost_whatever_dies(tmp_path: Path) -> None:
    found = run_round(5, faults=5, jobs=1, mean_pause_s=1.0, size=SMALL, mix=MIX, trials=2, logs=tmp_path)
    assert found.broken == {}
    assert found.failed == []
    assert len(found.faults) == 5
    assert found.counts["jobs"] == found.counts["SUCCEEDED"] + found.counts["STOPPED"] + found.counts["CANCELLED"]
    assert found.counts["measurements"] > 0
