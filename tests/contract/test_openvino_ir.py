"""OpenVINO reads what the builder writes as its own IR, in every precision, and keeps the contract of runtimes with it."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pytest

from domain.formats import READ_BY
from workers.agent.runtimes.base import Runtime, TensorSpec
from workers.agent.runtimes.contract import KnownFile, RuntimeContract
from workers.agent.runtimes.openvino import OpenVino
from workers.agent.runtimes.registry import BUILT_IN

torch = pytest.importorskip("torch")

from pruning.exporters import ExportFailed  # noqa: E402 - needs torch
from pruning.exporters.openvino import OpenVinoExporter  # noqa: E402


def net() -> tuple[torch.nn.Module, torch.Tensor]:
    torch.manual_seed(0)
    layers = [torch.nn.Conv2d(1, 8, 3, padding=1), torch.nn.ReLU(), torch.nn.Conv2d(8, 8, 3), torch.nn.ReLU()]
    model = torch.nn.Sequential(*layers, torch.nn.Flatten(), torch.nn.Linear(8 * 36, 10)).eval()
    return model, torch.randn(1, 1, 8, 8)


def known(folder: Path, batch: int = 1) -> KnownFile:
    model, one = net()
    inputs = torch.randn(batch, *one.shape[1:])
    path = folder / "net.openvino"
    path.write_bytes(OpenVinoExporter().export(model, inputs))
    with torch.no_grad():
        return KnownFile(path, {"input": inputs.numpy()}, {"output": model(inputs).numpy()}, batch=batch)


class TestOpenVinoIr(RuntimeContract):
    def make_runtime(self) -> Runtime:
        return OpenVino()

    def make_file(self, folder: Path) -> KnownFile:
        return known(folder)


class TestOpenVinoIrOfABatch(RuntimeContract):
    def make_runtime(self) -> Runtime:
        return OpenVino()

    def make_file(self, folder: Path) -> KnownFile:
        return known(folder, batch=3)


@pytest.mark.parametrize(("precision", "least", "most"), [("fp16", 1e-6, 0.01), ("int8", 1e-4, 0.1)])
def test_other_precisions_are_smaller_and_give_nearly_the_same(
    tmp_path: Path, precision: str, least: float, most: float
) -> None:
    model, inputs = net()
    exporter, samples = OpenVinoExporter(), torch.randn(64, 1, 8, 8)
    whole = exporter.export(model, inputs)
    made = exporter.in_precision(whole, precision, model=model, example=inputs, calibration=samples, hold=nullcontext)
    with torch.no_grad():
        wanted = model(samples)
    given = exporter.run(made, samples, threads=1, precision=precision)
    assert least < float((given - wanted).abs().max() / wanted.abs().max()) < most
    path = tmp_path / "net.openvino"
    path.write_bytes(made)
    session = OpenVino().load(path, threads=1, precision=precision, batch=1)
    assert session.inputs == (TensorSpec("input", (1, 1, 8, 8), "float32"),)
    session.bind({"input": samples[:1].numpy()})
    session.run()
    np.testing.assert_allclose(session.outputs()["output"], given[:1].numpy(), atol=1e-4 * float(given.abs().max()))
    assert _weights_bytes(made) < 0.75 * _weights_bytes(whole)


def test_equal_models_give_equal_files_and_other_weights_are_caught() -> None:
    model, inputs = net()
    exporter = OpenVinoExporter()
    file = exporter.export(model, inputs)
    assert exporter.export(model, inputs) == file
    with torch.no_grad():
        arrays = exporter.check(file, inputs, model(inputs))
        assert set(arrays) == {"input_input", "output_output"}
        with pytest.raises(ExportFailed) as caught:
            exporter.check(file, inputs, model(inputs) + 0.1)
    assert caught.value.code == "export_differs"


def test_every_built_in_runtime_reads_what_the_table_says() -> None:
    for name, make in BUILT_IN.items():
        assert make().formats == READ_BY[name], name


def _weights_bytes(file: bytes) -> int:
    import io
    import zipfile

    with zipfile.ZipFile(io.BytesIO(file)) as archive:
        return archive.getinfo("model.bin").file_size
