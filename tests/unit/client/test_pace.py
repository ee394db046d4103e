"""Rate and time left: from what is seen, never past the budget, and honest where nothing is known."""

from __future__ import annotations

import pytest

from client.follow import pace_text, progress_block, summary_line
from client.pace import Pace, PaceMeter
from domain.job import JobState, Stage
from domain.plan import QueuePlace
from tests.unit.client.test_render import text_of
from tests.unit.client.views import view


def test_before_two_trials_only_the_budget_is_known() -> None:
    meter = PaceMeter()
    pace = meter.see(view(elapsed_s=30, stage=Stage.PREPARING))
    assert pace == Pace(None, 870.0, is_budget=True)
    assert pace_text(pace) == "at most 14:30 left"


def test_the_rate_is_of_the_time_trials_took_not_of_the_preparation() -> None:
    meter = PaceMeter()
    meter.see(view(elapsed_s=100, finished=0))
    for number in range(1, 6):
        pace = meter.see(view(elapsed_s=100 + 10 * number, finished=number))
    assert pace.trials_per_min == pytest.approx(6.0)
    assert pace.left_s == pytest.approx(350.0)
    assert not pace.is_budget
    assert pace_text(pace) == "6 trials/min, about 5:50 left"


def test_a_trial_that_hangs_lowers_the_rate() -> None:
    meter = PaceMeter()
    for number in range(5):
        quick = meter.see(view(elapsed_s=10.0 * number, finished=number))
    slow = meter.see(view(elapsed_s=140, finished=4))
    assert quick.trials_per_min is not None and slow.trials_per_min is not None
    assert slow.trials_per_min < quick.trials_per_min / 2


def test_the_budget_bounds_what_is_left() -> None:
    meter = PaceMeter()
    for number in range(4):
        pace = meter.see(view(elapsed_s=200.0 * number, finished=number))
    assert pace.left_s == 300.0
    assert pace.is_budget


def test_a_job_that_is_over_has_no_pace() -> None:
    pace = PaceMeter().see(view(elapsed_s=10, finished=40, state=JobState.SUCCEEDED))
    assert pace_text(pace) == ""


def test_a_queued_job_tells_its_place_and_its_turn() -> None:
    queued = view(state=JobState.QUEUED, stage=Stage.QUEUED)
    waiting = queued.model_copy(update={"queue": QueuePlace(ahead=2, searchers=1, expected_wait_s=95.0)})
    assert "2 before it in the queue, its turn in about 1:35" in summary_line(waiting)
    first = queued.model_copy(update={"queue": QueuePlace(ahead=0, searchers=0)})
    assert "next in the queue" in text_of(progress_block(first))
    assert "turn in" not in text_of(progress_block(first)), "no worker is at work: nothing to tell"
