"""The report on a terminal: what a job says of itself, and what an older or newer server leaves out."""

from __future__ import annotations

from typing import Any

from rich.console import Console

from client.report import read_report, report_block
from tests.unit.client.views import view

WHY = {
    "0": {
        "fixed_ms": 0.0041,
        "trials": {
            "4": [
                {
                    "group": "stage3.conv1",
                    "channels": 64,
                    "kept": 9,
                    "bought_ms": 0.0077,
                    "free_channels": 7,
                    "next_step": {"kept": 8, "saves_ms": 0.0006},
                },
                {
                    "group": "stem",
                    "channels": 16,
                    "kept": 8,
                    "bought_ms": 0.02,
                    "free_channels": 0,
                    "next_step": None,
                },
            ],
            "7": [],
        },
    }
}
JOINT = [{"trial": 4, "accuracy_search": 0.928, "speedups": [3.25, 2.86], "least_speedup": 2.86, "mean_speedup": 3.051}]
REPORT = {
    "why": WHY,
    "joint": JOINT,
    "predictor": {"0": {"trials": 6, "alignment": 8, "coefficients": [0.1], "error_median": 0.065, "error_p90": 0.118}},
    "ranges": {
        "0": {
            "ceilings": {"stem": 0.63},
            "factors": {"stem": 1.4},
            "moves": [
                {"group": "stem", "trials": 5, "ceiling": [0.8, 0.63], "factor": [1.0, 1.4], "reason": "lost more"}
            ],
        }
    },
    "weights": {
        "0": {
            "2:4": {
                "trial": 1,
                "speedup": 1.003,
                "speedup_ci": [0.996, 1.009],
                "pays": False,
                "accuracy_search": 0.93,
                "size_bytes": 1000,
                "compressed_bytes": 560,
                "dense_compressed_bytes": 930,
                "says": "no gain in onnxruntime",
            }
        }
    },
    "wall_s": 212.7,
    "overhead_s": 1.4,
    "stages_s": {"candidate.recover": 54.1},
    "unprunable": [{"name": "classifier", "reason": "its channels are the model's outputs"}],
}


def shown(report: dict[str, Any], **options: Any) -> str:
    console = Console(width=120, color_system=None)
    with console.capture() as capture:
        console.print(report_block(view(report=report, targets=2), **options))
    return capture.get()


def test_everything_the_report_holds_is_shown() -> None:
    text = shown(REPORT, fastest={0: 4})
    for wanted in (
        "trial 4",
        "9/64",
        "8 saves 0.0006 ms",
        "nothing more",
        "0.0041 ms are the calls themselves",
        "other finalists: --trial 7",
        "2.86x",
        "6.5%",
        "11.8%",
        "0.80 → 0.63",
        "lost more",
        "1.00x [1.00, 1.01]",
        "60%",
        "no gain in onnxruntime",
        "classifier stays whole",
        "1.4 s of it was neither",
    ):
        assert wanted in text, wanted


def test_a_part_in_an_unknown_form_is_left_out_and_the_others_stay() -> None:
    report = {**REPORT, "why": {"0": "in a later release"}, "novelty": [1]}
    assert not read_report(report).why
    text = shown(report)
    assert "Why not faster" not in text
    assert "2.86x" in text


def test_a_job_without_a_report_says_when_there_will_be_one() -> None:
    assert "when the search ends" in shown({})
