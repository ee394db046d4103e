"""Runs on a tiny task for a few seconds are kept, measured together, judged, drawn, and not done again."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]
METHODS = ("tp-uniform", "random")


def _bench(results: Path, *options: str, methods: tuple[str, ...] = METHODS, budget_s: int = 10) -> str:
    command = [sys.executable, "-m", "benchmarks.search_quality", "--task", "tiny", "--seed", "0", "--threads", "1"]
    command += ["--budget-s", str(budget_s), "--results", str(results), "--method", *methods, *options]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=280)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_tiny_benchmark_from_runs_to_report(tmp_path: Path) -> None:
    results, report = tmp_path / "results", tmp_path / "docs" / "report.md"
    assert "2 runs done now; 0 still to do." in _bench(results, "--no-scores")
    kept = [json.loads(path.read_text()) for path in results.glob("cells/*/result.json")]
    assert {one["cell"]["method"] for one in kept} == set(METHODS)
    assert all(one["points"] for one in kept)
    assert all(0 < point["found_s"] <= 10 for one in kept for point in one["points"])

    report.parent.mkdir()
    told = _bench(results, "--report", str(report))
    assert "0 runs done now; 0 still to do." in told
    text = report.read_text()
    assert all(f"| {method} | 1 |" in text for method in METHODS)
    pictures = sorted(path.name for path in report.parent.glob("*.svg"))
    assert len(pictures) == 2 and all(f"]({name})" in text for name in pictures)
    rows = [json.loads(line) for path in results.glob("joint/*.jsonl") for line in path.read_text().splitlines()]
    assert len(rows) == len({row["digest"] for row in rows})
    assert all(0 < row["low"] <= row["speedup"] <= row["high"] and 0 <= row["test"] <= 1 for row in rows)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_run_of_ours_brings_files_and_what_its_job_said(tmp_path: Path) -> None:
    assert "1 runs done now; 0 still to do." in _bench(tmp_path, "--no-scores", methods=("ours",), budget_s=25)
    (kept,) = [json.loads(path.read_text()) for path in tmp_path.glob("cells/*/result.json")]
    told = kept["notes"]
    assert kept["points"] and kept["took_s"] < 35
    assert told["trials"]["succeeded"] == sum(one["state"] == "succeeded" for one in told["history"]) > 0
    assert 0 <= told["report"]["overhead_fraction"] < 1
