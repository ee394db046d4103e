"""A job for a phone and a board, over REST: real conversions and measurements in LiteRT, files of three formats to take away."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from client.take import file_name
from db.artifacts import FileArtifactStore
from domain.job import DataSpec, JobState
from pruning.datasets import load_data
from tests.e2e.conftest import System
from workers.agent.runtimes.litert import LiteRt

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(1200)]

JOB = {
    "name": "for a phone",
    "model": {"name": "convnet", "params": {"width": 16}},
    "data": {"name": "digits"},
    "targets": [{"runtime": "litert", "precision": ["fp32", "int8"]}, {"runtime": "onnxruntime"}],
    "objective": {"max_drop": 0.1},
    "budget": {"trials": 4, "wall_s": 900},
    "recovery": {"epochs": 0.5},
    "final": {"keep": 1, "epochs": 0.5},
    "exports": ["onnx", "litert", "executorch"],
}


def test_every_file_of_a_front_has_the_accuracy_it_has_in_its_runtime(system: System, tmp_path: Path) -> None:
    inputs, labels = load_data(DataSpec(name="digits"), artifacts=FileArtifactStore(tmp_path / "none")).test
    with system.client() as client:
        job = client.submit(JOB)
        view = client.wait(job.id, timeout_s=1100)
        assert view.state is JobState.SUCCEEDED, view.reason
        for target, runtime in enumerate(("litert", "onnxruntime")):
            front = client.front(job.id, target)
            assert front.is_final
            assert front.items
            for point in (*front.dense, *front.items):
                assert {file.format for file in point.artifacts} == {"onnx", "litert", "executorch"}
                assert all(file.accuracy is not None for file in point.artifacts)
                assert point.conditions["runtime"] == runtime
                assert point.artifacts[0].accuracy == point.accuracy
                (file,) = (file for file in point.artifacts if file.format == "litert")
                path = client.download(file.digest, tmp_path / file_name(point, file))
                assert path.suffix == ".tflite"
                session = LiteRt().load(path, threads=1, precision=point.precision, batch=1)
                answers = []
                for one in inputs:
                    session.bind({"input": one[None].numpy()})
                    session.run()
                    answers.append(session.outputs()["output"][0].argmax())
                assert float((np.array(answers) == labels.numpy()).mean()) == pytest.approx(file.accuracy, abs=1e-9)
        assert [point.precision for point in client.front(job.id, 0).dense] == ["fp32", "int8"]
