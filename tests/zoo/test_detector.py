"""A detector with several outputs, scored by the mean average precision of its boxes, as a plug-in with torchmetrics brings it."""

from __future__ import annotations

import logging
from contextlib import nullcontext
from importlib.metadata import EntryPoint

import pytest
import torch
from torch import Tensor

from benchmarks.families import SIDE, Detector, detector_loss, scenes
from domain.candidate import ImportanceMix
from pruning.datasets.splits import CheckedSplits
from pruning.dense import Dense
from pruning.exporters import make_exporter
from pruning.exporters.outputs import joined
from pruning.metrics import find_metric
from pruning.plugins import Registry
from pruning.precision import Compute
from pruning.recovery import Recipe, reestimate_batch_norm, train
from pruning.signature import Packed, Port, Signature, file_outputs
from pruning.zoo.missing import declare_missing_operators

declare_missing_operators()  # torchmetrics imports torchvision

from torchmetrics.detection import MeanAveragePrecision  # noqa: E402

logger = logging.getLogger(__name__)
FP32 = Compute(torch.device("cpu"))


class BoxMap:
    """Outputs: boxes ``(N, cells, 4)`` and logits ``(N, cells)``. Labels ``(N, most, 5)``: class, then box; class -1: none."""

    def __call__(self, outputs: tuple[Tensor, ...], labels: Tensor) -> float:
        metric = MeanAveragePrecision()
        boxes, logits = outputs
        for one, scores, wanted in zip(boxes, logits.sigmoid(), labels, strict=True):
            there = wanted[:, 0] >= 0
            given = {"boxes": one, "scores": scores, "labels": torch.zeros(len(one), dtype=torch.int64)}
            metric.update([given], [{"boxes": wanted[there, 1:], "labels": wanted[there, 0].long()}])
        return float(metric.compute()["map"])


box_map = BoxMap()


def _train(model: Packed, images: Tensor, wanted: Tensor, epochs: int = 20) -> None:
    """Train as detectors are: where a box is, its sides count; where none is, only that none is."""
    optimizer = torch.optim.Adam(model.parameters(), lr=0.003)
    for _ in range(epochs):
        for index in torch.randperm(len(images)).split(64):
            boxes, logits = model.outputs(images[index])
            loss = detector_loss((boxes, logits), wanted[index])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    model.eval()


def test_a_detector_keeps_its_mean_average_precision_through_cut_and_recovery() -> None:
    torch.manual_seed(0)
    images, labels, wanted = scenes(1200, 0)
    val, test = scenes(150, 1), scenes(150, 2)
    ports = Port("boxes", ("batch", 16, 4)), Port("scores", ("batch", 16))
    model = Packed(Detector(), Signature((Port("image", ("batch", 1, SIDE, SIDE)),), ports))
    model.bind(images.shape[1:])
    entry = EntryPoint("box-map", "tests.zoo.test_detector:box_map", "pruneloop.metrics")
    registry: Registry[object] = Registry("pruneloop.metrics", "metric", "objective.metric", {}, [entry])
    metric = find_metric("box-map", gives_logits=False, width=80, label_dims=3, registry=registry)
    _train(model, images, wanted)
    splits = CheckedSplits((images, labels), val[:2], test[:2])
    dense = Dense(model.eval(), splits, FP32, metric, 80, 0, ((16, 4), (16,)))
    before = dense.evaluate(model, "val", nullcontext)
    assert before > 0.5
    groups = dense.groups()
    assert {layer.name for layer in groups.unprunable} == {"net.boxes", "net.scores"}
    widths = {group.name: round(group.channels * 0.85) for group in groups.groups}
    pruned = dense.prune(widths, ImportanceMix(l2=1, taylor=1), nullcontext)
    reestimate_batch_norm(pruned, images, FP32)
    raw = dense.evaluate(pruned, "val", nullcontext)
    train(pruned, dense.training_set(distill=True, hold=nullcontext), Recipe(40, 0.003), FP32)
    after = dense.evaluate(pruned, "val", nullcontext)
    logger.info(f"mAP of boxes: {before:.3f}, cut {raw:.3f}, recovered {after:.3f}")
    assert after > max(raw, before - 0.1)
    exporter = make_exporter("onnx")
    file = exporter.export(pruned, images[:2])
    with torch.no_grad():
        exporter.check(file, images[:2], joined(file_outputs(pruned, images[:2])))
    assert dense.score_file(exporter.run(file, val[0], threads=1), val[1]) == pytest.approx(after, abs=0.02)
