"""What a CUDA device does otherwise than a CPU: it rounds to TF32 and adds in any order unless told not to, and an error stays."""

from __future__ import annotations

import torch

from domain.build import BuilderSpent, BuildOutcome
from domain.outcome import Blame, Failed


def make_exact(device: torch.device) -> None:
    """Make a CUDA device compute fp32 in fp32, and the same twice, as a CPU does; for the whole process.

    torch's own default computes convolutions in TF32, ten bits of a mantissa: what a module gives is then not what its file gives.
    Training that wants speed has bf16. And cuDNN's fastest gradients are added up in the order their threads come in, so that a
    training that was interrupted would end otherwise, and a candidate depend on the worker that built it. Operators of torch's own
    that know no other way (resizing's gradient, say) go on so.
    """
    if device.type == "cuda":
        # Not by the newer `fp32_precision`: torch.export still reads these flags, and raises where the two were mixed.
        torch.backends.cudnn.allow_tf32 = False
        torch.backends.cuda.matmul.allow_tf32 = False
        torch.backends.cudnn.deterministic = True


def unless_spent(outcome: BuildOutcome, device: torch.device) -> BuildOutcome:
    """Return how a build ended; after a failure the device is asked whether it still works.

    Wherever the failure was caught: an assertion on the GPU looks like a model that does not take its data.

    Raises:
        BuilderSpent: Where it does not: whatever this process calls next fails by the same error.
    """
    if isinstance(outcome, Failed) and (error := why_lost(device)) is not None:
        raise BuilderSpent(explain_loss(outcome, error))
    return outcome


def why_lost(device: torch.device) -> str | None:
    """Return what broke a CUDA device for this process, None while it works: whatever is called next fails by the same error."""
    if device.type != "cuda":
        return None
    try:
        torch.cuda.synchronize(device)
    except RuntimeError as error:
        return str(error).splitlines()[0]
    return None


def explain_loss(outcome: Failed, error: str) -> Failed:
    """Return the failure a device was lost by: the model's own doing where its kernels asserted something, else the machine's."""
    if "assert" in error:
        reason = (
            f"{error}. Something in the model or its data is out of range, most often an index: ids beyond the vocabulary, or more"
            f" tokens than there are positions. First seen as: {outcome.reason}"
        )
        return Failed(stage=outcome.stage, reason=reason, blame=Blame.CANDIDATE, retryable=False, code="gpu_assertion")
    reason = f"The GPU is lost to this worker, which is replaced: {error}. First seen as: {outcome.reason}"
    return Failed(stage=outcome.stage, reason=reason, blame=Blame.SYSTEM, retryable=True, code="gpu_lost")
