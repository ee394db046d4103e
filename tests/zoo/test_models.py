"""Names of timm, torchvision and transformers: trained here, cut (heads and all), recovered, exported, and as good as before."""

from __future__ import annotations

import logging
from collections import Counter
from contextlib import nullcontext
from typing import Any

import pytest
import torch
import torch.nn.functional as F  # noqa: N812 - torch's own custom
from safetensors.torch import save
from torch import nn

from api.plugin_probe import import_all
from domain.candidate import ImportanceMix
from domain.errors import Invalid
from domain.job import DataSpec, ModelSpec
from pruning.datasets import load_data
from pruning.datasets.splits import CheckedSplits
from pruning.dense import Dense, open_dense
from pruning.exporters import make_exporter
from pruning.exporters.outputs import joined
from pruning.members import Kind
from pruning.models import build_model
from pruning.precision import Compute
from pruning.recovery import Recipe, reestimate_batch_norm, train
from pruning.signature import file_outputs
from pruning.surgery import read_widths
from pruning.weights import load_weights
from tests.unit.pruning.folder import FolderStore

logger = logging.getLogger(__name__)
FP32 = Compute(torch.device("cpu"))
VIT = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
TEXT = {"vocab_size": 40, "max_position_embeddings": 24, "num_labels": 2, "pad_token_id": 0}
BERT = {**VIT, **TEXT}
DISTILBERT = {"dim": 32, "n_layers": 2, "n_heads": 4, "hidden_dim": 64, **TEXT}


@pytest.fixture(scope="module")
def digits(store: FolderStore) -> CheckedSplits:
    """Digits of 24 x 24 pixels: most networks of a library halve their input more often than 8 pixels allow."""
    splits = load_data(DataSpec(name="digits"), store)
    larger = {
        name: (F.interpolate(inputs[:1000], scale_factor=3, mode="bilinear"), None if labels is None else labels[:1000])
        for name, (inputs, labels) in splits.named()
    }
    return CheckedSplits(**larger)


@pytest.fixture(scope="module")
def texts() -> CheckedSplits:
    """Rows of token ids, filled up with zeros; the label says which of two words comes up more often."""
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(5, 40, (1500, 12), generator=generator)
    which = torch.rand(1500, 12, generator=generator)
    ids = torch.where(which < 0.25, 3, torch.where(which > 0.75, 4, ids))
    ids[:, 9:] = torch.where(torch.rand(1500, 3, generator=generator) < 0.5, 0, ids[:, 9:])
    labels = ((ids == 3).sum(1) > (ids == 4).sum(1)).long()
    pairs = [(ids[part].float(), labels[part]) for part in (slice(0, 1000), slice(1000, 1250), slice(1250, None))]
    return CheckedSplits(*pairs)


def _trained(spec: ModelSpec, splits: CheckedSplits, epochs: float) -> Dense:
    def fill(model: nn.Module, dense: Dense) -> None:
        train(model, dense.training_set(distill=False, hold=nullcontext), Recipe(epochs, 0.05), FP32)

    return open_dense(spec, splits, "accuracy", 0, FP32, fill)


@pytest.mark.parametrize(
    ("name", "params", "data", "epochs", "units", "least"),
    [
        ("timm/resnet10t", {"num_classes": 10, "in_chans": 1}, "digits", 3, {}, 6),
        ("timm/mobilenetv3_small_050", {"num_classes": 10, "in_chans": 1}, "digits", 8, {}, 12),
        ("timm/densenet121", {"num_classes": 10, "in_chans": 1, "growth_rate": 8, "block_config": [2, 2]}, "digits", 5, {}, 5),
        (
            "timm/deit_tiny_patch16_224",
            {"num_classes": 10, "in_chans": 1, "img_size": 24, "patch_size": 6, "depth": 2, "embed_dim": 48, "num_heads": 4},
            "digits", 30, {Kind.HEADS: 2}, 5,
        ),
        ("torchvision/resnet18", {"num_classes": 10}, "digits-rgb", 5, {}, 8),
        ("timm/regnety_002", {"num_classes": 10, "in_chans": 1}, "digits", 6, {Kind.SETS: 13}, 20),
        (
            "timm/resnext26ts",
            {"num_classes": 10, "in_chans": 1},
            "digits", 6, {Kind.SETS: 8}, 10,
        ),
        ("transformers/bert", BERT, "texts", 15, {Kind.HEADS: 2}, 4),
        ("transformers/distilbert", DISTILBERT, "texts", 15, {Kind.HEADS: 2}, 4),
        (
            "transformers/vit",
            {**VIT, "task": "image-classification", "image_size": 24, "patch_size": 6, "num_channels": 1, "num_labels": 10},
            "digits", 40, {Kind.HEADS: 2}, 5,
        ),
    ],
    ids=lambda value: value if isinstance(value, str) and "/" in value else "",
)  # fmt: skip
def test_a_model_of_a_library_is_trained_cut_recovered_and_exported(
    request: pytest.FixtureRequest,
    name: str,
    params: dict[str, Any],
    data: str,
    epochs: float,
    units: dict[Kind, int],
    least: int,
) -> None:
    splits: CheckedSplits = request.getfixturevalue(data.removesuffix("-rgb"))
    if data.endswith("-rgb"):
        splits = CheckedSplits(*((inputs.expand(-1, 3, -1, -1), labels) for _, (inputs, labels) in splits.named()))
    torch.manual_seed(0)
    dense = _trained(ModelSpec(source="plugin", name=name, params=params), splits, epochs)
    before = dense.evaluate(dense.model, "val", nullcontext)
    assert before > 0.8
    groups = dense.groups()
    assert len(groups.groups) >= least
    assert Counter(group.kind for group in groups.groups if group.kind is not Kind.CHANNELS) == units
    assert all(layer.reason for layer in groups.unprunable)
    widths = {group.name: max(1, round(group.channels * 0.6)) for group in groups.groups}
    pruned = dense.prune(widths, ImportanceMix(l2=1, taylor=1, activation=1), nullcontext)
    assert read_widths(pruned, groups) == widths
    reestimate_batch_norm(pruned, splits.train[0], FP32)
    train(pruned, dense.training_set(distill=True, hold=nullcontext), Recipe(max(6, epochs / 2), 0.05), FP32)
    after = dense.evaluate(pruned, "val", nullcontext)
    logger.info(f"{name}: {before:.3f} -> {after:.3f}, {len(groups.groups)} groups, {units}")
    assert after > before - 0.07
    sample = splits.val[0][:3]
    exporter = make_exporter("onnx")
    with torch.no_grad():
        exporter.check(exporter.export(pruned, sample), sample, joined(file_outputs(pruned, sample)))


def test_attention_that_nobody_described_is_refused_by_the_name_of_its_class(digits: CheckedSplits) -> None:
    params = {
        "num_classes": 10,
        "in_chans": 1,
        "img_size": 24,
        "patch_size": 2,
        "window_size": 3,
        "depths": [2],
        "num_heads": [2],
        "embed_dim": 16,
    }
    dense = _trained(ModelSpec(source="plugin", name="timm/swin_tiny_patch4_window7_224", params=params), digits, 0)
    reasons = {layer.name: layer.reason for layer in dense.groups().unprunable}
    whole = [reason for name, reason in reasons.items() if name.endswith("qkv")]
    assert len(whole) == 2 and all(reason for reason in whole), reasons
    assert not any(group.kind is Kind.HEADS for group in dense.groups().groups)
    logger.info(str(reasons))


def test_channels_that_are_shuffled_cannot_be_followed_and_that_is_said_before_any_work(digits: CheckedSplits) -> None:
    splits = CheckedSplits(*((inputs.expand(-1, 3, -1, -1), labels) for _, (inputs, labels) in digits.named()))
    spec = ModelSpec(source="plugin", name="torchvision/shufflenet_v2_x0_5", params={"num_classes": 10})
    dense = _trained(spec, splits, 0)
    with pytest.raises(Invalid, match="channel shuffle") as caught:
        dense.groups()
    assert caught.value.code == "channels_not_followed"


def test_torch_own_attention_is_unpacked_and_takes_the_weights_of_the_packed_one() -> None:
    torchvision = pytest.importorskip("torchvision")
    from pruning.zoo.unpacked import unpack_attention

    torch.manual_seed(0)
    packed = torchvision.models.VisionTransformer(24, 4, 2, 4, 32, 64, num_classes=10).eval()
    example = torch.randn(2, 3, 24, 24)
    with torch.no_grad():
        wanted = packed(example)
    file = save({name: tensor.clone() for name, tensor in packed.state_dict().items()})
    fresh = unpack_attention(torchvision.models.VisionTransformer(24, 4, 2, 4, 32, 64, num_classes=10)).eval()
    load_weights(fresh, file)
    with torch.no_grad():
        torch.testing.assert_close(fresh(example), wanted, rtol=1e-4, atol=1e-5)


def test_weights_of_transformers_go_by_the_names_it_gives_them() -> None:
    import transformers

    torch.manual_seed(0)
    model = transformers.AutoModelForSequenceClassification.from_config(transformers.BertConfig(**BERT)).eval()
    ids = torch.randint(1, 40, (2, 12))
    ids[:, 8:] = 0
    with torch.no_grad():
        wanted = model(input_ids=ids, attention_mask=(ids != 0).long()).logits
    made = build_model(ModelSpec(source="plugin", name="transformers/bert", params=BERT)).eval()
    load_weights(made, save({name: tensor.clone() for name, tensor in model.state_dict().items()}))
    made.bind((12,))
    with torch.no_grad():
        torch.testing.assert_close(made(ids.float()), wanted, rtol=1e-4, atol=1e-5)


def test_the_libraries_are_listed_as_plug_ins_that_work() -> None:
    told = import_all()
    for name in ("timm", "torchvision", "transformers"):
        assert told[f"pruneloop.models:{name}"] is None


def test_a_name_that_the_library_does_not_know_is_said_to_be_so() -> None:
    with pytest.raises(Exception, match="resnet_of_mine") as caught:
        build_model(ModelSpec(source="plugin", name="timm/resnet_of_mine"))
    assert getattr(caught.value, "code", "") == "bad_model_params"
