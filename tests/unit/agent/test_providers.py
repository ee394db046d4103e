"""ONNX Runtime's other providers, on a library that pretends to have them: the real one, told that a GPU is there."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest

from benchmarks.tiny_onnx import write_conv_net
from workers.agent.runtimes import onnxruntime as module
from workers.agent.runtimes.base import RuntimeMissing, UnreadableArtifact
from workers.agent.runtimes.onnxruntime import CPU, CUDA, OnnxRuntime


class Binding:
    """A binding whose device memory is the host's, and that keeps the order of what was asked of it."""

    def __init__(self, real: Any, log: list[str]) -> None:
        self._real, self._log = real, log

    def __getattr__(self, name: str) -> Any:
        return getattr(self._real, name)

    def bind_output(self, name: str, memory: str = "cpu") -> None:
        self._log.append(f"output in {memory}")
        self._real.bind_output(name, "cpu")

    def synchronize_inputs(self) -> None:
        self._log.append("wait for inputs")

    def synchronize_outputs(self) -> None:
        self._log.append("wait for outputs")


class Session:
    def __init__(self, library: Library, file: Any, options: Any, providers: list[Any]) -> None:
        self._library = library
        self._asked = [one if isinstance(one, str) else one[0] for one in providers]
        library.asked.append(providers)
        self._real = onnxruntime.InferenceSession(file, options, providers=[CPU])

    def __getattr__(self, name: str) -> Any:
        return getattr(self._real, name)

    def get_providers(self) -> list[str]:
        return [name for name in self._asked if name not in self._library.broken]

    def io_binding(self) -> Binding:
        return Binding(self._real.io_binding(), self._library.log)

    def run_with_iobinding(self, binding: Binding) -> None:
        self._library.log.append("run")
        self._real.run_with_iobinding(binding._real)


class OrtValue:
    log: list[str]

    @classmethod
    def ortvalue_from_numpy(cls, array: Any, memory: str, index: int) -> Any:
        cls.log.append(f"input in {memory}:{index}")
        return onnxruntime.OrtValue.ortvalue_from_numpy(array)


class Library:
    """onnxruntime with every provider built in; those in ``broken`` do not start."""

    def __init__(self, *broken: str) -> None:
        self.broken = set(broken)
        self.log: list[str] = []
        self.asked: list[list[Any]] = []
        self.OrtValue = type("Value", (OrtValue,), {"log": self.log})

    def __getattr__(self, name: str) -> Any:
        return getattr(onnxruntime, name)

    def get_available_providers(self) -> list[str]:
        return ["TensorrtExecutionProvider", CUDA, "XnnpackExecutionProvider", CPU]

    def preload_dlls(self) -> None:
        self.log.append("preload")

    def InferenceSession(self, file: Any, options: Any, *, providers: list[Any]) -> Session:  # noqa: N802 - as it is there
        return Session(self, file, options, providers)


def use(monkeypatch: pytest.MonkeyPatch, *broken: str) -> Library:
    library = Library(*broken)
    monkeypatch.setattr(module, "_library", lambda: library)
    return library


def test_on_cuda_tensors_lie_on_the_device_and_a_run_waits_for_it(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    library = use(monkeypatch)
    net = write_conv_net(tmp_path / "net.onnx", channels=4, depth=1, size=8)
    session = OnnxRuntime("onnxruntime-cuda").load(net.path, threads=3, precision="fp32", batch=1)
    with np.load(net.check) as arrays:
        session.bind({"x": arrays["input_x"]})
        library.log.append("timed")
        session.run()
        np.testing.assert_allclose(session.outputs()["y"], arrays["output_y"], atol=1e-5)
    assert library.log == [
        "preload", "input in cuda:0", "output in cuda", "wait for inputs", "timed", "run", "wait for outputs",
    ]  # fmt: skip
    assert session.conditions["runtime"] == "onnxruntime-cuda"
    assert session.conditions["provider"] == f"{CUDA},{CPU}"
    assert session.conditions["provider_options"]["use_tf32"] == "0"
    assert (
        sum(session.conditions["nodes"].values()) == 5
    )  # what each provider got is on record: here the CPU has it all


def test_on_the_cpu_nothing_is_waited_for(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    library = use(monkeypatch)
    net = write_conv_net(tmp_path / "net.onnx", channels=4, depth=1, size=8)
    session = OnnxRuntime().load(net.path, threads=1, precision="fp32", batch=1)
    with np.load(net.check) as arrays:
        session.bind({"x": arrays["input_x"]})
    session.run()
    assert library.log == ["input in cpu:0", "output in cpu", "run"]


@pytest.mark.parametrize(("precision", "fp16", "int8"), [("fp32", "0", "0"), ("fp16", "1", "0"), ("int8", "0", "1")])
def test_tensorrt_computes_in_the_precision_asked_and_falls_back_to_cuda_first(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, precision: str, fp16: str, int8: str
) -> None:
    library = use(monkeypatch)
    net = write_conv_net(tmp_path / "net.onnx", channels=4, depth=1, size=8)
    OnnxRuntime("onnxruntime-tensorrt").load(net.path, threads=1, precision=precision, batch=1)
    (first, options), *rest = library.asked[-1]
    assert first == "TensorrtExecutionProvider"
    assert (options["trt_fp16_enable"], options["trt_int8_enable"]) == (fp16, int8)
    assert [name for name, _ in rest] == [CUDA, CPU]


def test_xnnpack_gets_the_threads_and_the_library_keeps_one(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    library = use(monkeypatch)
    net = write_conv_net(tmp_path / "net.onnx", channels=4, depth=1, size=8)
    session = OnnxRuntime("onnxruntime-xnnpack").load(net.path, threads=4, precision="fp32", batch=1)
    assert library.asked[-1][0] == ("XnnpackExecutionProvider", {"intra_op_num_threads": "4"})
    assert session.conditions["intra_op_threads"] == 1


@pytest.mark.parametrize(
    ("name", "provider"), [("onnxruntime-cuda", CUDA), ("onnxruntime-tensorrt", "TensorrtExecutionProvider")]
)
def test_a_provider_that_falls_back_in_silence_is_not_available(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, name: str, provider: str
) -> None:
    use(monkeypatch, provider)
    info = OnnxRuntime(name).probe()
    assert not info.available
    assert "does not start" in info.detail and "NVIDIA GPU" in info.detail
    net = write_conv_net(tmp_path / "net.onnx", channels=4, depth=1, size=8)
    with pytest.raises(RuntimeMissing, match="does not start"):
        OnnxRuntime(name).load(net.path, threads=1, precision="fp32", batch=1)


def test_a_provider_that_stops_starting_is_the_device_s_fault(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    library = use(monkeypatch)
    net = write_conv_net(tmp_path / "net.onnx", channels=4, depth=1, size=8)
    runtime = OnnxRuntime("onnxruntime-cuda")
    runtime.load(net.path, threads=1, precision="fp32", batch=1)
    library.broken.add(CUDA)
    with pytest.raises(RuntimeMissing, match="fell back"):
        runtime.load(net.path, threads=1, precision="fp32", batch=1)


def test_a_broken_file_is_the_file_s_fault_on_every_provider(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    use(monkeypatch)
    path = tmp_path / "broken.onnx"
    path.write_bytes(b"no model")
    with pytest.raises(UnreadableArtifact):
        OnnxRuntime("onnxruntime-cuda").load(path, threads=1, precision="fp32", batch=1)


def test_without_the_provider_the_build_is_named_and_what_to_install() -> None:
    info = OnnxRuntime("onnxruntime-cuda").probe()
    if info.available:
        pytest.skip("this machine has CUDA")
    assert "CUDAExecutionProvider" in info.detail
    assert "onnxruntime-gpu" in info.detail
