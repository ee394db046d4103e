"""Trials as a job leaves them, for tests of what is made of them."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

from domain.candidate import Candidate
from domain.trial import Trial, TrialState, TrialValues
from tests.unit.client.views import AT

DISTRIBUTION = {"name": "FloatDistribution", "attributes": {"step": None, "low": 0.0, "high": 0.9, "log": False}}


def trial(number: int, error: float | None = None, ratio: float = 1.0, *, target: int = 0, **changes: Any) -> Trial:
    """Return an ended trial; without an error it could not be built."""
    values = None if error is None else TrialValues(error=error, latency_ratio=ratio, constraints={"valid": -1.0})
    known: dict[str, Any] = {
        "id": f"trial_{number}",
        "job_id": "job1",
        "number": number,
        "target": target,
        "study_number": number,
        "state": TrialState.INFEASIBLE if values is None else TrialState.SUCCEEDED,
        "params": {"stage0": 0.1 * number},
        "distributions": {"stage0": DISTRIBUTION},
        "candidate": Candidate(sparsity={"stem": 0.5}, widths={"stem": 8}),
        "values": values,
        "reason": None if values is not None else "an operator is missing",
        "created_at": AT,
        "finished_at": AT + timedelta(seconds=10 * number + 5),
        **changes,
    }
    return Trial(**known)
