"""Exported files: valid, folded, equal to the module; and weights that travel without pickles."""

from __future__ import annotations

import io

import numpy as np
import onnx
import pytest
import torch
from torch import Tensor, nn

from domain.errors import Invalid
from domain.job import ModelSpec
from pruning.exporters import ExportFailed, exporter_names, make_exporter
from pruning.exporters.outputs import compare
from pruning.groups import find_groups
from pruning.models import build_model
from pruning.surgery import prune_to_widths
from pruning.weights import dump_weights, load_weights


def _model(name: str = "resnet8", width: int = 4) -> nn.Module:
    return build_model(ModelSpec(name=name, params={"width": width})).eval()


@pytest.mark.parametrize("name", ["resnet8", "convnet", "mobilenet"])
def test_a_pruned_models_file_gives_what_the_module_gives(name: str) -> None:
    model, inputs = _model(name), torch.randn(3, 1, 16, 16)
    groups = find_groups(model, inputs)
    scores = {group.name: torch.rand(group.channels) for group in groups.groups}
    pruned = prune_to_widths(model, groups, {group.name: 3 for group in groups.groups}, scores, inputs)
    exporter = make_exporter("onnx")
    file = exporter.export(pruned, inputs)
    with torch.no_grad():
        arrays = exporter.check(file, inputs, pruned(inputs))
    assert set(arrays) == {"input_input", "output_output"}


def test_batch_norm_is_folded_and_the_batch_is_fixed() -> None:
    graph = onnx.load_from_string(make_exporter("onnx").export(_model(), torch.randn(2, 1, 16, 16))).graph
    assert "BatchNormalization" not in {node.op_type for node in graph.node}
    assert [dim.dim_value for dim in graph.input[0].type.tensor_type.shape.dim] == [2, 1, 16, 16]
    assert (graph.input[0].name, graph.output[0].name) == ("input", "output")


def test_the_same_weights_give_the_same_bytes() -> None:
    model, inputs = _model(), torch.randn(1, 1, 16, 16)
    exporter = make_exporter("onnx")
    assert exporter.export(model, inputs) == exporter.export(model, inputs)


def test_a_file_is_run_on_any_number_of_samples() -> None:
    model, exporter = _model(), make_exporter("onnx")
    file = exporter.export(model, torch.randn(4, 1, 16, 16))
    inputs = torch.randn(10, 1, 16, 16)
    with torch.no_grad():
        torch.testing.assert_close(exporter.run(file, inputs, threads=1), model(inputs), rtol=1e-3, atol=1e-4)


def test_a_file_of_other_weights_is_caught() -> None:
    one, other, inputs = _model(), _model(), torch.randn(1, 1, 16, 16)
    exporter = make_exporter("onnx")
    with torch.no_grad(), pytest.raises(ExportFailed) as caught:
        exporter.check(exporter.export(one, inputs), inputs, other(inputs))
    assert caught.value.code == "export_differs"


def test_a_sure_no_may_be_off_by_what_a_sigmoid_rounds_and_no_more() -> None:
    wanted = torch.tensor([[1.7e-5], [3e-6]])
    compare("onnx", wanted + 5e-8, wanted)
    for given, than in ((wanted + 2e-7, wanted), (5e-8 - wanted, -wanted)):  # too much; no probabilities
        with pytest.raises(ExportFailed, match="other outputs"):
            compare("onnx", given, than)


def test_what_onnx_cannot_say_is_an_export_failure() -> None:
    class Odd(nn.Module):
        def forward(self, inputs: Tensor) -> Tensor:
            return torch.linalg.eigvals(inputs[:, 0]).real

    with pytest.raises(ExportFailed, match="cannot be written"):
        make_exporter("onnx").export(Odd(), torch.randn(1, 1, 4, 4))


def test_an_unknown_format_is_refused_with_the_known_ones() -> None:
    assert "onnx" in exporter_names()
    with pytest.raises(Invalid, match="onnx") as caught:
        make_exporter("onyx")
    assert caught.value.code == "unknown_exporter"


def test_weights_go_out_and_come_back_the_same() -> None:
    one, other = _model(), _model()
    load_weights(other, dump_weights(one.to(memory_format=torch.channels_last)))  # type: ignore[call-overload]
    for mine, theirs in zip(one.state_dict().values(), other.state_dict().values(), strict=True):
        assert torch.equal(mine, theirs)


@pytest.mark.parametrize(("beginning", "longest"), [(b"\x80", 300), (b"PK", 20_000)])
def test_weights_whose_header_is_as_long_as_a_pickles_magic_number_are_no_pickle(
    beginning: bytes, longest: int
) -> None:
    """One file in 32 begins with the first byte of a pickle: its header is so long."""

    def named(length: int) -> nn.Module:
        module = nn.Module()
        module.register_parameter("p" * length, nn.Parameter(torch.ones(2)))
        return module

    lengths = range(max(1, longest - 900), longest)
    model = next(module for module in map(named, lengths) if dump_weights(module).startswith(beginning))
    data = dump_weights(model)
    with torch.no_grad():
        next(model.parameters()).zero_()
    load_weights(model, data)
    assert next(model.parameters()).tolist() == [1, 1]


def _pickled() -> bytes:
    buffer = io.BytesIO()
    torch.save(_model().state_dict(), buffer)
    return buffer.getvalue()


def _with_nan() -> bytes:
    model = _model()
    with torch.no_grad():
        next(model.parameters())[0] = float("nan")
    return dump_weights(model)


@pytest.mark.parametrize(
    ("make", "code"),
    [
        (_pickled, "weights_pickled"),
        (_with_nan, "nan_weights"),
        (lambda: b"nothing of the kind", "bad_weights_file"),
        (lambda: b"", "bad_weights_file"),
        (lambda: dump_weights(_model())[:-40], "bad_weights_file"),
        (lambda: dump_weights(_model(width=5)), "weights_do_not_fit"),
        (lambda: dump_weights(_model("convnet")), "weights_do_not_fit"),
    ],
)
def test_weights_that_cannot_be_used_are_refused_and_change_nothing(make: object, code: str) -> None:
    model = _model()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(Invalid) as caught:
        load_weights(model, make())  # type: ignore[operator]
    assert caught.value.code == code
    assert caught.value.fields[0].field == "model.weights"
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_check_arrays_are_plain_numbers() -> None:
    model, inputs = _model(), torch.randn(2, 1, 16, 16)
    exporter = make_exporter("onnx")
    with torch.no_grad():
        arrays = exporter.check(exporter.export(model, inputs), inputs, model(inputs))
    assert all(array.dtype == np.float32 for array in arrays.values())
