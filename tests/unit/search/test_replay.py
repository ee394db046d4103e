"""The loop on a device that needs no hardware: the same job gives the same front, synthetic or played back."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from domain.artifact import ArtifactKind, ArtifactRef, digest_of_file
from domain.build import BuildOutcome, BuildRequest, BuildResult
from domain.device import RuntimeInfo
from domain.front import Front
from domain.job import JobState
from domain.measurement import Measurement, MeasurementOutcome
from domain.ports import Runner
from search.front import build_front
from search.loop import SearchLoop
from tests.unit.search.fakes import FakeLauncher, World, make_device, make_spec
from tests.unit.search.surfaces import FEW, FakeBuilder
from workers.agent.replay.recording import write_recording
from workers.agent.replay.runner import ReplayRunner
from workers.agent.replay.synthetic import SyntheticRunner


class FileBuilder(FakeBuilder):
    """Writes a real ONNX file for what is built: as many weights as the widths say."""

    def __init__(self, folder: Path) -> None:
        super().__init__(FEW)
        self.folder = folder
        self.paths: dict[str, Path] = {}

    def build(self, request: BuildRequest) -> BuildOutcome:
        result = super().build(request)
        if not isinstance(result, BuildResult):
            return result
        artifacts = tuple(
            one.model_copy(update={"artifact": self._write(result.widths, one.artifact)}) for one in result.artifacts
        )
        probes = tuple(
            one.model_copy(
                update={"file": one.file.model_copy(update={"artifact": self._write(one.widths, one.file.artifact)})}
            )
            for one in result.probes
        )
        return result.model_copy(update={"artifacts": artifacts, "probes": probes})

    def _write(self, widths: dict[str, int], made_up: ArtifactRef) -> ArtifactRef:
        weights, before = [], 3
        for name, width in widths.items():
            weights.append(numpy_helper.from_array(np.zeros((width, before, 3, 3), np.float32), name))
            before = width
        value = helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 3])
        graph = helper.make_graph(
            [helper.make_node("Identity", ["x"], ["y"])], made_up.digest, [value], [value], weights
        )
        path = self.folder / made_up.digest.removeprefix("sha256:")
        onnx.save(helper.make_model(graph), str(path))
        ref = ArtifactRef(digest=digest_of_file(path), size_bytes=path.stat().st_size, kind=ArtifactKind.ONNX)
        self.paths[ref.digest] = path
        self.latency_by_digest[ref.digest] = self.latency_by_digest[made_up.digest]
        return ref


class OnRunner:
    """The world's device, on a real runner."""

    def __init__(self, runner: Runner, builder: FileBuilder) -> None:
        self._runner, self._builder = runner, builder

    def run(self, measurement: Measurement) -> MeasurementOutcome:
        return self._runner.run(
            measurement.request,
            fetch=lambda ref: self._builder.paths[ref.digest],
            report_stage=lambda stage: None,
            is_cancelled=lambda: False,
        )


def searched(runner: Runner, folder: Path) -> tuple[Front, World]:
    folder.mkdir()
    device = make_device()
    replay = RuntimeInfo(name="replay", available=True, version="1", formats=("onnx",))
    inventory = device.inventory.model_copy(update={"runtimes": (replay,)})
    world = World(devices=(device.model_copy(update={"inventory": inventory}),))
    world.builder = FileBuilder(folder)
    world.runner = OnRunner(runner, world.builder)
    spec = make_spec(targets=[{"runtime": "replay", "speedup": 2.0}], budget={"trials": 12}, final={"keep": 3})
    job, _ = world.create_job(spec)
    lease = world.lease_search("test", lease_s=15.0, job_id=job.id)
    assert lease is not None
    SearchLoop(world, FakeLauncher()).run(lease, until=lambda: False)
    assert world.job(job.id).state is JobState.SUCCEEDED, world.job(job.id).reason
    return build_front(world.snapshot(job.id), 0), world


def points(front: Front) -> list[tuple[object, ...]]:
    return [(p.trial, p.latency_ms, p.speedup, p.speedup_ci, p.accuracy, p.candidate) for p in front.items]


@pytest.fixture(scope="module")
def synthetic(tmp_path_factory: pytest.TempPathFactory) -> tuple[Front, World]:
    return searched(SyntheticRunner(), tmp_path_factory.mktemp("synthetic") / "first")


def test_the_same_job_gives_the_same_front(synthetic: tuple[Front, World], tmp_path: Path) -> None:
    front, _ = synthetic
    assert front.items and front.items[0].speedup > 1.3
    again, _ = searched(SyntheticRunner(), tmp_path / "again")
    assert points(again) == points(front)


def test_a_recorded_job_gives_the_same_front_when_it_is_played_back(
    synthetic: tuple[Front, World], tmp_path: Path
) -> None:
    front, world = synthetic
    path = tmp_path / "job.jsonl"
    assert write_recording(path, world.measurement_rows.values()) == len(world.measurement_rows) > 12
    played, _ = searched(ReplayRunner(path), tmp_path / "played")
    assert points(played) == points(front)
    assert all(point.conditions["recording"] == "job.jsonl" for point in played.items)
