"""A GPU that is lost to its process: whose fault that was is told, and the process takes no more builds."""

from __future__ import annotations

import pytest
import torch

from domain.build import BuilderSpent
from domain.outcome import Blame, Failed
from pruning.gpu import make_exact, unless_spent

CUDA = torch.device("cuda")
FAILED = Failed(
    stage="load", reason="The model does not take samples.", blame=Blame.CANDIDATE, code="model_rejects_data"
)


@pytest.mark.parametrize(
    ("error", "blame", "code"),
    [
        ("CUDA error: device-side assert triggered\nSearch for ...", Blame.CANDIDATE, "gpu_assertion"),
        ("CUDA error: uncorrectable ECC error encountered", Blame.SYSTEM, "gpu_lost"),
    ],
)
def test_what_broke_it_is_told_with_what_was_seen_first(
    monkeypatch: pytest.MonkeyPatch, error: str, blame: Blame, code: str
) -> None:
    def synchronize(device: torch.device) -> None:
        raise RuntimeError(error)

    monkeypatch.setattr(torch.cuda, "synchronize", synchronize)
    with pytest.raises(BuilderSpent) as caught:
        unless_spent(FAILED, CUDA)
    outcome = caught.value.outcome
    assert (outcome.stage, outcome.blame, outcome.code, outcome.retryable) == (
        "load",
        blame,
        code,
        blame is Blame.SYSTEM,
    )
    assert (
        error.splitlines()[0] in outcome.reason
        and FAILED.reason in outcome.reason
        and "Search for" not in outcome.reason
    )


def test_a_failure_that_left_the_gpu_well_stays_what_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "synchronize", lambda device: None)
    assert unless_spent(FAILED, CUDA) is FAILED
    assert unless_spent(FAILED, torch.device("cpu")) is FAILED


def test_a_model_can_still_be_exported_by_a_builder_that_computes_exactly() -> None:
    """torch has two ways to say so, and reads one where the other was set as an error."""
    cudnn, matmul = torch.backends.cudnn, torch.backends.cuda.matmul
    before = cudnn.allow_tf32, matmul.allow_tf32, cudnn.deterministic
    try:
        make_exact(CUDA)
        assert cudnn.conv.fp32_precision != "tf32" and matmul.fp32_precision != "tf32" and cudnn.deterministic  # type: ignore[attr-defined]
        torch.export.export(torch.nn.Linear(2, 2), (torch.randn(1, 2),))
    finally:
        cudnn.allow_tf32, matmul.allow_tf32, cudnn.deterministic = before
