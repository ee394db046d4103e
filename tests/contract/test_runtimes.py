"""Every runtime of ours keeps the contract that plug-ins are held to; one that does not work here is skipped by name."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from benchmarks.tiny_onnx import write_conv_net
from workers.agent.checks import read_check, verify
from workers.agent.runtimes.base import Runtime, RuntimeMissing, TensorSpec
from workers.agent.runtimes.contract import KnownFile, RuntimeContract
from workers.agent.runtimes.names import BUILT_IN_RUNTIMES, TORCH_RUNTIMES
from workers.agent.runtimes.onnxruntime import PROVIDERS, OnnxRuntime
from workers.agent.runtimes.openvino import OpenVino
from workers.agent.runtimes.outside import OUTSIDE
from workers.agent.runtimes.registry import BUILT_IN, get_runtime


def conv_net(folder: Path, *, batch: int | None = None) -> KnownFile:
    net = write_conv_net(folder / "net.onnx", channels=4, depth=2, size=8, batch=batch)
    with np.load(net.check, allow_pickle=False) as arrays:
        return KnownFile(net.path, {"x": arrays["input_x"]}, {"y": arrays["output_y"]}, batch=batch or 1)


class TestOnnxRuntime(RuntimeContract):
    def make_runtime(self) -> Runtime:
        return OnnxRuntime()

    def make_file(self, folder: Path) -> KnownFile:
        return conv_net(folder)


class TestOnnxRuntimeWithAFixedBatch(RuntimeContract):
    def make_runtime(self) -> Runtime:
        return OnnxRuntime()

    def make_file(self, folder: Path) -> KnownFile:
        return conv_net(folder, batch=3)


@pytest.mark.parametrize("name", sorted(set(PROVIDERS) - {"onnxruntime"}), scope="class")
class TestOnnxRuntimeProviders(RuntimeContract):
    @pytest.fixture(autouse=True)
    def _works_here(self, name: str) -> None:
        self.name = name
        info = OnnxRuntime(name).probe()
        if not info.available:
            pytest.skip(f"{name}: {info.detail}")

    def make_runtime(self) -> Runtime:
        return OnnxRuntime(self.name)

    def make_file(self, folder: Path) -> KnownFile:
        return conv_net(folder)


class TestOpenVino(RuntimeContract):
    def make_runtime(self) -> Runtime:
        return OpenVino()

    def make_file(self, folder: Path) -> KnownFile:
        return conv_net(folder)


class TestOpenVinoWithAFixedBatch(RuntimeContract):
    def make_runtime(self) -> Runtime:
        return OpenVino()

    def make_file(self, folder: Path) -> KnownFile:
        return conv_net(folder, batch=3)


def test_openvino_takes_the_batch_and_the_threads_it_is_asked_for(tmp_path: Path) -> None:
    file = conv_net(tmp_path)
    session = OpenVino().load(file.path, threads=2, precision="fp32", batch=5)
    assert session.inputs == (TensorSpec("x", (5, 1, 8, 8), "float32"),)
    assert session.conditions["inference_threads"] == 2
    assert session.conditions["streams"] == 1
    assert session.conditions["shapes"] == "fixed"
    assert session.conditions["computed_in"] == "f32"  # never bfloat16 behind an fp32 file's back
    repeated = np.repeat(file.feeds["x"], 5, axis=0)
    session.bind({"x": repeated})
    session.run()
    np.testing.assert_allclose(session.outputs()["y"], np.repeat(file.outputs["y"], 5, axis=0), atol=1e-5)


@pytest.mark.parametrize("precision", ["fp16", "int8"])
def test_openvino_runs_what_the_builder_exports_in_other_precisions(tmp_path: Path, precision: str) -> None:
    torch = pytest.importorskip("torch")
    from pruning.exporters.precision import in_precision

    net = write_conv_net(tmp_path / "net.onnx", channels=8, depth=2, size=8, batch=1)
    calibration = torch.randn(32, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    net.path.write_bytes(in_precision(net.path.read_bytes(), precision, calibration))
    session = OpenVino().load(net.path, threads=1, precision=precision, batch=1)
    difference = verify(session, read_check(net.check), batch=1, precision=precision)
    assert 0 < difference < (0.01 if precision == "fp16" else 0.1)  # other arithmetic, and the same model


def test_openvino_reads_files_that_are_named_by_their_digest_only(tmp_path: Path) -> None:
    file = conv_net(tmp_path)
    bare = file.path.rename(tmp_path / ("0" * 64))
    session = OpenVino().load(bare, threads=1, precision="fp32", batch=1)
    assert session.conditions["runtime"] == "openvino"


def test_openvino_tells_nobody_that_it_was_imported() -> None:
    code = (
        "import sys; from workers.agent.runtimes.openvino import OpenVino; assert 'openvino' not in sys.modules;"
        "assert OpenVino().probe().available; print([m for m in sys.modules if m.startswith('openvino_telemetry.')])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_a_missing_package_is_told_with_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "openvino", None)
    info = OpenVino().probe()
    assert not info.available
    assert "pip install 'pruneloop[openvino]'" in info.detail
    with pytest.raises(RuntimeMissing, match="pip install"):
        OpenVino().load(Path("none.onnx"), threads=1, precision="fp32", batch=1)


def test_a_job_may_ask_for_every_runtime_without_one_being_imported() -> None:
    code = (
        "import sys; from bootstrap import capabilities; print(*capabilities().runtimes);"
        "assert not {'numpy', 'onnxruntime', 'openvino', 'torch'} & set(sys.modules), 'imported'"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert set(done.stdout.split()) >= {*BUILT_IN_RUNTIMES, *TORCH_RUNTIMES, "replay"}


def test_every_name_a_job_may_use_is_one_the_agent_has() -> None:
    assert sorted(BUILT_IN) == sorted(BUILT_IN_RUNTIMES)
    assert sorted(entry.name for entry in OUTSIDE) == sorted(TORCH_RUNTIMES)
    assert all(get_runtime(name).name == name for name in (*BUILT_IN_RUNTIMES, *TORCH_RUNTIMES))
