"""torch runs the exported ONNX files, keeps the contract of runtimes, and says by name what it does not do."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from benchmarks.tiny_onnx import write_conv_net
from domain.job import ModelSpec
from pruning.exporters import make_exporter
from pruning.exporters.outputs import joined
from pruning.exporters.precision import in_precision
from pruning.models import build_model
from pruning.models.bert import bert_encoder
from pruning.signature import file_outputs
from tests.contract.test_runtimes import conv_net
from workers import torch_runtime as module
from workers.agent.checks import read_check, verify
from workers.agent.runtimes.base import Runtime, RuntimeMissing, TensorSpec, UnreadableArtifact, random_feeds
from workers.agent.runtimes.contract import KnownFile, RuntimeContract
from workers.agent.runtimes.registry import get_runtime
from workers.torch_runtime import MODES, TorchRuntime

OTHERS = [
    # The first session of a shape waits for g++.
    pytest.param(name, marks=pytest.mark.slow) if name == "torch-compile" else name
    for name in sorted(set(MODES) - {"torch"})
]


class TestTorch(RuntimeContract):
    def make_runtime(self) -> Runtime:
        return TorchRuntime()

    def make_file(self, folder: Path) -> KnownFile:
        return conv_net(folder)


class TestTorchWithAFixedBatch(RuntimeContract):
    def make_runtime(self) -> Runtime:
        return TorchRuntime()

    def make_file(self, folder: Path) -> KnownFile:
        return conv_net(folder, batch=3)


@pytest.mark.parametrize("name", OTHERS, scope="class")
class TestTorchInOtherModes(RuntimeContract):
    @pytest.fixture(autouse=True)
    def _works_here(self, name: str) -> None:
        self.name = name
        info = TorchRuntime(name).probe()
        if not info.available:
            pytest.skip(f"{name}: {info.detail}")

    def make_runtime(self) -> Runtime:
        return TorchRuntime(self.name)

    def make_file(self, folder: Path) -> KnownFile:
        return conv_net(folder)


def test_threads_and_what_is_computed_in_stand_in_the_conditions(tmp_path: Path) -> None:
    file, before = conv_net(tmp_path), torch.get_num_threads()
    try:
        session = TorchRuntime().load(file.path, threads=2, precision="fp32", batch=5)
        assert session.inputs == (TensorSpec("x", (None, 1, 8, 8), "float32"),)
        assert session.conditions["intra_op_threads"] == torch.get_num_threads() == 2
        assert session.conditions["fp32_precision"] == "ieee"
        assert session.conditions["compiled"] == "no"
        torch.set_num_threads(1)  # another session came in between
        session.bind({"x": np.repeat(file.feeds["x"], 5, axis=0)})
        assert torch.get_num_threads() == 2
        session.run()
        np.testing.assert_allclose(session.outputs()["y"], np.repeat(file.outputs["y"], 5, axis=0), atol=1e-5)
    finally:
        torch.set_num_threads(before)


def test_fp16_files_run_and_int8_files_are_refused_by_name(tmp_path: Path) -> None:
    net = write_conv_net(tmp_path / "net.onnx", channels=8, depth=2, size=8, batch=1)
    whole, calibration = net.path.read_bytes(), torch.randn(32, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    net.path.write_bytes(in_precision(whole, "fp16", calibration))
    session = TorchRuntime().load(net.path, threads=1, precision="fp16", batch=1)
    assert 0 < verify(session, read_check(net.check), batch=1, precision="fp16") < 0.01
    net.path.write_bytes(in_precision(whole, "int8", calibration))
    with pytest.raises(UnreadableArtifact, match=r"int8.*onnxruntime or openvino"):
        TorchRuntime().load(net.path, threads=1, precision="int8", batch=1)
    assert "int8" not in TorchRuntime().probe().precisions


def test_inputs_that_do_not_fit_are_the_files_fault(tmp_path: Path) -> None:
    session = TorchRuntime().load(conv_net(tmp_path).path, threads=1, precision="fp32", batch=1)
    with pytest.raises(UnreadableArtifact, match="an input x"):
        session.bind({})
    with pytest.raises(UnreadableArtifact, match="has shape"):
        session.bind({"x": np.zeros((1, 1, 8, 9), np.float32)})


@pytest.mark.parametrize("name", sorted(MODES))
@pytest.mark.parametrize("package", ["torch", "onnx"])
def test_a_missing_package_is_told_with_what_to_install(
    monkeypatch: pytest.MonkeyPatch, name: str, package: str
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    info = TorchRuntime(name).probe()
    assert not info.available
    assert "pip install 'pruneloop[torch]'" in info.detail
    with pytest.raises(RuntimeMissing, match="pip install"):
        TorchRuntime(name).load(Path("none.onnx"), threads=1, precision="fp32", batch=1)


def test_without_a_compiler_only_the_compiled_mode_is_missing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CXX", raising=False)
    assert TorchRuntime().probe().available
    info = TorchRuntime("torch-compile").probe()
    assert not info.available and "g++" in info.detail


def test_a_device_with_the_agent_alone_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "workers.torch_runtime", None)
    with pytest.raises(RuntimeMissing, match=r"pip install 'pruneloop\[torch\]'"):
        get_runtime("torch")


def test_the_agent_knows_torch_by_name_and_imports_it_only_when_asked() -> None:
    code = (
        "import sys; from workers.agent.runtimes.registry import get_runtime, probe_each; list(probe_each());"
        "runtime = get_runtime('torch'); assert not {'torch', 'onnx', 'pruning'} & set(sys.modules), 'imported';"
        "print(runtime.probe().available, 'torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["True", "True"]


class Cuda:
    def __init__(self, log: list[str]) -> None:
        self._log = log

    def is_available(self) -> bool:
        return True

    def get_device_name(self, index: int) -> str:
        return f"Pretended GPU {index}"

    def synchronize(self) -> None:
        self._log.append("wait")


class Library:
    """torch with a GPU whose memory is the host's."""

    def __init__(self) -> None:
        self.log: list[str] = []
        self.cuda = Cuda(self.log)

    def __getattr__(self, name: str) -> Any:
        return getattr(torch, name)

    def device(self, name: str) -> torch.device:
        self.log.append(f"tensors on {name}")
        return torch.device("cpu")


def test_on_cuda_tensors_lie_on_the_device_and_a_run_waits_for_it(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    library = Library()
    monkeypatch.setattr(module, "_library", lambda name: library)
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", False)
    runtime = TorchRuntime("torch-cuda")
    assert runtime.probe().detail == "Pretended GPU 0"
    library.log.clear()
    file = conv_net(tmp_path)
    session = runtime.load(file.path, threads=1, precision="fp32", batch=1)
    session.bind(file.feeds)
    library.log.append("timed")
    session.run()
    assert library.log == ["tensors on cuda", "wait", "timed", "wait"]
    assert session.conditions["provider"] == "cuda" and session.conditions["gpu"] == "Pretended GPU 0"
    assert session.conditions["fp32_precision"] == "ieee"
    np.testing.assert_allclose(session.outputs()["y"], file.outputs["y"], atol=1e-5)


def test_what_a_session_sets_leaves_torch_able_to_export_and_compile(tmp_path: Path) -> None:
    file = conv_net(tmp_path)
    for _ in range(2):
        TorchRuntime().load(file.path, threads=1, precision="fp32", batch=1)
        torch.export.export(torch.nn.Linear(2, 2), (torch.randn(1, 2),))


needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no CUDA device here")


@needs_cuda
@pytest.mark.parametrize("format", ["onnx", "torch"])
@pytest.mark.parametrize("name", ["resnet8", "mobilenet", "vit", "bert"])
def test_on_a_real_gpu_every_file_gives_what_its_module_gives_on_a_cpu(tmp_path: Path, name: str, format: str) -> None:
    torch.manual_seed(0)
    if name == "bert":
        model = bert_encoder(vocabulary=50, dim=16, depth=1, heads=2, hidden=32, longest=12).eval()
        model.bind((8,))
        samples = torch.randint(1, 50, (3, 8)).float()
        feeds = {
            port.name: part.numpy() for port, part in zip(model.signature.inputs, model.unpack(samples), strict=True)
        }
    else:
        model, samples = build_model(ModelSpec(name=name)).eval(), torch.randn(3, 1, 28, 28)
        feeds = {"input": samples.numpy()}
    exporter = make_exporter(format)
    path = tmp_path / f"model.{format}"
    path.write_bytes(exporter.export(model, samples))
    with torch.no_grad():
        wanted = joined(file_outputs(model, samples)).numpy()
    session = TorchRuntime("torch-cuda").load(path, threads=1, precision="fp32", batch=3)
    session.bind(feeds)
    session.run()
    (given,) = session.outputs().values()
    np.testing.assert_allclose(given.reshape(wanted.shape), wanted, rtol=0, atol=1e-5 * float(np.abs(wanted).max()))


@needs_cuda
def test_a_run_on_a_real_gpu_takes_as_long_as_the_gpu_does(tmp_path: Path) -> None:
    net = write_conv_net(tmp_path / "net.onnx", channels=256, depth=6, size=32)
    session = TorchRuntime("torch-cuda").load(net.path, threads=1, precision="fp32", batch=256)
    session.bind(random_feeds(session.inputs, batch=256))
    for _ in range(3):
        session.run()
    begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    begin_s = time.perf_counter()
    begin.record()
    session.run()
    waited_ms = 1000 * (time.perf_counter() - begin_s)
    assert torch.cuda.current_stream().query(), "the GPU still worked when the run was said to be over"
    end.record()
    torch.cuda.synchronize()
    busy_ms = begin.elapsed_time(end)
    assert busy_ms > 1.0
    assert waited_ms == pytest.approx(busy_ms, rel=0.1)


def test_without_a_gpu_the_build_is_named_and_what_is_needed() -> None:
    info = TorchRuntime("torch-cuda").probe()
    if info.available:
        pytest.skip("this machine has CUDA")
    assert "sees no GPU" in info.detail and "NVIDIA" in info.detail
