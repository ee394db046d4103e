"""A pretrained convolutional ONNX file as people have it: weights in Constant nodes, free sizes, and no labels."""

from __future__ import annotations

from contextlib import nullcontext

import numpy as np
import onnx
import onnxruntime
import pytest

from benchmarks.pretrained_onnx import cut_of, file_of_package, stored_lines
from domain.artifact import ArtifactKind
from domain.build import BuildRequest, BuildResult, CandidateRequest, FinalRequest, PrepareRequest
from domain.job import ModelSpec
from pruning.builder import TorchBuilder
from pruning.datasets import load_data
from tests.unit.pruning.folder import FolderStore

pytestmark = pytest.mark.skipif(
    file_of_package() is None, reason="pip install --no-deps rapidocr-onnxruntime==1.4.4, as make test-zoo does"
)


@pytest.mark.timeout(1500)  # a minute of a quiet core
def test_a_pretrained_file_is_pruned_without_labels_and_agrees_with_the_original(store: FolderStore) -> None:
    path = file_of_package()
    assert path is not None
    original = path.read_bytes()
    graph = onnx.load_from_string(original).graph
    assert not graph.initializer and sum(node.op_type == "Constant" for node in graph.node) > 300
    model = ModelSpec(source="onnx", artifact=store.put_bytes(original, ArtifactKind.ONNX).digest)
    data = stored_lines(store, 192, 48, 150)
    builder = TorchBuilder(store, threads=1, torch_device="cpu")

    def build(request: BuildRequest) -> BuildResult:
        outcome = builder.build(request, progress=lambda stage, fraction: None, hold=nullcontext)
        assert isinstance(outcome, BuildResult), outcome
        return outcome

    common = {"model": model, "data": data, "metric": "agreement"}
    dense = build(PrepareRequest(**common))
    assert dense.accuracy.search == 1.0 and "weights of the file" in dense.notes
    assert len(dense.groups) > 20  # every block, its gates of squeeze and excite included
    assert [layer.reason for layer in dense.unprunable] == ["its channels are the model's outputs"]
    candidate = cut_of(dense, 0.3, epochs=6)
    cut = build(CandidateRequest(**common, weights=dense.weights, candidate=candidate))
    final = build(FinalRequest(**common, weights=dense.weights, start=cut.weights, candidate=candidate, epochs=3))
    assert final.macs < 0.75 * dense.macs
    lines = load_data(data, store).test[0].numpy()
    given = onnxruntime.InferenceSession(original)
    pruned = onnxruntime.InferenceSession(store.read(final.artifacts[0].artifact.digest))
    assert [node.name for node in pruned.get_inputs()] == ["x"]
    assert [node.name for node in pruned.get_outputs()] == [node.name for node in given.get_outputs()]
    assert all(not isinstance(size, int) for size in np.array(pruned.get_inputs()[0].shape, object)[[0, 2, 3]])
    answers = [session.run(None, {"x": lines})[0] for session in (given, pruned)]
    agreement = float((answers[0].argmax(1) == answers[1].argmax(1)).mean())
    assert agreement == pytest.approx(final.accuracy.test, abs=1e-6)  # what is reported is true of the file
    assert agreement > 0.65  # a minute of training on 192 lines; the benchmark trains on 1,500
