from __future__ import annotations

import io
from datetime import timedelta

import pytest
from rich.console import Console, RenderableType

from client.render import age, count, devices_table, duration, front_table, jobs_table, overlap, size
from domain.job import Job, JobSpec, JobState
from tests.unit.api.fakes import device
from tests.unit.client.points import NOW, front, point

SPEC = JobSpec.model_validate(
    {"model": {"name": "resnet8"}, "data": {"name": "mnist-5k"}, "targets": [{"device": {"labels": {"class": "edge"}}}]}
)


def text_of(item: RenderableType, width: int = 120) -> str:
    console = Console(file=io.StringIO(), width=width, color_system=None)
    console.print(item)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def test_a_front_fits_a_terminal_of_120_columns_without_losing_a_number() -> None:
    text = text_of(front_table(front(point(7, 2.31), point(12, 1.5)), SPEC))
    assert max(len(line) for line in text.splitlines()) <= 120
    assert "…" not in text
    assert "2.31x [2.26, 2.36]" in text
    assert "0.5342 [0.5235, 0.5449]" in text
    assert "target 0: onnxruntime on class=edge" in text
    rows = [line.split() for line in text.splitlines()]
    trials = [row[0] for row in rows if row and row[0] in {"dense", "7", "12"}]
    assert trials == ["dense", "7", "12"]


def test_points_whose_intervals_overlap_are_shown_as_a_tie() -> None:
    tied = text_of(front_table(front(point(7, 2.31, 0.05), point(12, 2.25, 0.05), point(3, 1.2)), SPEC))
    assert tied.count("] ≈") + tied.count("]  ≈") == 2
    assert "a tie" in tied
    assert "≈" not in text_of(front_table(front(point(7, 2.31), point(12, 1.5)), SPEC))


def test_overlap_across_precisions_goes_by_latency() -> None:
    fp32, int8 = point(1, 2.0), point(2, 2.0, precision="int8", latency_ms=0.1, latency_ci_ms=(0.09, 0.11))
    assert not overlap(fp32, int8)
    assert overlap(fp32, point(3, 2.01))


def test_a_provisional_front_says_so_and_marks_the_accuracy() -> None:
    text = text_of(front_table(front(point(7, 2.31, accuracy=None), is_final=False), SPEC))
    assert "provisional" in text
    assert "0.9750" in text
    assert "* accuracy on the search split" in text


def test_a_noisy_point_and_one_beyond_the_drop_are_marked() -> None:
    text = text_of(front_table(front(point(7, 2.31, is_noisy=True, within_max_drop=False)), SPEC))
    assert " !↓ " in text
    assert "allowed drop of 0.01" in text


def test_jobs_and_devices_fit_as_well() -> None:
    job = Job(
        id="job_0123456789abcdef",
        name="x",
        spec=SPEC,
        state=JobState.RUNNING,
        created_at=NOW,
        reason="no device has the label class=edge; join one",
    )
    assert "RUNNING" in text_of(jobs_table([job]))
    text = text_of(devices_table([device("dev_0123456789abcdef", note="new fan")]))
    assert "class=edge" in text
    assert "onnxruntime 1.24" in text
    assert max(len(line) for line in text.splitlines()) <= 120


@pytest.mark.parametrize(
    ("seconds", "text"), [(0, "0 s"), (59.9, "59 s"), (61, "1:01"), (3599, "59:59"), (7500, "2 h 05"), (200_000, "2 d")]
)
def test_durations_read_as_people_say_them(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_a_clock_that_is_ahead_gives_no_negative_age() -> None:
    assert age(NOW + timedelta(hours=1), NOW) == "0 s"


@pytest.mark.parametrize(("number", "text"), [(7, "7"), (78_000, "78 k"), (41_300_000, "41.3 M"), (1.5e9, "1.5 G")])
def test_counts_have_three_digits(number: float, text: str) -> None:
    assert count(number) == text


@pytest.mark.parametrize(("number", "text"), [(999, "999 B"), (320_000, "320 kB")])
def test_sizes_have_units(number: int, text: str) -> None:
    assert size(number) == text
