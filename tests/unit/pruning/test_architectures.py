"""Families of networks, each trained for a moment, cut, recovered from its teacher and exported: what is coupled stays coupled."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext

import pytest
import torch
import torch.nn.functional as F  # noqa: N812 - torch's own custom
from torch import Tensor, nn

from benchmarks.families import DenseNet, Grouped, Inverted, Recommender, Recurrent, Unet
from domain.candidate import ImportanceMix
from domain.job import DataSpec, ModelSpec
from pruning.datasets import load_data
from pruning.datasets.splits import CheckedSplits
from pruning.dense import Dense
from pruning.exporters import make_exporter
from pruning.exporters.outputs import joined
from pruning.groups import find_groups
from pruning.heads import Heads
from pruning.importance import l2_importance
from pruning.metrics import Metric, Task, find_metric
from pruning.models import build_model
from pruning.models.bert import bert_encoder
from pruning.network import describe_layers
from pruning.precision import Compute
from pruning.recovery import Recipe, TrainingSet, reestimate_batch_norm, train
from pruning.signature import Packed, Port, Signature, file_outputs
from pruning.surgery import prune_to_widths, read_widths
from tests.unit.pruning.folder import FolderStore

FP32 = Compute(torch.device("cpu"))


def _metric(name: str, width: int, *, gives_logits: bool = True) -> Metric:
    return find_metric(name, gives_logits=gives_logits, width=width, label_dims=1)


class Fused(nn.Module):
    """A transformer with query, key and value in one layer."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.norm = nn.Linear(8, 32), nn.LayerNorm(32)
        self.qkv, self.proj = nn.Linear(32, 96), nn.Linear(32, 32)
        self.up, self.down = nn.Linear(32, 64), nn.Linear(64, 32)
        self.classifier = nn.Linear(32, 10)

    def head_groups(self) -> tuple[Heads, ...]:
        return (Heads(makes=("qkv",), reads=("proj",), head_dim=8, parts=3),)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x.squeeze(1))
        query, key, value = self.qkv(self.norm(x)).unflatten(2, (3, -1, 8)).permute(2, 0, 3, 1, 4).unbind(0)
        weights = torch.softmax(query @ key.transpose(-2, -1) * 8**-0.5, -1)
        x = x + self.proj((weights @ value).transpose(1, 2).flatten(2))
        return self.classifier((x + self.down(F.gelu(self.up(x)))).mean(1))


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> CheckedSplits:
    return load_data(DataSpec(name="digits"), FolderStore(tmp_path_factory.mktemp("artifacts")))


@pytest.mark.parametrize(
    ("make", "cut", "whole"),
    [
        (lambda: build_model(ModelSpec(name="resnet8", params={"width": 8})), 4, {"classifier"}),
        (lambda: build_model(ModelSpec(name="mobilenet", params={"width": 8, "blocks": 1})), 3, {"classifier"}),
        (DenseNet, 4, {"classifier"}),
        (Inverted, 3, {"classifier"}),
        (Grouped, 2, {"classifier"}),
        (Fused, 2, {"classifier"}),
        (lambda: Recurrent(nn.LSTM), 1, {"recurrent", "classifier"}),
        (lambda: Recurrent(nn.GRU), 1, {"recurrent", "classifier"}),
    ],
    ids=["resnet", "mobilenet", "densenet", "inverted", "grouped", "fused-qkv", "lstm", "gru"],
)
def test_a_classifier_is_cut_recovered_and_exported(
    digits: CheckedSplits, make: Callable[[], nn.Module], cut: int, whole: set[str]
) -> None:
    torch.manual_seed(0)
    model = make()
    inputs, labels = digits.train
    train(model, TrainingSet(inputs, labels), Recipe(epochs=6, learning_rate=0.1), FP32)
    dense = Dense(model.eval(), digits, FP32, _metric("accuracy", 10), 10, 0)
    before = dense.evaluate(model, "val", nullcontext)
    assert before > 0.75  # trained weights, so that there is something to lose
    groups = dense.groups()
    assert len(groups.groups) >= cut
    assert {layer.name for layer in groups.unprunable} == whole and all(layer.reason for layer in groups.unprunable)
    widths = {group.name: max(1, round(group.channels * 0.6)) for group in groups.groups}
    pruned = dense.prune(widths, ImportanceMix(l2=1, taylor=1, activation=1), nullcontext)
    assert read_widths(pruned, groups) == widths
    reestimate_batch_norm(pruned, inputs, FP32)
    data = dense.training_set(distill=True, hold=nullcontext)
    train(pruned, data, Recipe(epochs=3, learning_rate=0.05), FP32)
    assert dense.evaluate(pruned, "val", nullcontext) > before - 0.1
    _exports(pruned, digits.val[0][:3])


def test_a_u_net_is_cut_across_its_skip_and_its_transposed_convolution(digits: CheckedSplits) -> None:
    torch.manual_seed(0)
    model, inputs = Unet(), digits.train[0]
    noisy = inputs + 0.5 * torch.randn(inputs.shape)
    train(model, TrainingSet(noisy, teacher=inputs.flatten(1), task=Task.VALUES), Recipe(6, 0.02), FP32)
    splits = CheckedSplits((noisy, None), (noisy[:200], None), (noisy[:200], None))
    dense = Dense(model.eval(), splits, FP32, _metric("agreement", 64, gives_logits=False), 64, 0)
    groups = dense.groups()
    assert [layer.name for layer in groups.unprunable] == ["head"]
    assert {group.name for group in groups.groups} == {"first.0", "down.0", "up", "last.0"}
    widths = {group.name: group.channels // 2 for group in groups.groups}
    pruned = dense.prune(widths, ImportanceMix(l2=1, taylor=1), nullcontext)
    assert pruned.get_submodule("up").weight.shape[:2] == (12, 6)
    reestimate_batch_norm(pruned, noisy, FP32)
    before = dense.evaluate(pruned, "val", nullcontext)
    train(pruned, dense.training_set(distill=True, hold=nullcontext), Recipe(4, 0.02), FP32)
    assert dense.evaluate(pruned, "val", nullcontext) > max(before, 0.7)
    assert all(layer.out_channels > 0 for layer in describe_layers(model, groups, noisy[:2]))
    _exports(pruned, noisy[:2])


def test_a_recommender_of_three_inputs_is_cut_and_keeps_their_names_and_types() -> None:
    torch.manual_seed(0)
    inputs = (
        Port("user", ("batch", 1), torch.int64),
        Port("item", ("batch", 1), torch.int64),
        Port("known", ("batch", 4)),
    )
    model = Packed(Recommender(), Signature(inputs, (Port("rating", ("batch", 1)),)))
    samples = torch.cat([torch.randint(0, 20, (256, 1)), torch.randint(0, 30, (256, 1)), torch.randn(256, 4)], 1)
    model.bind(samples.shape[1:])
    wanted = samples[:, 2:3] * 0.5 + (samples[:, :1] % 3)
    train(model, TrainingSet(samples, teacher=wanted, task=Task.VALUES), Recipe(20, 0.05), FP32)
    groups = find_groups(model, samples[:2])
    assert {group.name for group in groups.groups} == {"net.hidden.0", "net.hidden.2"}
    scores = {group.name: l2_importance(model, group) for group in groups.groups}
    pruned = prune_to_widths(model, groups, {"net.hidden.0": 20, "net.hidden.2": 8}, scores, samples[:2])
    assert "input_user" in _exports(pruned.eval(), samples[:3])


def test_a_bert_loses_heads_features_and_layers() -> None:
    torch.manual_seed(0)
    model = bert_encoder(vocabulary=50, dim=32, depth=2, heads=4, hidden=64, longest=16).eval()
    ids = torch.randint(1, 50, (6, 8)).float()
    ids[:, 5:] = 0
    model.bind((8,))
    assert torch.allclose(model(ids[:, :5]), model(ids), atol=1e-5)  # what fills up a text says nothing
    groups = find_groups(model, ids[:2])
    assert sorted(group.channels for group in groups.groups) == [4, 4, 64, 64]
    scores = {group.name: l2_importance(model, group) for group in groups.groups}
    widths = {group.name: group.channels // 2 for group in groups.groups}
    pruned = prune_to_widths(model, groups, widths, scores, ids[:2], dropped=("net.layers.1.attention",))
    arrays = _exports(pruned.eval(), ids[:3])
    assert arrays["input_input_ids"].dtype == "int64" and arrays["output_sentence_embedding"].shape == (3, 32)


def _exports(model: nn.Module, inputs: Tensor) -> dict[str, object]:
    exporter = make_exporter("onnx")
    with torch.no_grad():
        return dict(exporter.check(exporter.export(model, inputs), inputs, joined(file_outputs(model, inputs))))
