"""An uploaded ONNX file: pruned without labels, recovered, exported under its own names; what cannot be is said before any work."""

from __future__ import annotations

import io
import warnings
from contextlib import nullcontext

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor, nn

from domain.artifact import ArtifactKind
from domain.build import BuildOutcome, BuildRequest, BuildResult, CandidateRequest, FinalRequest, PrepareRequest
from domain.candidate import Candidate, ImportanceMix, RecoveryPlan
from domain.job import DataSpec, ModelSpec
from domain.outcome import Blame, Failed
from pruning.builder import TorchBuilder
from pruning.datasets import load_data
from pruning.from_onnx import UnsupportedOnnx, convert
from pruning.models.plain import ConvNet
from pruning.weights import load_weights
from tests.unit.pruning.folder import FolderStore

MODEL = ModelSpec(name="convnet", params={"width": 8})
DIGITS = DataSpec(name="digits")


class WithFeatures(nn.Module):
    """A classifier that gives its features as well: two outputs, the second one a map."""

    def __init__(self, net: ConvNet) -> None:
        super().__init__()
        self.net = net

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        features = self.net.features(image)
        logits = self.net.classifier(torch.flatten(self.net.pool(features), 1))
        return torch.softmax(logits, 1), torch.sigmoid(features.mean(1, keepdim=True))


@pytest.fixture(scope="module")
def builder(store: FolderStore) -> TorchBuilder:
    return TorchBuilder(store, threads=1, torch_device="cpu")


@pytest.fixture(scope="module")
def net(builder: TorchBuilder, store: FolderStore) -> ConvNet:
    """Trained on digits, by the builder."""
    made = _built(_build(builder, PrepareRequest(model=MODEL, data=DIGITS)))
    net = ConvNet(width=8).eval()
    load_weights(net, store.read(made.weights.digest))
    return net


@pytest.fixture(scope="module")
def unlabelled(store: FolderStore) -> DataSpec:
    splits = load_data(DIGITS, store)
    buffer = io.BytesIO()
    parts = {"train": splits.train, "val": splits.val, "test": splits.test}
    np.savez(buffer, **{f"{name}_inputs": inputs.numpy() for name, (inputs, _) in parts.items()})
    return DataSpec(source="npz", artifact=store.put_bytes(buffer.getvalue(), ArtifactKind.DATA).digest)


def _build(builder: TorchBuilder, request: BuildRequest) -> BuildOutcome:
    return builder.build(request, progress=lambda stage, fraction: None, hold=nullcontext)


def _built(outcome: BuildOutcome) -> BuildResult:
    assert isinstance(outcome, BuildResult), outcome
    return outcome


def _failed(outcome: BuildOutcome) -> Failed:
    assert isinstance(outcome, Failed), outcome
    return outcome


def _file(net: nn.Module, *, names: tuple[str, ...], is_free: bool, opset: int) -> bytes:
    buffer = io.BytesIO()
    axes = {name: {0: "samples"} for name in ("image", *names)} if is_free else None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that this exporter is the older one
        torch.onnx.export(
            net,
            (torch.zeros(1, 1, 8, 8),),
            buffer,  # type: ignore[arg-type]
            dynamo=False,
            opset_version=opset,
            input_names=["image"],
            output_names=list(names),
            dynamic_axes=axes,
        )
    return buffer.getvalue()


def _with_constant_nodes(file: bytes) -> bytes:
    """Move every initialiser into a Constant node, as other exporters write weights."""
    model = onnx.load_from_string(file)
    constants = [helper.make_node("Constant", [], [tensor.name], value=tensor) for tensor in model.graph.initializer]
    nodes = [*constants, *model.graph.node]
    del model.graph.initializer[:]
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    made: bytes = model.SerializeToString()
    return made


def _stored(store: FolderStore, file: bytes) -> ModelSpec:
    return ModelSpec(source="onnx", artifact=store.put_bytes(file, ArtifactKind.ONNX).digest)


def _halved(prepared: BuildResult, epochs: float = 1.0) -> Candidate:
    return Candidate(
        sparsity={group.name: 0.5 for group in prepared.groups},
        widths={group.name: group.channels // 2 for group in prepared.groups},
        importance=ImportanceMix(l2=1, taylor=1, activation=1),
        recovery=RecoveryPlan(epochs=epochs, learning_rate=0.05, precision="fp32"),
    )


def test_a_file_with_constant_nodes_is_pruned_without_labels_and_keeps_its_names(
    builder: TorchBuilder, store: FolderStore, net: ConvNet, unlabelled: DataSpec
) -> None:
    model = _stored(store, _with_constant_nodes(_file(net, names=("scores",), is_free=True, opset=9)))
    dense = _built(_build(builder, PrepareRequest(model=model, data=unlabelled, batch=2)))
    assert dense.accuracy.search == 1.0
    assert {"metric: agreement", "weights of the file"} <= set(dense.notes)
    candidate = _halved(dense)
    common = {"model": model, "data": unlabelled, "batch": 2, "weights": dense.weights, "candidate": candidate}
    cut = _built(_build(builder, CandidateRequest(**common)))
    assert cut.macs < 0.4 * dense.macs
    assert 0.85 < cut.accuracy.search < 1.0
    final = _built(_build(builder, FinalRequest(**common, start=cut.weights, epochs=1)))
    assert final.accuracy.test is not None and final.accuracy.test > 0.85
    session = onnxruntime.InferenceSession(store.read(final.artifacts[0].artifact.digest))
    (given,), (made,) = session.get_inputs(), session.get_outputs()
    assert (given.name, given.shape, made.name, made.shape) == (
        "image",
        ["samples", 1, 8, 8],
        "scores",
        ["samples", 10],
    )
    images = load_data(unlabelled, store).test[0].numpy()
    with torch.no_grad():
        wanted = net(torch.from_numpy(images)).argmax(1).numpy()
    agreement = float((session.run(None, {"image": images})[0].argmax(1) == wanted).mean())
    assert agreement == pytest.approx(final.accuracy.test, abs=1e-6)  # said of this very file


def test_several_outputs_are_kept_by_the_share_of_their_variance(
    builder: TorchBuilder, store: FolderStore, net: ConvNet, unlabelled: DataSpec
) -> None:
    model = _stored(store, _file(WithFeatures(net).eval(), names=("scores", "map"), is_free=True, opset=17))
    dense = _built(_build(builder, PrepareRequest(model=model, data=unlabelled)))
    assert dense.accuracy.search == 1.0
    raw = CandidateRequest(model=model, data=unlabelled, weights=dense.weights, candidate=_halved(dense, epochs=0))
    recovered = raw.model_copy(update={"candidate": _halved(dense, epochs=2)})
    before, after = _built(_build(builder, raw)), _built(_build(builder, recovered))
    assert after.accuracy.search > max(0.8, before.accuracy.search + 0.05)  # distillation is the only teacher
    session = onnxruntime.InferenceSession(store.read(after.artifacts[0].artifact.digest))
    assert [node.name for node in session.get_outputs()] == ["scores", "map"]
    with np.load(io.BytesIO(store.read(after.artifacts[0].check.digest)), allow_pickle=False) as check:
        assert check["output_map"].shape == (1, 1, 2, 2)
        np.testing.assert_allclose(check["output_scores"].sum(1), 1.0, rtol=1e-4)  # probabilities, as the file gives


def test_a_batch_baked_into_the_file_is_freed(
    builder: TorchBuilder, store: FolderStore, net: ConvNet, unlabelled: DataSpec
) -> None:
    file = onnx.load_from_string(_file(net, names=("scores",), is_free=False, opset=17))
    flatten = next(node for node in file.graph.node if node.op_type == "Flatten")
    file.graph.initializer.append(numpy_helper.from_array(np.array([1, -1]), "flat"))
    flatten.op_type = "Reshape"
    flatten.input.append("flat")
    del flatten.attribute[:]
    dense = _built(_build(builder, PrepareRequest(model=_stored(store, file.SerializeToString()), data=unlabelled)))
    session = onnxruntime.InferenceSession(store.read(dense.artifacts[0].artifact.digest))
    images = load_data(unlabelled, store).test[0][:3]
    with torch.no_grad():
        np.testing.assert_allclose(
            session.run(None, {"image": images.numpy()})[0], net(images).numpy(), rtol=1e-3, atol=1e-3
        )


def test_samples_that_hang_together_are_refused(
    builder: TorchBuilder, store: FolderStore, unlabelled: DataSpec
) -> None:
    nodes = [
        helper.make_node("ReduceMean", ["image"], ["mean"], axes=[0], keepdims=1),
        helper.make_node("Sub", ["image", "mean"], ["centred"]),
        helper.make_node("Conv", ["centred", "w"], ["maps"], kernel_shape=[8, 8]),
        helper.make_node("Flatten", ["maps"], ["scores"]),
    ]
    model = _stored(store, _made(nodes, {"w": np.ones((10, 1, 8, 8), np.float32)}))
    failed = _failed(_build(builder, PrepareRequest(model=model, data=unlabelled)))
    assert (failed.code, failed.blame) == ("baked_batch", Blame.CANDIDATE)


def test_every_node_that_is_not_converted_is_named_before_the_data_is_looked_at(
    builder: TorchBuilder, store: FolderStore
) -> None:
    nodes = [
        helper.make_node("NonMaxSuppression", ["image", "image"], ["kept"], name="suppress"),
        helper.make_node("DeformConv", ["image", "w", "image"], ["maps"], name="bend"),
        helper.make_node("Flatten", ["maps"], ["scores"]),
    ]
    model = _stored(store, _made(nodes, {"w": np.ones((10, 1, 3, 3), np.float32)}, opset=19))
    nothing = DataSpec(source="npz", artifact=store.put_bytes(b"no npz", ArtifactKind.DATA).digest)
    failed = _failed(_build(builder, PrepareRequest(model=model, data=nothing)))
    assert failed.code == "unsupported_onnx"
    assert "NonMaxSuppression (suppress)" in failed.reason and "DeformConv (bend)" in failed.reason


def test_what_is_no_onnx_is_said(builder: TorchBuilder, store: FolderStore) -> None:
    file = b"\x80\x04pickled"
    failed = _failed(_build(builder, PrepareRequest(model=_stored(store, file), data=DIGITS)))
    assert (failed.code, failed.stage, failed.retryable) == ("bad_onnx", "load", False)


@pytest.mark.parametrize("size", [8, None])
def test_an_if_that_the_file_decides_is_folded_and_one_that_data_decides_is_named(
    builder: TorchBuilder, store: FolderStore, unlabelled: DataSpec, size: int | None
) -> None:
    branches = {
        name: helper.make_graph(
            [helper.make_node(operator, ["maps"], [f"{name}_out"])], name, [], [_value(f"{name}_out", None)]
        )
        for name, operator in (("then_branch", "Relu"), ("else_branch", "Neg"))
    }
    nodes = [
        helper.make_node("Shape", ["image"], ["sizes"]),
        helper.make_node("Gather", ["sizes", "last"], ["width"]),
        helper.make_node("Equal", ["width", "eight"], ["is_eight"]),
        helper.make_node("Conv", ["image", "w"], ["maps"], kernel_shape=[4, 4], name="conv"),
        helper.make_node("If", ["is_eight"], ["chosen"], name="choose", **branches),
        helper.make_node("Conv", ["chosen", "v"], ["more"], kernel_shape=[5, 5]),
        helper.make_node("Flatten", ["more"], ["scores"]),
    ]
    rng = np.random.default_rng(0)
    constants = {
        "w": rng.standard_normal((6, 1, 4, 4)).astype(np.float32),
        "v": rng.standard_normal((10, 6, 5, 5)).astype(np.float32),
        "last": np.array(3),
        "eight": np.array(8),
    }
    file = _made(nodes, constants, sizes=["batch", 1, size or "height", size or "width"])
    if size is None:
        with pytest.raises(UnsupportedOnnx, match=r"If \(choose\)"):
            convert(file)
    else:
        outcome = _build(builder, PrepareRequest(model=_stored(store, file), data=unlabelled))
        session = onnxruntime.InferenceSession(store.read(_built(outcome).artifacts[0].artifact.digest))
        kinds = {
            node.op_type
            for node in onnx.load_from_string(store.read(_built(outcome).artifacts[0].artifact.digest)).graph.node
        }
        assert "If" not in kinds and "Relu" in kinds and session.get_inputs()[0].name == "image"


def _made(
    nodes: list[onnx.NodeProto],
    constants: dict[str, np.ndarray],
    *,
    sizes: list[int | str | None] | None = None,
    opset: int = 17,
) -> bytes:
    graph = helper.make_graph(
        nodes, "test", [_value("image", sizes or ["batch", 1, 8, 8])], [_value("scores", ["batch", 10])],
        [numpy_helper.from_array(array, name) for name, array in constants.items()],
    )  # fmt: skip
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=9)
    data: bytes = made.SerializeToString()
    return data


def _value(name: str, sizes: list[int | str | None] | None) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, TensorProto.FLOAT, sizes)
