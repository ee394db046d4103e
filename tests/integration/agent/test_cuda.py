"""Measuring on a CUDA device, in the child process an agent measures in: right outputs, a GPU that is waited for, NVML's energy."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.tiny_onnx import write_conv_net
from domain.measurement import Measured, MeasurementPlan, MeasurementRequest, Verdict
from tests.integration.agent.test_sandbox import Files, run
from workers.agent.nvml import Nvml
from workers.agent.runtimes.registry import get_runtime
from workers.agent.sandbox import SandboxLimits, SandboxRunner

RUNTIMES = ("torch-cuda", "torch-compile-cuda", "onnxruntime-cuda", "onnxruntime-tensorrt")
PLAN = MeasurementPlan(max_s=1.0, warmup_s=0.2, min_pairs=8, bootstrap=200, half_width=0.05)


@pytest.fixture(params=RUNTIMES)
def runtime(request: pytest.FixtureRequest) -> str:
    info = get_runtime(request.param).probe()
    if not info.available:
        pytest.skip(f"{request.param}: {info.detail}")
    return str(request.param)


def test_the_net_with_less_to_do_is_faster_by_about_as_much(tmp_path: Path, runtime: str) -> None:
    """Half the channels are a quarter of the work; queued work that is not waited for would be as quick either way."""
    files = Files()
    nets = [
        write_conv_net(tmp_path / f"{channels}.onnx", channels=channels, depth=6, size=32) for channels in (256, 128)
    ]
    dense, pruned = (files.add(net.path, net.check) for net in nets)
    runner = SandboxRunner(limits=SandboxLimits(memory_bytes=8 << 30))
    request = MeasurementRequest(runtime=runtime, batch=256, baseline=dense, candidates=(pruned,), plan=PLAN)
    outcome = run(runner, files, request)
    assert isinstance(outcome, Measured), outcome
    (timing,) = outcome.candidates
    assert timing.verdict is Verdict.FASTER and 2.0 < timing.speedup < 8.0
    assert outcome.conditions["provider"] != "cpu"
    differences = outcome.conditions["output_difference"]
    assert isinstance(differences, list) and all(0 <= float(one) < 1e-5 for one in differences), "fp32 is fp32"  # type: ignore[arg-type]
    operations = 2 * 5 * 256 * 256 * 9 * 32 * 32 * 256
    assert outcome.baseline.latency_ms / 1000 > operations / 1e15, "no GPU is as fast: the work was not waited for"
    if Nvml.found() is not None:
        assert outcome.conditions["energy_source"] == "nvml"
        assert outcome.baseline.energy_mj is not None and timing.timing.energy_mj is not None
        assert outcome.baseline.energy_mj > timing.timing.energy_mj > 0


def test_a_real_nvml_tells_all_it_is_asked_for() -> None:
    gpus = Nvml.found()
    if gpus is None:
        pytest.skip("NVML: no driver, or no nvidia-ml-py")
    told = gpus.read()["gpus"]
    assert isinstance(told, list) and isinstance(told[0], dict)
    assert set(told[0]) >= {"name", "sm_mhz", "memory_mhz", "temperature_c", "power_w", "throttle_reasons"}
    assert not gpus.is_throttled()
    assert gpus.read_mj() > 0
