"""Recorded measurements as a device, and made-up ones."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from api.plausible import check_outcome
from benchmarks.tiny_onnx import write_conv_net
from domain.artifact import ArtifactKind, ArtifactRef, digest_of_file
from domain.errors import Invalid, Unavailable
from domain.measurement import Measured, MeasuredFile, MeasurementOutcome, MeasurementRequest, Verdict
from domain.outcome import Blame, Failed
from domain.ports import Runner
from workers.agent.assembly import make_inventory, make_runner
from workers.agent.doctor import diagnose
from workers.agent.replay.recording import Recording, RecordingRunner, RecordingUnreadable
from workers.agent.replay.runner import ReplayRunner
from workers.agent.replay.synthetic import SyntheticRunner, Weight, latency_ms, weights_of
from workers.agent.runtimes.base import UnreadableArtifact
from workers.agent.runtimes.registry import get_runtime
from workers.agent.sandbox import SandboxRunner
from workers.agent.settings import AgentSettings


class Files:
    """Nets of several widths, found by digest."""

    def __init__(self, folder: Path, *widths: int) -> None:
        self.paths: dict[str, Path] = {}
        self.by_width: dict[int, MeasuredFile] = {}
        for width in widths:
            path = write_conv_net(folder / f"{width}.onnx", channels=width, depth=2, size=8).path
            ref = ArtifactRef(digest=digest_of_file(path), size_bytes=path.stat().st_size, kind=ArtifactKind.ONNX)
            self.paths[ref.digest] = path
            self.by_width[width] = MeasuredFile(artifact=ref)

    def request(self, baseline: int, *candidates: int, runtime: str = "replay", **changes: int) -> MeasurementRequest:
        return MeasurementRequest(
            runtime=runtime,
            baseline=self.by_width[baseline],
            candidates=tuple(self.by_width[width] for width in candidates),
            **changes,
        )

    def ask(self, runner: Runner, request: MeasurementRequest) -> MeasurementOutcome:
        return runner.run(
            request,
            fetch=lambda ref: self.paths[ref.digest],
            report_stage=lambda stage: None,
            is_cancelled=lambda: False,
        )


@pytest.fixture
def files(tmp_path: Path) -> Files:
    return Files(tmp_path, 8, 16, 32)


def measured(outcome: MeasurementOutcome) -> Measured:
    assert isinstance(outcome, Measured), outcome
    return outcome


def failed(outcome: MeasurementOutcome) -> Failed:
    assert isinstance(outcome, Failed), outcome
    return outcome


# --- synthetic ------------------------------------------------------------------------------------------------------
def test_the_shapes_are_those_that_the_onnx_package_reads(tmp_path: Path) -> None:
    net = write_conv_net(tmp_path / "net.onnx", channels=12, depth=3, size=8)
    wanted = [tuple(tensor.dims) for tensor in onnx.load(str(net.path)).graph.initializer]
    assert [weight.shape for weight in weights_of(net.path)] == wanted == [
        (12, 1, 3, 3), (12, 12, 3, 3), (12, 12, 3, 3), (12, 10),
    ]  # fmt: skip


def test_biases_and_shape_constants_are_no_weights_and_int8_ones_are_a_quarter(tmp_path: Path) -> None:
    tensors = [
        numpy_helper.from_array(np.zeros((16, 16), np.int8), "w8"),
        numpy_helper.from_array(np.zeros((16, 16), np.float16), "w16"),
        numpy_helper.from_array(np.zeros((2, 2), np.int64), "shape"),
        numpy_helper.from_array(np.zeros(16, np.float32), "bias"),
    ]
    value = helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 16])
    graph = helper.make_graph([helper.make_node("Identity", ["x"], ["y"])], "g", [value], [value], tensors)
    path = tmp_path / "net.onnx"
    onnx.save(helper.make_model(graph), str(path))
    assert weights_of(path) == (Weight((16, 16), 1), Weight((16, 16), 2))


def test_time_falls_in_steps_of_eight_channels() -> None:
    def at(width: int) -> float:
        return latency_ms((Weight((width, 64, 3, 3), 4),), batch=1, threads=1)

    assert at(64) == at(63) == at(57) > at(56)
    assert all(narrow <= wide for narrow, wide in pairwise(at(width) for width in range(1, 65)))


@pytest.mark.parametrize("cut", ["empty", "text", "half", "zeros"])
def test_a_file_that_is_no_onnx_file_is_refused(tmp_path: Path, cut: str) -> None:
    data = write_conv_net(tmp_path / "net.onnx", channels=8, depth=2, size=8).path.read_bytes()
    path = tmp_path / "broken.onnx"
    path.write_bytes({"empty": b"", "text": b"not a model", "half": data[: len(data) // 2], "zeros": bytes(99)}[cut])
    with pytest.raises(UnreadableArtifact):
        weights_of(path)


def test_the_same_files_give_the_same_answer_and_narrow_ones_are_faster(files: Files) -> None:
    request = files.request(32, 16, 8, 32)
    first, again = (measured(files.ask(SyntheticRunner(), request)) for _ in range(2))
    assert first == again
    sixteen, eight, same = first.candidates
    assert eight.latency_ms < sixteen.latency_ms < first.baseline.latency_ms
    assert sixteen.latency_ms == pytest.approx(first.baseline.latency_ms / sixteen.speedup)
    assert (eight.verdict, same.verdict) == (Verdict.FASTER, Verdict.TIE)
    assert same.speedup == 1.0
    assert "nothing was timed" in first.warnings[0]


def test_batch_and_threads_count(files: Files) -> None:
    def at(**changes: int) -> float:
        return measured(files.ask(SyntheticRunner(), files.request(32, 16, **changes))).baseline.latency_ms

    assert at(threads=2) < at() < at(batch=4)


def test_a_broken_file_is_the_candidate_s_fault_and_a_broken_dense_model_the_device_s(files: Files) -> None:
    files.paths[files.by_width[8].artifact.digest].write_bytes(b"")
    outcome = failed(files.ask(SyntheticRunner(), files.request(32, 8)))
    assert (outcome.blame, outcome.code, outcome.retryable) == (Blame.CANDIDATE, "unreadable_artifact", False)
    assert failed(files.ask(SyntheticRunner(), files.request(8, 32))).blame is Blame.DEVICE


def test_a_file_that_cannot_be_fetched_is_the_system_s_fault(files: Files) -> None:
    def fetch(ref: ArtifactRef) -> Path:
        raise Unavailable("the server is away", code="server_away")

    request = files.request(32, 8)
    outcome = failed(
        SyntheticRunner().run(request, fetch=fetch, report_stage=lambda s: None, is_cancelled=lambda: False)
    )
    assert (outcome.blame, outcome.stage, outcome.retryable) == (Blame.SYSTEM, "fetch", True)


# --- recorded -------------------------------------------------------------------------------------------------------
@pytest.fixture
def recording(files: Files, tmp_path: Path) -> Iterator[Path]:
    """Two real measurements, of one candidate each."""
    path = tmp_path / "recording.jsonl"
    runner = RecordingRunner(SandboxRunner(), path)
    for width in (16, 8):
        request = files.request(32, width, runtime="onnxruntime")
        plan = request.plan.model_copy(update={"max_s": 0.2, "warmup_s": 0.05, "min_pairs": 5})
        measured(files.ask(runner, request.model_copy(update={"plan": plan})))
    yield path


def test_what_was_measured_is_played_back(files: Files, recording: Path) -> None:
    kept = Recording.read(recording).passes
    assert [one.runtime for one in kept] == ["onnxruntime", "onnxruntime"]
    played = measured(files.ask(ReplayRunner(recording), files.request(32, 16)))
    assert played.candidates == measured(kept[0].outcome).candidates
    assert played.baseline == measured(kept[0].outcome).baseline
    assert (played.conditions["runtime"], played.conditions["recorded_runtime"]) == ("replay", "onnxruntime")
    assert any("played back" in warning for warning in played.warnings)
    assert files.ask(ReplayRunner(recording), files.request(32, 16)) == played

    # Several candidates are put together from single passes: speed-ups as recorded, latencies of one baseline.
    both = measured(files.ask(ReplayRunner(recording), files.request(32, 8, 16)))
    assert [one.speedup for one in both.candidates] == [
        measured(kept[1].outcome).candidates[0].speedup, measured(kept[0].outcome).candidates[0].speedup,
    ]  # fmt: skip
    for one in both.candidates:
        assert one.latency_ms == pytest.approx(both.baseline.latency_ms / one.speedup)
        assert one.latency_ci_ms[0] < one.latency_ms < one.latency_ci_ms[1]

    # The request's own runtime is answered as well; other conditions or files are not.
    assert isinstance(files.ask(ReplayRunner(recording), files.request(32, 16, runtime="onnxruntime")), Measured)
    others = (
        files.request(32, 16, runtime="openvino"), files.request(32, 16, threads=2), files.request(32, 16, batch=2),
        files.request(16, 8), files.request(32, 32),
    )  # fmt: skip
    for request in others:
        outcome = failed(files.ask(ReplayRunner(recording), request))
        assert (outcome.code, outcome.blame) == ("not_recorded", Blame.DEVICE)
        assert "record the job on a device first" in outcome.reason


def test_a_recording_of_two_runtimes_is_not_guessed_about(files: Files, recording: Path) -> None:
    line = recording.read_text().splitlines()[0].replace('"runtime":"onnxruntime"', '"runtime":"openvino"', 1)
    with recording.open("a") as file:
        file.write(line + "\n")
    outcome = failed(files.ask(ReplayRunner(recording), files.request(32, 16)))
    assert outcome.code == "ambiguous_recording"
    assert "onnxruntime and openvino" in outcome.reason


def test_a_candidate_s_failure_is_recorded_and_a_device_s_is_not(files: Files, tmp_path: Path) -> None:
    path = tmp_path / "failures.jsonl"
    runner = RecordingRunner(SandboxRunner(), path)
    failed(files.ask(runner, files.request(32, 16, runtime="none")))
    assert not path.exists()
    files.paths[files.by_width[8].artifact.digest].write_bytes(b"")
    told = failed(files.ask(runner, files.request(32, 8, runtime="onnxruntime")))
    assert files.ask(ReplayRunner(path), files.request(32, 8)) == told


@pytest.mark.parametrize(("line", "told"), [("{}", "runtime"), ("no json", "Invalid JSON")])
def test_a_recording_with_a_bad_line_is_refused_by_its_number(
    files: Files, tmp_path: Path, line: str, told: str
) -> None:
    path = tmp_path / "bad.jsonl"
    path.write_text(f"\n{line}\n")
    with pytest.raises(RecordingUnreadable, match=rf"line 2: .*{told}"):
        Recording.read(path)
    assert failed(files.ask(ReplayRunner(path), files.request(32, 16))).code == "recording_unreadable"


def test_the_server_takes_what_a_replay_says_and_nobody_elses_untimed_numbers(files: Files, recording: Path) -> None:
    for runner in (SyntheticRunner(), ReplayRunner(recording)):
        request = files.request(32, 16)
        check_outcome(request, files.ask(runner, request))
    untimed = files.ask(SyntheticRunner(), files.request(32, 16))
    with pytest.raises(Invalid) as caught:
        check_outcome(files.request(32, 16, runtime="onnxruntime"), untimed)
    assert {problem.field for problem in caught.value.fields} >= {"outcome.baseline.runs", "outcome.candidates.0.pairs"}


# --- as a device ----------------------------------------------------------------------------------------------------
def test_a_replaying_device_has_no_other_runtime(
    files: Files, recording: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PRUNELOOP_AGENT_REPLAY", str(recording))
    settings = AgentSettings(state_dir=tmp_path / "state")
    (runtime,) = make_inventory(settings).runtimes
    assert (runtime.name, runtime.available) == ("replay", True)
    assert runtime.detail == "2 recorded passes of onnxruntime"
    assert isinstance(make_runner(settings), ReplayRunner)
    (finding,) = [one for one in diagnose(settings).findings if one.name == "runtime replay"]
    assert finding.level == "ok"


def test_a_recording_that_is_gone_is_told_by_the_doctor(tmp_path: Path) -> None:
    diagnosis = diagnose(AgentSettings(state_dir=tmp_path, replay=str(tmp_path / "gone.jsonl")))
    (finding,) = [one for one in diagnosis.findings if one.name == "runtime replay"]
    assert finding.level == "error"
    assert "PRUNELOOP_AGENT_REPLAY" in finding.detail
    assert not diagnosis.is_fit


def test_a_device_may_record_what_it_measures(tmp_path: Path) -> None:
    assert isinstance(make_runner(AgentSettings(record_file=tmp_path / "r.jsonl")), RecordingRunner)
    assert isinstance(make_runner(AgentSettings(replay="synthetic")), SyntheticRunner)


def test_an_agent_that_measures_says_how_to_have_one_that_replays() -> None:
    with pytest.raises(Unavailable, match="PRUNELOOP_AGENT_REPLAY"):
        get_runtime("replay")
