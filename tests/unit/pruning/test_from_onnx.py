"""ONNX to torch: the same outputs, trainable, prunable, and refusals that name every node."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor, fx, nn

from domain.job import ModelSpec
from pruning.exporters import make_exporter
from pruning.exporters.precision import PRECISIONS, in_precision
from pruning.from_onnx import BadOnnx, UnsupportedOnnx, convert, supported_operators
from pruning.groups import find_groups
from pruning.models import build_model
from pruning.surgery import prune_to_widths

CLOSE = {"fp32": 1e-5, "fp16": 3e-3, "int8": 0.05}  # int8: a value between two steps may be rounded to the other one


def _file(
    nodes: list[onnx.NodeProto],
    constants: dict[str, np.ndarray],
    *,
    shape: list[int | str],
    outputs: Mapping[str, int] = MappingProxyType({"y": 2}),
    opset: int = 17,
    dtype: int = TensorProto.FLOAT,
) -> bytes:
    graph = helper.make_graph(
        nodes,
        "test",
        [helper.make_tensor_value_info("x", dtype, shape)],
        [
            helper.make_tensor_value_info(name, TensorProto.FLOAT, [f"{name}{axis}" for axis in range(rank)])
            for name, rank in outputs.items()
        ],
        [numpy_helper.from_array(array, name) for name, array in constants.items()],
    )
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)
    data: bytes = made.SerializeToString()
    return data


def _normal(*shape: int) -> np.ndarray:
    return np.random.default_rng(sum(shape)).standard_normal(shape).astype(np.float32)


def _exported(name: str, precision: str) -> tuple[nn.Module, bytes, Tensor]:
    torch.manual_seed(0)
    model = build_model(ModelSpec(name=name, params={"width": 8})).eval()
    inputs = torch.randn(32, 1, 16, 16)
    return model, in_precision(make_exporter("onnx").export(model, inputs[:4]), precision, inputs), inputs


def test_layer_norms_are_trained_where_sizes_are_not_inferred_too() -> None:
    model = build_model(ModelSpec(name="vit")).eval()
    module = convert(make_exporter("onnx").export(model, torch.randn(1, 1, 28, 28))).module
    for kind in (nn.LayerNorm, nn.Linear, nn.Conv2d):
        assert sum(isinstance(layer, kind) for layer in module.modules()) == sum(
            isinstance(layer, kind) for layer in model.modules()
        )


@pytest.mark.parametrize("name", ["resnet8", "mobilenet", "convnet"])
@pytest.mark.parametrize("precision", PRECISIONS)
def test_what_we_export_comes_back_and_every_weight_gets_a_gradient(name: str, precision: str) -> None:
    _, file, inputs = _exported(name, precision)
    module = convert(file).module
    given = module(inputs[:4])
    wanted = make_exporter("onnx").run(file, inputs[:4], threads=1)
    assert (given - wanted).abs().max() <= CLOSE[precision] * wanted.abs().max()
    given.square().sum().backward()
    parameters = dict(module.named_parameters())
    assert parameters and all(parameter.is_floating_point() for parameter in parameters.values())
    for path, parameter in parameters.items():
        assert parameter.grad is not None and parameter.grad.isfinite().all(), path


@pytest.mark.parametrize("name", ["resnet8", "mobilenet", "convnet"])
def test_a_converted_file_is_pruned_like_the_model_it_was(name: str) -> None:
    model, file, inputs = _exported(name, "fp32")
    module = convert(file).module
    groups, own = find_groups(module, inputs[:2]), find_groups(model, inputs[:2])
    assert [(g.name, g.channels) for g in groups.groups] == [(g.name, g.channels) for g in own.groups]
    scores = {group.name: torch.rand(group.channels) for group in groups.groups}
    pruned = prune_to_widths(module, groups, {group.name: 3 for group in groups.groups}, scores, inputs[:2])
    assert pruned(inputs).shape == model(inputs).shape
    exporter = make_exporter("onnx")
    with torch.no_grad():
        exporter.check(exporter.export(pruned, inputs[:2]), inputs[:2], pruned(inputs[:2]))


def test_a_free_batch_stays_free_and_sizes_are_numbers() -> None:
    class Flattened(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 4, 3)
            self.head = nn.Linear(4 * 6 * 6, 5)

        def forward(self, x: Tensor) -> Tensor:
            x = self.conv(x)
            return self.head(x.view(x.size(0), x.size(1) * x.size(2) * x.size(3)))

    import io
    import warnings

    model, buffer = Flattened().eval(), io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            model, (torch.randn(1, 3, 8, 8),), buffer, dynamo=False, dynamic_axes={"x": {0: "n"}}, input_names=["x"]
        )
    converted = convert(buffer.getvalue())
    assert converted.inputs[0].shape == (None, 3, 8, 8)
    inputs = torch.randn(7, 3, 8, 8)
    torch.testing.assert_close(converted.module(inputs), model(inputs))
    calls = [node.target for node in converted.module.graph.nodes if node.op == "call_function"]
    assert calls == [torch.flatten]  # the arithmetic on sizes is done, and the batch is not written down
    assert set(converted.module.state_dict()) == set(model.state_dict())


class Mixer(nn.Module):
    """Shuffled channels, grouped convolution, group norm, a bare scale and attention: what shapes are computed for."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(8, 8, 3, padding=1, groups=4)
        self.norm, self.line, self.last = nn.GroupNorm(2, 8), nn.LayerNorm(8), nn.Linear(8, 8, bias=False)
        self.scale = nn.Parameter(torch.randn(8, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        batch, channels, height, width = x.shape
        x = x.view(batch, 2, channels // 2, height, width).transpose(1, 2).reshape(batch, channels, height, width)
        x = self.norm(self.conv(x)) * self.scale
        tokens = self.last(self.line(x.flatten(2).transpose(1, 2)))
        tokens = torch.softmax(tokens @ tokens.transpose(-1, -2) / tokens.shape[-1] ** 0.5, -1) @ tokens
        back = tokens.transpose(1, 2).reshape(batch, channels, height, width)
        return nn.functional.interpolate(back, scale_factor=2.0, mode="bilinear")[:, :, 1:, ::2].mean((2, 3))


@pytest.mark.parametrize("opset", [11, 17])
def test_shapes_computed_by_older_and_newer_exporters_come_out_right_for_every_batch(opset: int) -> None:
    import io
    import warnings

    torch.manual_seed(0)
    model, buffer = Mixer().eval(), io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            model, (torch.randn(2, 8, 6, 6),), buffer, dynamo=False, opset_version=opset,
            dynamic_axes={"x": {0: "n"}}, input_names=["x"],
        )  # fmt: skip
    module = convert(buffer.getvalue()).module
    inputs = torch.randn(5, 8, 6, 6)
    torch.testing.assert_close(module(inputs), model(inputs), rtol=1e-4, atol=1e-5)
    module(inputs).square().sum().backward()
    assert all(parameter.grad is not None for parameter in module.parameters())


def test_layers_are_torchs_own_whichever_way_their_weights_are_written_down() -> None:
    table, matrix, bias = _normal(11, 6), _normal(6, 5), _normal(5)
    constant = helper.make_node("Constant", [], ["w"], value=numpy_helper.from_array(matrix))
    file = _file(
        [
            constant,
            helper.make_node("Gather", ["table", "x"], ["e"]),
            helper.make_node("MatMul", ["e", "w"], ["m"]),
            helper.make_node("Add", ["m", "bias"], ["a"]),
            helper.make_node("LayerNormalization", ["a", "scale"], ["y"]),
        ],
        {"table": table, "bias": bias, "scale": np.ones(5, np.float32)},
        shape=["n", 4],
        outputs={"y": 3},
        dtype=TensorProto.INT64,
    )
    module = convert(file).module
    kinds = [type(layer) for layer in module.children()]
    assert kinds == [nn.Embedding, nn.Linear, nn.LayerNorm]
    indices = torch.tensor([[0, 3, 10, 2]])
    rows = torch.from_numpy(table)[indices] @ torch.from_numpy(matrix) + torch.from_numpy(bias)
    torch.testing.assert_close(module(indices), torch.nn.functional.layer_norm(rows, (5,)))


@pytest.mark.parametrize("operator", ["Add", "Sub", "Mul", "Div", "Pow", "Greater", "Less", "Equal", "Min"])
@pytest.mark.parametrize("is_left", [True, False])
@pytest.mark.parametrize("dtype", [np.float32, np.int64])
def test_single_numbers_stand_on_either_side(operator: str, is_left: bool, dtype: type) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    inputs = np.arange(1, 7).reshape(2, 3).astype(dtype)
    node = helper.make_node(operator, ["c", "x"] if is_left else ["x", "c"], ["z"])
    kind = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    cast = helper.make_node("Cast", ["z"], ["y"], to=TensorProto.FLOAT)
    file = _file([node, cast], {"c": np.array(3, dtype)}, shape=["n", 3], dtype=kind)
    (wanted,) = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"]).run(None, {"x": inputs})
    np.testing.assert_allclose(convert(file).module(torch.from_numpy(inputs)).numpy(), wanted, rtol=1e-6)


def test_tied_matrices_stay_tied_and_equal_vectors_do_not() -> None:
    file = _file(
        [
            helper.make_node("Gemm", ["x", "w", "b"], ["h"], transB=1),
            helper.make_node("Relu", ["h"], ["r"]),
            helper.make_node("Gemm", ["r", "w", "b"], ["y"], transB=1),
        ],
        {"w": _normal(4, 4), "b": np.zeros(4, np.float32)},
        shape=["n", 4],
    )
    first, second = (layer for layer in convert(file).module.children() if isinstance(layer, nn.Linear))
    assert first.weight is second.weight
    assert first.bias is not second.bias


def test_everything_that_is_not_converted_is_told_at_once_with_its_node() -> None:
    file = _file(
        [
            helper.make_node("NonMaxSuppression", ["x", "x"], ["a"], name="boxes"),
            helper.make_node("Relu", ["x"], ["r"]),
            helper.make_node("StringNormalizer", ["r"], ["y"], name="words"),
        ],
        {},
        shape=[1, 2, 4],
        outputs={"y": 3},
    )
    with pytest.raises(UnsupportedOnnx) as caught:
        convert(file)
    assert [(one.operator, one.node) for one in caught.value.refusals] == [
        ("NonMaxSuppression", "boxes"), ("StringNormalizer", "words"),
    ]  # fmt: skip
    assert "boxes" in caught.value.message and "words" in caught.value.message
    assert caught.value.code == "unsupported_onnx"


def test_forms_that_are_not_converted_are_told_together_and_what_follows_them_is_not() -> None:
    file = _file(
        [
            helper.make_node("Resize", ["x", "", "scales"], ["a"], name="first", mode="linear", antialias=1),
            helper.make_node("Relu", ["a"], ["b"], name="follows"),
            helper.make_node("Resize", ["x", "", "scales"], ["c"], name="second", mode="linear", antialias=1),
            helper.make_node("Add", ["b", "c"], ["y"]),
        ],
        {"scales": np.array([1, 1, 2, 2], np.float32)},
        shape=[1, 1, 4, 4],
        outputs={"y": 4},
        opset=18,
    )
    with pytest.raises(UnsupportedOnnx) as caught:
        convert(file)
    assert [one.node for one in caught.value.refusals] == ["first", "second"]


@pytest.mark.parametrize("data", [b"", b"no model", bytes(100)])
def test_what_is_no_model_is_refused(data: bytes) -> None:
    with pytest.raises(BadOnnx):
        convert(data)


def test_weights_outside_the_file_are_never_looked_for() -> None:
    model = onnx.load_from_string(
        _file([helper.make_node("Add", ["x", "w"], ["y"])], {"w": _normal(4)}, shape=[4], outputs={"y": 1})
    )
    tensor = model.graph.initializer[0]
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    entry = tensor.external_data.add()
    entry.key, entry.value = "location", "../../etc/passwd"
    with pytest.raises(BadOnnx, match="other files"):
        convert(model.SerializeToString())


def test_names_of_a_file_are_never_run() -> None:
    evil = 'x"); raise SystemExit("ran") #\nraise SystemExit("ran")'
    node = helper.make_node("Conv", ["x", evil], [f"{evil}out"], name=f"/{evil}/Conv")
    add = helper.make_node("Add", [f"{evil}out", f"{evil}.class.forward"], ["y"])
    file = _file(
        [node, add],
        {evil: _normal(2, 1, 3, 3), f"{evil}.class.forward": _normal(2, 1, 1)},
        shape=[1, 1, 5, 5],
        outputs={"y": 4},
    )
    module = convert(file).module
    assert module(torch.randn(1, 1, 5, 5)).shape == (1, 2, 3, 3)
    assert isinstance(module, fx.GraphModule)
    assert not set('"#') & set(module.code)


def test_a_few_bytes_do_not_become_a_giant() -> None:
    sizes = np.array([1 << 20, 1 << 20], np.int64)
    for operator, constants in (
        ("ConstantOfShape", {"sizes": sizes}),
        ("Expand", {"one": np.ones((1, 1), np.float32), "sizes": sizes}),
        ("Tile", {"one": np.ones((1, 1), np.float32), "sizes": sizes}),
    ):
        nodes = [
            helper.make_node(operator, list(constants)[::1], ["big"]),
            helper.make_node("Mul", ["x", "big"], ["y"]),
        ]
        with pytest.raises(UnsupportedOnnx, match=r"giant|elements"):
            convert(_file(nodes, constants, shape=[1, 1]))


@pytest.mark.parametrize("kind", ["LSTM", "GRU"])
def test_recurrent_layers_give_what_onnx_runtime_gives(kind: str) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    gates = {"LSTM": 4, "GRU": 3}[kind]
    options = {"linear_before_reset": 1} if kind == "GRU" else {}
    file = _file(
        [helper.make_node(kind, ["x", "w", "r", "b"], ["y", "h"], hidden_size=6, direction="bidirectional", **options)],
        {"w": _normal(2, gates * 6, 5), "r": _normal(2, gates * 6, 6), "b": _normal(2, gates * 12)},
        shape=[7, "n", 5],
        outputs={"y": 4, "h": 3},
    )
    inputs = _normal(7, 3, 5)
    wanted = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"]).run(None, {"x": inputs})
    module = convert(file).module
    given = module(torch.from_numpy(inputs))
    for tensor, array in zip(given, wanted, strict=True):
        np.testing.assert_allclose(tensor.detach().numpy(), array, atol=1e-5)
    given[0].sum().backward()
    assert all(parameter.grad is not None for parameter in module.parameters())


def test_no_node_test_of_onnx_fails_and_as_many_pass_as_did() -> None:
    from collections import Counter

    from benchmarks.onnx_coverage import Ending, judge, node_tests

    verdicts = [judge(case) for case in node_tests()]
    assert [verdict for verdict in verdicts if verdict.ending is Ending.FAILED] == []
    counts = Counter(verdict.ending for verdict in verdicts)
    assert counts[Ending.PASSED] + counts[Ending.WITH_CONSTANTS] >= 1140
    assert {"Conv", "Resize", "LSTM", "QuantizeLinear"} <= set(supported_operators())


@pytest.mark.slow
def test_a_converted_module_compiles() -> None:
    import warnings

    _, file, inputs = _exported("resnet8", "fp32")
    module = convert(file).module
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")  # torch tells itself of its own deprecations while it compiles
        given = torch.compile(module, fullgraph=True)(inputs[:4])
        torch.testing.assert_close(given, module(inputs[:4]), rtol=1e-4, atol=1e-5)
