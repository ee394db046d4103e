"""A job for ncnn only, over REST: real conversions, real measurements in ncnn, and files of both formats to take away."""

from __future__ import annotations

import zipfile
from pathlib import Path

import numpy as np
import pytest

from client.take import file_name
from db.artifacts import FileArtifactStore
from domain.errors import Invalid
from domain.job import DataSpec, JobState
from pruning.datasets import load_data
from tests.e2e.conftest import System
from workers.agent.runtimes.ncnn import Ncnn
from workers.agent.runtimes.onnxruntime import OnnxRuntime

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(600)]

JOB = {
    "name": "for a small board",
    "model": {"name": "resnet8", "params": {"width": 16}},
    "data": {"name": "mnist-5k"},
    "targets": [{"runtime": "ncnn", "precision": ["fp32", "fp16"]}],
    "objective": {"max_drop": 0.05},
    "budget": {"trials": 3, "wall_s": 400},
    "recovery": {"epochs": 0.5},
    "final": {"keep": 1, "epochs": 0.5},
    "exports": ["onnx", "ncnn"],
}


def test_a_job_for_ncnn_ends_with_files_that_give_what_the_front_says(system: System, tmp_path: Path) -> None:
    inputs, labels = load_data(DataSpec(name="mnist-5k"), artifacts=FileArtifactStore(tmp_path / "none")).test
    with system.client() as client:
        job = client.submit(JOB)
        view = client.wait(job.id, timeout_s=500)
        assert view.state is JobState.SUCCEEDED, view.reason
        front = client.front(job.id)
        assert front.is_final
        points = [*front.dense, *front.items]
        assert [point.precision for point in front.dense] == ["fp32", "fp16"]
        assert front.items
        for point in points:
            assert [artifact.format for artifact in point.artifacts] == ["ncnn", "onnx"]
            assert point.conditions["runtime"] == "ncnn"
            ncnn, onnx = point.artifacts
            assert ncnn.accuracy == point.accuracy  # each file's own, in its own runtime
            assert onnx.accuracy == pytest.approx(point.accuracy, abs=0.02)
            path = client.download(ncnn.digest, tmp_path / file_name(point, ncnn))
            assert path.suffix == ".ncnn"
            assert path.stat().st_size == point.size_bytes == ncnn.size_bytes
            assert sorted(zipfile.ZipFile(path).namelist()) == ["model.bin", "model.param"]
            session = Ncnn().load(path, threads=1, precision=point.precision, batch=1)
            answers = []
            for one in inputs:
                session.bind({"input": one[None].numpy()})
                session.run()
                answers.append(session.outputs()["output"][0].argmax())
            assert float((np.array(answers) == labels.numpy()).mean()) == pytest.approx(point.accuracy, abs=1e-9)
            other = client.download(onnx.digest, tmp_path / file_name(point, onnx))
            assert OnnxRuntime().load(other, threads=1, precision=point.precision, batch=1).inputs[0].name == "input"


@pytest.mark.parametrize(
    ("change", "code", "field"),
    [
        ({"targets": [{"runtime": "ncnn", "batch": 2}]}, "batch_not_available", "targets.0.batch"),
        ({"targets": [{"runtime": "ncnn", "precision": "int8"}]}, "precision_not_available", "targets.0.precision.0"),
        ({"targets": [{"precision": "int8"}]}, "precision_not_available", "exports.1"),
    ],
)
def test_what_ncnn_cannot_hold_is_refused_at_the_door(
    system: System, change: dict[str, object], code: str, field: str
) -> None:
    with system.client() as client, pytest.raises(Invalid) as caught:
        client.submit({**JOB, **change})
    assert caught.value.code == code
    assert field in [problem.field for problem in caught.value.fields]
