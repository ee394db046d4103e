"""The measurement without a server, and what importing the agent must not load."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.tiny_onnx import write_conv_net
from domain.errors import Invalid
from workers.agent.bench import BenchFailed, bench

ROOT = Path(__file__).resolve().parents[3]
CONTRACT = {"speedup", "speedup_ci", "verdict", "latency_ms", "baseline_latency_ms", "pairs", "wall_s", "conditions"}


@pytest.fixture(autouse=True)
def own_quiet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PRUNELOOP_AGENT_QUIET_FILE", str(tmp_path / "quiet"))


def test_a_smaller_net_is_faster_and_the_answer_is_json(tmp_path: Path) -> None:
    dense = write_conv_net(tmp_path / "dense.onnx", channels=24)
    pruned = write_conv_net(tmp_path / "pruned.onnx", channels=8)
    result = bench(pruned.path, dense.path, max_s=0.5)
    assert set(result) >= CONTRACT
    assert result["verdict"] == "faster"
    low, high = result["speedup_ci"]  # type: ignore[misc]
    assert 1 < low < result["speedup"] < high  # type: ignore[operator]
    assert result["latency_ms"] < result["baseline_latency_ms"]  # type: ignore[operator]
    assert result["conditions"]["cpu"]  # type: ignore[index,call-overload]
    assert json.loads(json.dumps(result)) == result


def test_what_cannot_be_measured_says_why(tmp_path: Path) -> None:
    dense = write_conv_net(tmp_path / "dense.onnx", channels=4)
    broken = tmp_path / "broken.onnx"
    broken.write_bytes(dense.path.read_bytes()[:100])
    with pytest.raises(BenchFailed, match="does not load") as caught:
        bench(broken, dense.path)
    assert caught.value.metadata["stage"] == "load"
    with pytest.raises(Invalid, match="cannot be read"):
        bench(tmp_path / "absent.onnx", dense.path)
    with pytest.raises(Invalid, match=r"give one of: \.onnx, \.ncnn, "):
        bench(ROOT / "README.txt", dense.path)


@pytest.mark.parametrize("module", ["workers.agent.tasks", "workers.agent.session", "workers.agent.measure_child"])
def test_the_agent_loads_nothing_heavy(module: str) -> None:
    heavy = ("torch", "sqlalchemy", "fastapi", "optuna", "onnx", "onnxruntime", "db", "search", "pruning", "api")
    code = f"import sys, {module}; print([name for name in {heavy!r} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
