"""The groups of a job, found in a real child process."""

from __future__ import annotations

from pathlib import Path

import pytest

from db.artifacts import FileArtifactStore
from domain.artifact import ArtifactKind
from domain.errors import PruneloopError
from domain.job import DataSpec, JobSpec, ModelSpec, TargetSpec
from workers.inspecting import ChildInspector

DIGITS = DataSpec(name="digits")


def spec(model: ModelSpec) -> JobSpec:
    return JobSpec(model=model, data=DIGITS, targets=(TargetSpec(),))


@pytest.mark.slow
def test_a_child_finds_the_groups_and_says_why_where_it_cannot(tmp_path: Path) -> None:
    inspect = ChildInspector(tmp_path, max_s=240)
    network = inspect(spec(ModelSpec(name="resnet8", params={"in_channels": 1})))
    assert network.source == "traced"
    assert network.macs > network.params > 1000
    assert all(group.channels > 1 for group in network.groups) and len(network.groups) >= 3

    digest = FileArtifactStore(tmp_path).put_bytes(b"\x08\x07garbage", ArtifactKind.ONNX).digest
    with pytest.raises(PruneloopError) as caught:
        inspect(spec(ModelSpec(source="onnx", artifact=digest)))
    assert caught.value.code == "inspect_failed" or "ONNX" in caught.value.message


@pytest.mark.slow
def test_a_child_that_wants_too_much_memory_ends_alone(tmp_path: Path) -> None:
    with pytest.raises(PruneloopError) as caught:
        ChildInspector(tmp_path, max_s=240, max_memory_bytes=200 * 1024**2)(spec(ModelSpec(name="resnet8")))
    assert caught.value.code == "inspect_failed"


def test_a_child_is_killed_when_its_time_is_up(tmp_path: Path) -> None:
    with pytest.raises(PruneloopError) as caught:
        ChildInspector(tmp_path, max_s=0.05)(spec(ModelSpec(name="resnet8")))
    assert caught.value.code == "inspect_timeout"
