"""LiteRT keeps the contract of runtimes with files that its real converter made (`make test-converters` holds them to be so)."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from workers.agent.checks import read_check, verify
from workers.agent.runtimes.base import Runtime, RuntimeMissing, TensorSpec, UnreadableArtifact
from workers.agent.runtimes.contract import KnownFile, RuntimeContract
from workers.agent.runtimes.litert import LiteRt

FILES = Path(__file__).parent / "files"


class TestLiteRt(RuntimeContract):
    def make_runtime(self) -> Runtime:
        return LiteRt()

    def make_file(self, folder: Path) -> KnownFile:
        path = folder / "small.tflite"
        path.write_bytes((FILES / "small-fp32.tflite").read_bytes())
        with np.load(FILES / "small.npz", allow_pickle=False) as arrays:
            feeds, outputs = arrays["input_input"][:1], arrays["output_output"][:1]
        return KnownFile(path, {"input": feeds}, {"output": outputs})


@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8"])
def test_every_precision_runs_and_takes_the_same_feeds(precision: str) -> None:
    session = LiteRt().load(FILES / f"small-{precision}.tflite", threads=1, precision=precision, batch=1)
    assert session.inputs == (TensorSpec("input", (1, 1, 8, 8), "float32"),)
    difference = verify(session, read_check(FILES / "small.npz"), batch=1, precision=precision)
    assert difference < {"fp32": 1e-5, "fp16": 5e-3, "int8": 0.1}[precision]
    assert (difference > 1e-5) == (precision != "fp32")


def test_conditions_say_what_changes_speed() -> None:
    session = LiteRt().load(FILES / "small-fp32.tflite", threads=2, precision="fp32", batch=1)
    assert session.conditions["num_threads"] == 2
    assert session.conditions["delegate"] == "xnnpack"


def test_a_batch_that_is_not_the_files_is_refused() -> None:
    session = LiteRt().load(FILES / "small-fp32.tflite", threads=1, precision="fp32", batch=2)
    with pytest.raises(UnreadableArtifact, match="has shape"):
        session.bind({"input": np.zeros((2, 1, 8, 8), np.float32)})


def test_a_missing_package_is_told_with_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ai_edge_litert.interpreter", None)
    info = LiteRt().probe()
    assert not info.available
    assert "pip install ai-edge-litert" in info.detail
    with pytest.raises(RuntimeMissing, match="pip install"):
        LiteRt().load(Path("none.tflite"), threads=1, precision="fp32", batch=1)


def test_it_brings_no_torch_and_no_tensorflow() -> None:
    code = (
        "import sys; from workers.agent.runtimes.litert import LiteRt; assert 'ai_edge_litert' not in sys.modules;"
        "assert LiteRt().probe().available; print([m for m in ('torch', 'tensorflow', 'jax') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
