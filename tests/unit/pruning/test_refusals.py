"""Nothing is skipped silently: what cannot be converted, followed or cut is named, node or layer, before any work is done."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx
import pytest
import torch
import torch.nn.functional as F  # noqa: N812 - torch's own custom
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor, nn

from domain.errors import Invalid
from pruning.from_onnx import BadOnnx, UnsupportedOnnx, convert
from pruning.groups import Groups, find_groups

ONE = np.ones((1,), np.float32)


def _model(
    *nodes: onnx.NodeProto, opset: int = 21, domain: str = "", constants: dict[str, np.ndarray] | None = None
) -> onnx.ModelProto:
    """A graph from ``x`` ``(batch, 3, 8, 8)`` to ``y``, with one convolution that can be converted before the nodes."""
    conv = helper.make_node("Conv", ["x", "w"], ["c"], name="stem", kernel_shape=[3, 3])
    tensors = {"w": np.ones((4, 3, 3, 3), np.float32), "one": ONE, **(constants or {})}
    graph = helper.make_graph(
        [conv, *nodes],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 3, 8, 8])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["any"])],
        [numpy_helper.from_array(array, name) for name, array in tensors.items()],
    )
    opsets = [helper.make_opsetid("", opset), *([helper.make_opsetid(domain, 1)] if domain else [])]
    return helper.make_model(graph, opset_imports=opsets, ir_version=10)


def _body(*outputs: str) -> onnx.GraphProto:
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["any"]) for name in outputs]
    nodes = [helper.make_node("Identity", ["c"], [name]) for name in outputs]
    return helper.make_graph(nodes, "body", [], values)


UNSUPPORTED = {
    "detections": (helper.make_node("NonMaxSuppression", ["c", "c"], ["y"], name="pick"), "NonMaxSuppression (pick)"),
    "bent convolution": (helper.make_node("DeformConv", ["c", "w", "c"], ["y"], name="bend"), "DeformConv (bend)"),
    "chance": (helper.make_node("RandomNormalLike", ["c"], ["y"], name="dice"), "RandomNormalLike (dice)"),
    "coins": (helper.make_node("Bernoulli", ["c"], ["y"], name="coin"), "Bernoulli (coin)"),
    "integer weights": (helper.make_node("ConvInteger", ["c", "w"], ["y"], name="small"), "ConvInteger (small)"),
    "a sequence": (helper.make_node("SequenceConstruct", ["c"], ["y"], name="list"), "SequenceConstruct (list)"),
    "what differs": (helper.make_node("Unique", ["c"], ["y"], name="set"), "Unique (set)"),
    "a branch that data takes": (
        helper.make_node("If", ["c"], ["y"], name="fork", then_branch=_body("t"), else_branch=_body("e")),
        "If (fork)",
    ),
    "an operator without a name": (helper.make_node("Multinomial", ["c"], ["y"]), "Multinomial (node 1)"),
}


@pytest.mark.parametrize(("node", "named"), UNSUPPORTED.values(), ids=UNSUPPORTED.keys())
def test_an_operator_that_is_not_converted_is_named_with_its_node(node: onnx.NodeProto, named: str) -> None:
    with pytest.raises((UnsupportedOnnx, BadOnnx)) as caught:
        convert(_model(node).SerializeToString())
    assert isinstance(caught.value, UnsupportedOnnx), caught.value
    assert named in caught.value.message and caught.value.fields
    assert not any("(stem)" in field.message for field in caught.value.fields)  # what can be converted is not blamed


def test_an_operator_of_another_domain_is_named_with_it() -> None:
    node = helper.make_node("FusedConv", ["c"], ["y"], name="fused", domain="com.microsoft")
    with pytest.raises(UnsupportedOnnx, match=r"com\.microsoft\.FusedConv \(fused\)"):
        convert(_model(node, domain="com.microsoft").SerializeToString())


def test_all_of_them_are_named_at_once_and_not_what_hangs_on_them() -> None:
    nodes = [
        helper.make_node("Bernoulli", ["c"], ["b"], name="coin"),
        helper.make_node("Relu", ["b"], ["r"], name="innocent"),
        helper.make_node("Pad", ["c", "c"], ["p"], name="data-made"),
        helper.make_node("Unique", ["r"], ["y"], name="set"),
    ]
    with pytest.raises(UnsupportedOnnx) as caught:
        convert(_model(*nodes).SerializeToString())
    told = caught.value.message
    assert "Bernoulli (coin)" in told and "Unique (set)" in told and "innocent" not in told
    assert caught.value.metadata["operators"] == ["Bernoulli", "Unique"]


def _cut(file: bytes) -> bytes:
    return file[: len(file) // 2]


GOOD = _model(helper.make_node("Relu", ["c"], ["y"])).SerializeToString()


def _external() -> bytes:
    model = onnx.load_from_string(GOOD)
    tensor = model.graph.initializer[0]
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="/etc/passwd")
    return bytes(model.SerializeToString())


BROKEN: dict[str, bytes | Callable[[], bytes]] = {
    "nothing": b"",
    "a pickle": b"\x80\x04\x95pickle",
    "text": b"this is no model",
    "half a file": _cut(GOOD),
    "weights elsewhere": _external,
    "too old": _model(helper.make_node("Relu", ["c"], ["y"]), opset=8).SerializeToString(),
    "from the future": _model(helper.make_node("Relu", ["c"], ["y"]), opset=99).SerializeToString(),
    "an input from nowhere": _model(helper.make_node("Relu", ["ghost"], ["y"])).SerializeToString(),
    "an output from nowhere": _model(helper.make_node("Relu", ["c"], ["z"])).SerializeToString(),
    "an unknown operator": _model(helper.make_node("Magic", ["c"], ["y"], name="wand")).SerializeToString(),
}


@pytest.mark.parametrize("file", BROKEN.values(), ids=BROKEN.keys())
def test_a_broken_file_is_refused_with_the_reason(file: bytes | Callable[[], bytes]) -> None:
    with pytest.raises(Invalid) as caught:
        convert(file() if callable(file) else file)
    assert caught.value.code in {"bad_onnx", "unsupported_onnx"} and len(caught.value.message) > 20


class _Net(nn.Module):
    """A convolution that can be cut, then something that cannot, then a classifier."""

    def __init__(
        self, middle: nn.Module | None = None, then: Callable[[nn.Module, Tensor], Tensor] | None = None
    ) -> None:
        super().__init__()
        self.free, self.body = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1)
        self.middle = middle or nn.Identity()
        self.then = then
        self.classifier = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.middle(self.body(torch.relu(self.free(x))))
        x = self.then(self, x) if self.then is not None else x
        return self.classifier(x.mean((2, 3)) if x.ndim == 4 else x)


def _weight_normed() -> nn.Module:
    return nn.utils.parametrizations.weight_norm(nn.Conv2d(8, 8, 1))


def _tied() -> nn.Module:
    first, second = nn.Conv2d(8, 8, 1), nn.Conv2d(8, 8, 1)
    second.weight = first.weight
    return nn.Sequential(first, nn.ReLU(), second)


COUPLED: dict[str, tuple[Callable[[], nn.Module], str, str]] = {
    "a group norm over all channels": (lambda: _Net(nn.GroupNorm(1, 8)), "body", "GroupNorm"),
    "convolutions of other groups": (
        lambda: _Net(nn.Sequential(nn.Conv2d(8, 12, 3, padding=1, groups=2), nn.Conv2d(12, 8, 3, padding=1, groups=4))),
        "middle",
        "its groups are others",
    ),
    "a softmax over channels": (lambda: _Net(then=lambda net, x: x.softmax(1)), "body", "not independent"),
    "a norm over channels": (lambda: _Net(then=lambda net, x: F.normalize(x, dim=1)), "body", "not independent"),
    "a fixed number of channels": (
        lambda: _Net(then=lambda net, x: x.reshape(-1, 8, 64).mean(2)),
        "body",
        "does not run",
    ),
    "a parametrised weight": (lambda: _Net(_weight_normed()), "middle", "parametris"),
    "weights of two layers in one": (lambda: _Net(_tied()), "body", "share"),
}


@pytest.mark.parametrize(("make", "layer", "words"), COUPLED.values(), ids=COUPLED.keys())
def test_a_coupling_that_cannot_be_cut_names_its_layer_and_why(
    make: Callable[[], nn.Module], layer: str, words: str
) -> None:
    groups = find_groups(make().eval(), torch.randn(2, 3, 8, 8))
    reasons = {one.name: one.reason for one in groups.unprunable}
    named = [name for name in reasons if name == layer or name.startswith(f"{layer}.")]
    assert named and any(words in reasons[name] for name in named), reasons
    assert any(group.name == "free" for group in groups.groups)  # the rest is not lost with it
    _nothing_is_silent(make(), groups)


class _Words(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.table, self.attention = nn.Embedding(20, 8), nn.MultiheadAttention(8, 2, batch_first=True)
        self.recurrent, self.hidden = nn.GRU(8, 6, batch_first=True), nn.Linear(6, 12)
        self.mixed, self.classifier = nn.Bilinear(12, 12, 7), nn.Linear(7, 3)

    def forward(self, ids: Tensor) -> Tensor:
        tokens = self.table(ids.long())
        tokens = tokens + self.attention(tokens, tokens, tokens, need_weights=False)[0]
        hidden = torch.relu(self.hidden(self.recurrent(tokens)[0][:, -1]))
        return self.classifier(self.mixed(hidden, hidden))


def test_every_layer_with_weights_is_in_a_group_or_named() -> None:
    model = _Words().eval()
    try:
        groups = find_groups(model, torch.randint(0, 20, (2, 5)).float())
    except Invalid as error:  # nothing is left to cut: then the error names them all
        assert error.code == "nothing_to_prune"
        for name in ("table", "attention", "recurrent", "hidden", "mixed", "classifier"):
            assert f"{name}" in error.message
        return
    _nothing_is_silent(model, groups)


def _nothing_is_silent(model: nn.Module, groups: Groups) -> None:
    told = {layer.name: layer.reason for layer in groups.unprunable}
    members = {member.name for group in groups.groups for member in group.members}
    for name, module in model.named_modules():
        has_weights = any(parameter.ndim > 1 for parameter in module.parameters(recurse=False))
        is_part = name.rpartition(".")[0] in told or any(name.startswith(f"{one}.") for one in told)
        assert not has_weights or name in members or name in told or is_part, name
    assert all(told.values())
