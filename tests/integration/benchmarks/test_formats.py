"""The table of formats: every cell is a file that was built, run and timed, or the reason why there is none."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks import formats
from benchmarks.formats import FAMILIES, PRECISIONS, Bench, Family, report

SMALL = Family("ConvNet", "convnet", {"width": 8}, epochs=1.0)
ASKED = ("onnx", "pt2", "litert")


def test_a_cell_is_what_was_measured_or_says_why_there_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PRUNELOOP_AGENT_QUIET_FILE", str(tmp_path / "quiet"))
    monkeypatch.setenv("PRUNELOOP_CONVERTERS_DIR", str(tmp_path / "none"))
    monkeypatch.setattr(formats, "MAX_S", 0.2)
    made = Bench(tmp_path / "out")
    made.build_family(SMALL, ASKED)
    assert "not timed yet" in report(made, (SMALL,))
    made.time_family(SMALL)
    cells = made.cells(SMALL)
    assert tuple(cells) == ASKED
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

    page = report(made, (SMALL,))
    rows = [line for line in page.splitlines() if line.startswith(("| onnx |", "| pt2 |", "| litert |"))]
    assert f"| ConvNet | {100 * cells['onnx']['fp32']['accuracy'][1]:.1f}, " in page and "not made" in page
    assert len(rows) == len(ASKED) * len(PRECISIONS)
    assert len({line.count("|") for line in rows}) == 1

    again = Bench(tmp_path / "out")
    monkeypatch.setattr(again, "build", lambda request: pytest.fail("what was done is not done again"))
    monkeypatch.setattr(formats, "bench", lambda *files, **options: pytest.fail("what was timed is not timed again"))
    again.build_family(SMALL, ASKED)
    again.time_family(SMALL)
    assert again.cells(SMALL) == cells


@pytest.mark.parametrize(
    ("name", "metric"), [("U-Net", "rmse"), ("Detector", "agreement"), ("Recommender", "spearman")]
)
def test_a_family_that_comes_as_a_file_is_cut_and_scored_by_its_own_metric(
    tmp_path: Path, name: str, metric: str
) -> None:
    family = next(one for one in FAMILIES if one.name == name)
    made = Bench(tmp_path)
    made.build_family(family, ("onnx",))
    facts, cell = made.facts(family), made.cells(family)["onnx"]["fp32"]
    assert facts["metric"] == metric and facts["macs"][1] < 0.6 * facts["macs"][0]
    dense, cut = cell["accuracy"]
    assert dense > 0.55 and dense - 0.1 < cut <= 1.0
