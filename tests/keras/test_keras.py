"""From a trained Keras model with convolutions to a pruned file with its accuracy: `make test-keras` installs TensorFlow apart."""

from __future__ import annotations

import io
import json
import logging
import os
import subprocess
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest

from domain.artifact import ArtifactKind
from domain.build import BuildRequest, BuildResult, CandidateRequest, FinalRequest, PrepareRequest
from domain.candidate import Candidate, ImportanceMix, RecoveryPlan
from domain.job import DataSpec, ModelSpec
from pruning.builder import TorchBuilder
from tests.unit.pruning.folder import FolderStore

logger = logging.getLogger(__name__)
ROOT = Path(__file__).resolve().parents[2]
PYTHON = os.environ.get(
    "PRUNELOOP_KERAS_PYTHON"
)  # of the environment that has TensorFlow, which shares nothing with ours

pytestmark = pytest.mark.skipif(
    PYTHON is None, reason="needs TensorFlow and tf2onnx in an environment of their own: make test-keras"
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("keras")
    env = {**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3", "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "-1"}
    command = [str(PYTHON), "-W", "ignore", str(ROOT / "examples/keras_digits/train.py"), str(out)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=env, timeout=280)
    assert done.returncode == 0, done.stderr[-2000:]
    (out / "told.json").write_text(done.stdout.splitlines()[-1])
    return out


def test_a_keras_model_is_pruned_recovered_and_given_back_as_it_came(
    folder: Path, store: FolderStore, caplog: pytest.LogCaptureFixture
) -> None:
    original = (folder / "keras_digits.onnx").read_bytes()
    told = json.loads((folder / "told.json").read_text())
    model = ModelSpec(source="onnx", artifact=store.put_bytes(original, ArtifactKind.ONNX).digest)
    data = DataSpec(
        source="npz", artifact=store.put_bytes((folder / "keras_digits.npz").read_bytes(), ArtifactKind.DATA).digest
    )
    builder = TorchBuilder(store, threads=1, torch_device="cpu")

    def build(request: BuildRequest) -> BuildResult:
        outcome = builder.build(request, progress=lambda stage, fraction: None, hold=nullcontext)
        assert isinstance(outcome, BuildResult), outcome
        return outcome

    common = {"model": model, "data": data}
    dense = build(PrepareRequest(**common))
    whole = build(FinalRequest(**common, weights=dense.weights, epochs=0))
    assert whole.accuracy.test == pytest.approx(told["test_accuracy"], abs=0.006)  # Keras's own word
    # Every convolution with channels of its own, and the layer behind the flatten; the last gives the classes.
    assert sorted(group.channels for group in dense.groups) == [24, 32, 48, 64]
    assert len(dense.unprunable) == 1 and "outputs" in dense.unprunable[0].reason
    candidate = Candidate(
        sparsity={group.name: 0.5 for group in dense.groups},
        widths={group.name: group.channels // 2 for group in dense.groups},
        importance=ImportanceMix(l2=1, taylor=1, activation=1),
        recovery=RecoveryPlan(epochs=3, learning_rate=0.005, precision="fp32"),
    )
    cut = build(CandidateRequest(**common, weights=dense.weights, candidate=candidate))
    final = build(FinalRequest(**common, weights=dense.weights, candidate=candidate, start=cut.weights, epochs=4))
    assert cut.macs < 0.4 * dense.macs
    assert final.accuracy.test is not None and final.accuracy.test > told["test_accuracy"] - 0.02
    file = store.read(final.artifacts[0].artifact.digest)
    for part in ("input", "output"):
        before, after = ([*getattr(onnx.load_from_string(one).graph, part)] for one in (original, file))
        assert [value.name for value in before] == [value.name for value in after]
        assert [_sizes(value)[1:] for value in before] == [_sizes(value)[1:] for value in after]
    arrays = np.load(io.BytesIO((folder / "keras_digits.npz").read_bytes()), allow_pickle=False)
    session = onnxruntime.InferenceSession(file)
    answers = session.run(None, {session.get_inputs()[0].name: arrays["test_inputs"]})[0]
    np.testing.assert_allclose(answers.sum(1), 1.0, rtol=1e-4)
    accuracy = float((answers.argmax(1) == arrays["test_labels"]).mean())
    assert accuracy == pytest.approx(final.accuracy.test, abs=1e-6)
    told |= {
        "pruned_accuracy": accuracy,
        "macs": f"{dense.macs} -> {final.macs}",
        "params": f"{dense.params} -> {final.params}",
    }
    with caplog.at_level(logging.INFO):
        logger.info(json.dumps(told))


def _sizes(value: onnx.ValueInfoProto) -> list[int]:
    return [dim.dim_value for dim in value.type.tensor_type.shape.dim]
