"""Every kind of task from its data to a file that is scored: classes, tags, numbers to come close to, a plug-in's own metric."""

from __future__ import annotations

import io
import warnings
import zipfile
from contextlib import nullcontext
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from domain.artifact import ArtifactKind
from domain.build import BuildOutcome, BuildRequest, BuildResult, CandidateRequest, FinalRequest, PrepareRequest
from domain.candidate import Candidate, ImportanceMix, RecoveryPlan
from domain.job import DataSpec, ModelSpec
from domain.outcome import Failed
from domain.scores import value_of
from pruning.builder import TorchBuilder
from pruning.datasets import load_data
from tests.unit.pruning.folder import FolderStore


@pytest.fixture(scope="module")
def builder(store: FolderStore) -> TorchBuilder:
    return TorchBuilder(store, threads=1, torch_device="cpu")


def _build(builder: TorchBuilder, request: BuildRequest) -> BuildOutcome:
    return builder.build(request, progress=lambda stage, fraction: None, hold=nullcontext)


def _built(builder: TorchBuilder, request: BuildRequest) -> BuildResult:
    outcome = _build(builder, request)
    assert isinstance(outcome, BuildResult), outcome
    return outcome


def _pruned(
    builder: TorchBuilder, model: ModelSpec, data: DataSpec, metric: str, epochs: float = 2
) -> tuple[BuildResult, BuildResult, BuildResult]:
    """Return the dense model, a candidate of half the channels and its final, each scored."""
    common: dict[str, Any] = {"model": model, "data": data, "metric": metric}
    dense = _built(builder, PrepareRequest(**common))
    candidate = Candidate(
        sparsity={group.name: 0.5 for group in dense.groups},
        widths={group.name: group.channels // 2 for group in dense.groups},
        importance=ImportanceMix(l2=1, taylor=1, activation=1),
        recovery=RecoveryPlan(epochs=epochs, learning_rate=0.05, precision="fp32"),
    )
    cut = _built(builder, CandidateRequest(**common, weights=dense.weights, candidate=candidate))
    final = FinalRequest(**common, weights=dense.weights, candidate=candidate, start=cut.weights, epochs=epochs)
    return dense, cut, _built(builder, final)


def _mlp(outputs: int, *, sigmoid: bool = False) -> nn.Sequential:
    torch.manual_seed(0)
    layers: list[nn.Module] = [nn.Linear(6, 32), nn.ReLU(), nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, outputs)]
    return nn.Sequential(*layers, *([nn.Sigmoid()] if sigmoid else []))


def _trained(net: nn.Sequential, inputs: Tensor, wanted: Tensor, loss: nn.Module, steps: int = 400) -> nn.Sequential:
    optimizer = torch.optim.Adam(net.parameters(), lr=0.01)
    for _ in range(steps):
        optimizer.zero_grad()
        loss(net(inputs), wanted).backward()
        optimizer.step()
    return net.eval()


def _onnx(store: FolderStore, net: nn.Module) -> ModelSpec:
    buffer = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that this exporter is the older one
        torch.onnx.export(
            net, (torch.zeros(2, 6),), buffer, dynamo=False, input_names=["row"], output_names=["answer"],  # type: ignore[arg-type]
            dynamic_axes={"row": {0: "rows"}, "answer": {0: "rows"}},
        )  # fmt: skip
    return ModelSpec(source="onnx", artifact=store.put_bytes(buffer.getvalue(), ArtifactKind.ONNX).digest)


def _csv(store: FolderStore, columns: dict[str, np.ndarray], **params: Any) -> DataSpec:
    lines = [",".join(columns), *(",".join(map(str, row)) for row in zip(*columns.values(), strict=True))]
    digest = store.put_bytes(("\n".join(lines) + "\n").encode(), ArtifactKind.DATA).digest
    return DataSpec(source="csv", artifact=digest, params=params)


def _rows(samples: int = 900) -> tuple[Tensor, dict[str, np.ndarray]]:
    rows = torch.randn(samples, 6, generator=torch.Generator().manual_seed(0))
    return rows, {f"x{number}": rows[:, number].numpy() for number in range(6)}


def _answers(
    builder: TorchBuilder, store: FolderStore, final: BuildResult, data: DataSpec
) -> tuple[np.ndarray, np.ndarray]:
    """Return what the final's file gives on the test split, and that split's labels."""
    inputs, labels = load_data(data, store).test
    session = onnxruntime.InferenceSession(store.read(final.artifacts[0].artifact.digest))
    assert labels is not None
    return session.run(None, {session.get_inputs()[0].name: inputs.numpy()})[0], labels.numpy()


def test_numbers_of_a_table_are_come_close_to_and_the_error_is_told_in_their_unit(
    builder: TorchBuilder, store: FolderStore
) -> None:
    rows, columns = _rows()
    prices = torch.stack([20 * rows[:, 0] * rows[:, 1] + 100, 10 * rows[:, 2].abs() - 5], 1)
    columns |= {"price": prices[:, 0].numpy(), "rent": prices[:, 1].numpy()}
    data = _csv(store, columns, label=["price", "rent"])
    net = _trained(_mlp(2), rows, prices, nn.MSELoss(), steps=1200)
    dense, cut, final = _pruned(builder, _onnx(store, net), data, "rmse", epochs=15)
    assert dense.accuracy.metric == "rmse" and dense.accuracy.search > 0.8
    assert cut.macs < 0.6 * dense.macs and final.accuracy.test is not None
    assert final.accuracy.test > dense.accuracy.search - 0.15
    given, wanted = _answers(builder, store, final, data)
    error = float(np.sqrt(np.square(given - wanted).mean()))
    assert value_of("rmse", final.accuracy.test, final.accuracy.spread_test) == pytest.approx(error, rel=1e-3)


def test_tags_of_a_file_that_ends_in_a_sigmoid_are_scored_by_f1(builder: TorchBuilder, store: FolderStore) -> None:
    rows, columns = _rows()
    tags = torch.stack([rows[:, 0] + rows[:, 1] > 0, rows[:, 2] * rows[:, 3] > 0, rows[:, 4] > 0.7], 1)
    columns |= {f"tag{number}": tags[:, number].numpy().astype(int) for number in range(3)}
    data = _csv(store, columns, label=["tag0", "tag1", "tag2"])
    net = _trained(_mlp(3, sigmoid=True), rows, tags.float(), nn.BCELoss())
    dense, _, final = _pruned(builder, _onnx(store, net), data, "f1", epochs=15)
    assert dense.accuracy.search > 0.9 and final.accuracy.test is not None
    assert final.accuracy.test > dense.accuracy.search - 0.1
    given, wanted = _answers(builder, store, final, data)
    assert given.min() >= 0 and given.max() <= 1  # the file gives what the user's file gave
    hits = ((given > 0.5) & (wanted > 0)).sum(0)
    f1 = float((2 * hits / ((given > 0.5).sum(0) + (wanted > 0).sum(0))).mean())
    assert final.accuracy.test == pytest.approx(f1, abs=1e-6)


def test_a_yes_or_no_of_one_output_has_an_accuracy(builder: TorchBuilder, store: FolderStore) -> None:
    rows, columns = _rows()
    yes = rows[:, 0] * rows[:, 1] > 0
    data = _csv(store, columns | {"yes": yes.numpy().astype(int)}, label="yes")
    net = _trained(_mlp(1, sigmoid=True), rows, yes.float()[:, None], nn.BCELoss())
    dense, _, final = _pruned(builder, _onnx(store, net), data, "accuracy", epochs=8)
    assert dense.accuracy.metric == "accuracy" and dense.accuracy.search > 0.9
    given, wanted = _answers(builder, store, final, data)
    assert final.accuracy.test == pytest.approx(float(((given[:, 0] > 0.5) == wanted).mean()), abs=1e-6)
    assert final.accuracy.test > 0.85


@pytest.mark.parametrize("metric", ["top5", "map"])
def test_a_classifier_of_a_folder_of_images_is_scored_as_asked(
    builder: TorchBuilder, store: FolderStore, metric: str
) -> None:
    splits = load_data(DataSpec(name="digits"), store)
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for split, (inputs, labels) in splits.named():
            assert labels is not None
            for number, (image, label) in enumerate(zip(inputs[:400], labels.tolist(), strict=False)):
                pixels = ((image[0] * 6 + 4.9) * 15).clamp(0, 255).to(torch.uint8).numpy()
                png = io.BytesIO()
                Image.fromarray(pixels).save(png, "PNG")
                archive.writestr(f"{split}/{label}/{number}.png", png.getvalue())
    digest = store.put_bytes(buffer.getvalue(), ArtifactKind.DATA).digest
    data = DataSpec(source="images", artifact=digest, params={"mode": "L", "mean": 0.3, "std": 0.37})
    dense, _, final = _pruned(builder, ModelSpec(name="convnet", params={"width": 8}), data, metric)
    assert f"metric: {metric}" in dense.notes and dense.accuracy.search > 0.85
    assert final.accuracy.metric == metric and final.accuracy.test is not None and final.accuracy.test > 0.85
    assert dense.splits is not None and "classes: 0, 1" in dense.splits.how


def test_metrics_that_need_labels_say_so_before_any_work(builder: TorchBuilder, store: FolderStore) -> None:
    _, columns = _rows(60)
    outcome = _build(builder, PrepareRequest(model=_onnx(store, _mlp(2)), data=_csv(store, columns), metric="rmse"))
    assert isinstance(outcome, Failed) and outcome.code == "labels_missing" and "agreement" in outcome.reason
