"""What a CUDA device does otherwise than a CPU: it rounds to TF32 and adds in any order unless told not to."""

from __future__ import annotations

import torch


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
