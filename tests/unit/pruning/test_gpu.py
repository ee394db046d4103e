"""A GPU that computes as a CPU does."""

from __future__ import annotations

import torch

from pruning.gpu import make_exact

CUDA = torch.device("cuda")


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
