"""Where tensors lie, and in which layout: what kernels on a GPU go by, looked at without one."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from domain.job import ModelSpec
from pruning.models import build_model
from pruning.precision import Compute

CPU, CUDA = Compute(torch.device("cpu")), Compute(torch.device("cuda"))


@pytest.mark.parametrize(("name", "is_last"), [("mobilenet", False), ("resnet8", True), ("vit", True)])
def test_depthwise_convolutions_have_their_channels_first_on_a_gpu(name: str, is_last: bool) -> None:
    model = build_model(ModelSpec(name=name))
    assert CUDA.suited_to(model).is_channels_last is is_last
    assert CPU.suited_to(model) == CPU
    assert CUDA.suited_to(model).in_precision("fp16") == Compute(CUDA.device, torch.float16, is_last)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("is_last", [True, False])
def test_a_batch_has_the_strides_of_its_layout(channels: int, is_last: bool) -> None:
    shifted = torch.randn(2, 5, 5, channels).permute(0, 3, 1, 2)
    placed = replace(CPU, is_channels_last=is_last).place(shifted)
    assert torch.equal(placed, shifted)
    assert placed.is_contiguous(memory_format=torch.channels_last if is_last else torch.contiguous_format)
    if not is_last:
        assert placed.stride() == torch.empty(placed.shape).stride()
