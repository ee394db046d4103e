"""Each target is measured in the format its runtime reads, and finals come in what the user asked to take away too."""

from __future__ import annotations

import pytest

from domain.build import CandidateRequest, FinalRequest, PrepareRequest
from domain.device import RuntimeInfo
from domain.job import JobState
from search.front import build_front
from search.loop import SearchLoop
from search.view import deployable
from tests.unit.search.fakes import FakeLauncher, MemoryArtifacts, World, make_device, make_spec
from tests.unit.search.surfaces import MANY


@pytest.fixture(scope="module")
def ended():
    box = make_device()
    runtimes = (
        *box.inventory.runtimes,
        RuntimeInfo(name="ncnn", available=True, version="1", formats=("ncnn",), precisions=("fp32", "fp16")),
    )
    box = box.model_copy(update={"inventory": box.inventory.model_copy(update={"runtimes": runtimes})})
    world = World(groups=MANY, devices=(box,))
    targets = [{"precision": ["fp32", "int8"]}, {"runtime": "ncnn", "precision": ["fp32", "fp16"]}]
    job, _ = world.create_job(make_spec(targets=targets, budget={"trials": 30}, exports=["onnx"]))
    lease = world.lease_search("test", lease_s=15.0, job_id=job.id)
    SearchLoop(world, FakeLauncher(), MemoryArtifacts()).run(lease, until=lambda: False)
    snapshot = world.snapshot(job.id)
    assert snapshot.job.state is JobState.SUCCEEDED, snapshot.job.reason
    return snapshot


def test_every_file_that_is_timed_is_of_the_format_its_runtime_reads(ended):
    assert {m.request.runtime for m in ended.measurements} == {"onnxruntime", "ncnn"}
    for measurement in ended.measurements:
        wanted = "ncnn" if measurement.request.runtime == "ncnn" else "onnx"
        for file in (measurement.request.baseline, *measurement.request.candidates):
            assert file.artifact.kind == wanted


def test_builds_make_what_is_measured_and_finals_what_is_asked_too(ended):
    by_target = {trial.build_id: trial.target for trial in ended.trials if trial.build_id is not None}
    for build in ended.builds:
        if isinstance(build.request, PrepareRequest):
            assert build.request.formats == ("onnx", "ncnn")
        elif isinstance(build.request, CandidateRequest):
            assert build.request.formats == (("onnx",), ("ncnn",))[by_target[build.id]]
        elif isinstance(build.request, FinalRequest) and build.request.candidate is None:
            assert build.request.formats == ("onnx", "ncnn")
    finals = {b.request.formats for b in ended.builds if isinstance(b.request, FinalRequest) and b.request.candidate}
    assert finals == {("onnx",), ("ncnn", "onnx")}


def test_the_front_names_the_measured_file_first(ended):
    onnx, ncnn = build_front(ended, 0), build_front(ended, 1)
    assert onnx.is_final and ncnn.is_final
    assert onnx.items and ncnn.items
    assert all([a.format for a in point.artifacts] == ["onnx"] for point in onnx.items)
    assert all([a.format for a in point.artifacts] == ["ncnn", "onnx"] for point in ncnn.items)
    assert [(p.precision, p.artifacts[0].format) for p in ncnn.dense] == [("fp32", "ncnn"), ("fp16", "ncnn")]
    assert [(p.precision, p.artifacts[0].format) for p in onnx.dense] == [("fp32", "onnx"), ("int8", "onnx")]


def test_a_file_that_was_not_made_is_never_replaced_by_another(ended):
    (dense,) = (b.outcome for b in ended.builds if isinstance(b.request, PrepareRequest))
    assert deployable(dense, "ncnn", "fp16").format == "ncnn"
    with pytest.raises(LookupError, match="no ncnn file in int8"):
        deployable(dense, "ncnn", "int8")
