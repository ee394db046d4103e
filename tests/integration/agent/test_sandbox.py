"""Real child processes: what measures well, and everything that can go wrong in one."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import numpy as np
import psutil
import pytest

from benchmarks.tiny_onnx import TinyNet, write_conv_net
from domain.artifact import ArtifactKind, ArtifactRef, digest_of_file
from domain.errors import NotFound
from domain.measurement import Measured, MeasuredFile, MeasurementOutcome, MeasurementPlan, MeasurementRequest, Verdict
from domain.outcome import Blame, Failed
from tests.integration.agent.plugins import install
from workers.agent.child import child_environment
from workers.agent.observers import default_observers
from workers.agent.sandbox import SandboxLimits, SandboxRunner
from workers.agent.statistics import unpack_samples

SHORT = MeasurementPlan(max_s=0.3, warmup_s=0.02, min_pairs=8, bootstrap=200, half_width=0.05)


class Files:
    """Files by digest, as a fetch would give them."""

    def __init__(self) -> None:
        self.paths: dict[str, Path] = {}

    def add(self, path: Path, check: Path | None = None) -> MeasuredFile:
        return MeasuredFile(
            artifact=self._ref(path, ArtifactKind.ONNX), check=self._ref(check, ArtifactKind.CHECK) if check else None
        )

    def _ref(self, path: Path, kind: ArtifactKind) -> ArtifactRef:
        ref = ArtifactRef(digest=digest_of_file(path), size_bytes=path.stat().st_size, kind=kind)
        self.paths[ref.digest] = path
        return ref

    def fetch(self, ref: ArtifactRef) -> Path:
        return self.paths[ref.digest]


@pytest.fixture
def files() -> Files:
    return Files()


@pytest.fixture(scope="module")
def nets(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, TinyNet]:
    folder = tmp_path_factory.mktemp("nets")
    return {
        "dense": write_conv_net(folder / "dense.onnx", channels=24, depth=4),
        "pruned": write_conv_net(folder / "pruned.onnx", channels=8, depth=4),
    }


@pytest.fixture(scope="module")
def plugins(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return install(tmp_path_factory.mktemp("site"))


def run(
    runner: SandboxRunner,
    files: Files,
    request: MeasurementRequest,
    *,
    is_cancelled: Callable[[], bool] = lambda: False,
    stages: list[str] | None = None,
) -> MeasurementOutcome:
    seen = stages if stages is not None else []
    return runner.run(request, fetch=files.fetch, report_stage=seen.append, is_cancelled=is_cancelled)


def test_a_pruned_file_is_faster_and_everything_is_told(files: Files, nets: Mapping[str, TinyNet]) -> None:
    request = MeasurementRequest(
        runtime="onnxruntime",
        baseline=files.add(nets["dense"].path, nets["dense"].check),
        candidates=(
            files.add(nets["pruned"].path, nets["pruned"].check),
            files.add(nets["dense"].path, nets["dense"].check),
        ),
        plan=MeasurementPlan(max_s=1.0),
    )
    stages: list[str] = []
    runner = SandboxRunner(observers=default_observers(), facts={"device_id": "dev_1"})
    outcome = run(runner, files, request, stages=stages)
    assert isinstance(outcome, Measured), outcome
    pruned, same = outcome.candidates
    assert pruned.verdict is Verdict.FASTER
    assert pruned.speedup > 1.5
    assert pruned.speedup_ci[0] < pruned.speedup < pruned.speedup_ci[1]
    assert same.speedup == pytest.approx(1.0, abs=0.1)
    for candidate in outcome.candidates:
        assert candidate.latency_ms == pytest.approx(outcome.baseline.latency_ms / candidate.speedup)
        assert candidate.latency_ci_ms[0] < candidate.latency_ms < candidate.latency_ci_ms[1]
        assert candidate.samples is not None
        table = unpack_samples(candidate.samples)
        assert table.shape == (candidate.pairs, 3)
        assert np.median(table[:, 0] / table[:, 1]) == pytest.approx(candidate.speedup, rel=1e-3)
        assert (np.diff(table[:, 2]) > 0).all()
    timing = outcome.baseline
    assert timing.first_ms > 0 and timing.load_ms > 0
    assert timing.p50_ms is not None and timing.p50_ms >= timing.latency_ms * 0.9
    assert timing.p90_ms is not None  # more than 64 single runs
    if Path("/proc/self/clear_refs").exists():
        assert timing.peak_memory_bytes is not None and 0 < timing.peak_memory_bytes < 2**30
    assert outcome.conditions["device_id"] == "dev_1"
    assert outcome.conditions["graph_optimization"] == "all"
    assert outcome.conditions["provider"] == "CPUExecutionProvider"
    assert outcome.conditions["before"] and outcome.conditions["after"]
    assert outcome.conditions["instances"] == 4
    assert set(outcome.stages_s) == {"fetch", "load", "check", "warm_up", "measure"}
    assert stages[0] == "fetch" and stages[-2:] == ["warm_up", "measure"]
    assert Measured.model_validate_json(outcome.model_dump_json()) == outcome


def vicious(files: Files, tmp_path: Path, vice: str, plan: MeasurementPlan = SHORT) -> MeasurementRequest:
    """A good baseline and a candidate with a vice, on a runtime that came as a plug-in."""
    (tmp_path / "baseline").write_bytes(b"baseline")
    (tmp_path / "candidate").write_bytes(b"candidate")
    return MeasurementRequest(
        runtime=vice,
        baseline=files.add(tmp_path / "baseline"),
        candidates=(files.add(tmp_path / "candidate"),),
        plan=plan,
    )


@pytest.fixture
def sandbox(plugins: Path) -> Iterator[SandboxRunner]:
    runner = SandboxRunner(
        environment={"PYTHONPATH": str(plugins)},
        limits=SandboxLimits(start_s=60, stage_s=10.0, memory_bytes=400 << 20),
    )
    yield runner
    runner.close()


def test_a_plug_in_runtime_measures(sandbox: SandboxRunner, files: Files, tmp_path: Path) -> None:
    outcome = run(sandbox, files, vicious(files, tmp_path, "nothing"))
    assert isinstance(outcome, Measured), outcome
    assert outcome.conditions["runtime"] == "test"


def test_what_a_library_prints_does_not_disturb_the_answers(
    sandbox: SandboxRunner, files: Files, tmp_path: Path
) -> None:
    assert isinstance(run(sandbox, files, vicious(files, tmp_path, "chat")), Measured)


@pytest.mark.parametrize(
    ("vice", "code", "words", "retryable"),
    [
        ("segfault", "crashed", "SIGSEGV", True),
        ("kill", "killed", "killed from outside", True),
        ("leave", "crashed", "exit 7", False),
        ("throw", "runtime_error", "the operator is not implemented", False),
        ("hoard", "out_of_memory", "400 MiB are allowed", False),
        ("gulp", "out_of_memory", "memory", False),
    ],
)
def test_a_candidate_that_misbehaves_is_blamed(
    sandbox: SandboxRunner, files: Files, tmp_path: Path, vice: str, code: str, words: str, retryable: bool
) -> None:
    outcome = run(sandbox, files, vicious(files, tmp_path, vice, SHORT.model_copy(update={"max_s": 20.0})))
    assert isinstance(outcome, Failed), outcome
    assert (outcome.code, outcome.blame, outcome.retryable) == (code, Blame.CANDIDATE, retryable)
    assert words in outcome.reason
    assert outcome.stage == "warm_up"


def test_a_hang_is_ended_with_all_it_started(plugins: Path, files: Files, tmp_path: Path) -> None:
    pid_file = tmp_path / "grandchild"
    runner = SandboxRunner(
        environment={"PYTHONPATH": str(plugins), "CHILD_PID_FILE": str(pid_file)},
        limits=SandboxLimits(stage_s=0.5),
    )
    begin_s = time.monotonic()
    outcome = run(runner, files, vicious(files, tmp_path, "breed"))
    assert isinstance(outcome, Failed)
    assert (outcome.code, outcome.blame) == ("timeout", Blame.CANDIDATE)
    assert "killed" in outcome.reason
    assert time.monotonic() - begin_s < 20
    grandchild = int(pid_file.read_text())
    until_s = time.monotonic() + 5
    while time.monotonic() < until_s and _is_running(grandchild):
        time.sleep(0.02)
    assert not _is_running(grandchild)


def test_a_cancelled_measurement_ends_at_once(sandbox: SandboxRunner, files: Files, tmp_path: Path) -> None:
    before = _measuring_children()
    stages: list[str] = []
    request = vicious(files, tmp_path, "nothing", SHORT.model_copy(update={"max_s": 60.0, "half_width": 1e-9}))
    cancelled_s: list[float] = []

    def is_cancelled() -> bool:
        if "measure" in stages and not cancelled_s:
            cancelled_s.append(time.monotonic())
        return bool(cancelled_s)

    outcome = run(sandbox, files, request, is_cancelled=is_cancelled, stages=stages)
    assert isinstance(outcome, Failed)
    assert outcome.code == "cancelled"
    assert time.monotonic() - cancelled_s[0] < 2
    assert _measuring_children() <= before


def test_a_crash_of_the_baseline_is_not_the_candidates_fault(
    sandbox: SandboxRunner, files: Files, tmp_path: Path
) -> None:
    request = vicious(files, tmp_path, "segfault")
    turned = request.model_copy(update={"baseline": request.candidates[0], "candidates": (request.baseline,)})
    outcome = run(sandbox, files, turned)
    assert isinstance(outcome, Failed)
    assert (outcome.code, outcome.blame) == ("crashed", Blame.DEVICE)
    assert "dense model" in outcome.reason


@pytest.mark.parametrize("broken", ["truncated", "empty", "garbage"])
def test_a_corrupt_file_is_told_from_a_bad_device(
    files: Files, nets: Mapping[str, TinyNet], tmp_path: Path, broken: str
) -> None:
    data = nets["pruned"].path.read_bytes()
    bad = tmp_path / "bad.onnx"
    bad.write_bytes({"truncated": data[: len(data) // 2], "empty": b"", "garbage": os.urandom(2000)}[broken])
    good = files.add(nets["dense"].path)
    as_candidate = MeasurementRequest(runtime="onnxruntime", baseline=good, candidates=(files.add(bad),), plan=SHORT)
    outcome = run(SandboxRunner(), files, as_candidate)
    assert isinstance(outcome, Failed)
    assert (outcome.stage, outcome.code, outcome.blame, outcome.retryable) == (
        "load", "unreadable_artifact", Blame.CANDIDATE, False
    )  # fmt: skip
    as_baseline = as_candidate.model_copy(update={"baseline": files.add(bad), "candidates": (good,)})
    outcome = run(SandboxRunner(), files, as_baseline)
    assert isinstance(outcome, Failed)
    assert (outcome.blame, outcome.code) == (Blame.DEVICE, "unreadable_artifact")
    assert "dense model" in outcome.reason


def test_a_wrong_answer_is_a_failure_whatever_its_speed(
    files: Files, nets: Mapping[str, TinyNet], tmp_path: Path
) -> None:
    with np.load(nets["pruned"].check, allow_pickle=False) as arrays:
        np.savez(tmp_path / "other.npz", input_x=arrays["input_x"], output_y=arrays["output_y"] + 1)
    request = MeasurementRequest(
        runtime="onnxruntime",
        baseline=files.add(nets["dense"].path, nets["dense"].check),
        candidates=(files.add(nets["pruned"].path, tmp_path / "other.npz"),),
        plan=SHORT,
    )
    outcome = run(SandboxRunner(), files, request)
    assert isinstance(outcome, Failed)
    assert (outcome.stage, outcome.code, outcome.blame) == ("check", "wrong_output", Blame.CANDIDATE)
    assert "differs" in outcome.reason


def test_a_check_that_cannot_be_read_is_nobodys_fault_on_the_device(
    files: Files, nets: Mapping[str, TinyNet], tmp_path: Path
) -> None:
    (tmp_path / "check.npz").write_bytes(b"rubbish")
    file = files.add(nets["dense"].path, tmp_path / "check.npz")
    outcome = run(
        SandboxRunner(), files, MeasurementRequest(runtime="onnxruntime", baseline=file, candidates=(file,), plan=SHORT)
    )
    assert isinstance(outcome, Failed)
    assert (outcome.code, outcome.blame) == ("check_unreadable", Blame.SYSTEM)


def test_a_runtime_nobody_has_is_the_devices_lack(files: Files, nets: Mapping[str, TinyNet]) -> None:
    file = files.add(nets["dense"].path)
    request = MeasurementRequest(runtime="tensorrt", baseline=file, candidates=(file,), plan=SHORT)
    outcome = run(SandboxRunner(), files, request)
    assert isinstance(outcome, Failed)
    assert (outcome.code, outcome.blame) == ("runtime_missing", Blame.DEVICE)
    assert "pruneloop.runtimes:tensorrt" in outcome.reason


def test_a_file_of_another_batch_is_refused_with_the_mend(files: Files, tmp_path: Path) -> None:
    net = write_conv_net(tmp_path / "fixed.onnx", channels=4, depth=1, size=8, batch=2)
    file = files.add(net.path, net.check)
    request = MeasurementRequest(runtime="onnxruntime", batch=8, baseline=file, candidates=(file,), plan=SHORT)
    outcome = run(SandboxRunner(), files, request)
    assert isinstance(outcome, Failed)
    assert "batch" in outcome.reason


def test_an_artifact_that_cannot_be_fetched_is_tried_again(files: Files, nets: Mapping[str, TinyNet]) -> None:
    file = files.add(nets["dense"].path)

    def fetch(ref: ArtifactRef) -> Path:
        raise NotFound("gone")

    outcome = SandboxRunner().run(
        MeasurementRequest(runtime="onnxruntime", baseline=file, candidates=(file,)),
        fetch=fetch,
        report_stage=lambda stage: None,
        is_cancelled=lambda: False,
    )
    assert isinstance(outcome, Failed)
    assert (outcome.stage, outcome.blame, outcome.retryable) == ("fetch", Blame.SYSTEM, True)


def test_an_interpreter_that_does_not_start_is_the_devices_fault(files: Files, nets: Mapping[str, TinyNet]) -> None:
    file = files.add(nets["dense"].path)
    request = MeasurementRequest(runtime="onnxruntime", baseline=file, candidates=(file,), plan=SHORT)
    outcome = run(SandboxRunner(interpreter=("/bin/false",)), files, request)
    assert isinstance(outcome, Failed)
    assert (outcome.stage, outcome.code, outcome.blame) == ("start", "child_failed", Blame.DEVICE)
    assert "agent doctor" in outcome.reason


def test_a_spare_child_waits_ready_and_is_used_once(files: Files, nets: Mapping[str, TinyNet]) -> None:
    before = _measuring_children()
    file = files.add(nets["dense"].path)
    request = MeasurementRequest(runtime="onnxruntime", baseline=file, candidates=(file,), plan=SHORT)
    runner = SandboxRunner(keep_spare=True)
    try:
        assert isinstance(run(runner, files, request), Measured)
        spare = runner._spare
        assert spare is not None and spare.is_alive
        assert isinstance(run(runner, files, request), Measured)
        assert not spare.is_alive
        # A spare that died while it waited is replaced without a word.
        assert runner._spare is not None
        runner._spare.end()
        assert isinstance(run(runner, files, request), Measured)
    finally:
        runner.close()
    assert _measuring_children() <= before


def test_secrets_of_ours_are_not_handed_to_the_child(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PRUNELOOP_TOKEN", "secret")
    assert "PRUNELOOP_TOKEN" not in child_environment({})


def _measuring_children() -> set[int]:
    """Return the process ids of the children that measure; other tests' servers of this process may have some."""
    return {
        child.pid
        for child in psutil.Process().children(recursive=True)
        if child.status() != psutil.STATUS_ZOMBIE and "workers.agent.measure_child" in child.cmdline()
    }


def _is_running(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
