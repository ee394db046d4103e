"""Where and in which precision training runs: one small value both recovery and calibration go by."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from domain.errors import FieldProblem, Invalid

_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True)
class Compute:
    """A torch device and the precision of its matrix work; weights and optimizer state stay fp32."""

    device: torch.device
    dtype: torch.dtype = torch.float32

    @property
    def precision(self) -> str:
        return next(name for name, dtype in _DTYPES.items() if dtype == self.dtype)

    @property
    def needs_scaler(self) -> bool:
        """True where gradients would underflow without a loss scale."""
        return self.dtype == torch.float16

    def autocast(self) -> AbstractContextManager[object]:
        """Return a fresh context for a forward pass."""
        if self.dtype == torch.float32:
            return nullcontext()
        return torch.autocast(self.device.type, self.dtype)

    def place(self, inputs: Tensor) -> Tensor:
        """Move a batch to the device, images channels-last: that is what convolution kernels want."""
        moved = inputs.to(self.device)
        return moved.contiguous(memory_format=torch.channels_last) if moved.ndim == 4 else moved

    def adopt(self, model: nn.Module) -> nn.Module:
        """Move a model to the device, convolution weights channels-last."""
        return model.to(self.device).to(memory_format=torch.channels_last)  # type: ignore[call-overload]


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


def _best_precision(device: torch.device) -> str:
    if device.type == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp16"
    if device.type == "cpu":
        able = torch.cpu.get_capabilities()
        return "bf16" if able.get("avx512_bf16") or able.get("amx_bf16") else "fp32"
    return "fp32"
