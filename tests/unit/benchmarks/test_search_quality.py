"""The arithmetic and the book-keeping of the search benchmark: what a wrong one would turn into a wrong claim."""

from __future__ import annotations

import gzip
import time
from dataclasses import replace
from pathlib import Path
from typing import cast

import numpy as np
import pytest

from benchmarks import peers
from benchmarks.search_quality import fashion
from benchmarks.search_quality.__main__ import decided_by, not_run
from benchmarks.search_quality.bench import Bench, Size
from benchmarks.search_quality.cells import Cell, Kept, Results, code_of
from benchmarks.search_quality.clock import Clock, TimeUp
from benchmarks.search_quality.ours import METHOD, job_of, job_options, settings_of
from benchmarks.search_quality.report import Judged, Said, ablations, render, said, table
from benchmarks.search_quality.scores import (
    Box,
    Point,
    Run,
    area,
    box_of,
    curve,
    delivered,
    fastest_near,
    reached_s,
    summaries,
)
from benchmarks.search_quality.shelf import Shelf
from benchmarks.search_quality.tasks import TASKS
from domain.job import JobSpec
from pruning.datasets.npz import read_npz
from pruning.datasets.splits import as_splits
from pruning.dense import Dense
from search.reserve import MOST_FOR_FINALS

BOX = Box(dense=0.98, fastest=3.0)
CELL = Cell("random", "tiny", 0, 10.0, 2)


def point(found_s: float, speedup: float, test: float, val: float | None = None) -> Point:
    return Point(found_s, speedup, speedup - 0.1, speedup + 0.1, test if val is None else val, test)


def test_a_point_in_the_corner_fills_the_box_and_a_slow_or_bad_one_adds_nothing() -> None:
    assert area([point(1, 3.0, 0.98)], BOX) == pytest.approx(1.0)
    assert area([point(1, 3.0, 0.99)], BOX) == pytest.approx(1.0), "better than dense is as good as dense"
    assert area([point(1, 0.9, 0.98)], BOX) == 0
    assert area([point(1, 3.0, 0.88)], BOX) == pytest.approx(0)
    assert area([], BOX) == 0


def test_the_area_of_two_steps_is_computed_by_hand() -> None:
    points = [point(1, 2.0, 0.98), point(2, 3.0, 0.93)]  # half the width in full, the other half to half the height
    assert area(points, BOX) == pytest.approx(0.5 + 0.25)


def test_what_a_method_hands_over_is_chosen_on_val_and_judged_on_test() -> None:
    lucky = point(1, 2.0, test=0.98, val=0.90)  # beaten on val by the next one: it would never have been handed over
    chosen = point(1, 2.5, test=0.94, val=0.95)
    assert delivered([lucky, chosen]) == [chosen]
    assert area([lucky, chosen], BOX) == pytest.approx(area([chosen], BOX))


def test_the_box_ends_at_the_fastest_that_is_still_of_use() -> None:
    runs = [Run("a", 0, (point(1, 2.0, 0.97), point(1, 9.0, 0.5))), Run("b", 0, (point(1, 2.5, 0.90),))]
    assert box_of(runs, 0.98).fastest == 2.5
    assert box_of([Run("a", 0, ())], 0.98).fastest == 1.0
    assert area([], box_of([Run("a", 0, ())], 0.98)) == 0


def test_the_curve_knows_only_what_was_found_by_then() -> None:
    run = Run("a", 0, (point(30, 3.0, 0.98), point(10, 2.0, 0.98)))
    assert curve(run, BOX) == [(0.0, 0.0), (10, pytest.approx(0.5)), (30, pytest.approx(1.0))]
    assert reached_s(run, BOX, 0.5) == 10
    assert reached_s(run, BOX, 0.6) == 30
    assert reached_s(replace(run, points=run.points[1:]), BOX, 0.6) is None


def test_the_fastest_within_a_point_looks_at_test() -> None:
    points = [point(1, 2.0, 0.975), point(1, 2.4, 0.97), point(1, 3.0, 0.969)]
    best = fastest_near(points, BOX)
    assert best is not None and best.speedup == 2.4
    assert fastest_near(points[2:], BOX) is None


def _runs() -> tuple[Run, ...]:
    return (
        Run("ours", 0, (point(20, 2.0, 0.98), point(90, 3.0, 0.97))),
        Run("ours", 1, (point(30, 2.5, 0.98),)),
        Run("tp-uniform", 0, (point(50, 2.0, 0.975),), late=2),
        Run("random", 0, (point(50, 1.2, 0.95),)),
        Run("ours:plain", 0, (point(50, 3.0, 0.98),)),  # a variant of ours is no peer
    )


def test_methods_are_ranked_and_timed_against_the_best_peer() -> None:
    runs = _runs()
    found = summaries(runs, box_of(runs, 0.98), "ours")
    assert [one.method for one in found] == ["ours:plain", "ours", "tp-uniform", "random"]
    mine = found[1]
    assert mine.reached_s == (20, 30)
    assert mine.least == min(mine.areas) < mine.mean
    assert found[3].reached_s == (None,)


def _judged() -> Judged:
    return Judged("tiny", "net", "digits", 1.0, 60.0, 2, _runs(), 0.98, 400, 1.234)


def test_the_table_says_it_row_by_row() -> None:
    rows = table(_judged(), "ours").splitlines()[2:]
    assert len(rows) == 3  # what a variant of ours is worth stands elsewhere
    assert rows[0].startswith("| **ours** | 2 |") and "| 20, 30 |" in rows[0]
    assert rows[1].split("|")[5].strip() == "1.00"
    assert rows[1].split("|")[-2].strip() == "2"
    assert "| never | none |" in rows[2]


def test_a_part_left_out_stands_beside_the_whole_with_the_same_seeds() -> None:
    runs = (*_runs(), Run("ours:alone", 7, (point(5, 1.5, 0.98),)))  # the whole was not run with this seed
    lines = ablations(replace(_judged(), runs=runs), "ours").splitlines()
    whole = area(_runs()[0].points, box_of(runs, 0.98))
    assert lines[4:] == [f"| plain | 1 | 1.000 | {whole:.3f} | 50 | 20 | 3.00 | 3.00 |"]
    assert ablations(replace(_judged(), runs=_runs()[:4]), "ours") == ""
    anew = tuple(replace(run, made_at="2026-11-26" if run.method == "ours" else "2026-11-25") for run in runs)
    marked = ablations(replace(_judged(), runs=anew), "ours").splitlines()
    assert marked[4].startswith("| plain* | 1 |") and "earlier code" in marked[-1]


def test_the_report_names_command_machine_and_verdict() -> None:
    text = render([_judged()], ours="ours", command="make bench-search", plots={"tiny-60s": ["a.svg"]}, notes="- noted")
    assert "`make bench-search`" in text and "cores" in text
    assert "Pruneloop is ahead of the best peer, tp-uniform" in text
    assert "![a](a.svg)" in text and "- noted" in text


def test_what_a_table_lacks_is_named() -> None:
    text = not_run(_judged())
    assert text.startswith("- Not run so far, net on digits, 60 s:")
    assert "netadapt (seed 0)" in text and "tp-taylor (seed 2)" in text and "netadapt (seed 1)" not in text
    every = tuple(Run(method, seed, ()) for method in peers.METHODS for seed in (0, 1, 2))
    assert not_run(replace(_judged(), runs=every)) == ""


def test_our_own_jobs_say_how_well_they_predicted_and_what_they_cost() -> None:
    assert said(_judged()) == ""
    jobs = (Said("ours", 0, 15, 0.031, 0.0764, 0.0044), Said("ours", 1, 0, None, None, None))
    rows = said(replace(_judged(), said=jobs)).splitlines()[2:]
    assert rows == ["| ours | 0 | 15 | 3.1 % | 7.6 % | 0.4 % |", "| ours | 1 | 0 | - | - | - |"]


def test_anything_that_goes_into_a_run_changes_its_key() -> None:
    key = CELL.key(code="a", weights="b", recipe=(3.0, 0.02))
    assert key == Cell("random", "tiny", 0, 10.0, 2).key(code="a", weights="b", recipe=(3.0, 0.02))
    others = [
        replace(CELL, method="netadapt"),
        replace(CELL, task="resnet"),
        replace(CELL, seed=1),
        replace(CELL, budget_s=11.0),
        replace(CELL, threads=1),
        replace(CELL, options={"a": 1}),
    ]
    keys = [one.key(code="a", weights="b", recipe=(3.0, 0.02)) for one in others]
    keys += [
        CELL.key(code="c", weights="b", recipe=(3.0, 0.02)),
        CELL.key(code="a", weights="c", recipe=(3.0, 0.02)),
        CELL.key(code="a", weights="b", recipe=(3.0, 0.05)),
    ]
    assert len({key, *keys}) == len(keys) + 1


@pytest.mark.parametrize("method", [METHOD, *peers.METHODS])
def test_every_method_has_code_and_recipes_that_decide(method: str) -> None:
    sources, recipe = decided_by(replace(CELL, method=method))
    assert code_of(sources) and all(path.exists() for path in sources)
    assert recipe and all(number >= 0 for number in recipe)


def test_a_finished_run_is_known_and_an_unfinished_one_is_begun_anew(tmp_path: Path) -> None:
    results = Results(tmp_path)
    folder = results.begin("k")
    (folder / "000.onnx").write_bytes(b"half")
    assert not results.has("k") and results.all() == []
    folder = results.begin("k")
    assert not list(folder.iterdir())
    (folder / "000.onnx").write_bytes(b"whole")
    results.finish("k", CELL, weights="w", points=[Kept(1.5, "000.onnx", {"ratio": 0.5})], took_s=9.0, notes={})
    assert results.has("k")
    (found,) = Results(tmp_path).all()
    assert found.cell == CELL and found.points[0].note == {"ratio": 0.5}
    assert results.path(found, found.points[0]).read_bytes() == b"whole"


def test_of_two_versions_of_a_method_the_newer_counts(tmp_path: Path) -> None:
    results = Results(tmp_path)
    for key, made_at in (("b", "2026-01-01T00:00:00+00:00"), ("a", "2026-01-02T00:00:00+00:00")):
        results.begin(key)
        results.finish(key, CELL, weights="w", points=[], took_s=1.0, notes={})
        path = tmp_path / "cells" / key / "result.json"
        text = path.read_text()
        begin = text.index('"made_at": "') + len('"made_at": "')
        path.write_text(text[:begin] + made_at + text[text.index('"', begin) :])
    assert [one.key for one in results.all()] == ["a"]


def test_the_code_of_a_method_is_its_text(tmp_path: Path) -> None:
    file = tmp_path / "a.py"
    file.write_text("one")
    before = code_of([file])
    assert code_of([file]) == before
    file.write_text("two")
    assert code_of([file]) != before
    assert code_of([tmp_path]) == code_of([file])


def test_a_clock_ends_a_run() -> None:
    clock = Clock(0.02)
    clock.check()
    time.sleep(0.03)
    with pytest.raises(TimeUp):
        clock.tick(0.5)


def test_our_job_is_valid_and_options_are_laid_over_it() -> None:
    weights = "sha256:" + "0" * 64
    for task in TASKS.values():
        job = JobSpec.model_validate(job_of(task, 1, 150.0, {}, weights=weights, data=weights))
        assert job.model.weights == weights and job.final.epochs == task.final_epochs
    job = JobSpec.model_validate(job_of(TASKS["tiny"], 1, 150.0, {"final": {"keep": 2}}, weights=weights, data=None))
    assert (job.final.keep, job.final.epochs) == (2, TASKS["tiny"].final_epochs)


@pytest.mark.parametrize(("width", "kept"), [(0.5, 8), (11, 8), (12.1, 16), (19, 16), (64, 20)])
def test_widths_are_rounded_to_the_step_and_never_past_all_channels(width: float, kept: int) -> None:
    assert Size(20).rounded(width) == kept


def test_the_next_width_below_is_a_multiple_of_the_step() -> None:
    assert [Size(20).narrower(width) for width in (20, 16, 8)] == [16, 8, None]
    assert [Size(4, step=1).narrower(width) for width in (4, 1)] == [3, None]


def test_a_peer_keeps_no_larger_a_share_for_its_finals_than_we_do(tmp_path: Path) -> None:
    bench = Bench(TASKS["tiny"], cast(Dense, None), Shelf(tmp_path, Clock(100.0)))
    assert bench.reserve_s(5) == MOST_FOR_FINALS * 100.0, "nothing was trained yet: nobody knows what a final takes"
    bench._finals_s += [2.0, 4.0]
    assert bench.reserve_s(5) == 15.0


def test_fashion_mnist_becomes_a_file_that_jobs_take(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for name, count in (("train", fashion.TRAIN + fashion.VAL), ("t10k", fashion.TEST)):
        images, labels = rng.integers(0, 256, count * 784, np.uint8), rng.integers(0, 10, count, np.uint8)
        (tmp_path / f"{name}-images-idx3-ubyte.gz").write_bytes(gzip.compress(bytes(16) + images.tobytes(), 1))
        (tmp_path / f"{name}-labels-idx1-ubyte.gz").write_bytes(gzip.compress(bytes(8) + labels.tobytes(), 1))
    assert fashion.missing(tmp_path) is None and fashion.missing(tmp_path / "none") is not None
    splits = as_splits(read_npz(fashion.write_npz(tmp_path / "data" / "fashion.npz", tmp_path)))
    assert [len(part[0]) for part in (splits.train, splits.val, splits.test)] == [
        fashion.TRAIN,
        fashion.VAL,
        fashion.TEST,
    ]
    assert splits.test[0].shape[1:] == (1, 28, 28)
    assert splits.test[1] is not None and splits.test[1].tolist() == labels[: fashion.TEST].tolist()


def test_an_ablation_changes_the_job_or_the_servers_settings() -> None:
    options = {"PRUNELOOP_SEARCH_SAMPLER": "random", "PRUNELOOP_SEARCH_WITHOUT": ["a"], "levels": ["channel"]}
    assert settings_of(options) == {"PRUNELOOP_SEARCH_SAMPLER": "random", "PRUNELOOP_SEARCH_WITHOUT": '["a"]'}
    assert job_options(options) == {"levels": ["channel"]}
