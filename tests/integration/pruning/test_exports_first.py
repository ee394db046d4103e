"""What a job wants its finals in is tried before anything is trained: a missing converter, a word that a format lacks."""

from __future__ import annotations

import io
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pytest

from domain.artifact import ArtifactKind
from domain.build import BuildResult, PrepareRequest
from domain.job import DataSpec, ModelSpec
from domain.outcome import Blame, Failed
from pruning.builder import TorchBuilder
from tests.unit.pruning.folder import FolderStore


@pytest.fixture(scope="module")
def builder(store: FolderStore) -> TorchBuilder:
    return TorchBuilder(store, threads=1, torch_device="cpu")


def prepare(builder: TorchBuilder, request: PrepareRequest) -> tuple[BuildResult | Failed, list[str]]:
    """Return the outcome, and the stages that were gone through."""
    stages: list[str] = []
    outcome = builder.build(request, progress=lambda stage, fraction: stages.append(stage), hold=nullcontext)
    return outcome, stages


@pytest.mark.parametrize("asked", [{"formats": ("litert",)}, {"exports": ("executorch",)}])
def test_a_converter_that_is_not_there_fails_the_first_build_before_any_work(
    builder: TorchBuilder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, asked: dict[str, tuple[str, ...]]
) -> None:
    monkeypatch.setenv("PRUNELOOP_CONVERTERS_DIR", str(tmp_path))
    outcome, stages = prepare(
        builder, PrepareRequest(model=ModelSpec(name="convnet"), data=DataSpec(name="digits"), **asked)
    )
    assert isinstance(outcome, Failed)
    assert (outcome.code, outcome.blame) == ("exporter_missing", Blame.SYSTEM)
    assert "pruneloop exporters install" in outcome.reason
    assert "train" not in stages


def test_a_word_that_a_format_lacks_is_named_before_the_model_is_trained(
    builder: TorchBuilder, store: FolderStore
) -> None:
    rng, buffer = np.random.default_rng(0), io.BytesIO()
    np.savez(buffer, train_inputs=rng.integers(1, 9, (40, 6)).astype(np.float32))
    model = ModelSpec(
        name="bert", params={"vocabulary": 9, "dim": 16, "depth": 1, "heads": 2, "hidden": 32, "longest": 8}
    )
    data = DataSpec(source="npz", artifact=store.put_bytes(buffer.getvalue(), ArtifactKind.DATA).digest)
    outcome, stages = prepare(builder, PrepareRequest(model=model, data=data, metric="fidelity", exports=("ncnn",)))
    assert isinstance(outcome, Failed)
    assert outcome.code == "export_failed"
    assert "ncnn files take one input of floating point, the model takes input_ids (int64)" in outcome.reason
    assert not {"train", "groups", "sensitivity"} & set(stages)
