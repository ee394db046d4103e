"""Use cases: what is refused, what is woken, what is read."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from domain.artifact import ArtifactKind
from domain.errors import Invalid, NotFound, WrongState
from domain.job import JobState, JobVerb
from search.loop import SearchLoop
from search.service import Capabilities, JobService
from tests.unit.search.fakes import FakeLauncher, MemoryArtifacts, World, make_spec
from tests.unit.search.surfaces import MANY

CAN = Capabilities(precisions=("fp32", "fp16"), models=("net", "resnet20"), datasets=("digits",))
ROOT = Path(__file__).parents[3]


class Setup:
    def __init__(self) -> None:
        self.world = World(groups=MANY)
        self.artifacts = MemoryArtifacts()
        self.launcher = FakeLauncher()
        self.service = JobService(self.world, self.artifacts, self.launcher, CAN)

    def run(self, until=lambda: False) -> None:
        lease = self.world.lease_search("test", lease_s=15.0)
        assert lease is not None
        SearchLoop(self.world, self.launcher, self.artifacts).run(lease, until=until)


@pytest.mark.parametrize(
    ("changes", "code", "field"),
    [
        ({"targets": [{"precision": ["fp32", "int8"]}]}, "precision_not_available", "targets.0.precision.1"),
        ({"targets": [{}, {"runtime": "openvino"}]}, "runtime_not_available", "targets.1.runtime"),
        ({"exports": ["coreml"]}, "export_not_available", "exports.0"),
        ({"objective": {"metric": "f1"}}, "metric_not_available", "objective.metric"),
        ({"model": {"name": "resnet2"}}, "unknown_model", "model.name"),
        ({"data": {"name": "cifar"}}, "unknown_dataset", "data.name"),
        ({"model": {"name": "net", "weights": "sha256:" + "0" * 64}}, "unknown_artifact", "model.weights"),
        ({"data": {"source": "npz", "artifact": "sha256:" + "1" * 64}}, "unknown_artifact", "data.artifact"),
    ],
)
def test_what_is_not_there_is_refused_with_its_field_and_nothing_is_inserted(changes, code, field):
    setup = Setup()
    with pytest.raises(Invalid) as caught:
        setup.service.create_job(make_spec(**changes))
    assert caught.value.code == code
    assert [problem.field for problem in caught.value.fields] == [field]
    assert not setup.world.job_rows
    assert not setup.launcher.woken


@pytest.mark.parametrize(
    ("changes", "code", "field"),
    [
        ({"targets": [{"runtime": "ncnn", "batch": 2}]}, "batch_not_available", "targets.0.batch"),
        (
            {"targets": [{}, {"runtime": "ncnn", "precision": "int8"}]},
            "precision_not_available",
            "targets.1.precision.0",
        ),
        ({"targets": [{"batch": 4}], "exports": ["onnx", "ncnn"]}, "batch_not_available", "exports.1"),
        ({"targets": [{"runtime": "ncnn", "format": "onnx"}]}, "format_not_available", "targets.0.format"),
        ({"targets": [{"precision": "int8"}], "exports": ["ncnn"]}, "precision_not_available", "exports.0"),
    ],
)
def test_what_a_format_cannot_hold_is_refused_at_the_door(changes, code, field):
    setup = Setup()
    can = Capabilities(runtimes=("onnxruntime", "ncnn"))
    with pytest.raises(Invalid) as caught:
        JobService(setup.world, setup.artifacts, setup.launcher, can).create_job(make_spec(**changes))
    assert caught.value.code == code
    assert [problem.field for problem in caught.value.fields] == [field]
    assert "ncnn" in caught.value.message
    assert not setup.world.job_rows


def test_what_a_format_can_hold_beside_another_that_cannot_is_taken():
    setup = Setup()
    can = Capabilities(runtimes=("onnxruntime", "ncnn"))
    targets = [{"precision": ["fp32", "int8"]}, {"batch": 8}, {"runtime": "ncnn", "precision": "fp16"}]
    service = JobService(setup.world, setup.artifacts, setup.launcher, can)
    job, _ = service.create_job(make_spec(targets=targets))
    assert len(job.spec.targets) == 3


def test_a_format_that_cannot_be_made_here_is_refused_with_what_to_run():
    setup = Setup()
    can = Capabilities(
        runtimes=("onnxruntime", "litert"),
        why_no_export=lambda name: "run: pruneloop exporters install litert" if name == "litert" else None,
    )
    service = JobService(setup.world, setup.artifacts, setup.launcher, can)
    with pytest.raises(Invalid, match="pruneloop exporters install litert") as caught:
        service.create_job(make_spec(targets=[{}, {"runtime": "litert"}], exports=["onnx", "litert"]))
    assert caught.value.code == "exporter_missing"
    assert [problem.field for problem in caught.value.fields] == ["targets.1.runtime", "exports.1"]
    assert not setup.world.job_rows


def test_every_file_of_a_final_point_says_its_own_accuracy_and_precision():
    setup = Setup()
    job, _ = setup.service.create_job(make_spec())
    setup.run()
    front = setup.service.front(job.id, 0)
    assert front.is_final
    for point in (*front.dense, *front.items):
        assert [file.precision for file in point.artifacts] == [point.precision]
        assert point.artifacts[0].accuracy == point.accuracy


def test_an_unknown_model_is_told_the_known_ones_and_every_problem_is_named():
    with pytest.raises(Invalid) as caught:
        Setup().service.create_job(make_spec(model={"name": "x"}, exports=["tflite"]))
    assert "net, resnet20" in caught.value.message
    assert {problem.field for problem in caught.value.fields} == {"model.name", "exports.0"}


def test_a_stored_artifact_is_accepted_and_plug_ins_are_not_checked_against_built_ins():
    setup = Setup()
    ref = setup.artifacts.put_bytes(b"weights", ArtifactKind.WEIGHTS)
    setup.service.create_job(make_spec(model={"source": "plugin", "name": "mine", "weights": ref.digest}))
    assert len(setup.world.job_rows) == 1


def test_a_new_job_wakes_a_search_worker_after_it_is_inserted():
    setup = Setup()
    job, is_new = setup.service.create_job(make_spec())
    assert is_new
    assert job.state is JobState.QUEUED
    assert setup.launcher.woken == ["search"]


def test_verbs_move_the_job_and_wake_the_search_where_it_has_to_act():
    setup = Setup()
    job, _ = setup.service.create_job(make_spec())
    setup.launcher.woken.clear()
    assert setup.service.apply_verb(job.id, JobVerb.PAUSE).state is JobState.PAUSED
    assert setup.launcher.woken == []
    assert setup.service.apply_verb(job.id, JobVerb.RESUME).state is JobState.QUEUED
    assert setup.launcher.woken == ["search"]
    setup.service.apply_verb(job.id, JobVerb.CANCEL)
    with pytest.raises(WrongState):
        setup.service.apply_verb(job.id, JobVerb.RESUME)


def test_a_front_is_empty_at_first_provisional_while_searching_and_final_at_the_end():
    setup = Setup()
    job, _ = setup.service.create_job(make_spec(budget={"trials": 14}))
    assert setup.service.front(job.id, 0).dense == ()
    setup.run(until=lambda: len(setup.world.trial_rows) >= 9)
    provisional = setup.service.front(job.id, 0)
    assert not provisional.is_final
    assert provisional.items
    assert provisional.dense[0].speedup == 1.0
    setup.run()
    final = setup.service.front(job.id, 0)
    assert final.is_final
    for point in final.items:
        assert point.within_max_drop == (point.accuracy >= final.dense[0].accuracy - 0.01)
        assert point.latency_ms == pytest.approx(final.dense[0].latency_ms / point.speedup)
        assert set(point.candidate) == {g.name for g in MANY}


def test_no_point_of_a_front_is_beaten_by_another_or_by_the_dense_model():
    setup = Setup()
    job, _ = setup.service.create_job(make_spec(budget={"trials": 20}))
    setup.run()
    front = setup.service.front(job.id, 0)
    for point in front.items:
        others = [p for p in (*front.items, *front.dense) if p is not point]
        assert not any(p.speedup >= point.speedup and p.accuracy >= point.accuracy for p in others)


def test_a_target_that_is_not_there_is_not_found():
    setup = Setup()
    job, _ = setup.service.create_job(make_spec())
    for target in (1, -1):
        with pytest.raises(NotFound) as caught:
            setup.service.front(job.id, target)
        assert caught.value.code == "unknown_target"


def test_artifacts_of_a_job_are_those_of_its_fronts_and_carry_manifests():
    setup = Setup()
    job, _ = setup.service.create_job(make_spec(budget={"trials": 14}))
    setup.run()
    listed = setup.service.job_artifacts(job.id)
    front = setup.service.front(job.id, 0)
    assert [a.trial for a in listed] == [None, *(p.trial for p in front.items)]
    assert all(setup.artifacts.exists(a.manifest) for a in listed)
    assert {ref.kind for ref in setup.world.recorded} == {ArtifactKind.MANIFEST}


def test_the_service_loads_neither_optuna_nor_the_loop():
    script = "import sys, search.service; print([m for m in ('optuna', 'numpy', 'search.loop') if m in sys.modules])"
    found = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"
