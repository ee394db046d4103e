"""The reaper's passes on a clock of their own: work is woken for at every pass, checks ever more rarely."""

from __future__ import annotations

from collections import Counter
from itertools import pairwise
from pathlib import Path
from typing import Any, cast

from domain.health import RECHECK_S
from domain.ports import WorkToWake
from workers.names import take_name
from workers.reaper import FIRST_RECHECK_S, Backoff, Reaper


class House:
    """Store, launcher and clock in one."""

    def __init__(self) -> None:
        self.now_s = 1000.0
        self.found = WorkToWake()
        self.wakes: list[tuple[float, str]] = []
        self.freed: list[list[str]] = []

    def free_leases(self, owners: list[str]) -> int:
        self.freed.append(list(owners))
        return 1

    def clock(self) -> float:
        return self.now_s

    def reap(self) -> WorkToWake:
        return self.found

    def wake_device(self, device_id: str) -> None:
        self.wakes.append((self.now_s, device_id))

    def sweep_for(self, reaper: Reaper, seconds: int) -> list[tuple[float, str]]:
        """Pass once a second; return who was woken when, counted from the begin."""
        begin_s, self.wakes = self.now_s, []
        for _ in range(seconds):
            reaper.sweep()
            self.now_s += 1.0
        return [(at_s - begin_s, who) for at_s, who in self.wakes]


def make(house: House, names_dir: Path = Path("nowhere")) -> Reaper:
    made = Reaper(cast(Any, house), cast(Any, house), names_dir=names_dir)
    made.rechecks = Backoff(FIRST_RECHECK_S, RECHECK_S, house.clock)
    return made


def test_a_check_that_stays_due_is_asked_for_after_a_while_and_then_ever_more_rarely() -> None:
    house = House()
    reaper = make(house)
    house.found = WorkToWake(recheck_ids=("sick",))
    assert [at_s for at_s, _ in house.sweep_for(reaper, 600)] == [0, 15, 45, 105, 225, 465]
    later = [at_s for at_s, _ in house.sweep_for(reaper, 7200)]
    assert len(later) == 12 and {after - before for before, after in pairwise(later)} == {RECHECK_S}


def test_the_next_time_it_is_due_it_is_asked_for_at_once() -> None:
    house = House()
    reaper = make(house)
    house.found = WorkToWake(recheck_ids=("sick",))
    house.sweep_for(reaper, 100)
    house.found = WorkToWake()
    assert house.sweep_for(reaper, 1) == []
    house.found = WorkToWake(recheck_ids=("sick", "other"))
    assert Counter(house.sweep_for(reaper, 15)) == Counter({(0, "sick"): 1, (0, "other"): 1})


def test_waiting_work_is_woken_for_at_every_pass_and_a_device_once_in_each() -> None:
    house = House()
    reaper = make(house)
    house.found = WorkToWake(device_ids=("box",), recheck_ids=("box",))
    assert house.sweep_for(reaper, 5) == [(second, "box") for second in range(5)]


def test_every_device_has_a_pace_of_its_own() -> None:
    clock = House()
    pace = Backoff(10, 20, clock.clock)
    assert pace.due(["a"]) == ["a"]
    clock.now_s += 5
    assert pace.due(["a", "b"]) == ["b"]
    clock.now_s += 5
    assert pace.due(["a", "b"]) == ["a"]
    clock.now_s += 5
    assert pace.due(["a", "b"]) == ["b"]


def test_what_a_dead_worker_held_is_freed_once_and_a_living_one_is_left_alone(tmp_path: Path) -> None:
    house = House()
    reaper = make(house, tmp_path)
    alive = take_name("build", tmp_path)
    (tmp_path / "search-0.name").write_text("0f1e2d3c")
    for _ in range(3):
        reaper.sweep()
    ((dead,),) = house.freed
    assert dead.startswith("search@") and dead.endswith(":0f1e2d3c")
    again = take_name("search", tmp_path)
    assert again == dead and again != alive
    reaper.sweep()
    assert len(house.freed) == 1
