"""A detector with several outputs, scored by the mean average precision of its boxes, as a plug-in with torchmetrics brings it."""

from __future__ import annotations

import logging
from contextlib import nullcontext
from importlib.metadata import EntryPoint

import pytest
import torch
from torch import Tensor, nn

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
SIDE, CELLS = 32, 4


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


class Detector(nn.Module):
    """A cell of a grid says whether a box begins in it, and where its four sides are."""

    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for before, width in ((1, 16), (16, 24), (24, 32)):
            layers += [nn.Conv2d(before, width, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU()]
        self.body = nn.Sequential(*layers)
        self.neck = nn.Sequential(nn.Conv2d(32, 32, 3, padding=1), nn.ReLU())
        self.boxes, self.scores = nn.Conv2d(32, 4, 1), nn.Conv2d(32, 1, 1)

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        features = self.neck(self.body(image))
        return SIDE * self.boxes(features).flatten(2).transpose(1, 2), self.scores(features).flatten(1)


def _scenes(count: int, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return images with one bright rectangle, its label ``(N, 1, 5)``, and what the outputs should be, side by side."""
    generator = torch.Generator().manual_seed(seed)
    images = 0.1 * torch.rand(count, 1, SIDE, SIDE, generator=generator)
    corner = torch.randint(0, 20, (count, 2), generator=generator)
    sides = torch.randint(6, 12, (count, 2), generator=generator)
    labels = torch.zeros(count, 1, 5)
    boxes, scores = torch.zeros(count, CELLS * CELLS, 4), torch.full((count, CELLS * CELLS), -4.0)
    for number, ((left, top), (width, height)) in enumerate(zip(corner.tolist(), sides.tolist(), strict=True)):
        images[number, 0, top : top + height, left : left + width] += 1.0
        box = torch.tensor([left, top, left + width, top + height], dtype=torch.float32)
        labels[number, 0, 1:] = box
        boxes[number] = box
        middle = (top + height // 2) * CELLS // SIDE * CELLS + (left + width // 2) * CELLS // SIDE
        scores[number, middle] = 4.0
    return images, labels, torch.cat([boxes.flatten(1), scores], 1)


def _train(model: Packed, images: Tensor, wanted: Tensor, epochs: int = 20) -> None:
    """Train as detectors are: where a box is, its sides count; where none is, only that none is."""
    boxes, scores = wanted[:, :64].reshape(-1, 16, 4) / SIDE, (wanted[:, 64:] > 0).float()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.003)
    for _ in range(epochs):
        for index in torch.randperm(len(images)).split(64):
            given, logits = model.outputs(images[index])
            sides = (given / SIDE - boxes[index]).abs().mean(2) * scores[index]
            loss = nn.functional.binary_cross_entropy_with_logits(logits, scores[index]) + 4 * sides.sum(1).mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    model.eval()


def test_a_detector_keeps_its_mean_average_precision_through_cut_and_recovery() -> None:
    torch.manual_seed(0)
    images, labels, wanted = _scenes(1200, 0)
    val, test = _scenes(150, 1), _scenes(150, 2)
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
