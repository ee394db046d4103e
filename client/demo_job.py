"""The job that ``pruneloop demo`` submits: a small residual network on real digits, to run twice as fast on this machine."""

from __future__ import annotations

from typing import Any

DEFAULT_TRIALS = 20


def demo_job(trials: int | None = None) -> dict[str, Any]:
    """Return the demo's job.

    Args:
        trials: Candidates to try; None: as many as fit in a few minutes on two cores.
    """
    return {
        "name": "demo: resnet8 on mnist-5k, twice as fast on this machine",
        "model": {"source": "builtin", "name": "resnet8", "params": {"width": 32}},
        "data": {"source": "builtin", "name": "mnist-5k"},
        "targets": [{"device": {"labels": {}}, "runtime": "onnxruntime", "precision": ["fp32"], "speedup": 2.0}],
        "objective": {"max_drop": 0.01},
        "budget": {"trials": trials or DEFAULT_TRIALS, "wall_s": 270},
        "final": {"keep": 8, "epochs": 3.0},
    }
