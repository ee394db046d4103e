"""LiteRT's and ExecuTorch's real converters: what their files give, in every precision, for every family of models."""

from __future__ import annotations

import os
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from domain.litert_file import read_graph
from pruning.exporters import Exporter, ExportFailed, make_exporter
from tests.contract.test_openvino_ir import net as small_net
from tests.contract.test_torch_files import pruned, text_net
from tests.integration.pruning.test_ncnn import net as image_net
from workers.agent.runtimes.litert import LiteRt

FILES = Path(__file__).parents[1] / "contract" / "files"
pytestmark = pytest.mark.timeout(600)


def family(name: str) -> tuple[nn.Module, Tensor, Tensor]:
    """Return a model, one sample, and forty."""
    if name == "bert":
        model, one = text_net()
        return model, one, torch.randint(1, 50, (40, 8)).float()
    if name == "vit":
        return pruned("vit"), torch.randn(1, 1, 28, 28), torch.randn(40, 1, 28, 28)
    model, one = image_net(name, widths=7)
    return model, one, torch.randn(40, 1, 28, 28)


@pytest.mark.parametrize("name", ["convnet", "resnet8", "mobilenet", "vit", "bert"])
@pytest.mark.parametrize("format", ["litert", "executorch"])
def test_a_file_gives_what_the_module_gives_in_every_precision(format: str, name: str) -> None:
    model, one, samples = family(name)
    exporter = make_exporter(format)
    with torch.no_grad():
        file = exporter.export(model, one)
        arrays = exporter.check(file, one, model(one))
        wanted = model(samples)
    assert len(arrays) == 2
    torch.testing.assert_close(
        exporter.run(file, samples, threads=1), wanted, rtol=1e-3, atol=1e-4 * float(wanted.abs().max())
    )
    for precision, most in (("fp16", 0.02), ("int8", 0.4)):
        made = in_precision(exporter, file, precision, model, one, samples)
        given = exporter.run(made, samples, threads=1, precision=precision)
        assert given.shape == wanted.shape
        assert 1e-7 < float((given - wanted).abs().max() / wanted.abs().max()) < most, precision


def in_precision(
    exporter: Exporter, file: bytes, precision: str, model: nn.Module, one: Tensor, samples: Tensor
) -> bytes:
    with torch.no_grad():
        return exporter.in_precision(file, precision, model=model, example=one, calibration=samples, hold=nullcontext)


def test_inputs_and_outputs_keep_their_names_and_a_batch_its_size() -> None:
    model, one = text_net()
    exporter = make_exporter("litert")
    with torch.no_grad():
        batch = one.repeat(3, 1)
        arrays = exporter.check(exporter.export(model, batch), batch, model(batch))
    assert {name: array.shape for name, array in arrays.items()} == {
        "input_input_ids": (3, 8),
        "output_sentence_embedding": (3, 16),
    }


class Sorts(nn.Module):
    def forward(self, inputs: Tensor) -> Tensor:
        return torch.linalg.svdvals(inputs.flatten(1)[:, :, None])


@pytest.mark.parametrize("format", ["litert", "executorch"])
def test_what_a_format_has_no_word_for_is_named_and_the_converter_goes_on(format: str) -> None:
    exporter, one = make_exporter(format), torch.randn(1, 1, 4, 4)
    with pytest.raises(ExportFailed, match="svd") as caught:
        exporter.export(Sorts(), one)
    assert caught.value.code == "export_failed"
    file = exporter.export(nn.Sequential(nn.Flatten(), nn.Linear(16, 3)).eval(), one)
    assert exporter.run(file, one, threads=1).shape == (1, 3)


@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8"])
def test_the_files_that_the_contract_is_tested_with_are_still_what_is_made(precision: str) -> None:
    model, one = small_net()
    exporter, samples = make_exporter("litert"), torch.randn(64, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        file = exporter.export(model, one)
        made = file if precision == "fp32" else in_precision(exporter, file, precision, model, one, samples)
        wanted = exporter.run(made, samples, threads=1, precision=precision).numpy()
    path = FILES / f"small-{precision}.tflite"
    if os.environ.get("UPDATE_TEST_DATA"):
        path.write_bytes(made)
        arrays: dict[str, Any] = {
            "input_input": samples[:4].numpy(),
            "output_output": model(samples[:4]).detach().numpy(),
        }
        np.savez(FILES / "small.npz", **arrays)
    assert read_graph(path.read_bytes()) == read_graph(made)
    session = LiteRt().load(path, threads=1, precision=precision, batch=1)
    for sample, expected in zip(samples.numpy(), wanted, strict=True):
        session.bind({"input": sample[None]})
        session.run()
        np.testing.assert_allclose(session.outputs()["output"][0], expected, atol=1e-5)
