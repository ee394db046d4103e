"""The table of formats: every cell is a file that was built, run and timed, or the reason why there is none."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks import formats
from benchmarks.formats import PRECISIONS, Bench, Family, report

SMALL = Family("ConvNet", "convnet", {"width": 8}, epochs=1.0)
ASKED = ("onnx", "pt2", "litert")


def test_a_cell_is_what_was_measured_or_says_why_there_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PRUNELOOP_AGENT_QUIET_FILE", str(tmp_path / "quiet"))
    monkeypatch.setenv("PRUNELOOP_CONVERTERS_DIR", str(tmp_path / "none"))
    monkeypatch.setattr(formats, "MAX_S", 0.2)
    made = Bench(tmp_path / "out")
    made.family(SMALL, ASKED)
    cells = {name: made.cells[f"ConvNet {name}"]["precisions"] for name in ASKED}
    for precision in PRECISIONS:
        dense, cut = cells["onnx"][precision]["accuracy"]
        assert 0.9 < dense <= 1
        assert 0.5 < cut <= 1
        assert cells["onnx"][precision]["speedup"] > 0
        assert cells["onnx"][precision]["size_bytes"][1] < 0.7 * cells["onnx"][precision]["size_bytes"][0]
        assert "pruneloop exporters install litert" in cells["litert"][precision]["reason"]
    assert cells["pt2"]["fp32"]["accuracy"] == cells["onnx"]["fp32"]["accuracy"]
    assert cells["pt2"]["fp32"]["untimed"] == "no agent runs it"
    assert cells["pt2"]["int8"]["reason"] == "pt2 files are not made in int8; ask for one of: fp32, fp16."

    page = report(made.cells, (SMALL,))
    rows = [line for line in page.splitlines() if line.startswith(("| onnx |", "| pt2 |", "| litert |"))]
    assert len(rows) == len(ASKED) * len(PRECISIONS)
    assert len({line.count("|") for line in rows}) == 1

    again = Bench(tmp_path / "out")
    monkeypatch.setattr(again, "build", lambda request: pytest.fail("what was done is not done again"))
    again.family(SMALL, ASKED)
    assert again.cells == made.cells
