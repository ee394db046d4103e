"""The example that brings its own data runs as it stands."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import onnxruntime
import pytest

from tests.e2e.conftest import System

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.e2e
@pytest.mark.timeout(400)
def test_own_data_leaves_with_files_that_run(system: System, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, str(ROOT / "examples/own_data.py"), "--url", system.url, "--token", system.token,
         "--trials", "3", "--out", str(tmp_path)],
        cwd=ROOT, capture_output=True, text=True, check=False, timeout=380,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "SUCCEEDED" in done.stdout
    assert "train" in done.stdout
    models = list(tmp_path.glob("*.onnx"))
    assert models, done.stdout
    for path in models:
        assert onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"]).get_inputs()[0].shape == [
            1,
            1,
            8,
            8,
        ]
