"""Every runtime of ours keeps the contract that plug-ins are held to."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from benchmarks.tiny_onnx import write_conv_net
from workers.agent.runtimes.base import Runtime
from workers.agent.runtimes.contract import KnownFile, RuntimeContract
from workers.agent.runtimes.onnxruntime import OnnxRuntime


class TestOnnxRuntime(RuntimeContract):
    def make_runtime(self) -> Runtime:
        return OnnxRuntime()

    def make_file(self, folder: Path) -> KnownFile:
        net = write_conv_net(folder / "net.onnx", channels=4, depth=2, size=8)
        with np.load(net.check, allow_pickle=False) as arrays:
            return KnownFile(net.path, {"x": arrays["input_x"]}, {"y": arrays["output_y"]})


class TestOnnxRuntimeWithAFixedBatch(RuntimeContract):
    def make_runtime(self) -> Runtime:
        return OnnxRuntime()

    def make_file(self, folder: Path) -> KnownFile:
        net = write_conv_net(folder / "net.onnx", channels=4, depth=1, size=8, batch=3)
        with np.load(net.check, allow_pickle=False) as arrays:
            return KnownFile(net.path, {"x": arrays["input_x"]}, {"y": arrays["output_y"]}, batch=3)
