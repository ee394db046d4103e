"""Where and in which precision training runs: one small value both recovery and calibration go by."""

from __future__ import annotations

import math
import time
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from domain.errors import FieldProblem, Invalid
from domain.ports import Hold

TRIAL_STEPS = 2  # after one to warm up; the fastest counts
WORTH_IT = 0.9  # fp32 unless it takes clearly longer: what is near a tie should not depend on the moment

_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True)
class Compute:
    """A torch device, the precision of its matrix work and the layout of images; weights and optimizer state stay fp32."""

    device: torch.device
    dtype: torch.dtype = torch.float32
    is_channels_last: bool = True

    @property
    def precision(self) -> str:
        return next(name for name, dtype in _DTYPES.items() if dtype == self.dtype)

    @property
    def needs_scaler(self) -> bool:
        """True where gradients would underflow without a loss scale."""
        return self.dtype == torch.float16

    @property
    def drawing_devices(self) -> list[torch.device]:
        """Devices beside the CPU that draw random numbers of their own: dropout does so where the tensors are."""
        return [self.device] if self.device.type == "cuda" else []

    def autocast(self) -> AbstractContextManager[object]:
        """Return a fresh context for a forward pass."""
        if self.dtype == torch.float32:
            return nullcontext()
        return torch.autocast(self.device.type, self.dtype)

    def place(self, inputs: Tensor) -> Tensor:
        """Move a batch to the device, images channels-last: that is what convolution kernels want, but for ``suited_to``."""
        moved = inputs.to(self.device)
        if moved.ndim != 4:
            return moved
        if self.is_channels_last:
            return moved.contiguous(memory_format=torch.channels_last)
        # Of one channel both layouts are the same bytes. Kernels go by the strides, so these are put right as well.
        return moved.contiguous().flatten().view(moved.shape)

    def finish(self) -> None:
        """Wait until the device has done what it was given: what is queued there goes on after the call that queued it."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def adopt(self, model: nn.Module) -> nn.Module:
        """Move a model to the device, convolution weights in the layout of images."""
        layout = torch.channels_last if self.is_channels_last else torch.contiguous_format
        return model.to(self.device).to(memory_format=layout)  # type: ignore[call-overload]

    def suited_to(self, model: nn.Module) -> Compute:
        """Return this with the layout that a model and what is cut from it run well in.

        With the channels last, cuDNN compiles a kernel for every shape of a depthwise convolution, and every candidate has widths
        of its own: a MobileNet-like net took 2.6 s for its first two steps in fp32 and 6 s in bf16 on an H100, and 0.1 s with the
        channels first; the steps after them were as fast.
        """
        is_grouped = any(isinstance(module, nn.Conv2d) and module.groups > 1 for module in model.modules())
        return replace(self, is_channels_last=not (self.device.type == "cuda" and is_grouped))

    def in_precision(self, precision: str) -> Compute:
        """Return this in another precision, as ``choose_compute`` takes it."""
        return replace(self, dtype=choose_compute(self.device, precision).dtype)


def choose_device(name: str = "auto") -> torch.device:
    """Return the torch device of a name; ``auto`` takes CUDA where there is one."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return torch.device(name)


def choose_compute(device: torch.device, precision: str) -> Compute:
    """Return how to train at a precision on a device.

    ``auto``: bf16 where the hardware multiplies it (CUDA with bf16; CPUs with AVX512-BF16 or AMX), fp16 on other CUDA
    devices, fp32 elsewhere. On a CPU with AVX512-BF16 a small ResNet's epoch took half the time of fp32.

    Raises:
        Invalid: ``unknown_precision``, or ``precision_not_available`` for fp16 away from CUDA.
    """
    if precision == "auto":
        precision = _best_precision(device)
    if precision not in _DTYPES:
        message = f"Unknown recovery precision {precision!r}; choose auto, fp32, bf16 or fp16."
        raise Invalid(message, code="unknown_precision", fields=[FieldProblem("recovery.precision", message)])
    if precision == "fp16" and device.type != "cuda":
        message = "Training in fp16 needs a CUDA device; this builder has none. Choose auto, fp32 or bf16."
        raise Invalid(message, code="precision_not_available", fields=[FieldProblem("recovery.precision", message)])
    return Compute(device, _DTYPES[precision])


def faster_compute(model: nn.Module, inputs: Tensor, compute: Compute, *, hold: Hold = nullcontext) -> Compute:
    """Return fp32 or what ``auto`` chose, whichever trains this very model faster here.

    What the hardware can multiply says little about a narrow network: the casts around each layer cost more than bf16 saves (on a
    CPU a MobileNet-like net took five times as long in bf16 as in fp32, a wide ResNet two thirds; a GPU is launched once more for
    each cast). In fp32 there is nothing to choose.

    Args:
        model: On ``compute.device``; left as it was, without gradients.
        inputs: One training batch of shape ``(N, ...)``.
        compute: As ``choose_compute(..., "auto")`` gave it.
        hold: Entered around the trial steps.
    """
    if compute.device.type not in {"cpu", "cuda"} or compute.dtype == torch.float32:
        return compute
    plain = replace(compute, dtype=torch.float32)
    was_training = model.training
    model.eval()  # running statistics stay as they are; the arithmetic is that of training
    taken_s = {compute: math.inf, plain: math.inf}
    try:
        with torch.enable_grad():
            for _ in range(TRIAL_STEPS + 1):
                for one in taken_s:
                    with hold():
                        begin_s = time.perf_counter()
                        with one.autocast():
                            outputs = model(one.place(inputs))
                        outputs.float().square().mean().backward()
                        one.finish()
                        taken_s[one] = min(taken_s[one], time.perf_counter() - begin_s)
    finally:
        model.zero_grad(set_to_none=True)
        model.train(was_training)
    return compute if taken_s[compute] < WORTH_IT * taken_s[plain] else plain


def _best_precision(device: torch.device) -> str:
    if device.type == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp16"
    if device.type == "cpu":
        able = torch.cpu.get_capabilities()
        return "bf16" if able.get("avx512_bf16") or able.get("amx_bf16") else "fp32"
    return "fp32"
