"""torch files rebuild the module without its source: same outputs, same names of weights; and a file is not believed."""

from __future__ import annotations

import json
import subprocess
import sys
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from domain.job import ModelSpec
from pruning import rebuild as loader
from pruning.exporters import ExportFailed
from pruning.exporters.torch_graph import TorchExporter
from pruning.groups import find_groups
from pruning.models import build_model
from pruning.models.bert import bert_encoder
from pruning.rebuild import BadModelFile, rebuild
from pruning.surgery import prune_to_widths
from workers.agent.runtimes.base import Runtime
from workers.agent.runtimes.contract import KnownFile, RuntimeContract
from workers.torch_runtime import TorchRuntime


def pruned(name: str, **params: Any) -> nn.Module:
    torch.manual_seed(0)
    model, example = build_model(ModelSpec(name=name, params=params)).eval(), torch.randn(2, 1, 28, 28)
    groups = find_groups(model, example)
    widths = {group.name: max(1, group.channels // 2) for group in groups.groups}
    scores = {group.name: torch.rand(group.channels) for group in groups.groups}
    return prune_to_widths(model, groups, widths, scores, example).eval()


def written(folder: Path, model: nn.Module, example: Tensor) -> Path:
    path = folder / "model.safetensors"
    path.write_bytes(TorchExporter().export(model, example))
    return path


def text_net() -> tuple[nn.Module, Tensor]:
    torch.manual_seed(0)
    model = bert_encoder(vocabulary=50, dim=16, depth=1, heads=2, hidden=32, longest=12).eval()
    model.bind((8,))
    return model, torch.randint(1, 50, (1, 8)).float()


class TestTorchFiles(RuntimeContract):
    def make_runtime(self) -> Runtime:
        return TorchRuntime()

    def make_file(self, folder: Path) -> KnownFile:
        model, inputs = pruned("convnet", width=8), torch.randn(1, 1, 28, 28)
        with torch.no_grad():
            wanted = model(inputs)
        path = written(folder, model, inputs)
        return KnownFile(path, {"input": inputs.numpy()}, {"output": wanted.numpy()})


@pytest.mark.parametrize("name", ["resnet8", "mobilenet", "vit"])
def test_a_rebuilt_model_is_the_model_at_any_batch(tmp_path: Path, name: str) -> None:
    model, example = pruned(name), torch.randn(1, 1, 28, 28)
    again = rebuild(written(tmp_path, model, example))
    samples = torch.randn(5, 1, 28, 28)
    with torch.no_grad():
        torch.testing.assert_close(again(samples), model(samples), rtol=1e-5, atol=1e-6)
    state = model.state_dict()
    assert {key: weight.shape for key, weight in again.named_parameters()} == {
        key: weight.shape for key, weight in model.named_parameters()
    }
    assert all(torch.equal(weight, state[key]) for key, weight in again.state_dict().items())
    assert TorchExporter().export(model, example) == (tmp_path / "model.safetensors").read_bytes()


def test_it_can_be_trained_on_and_exported_again(tmp_path: Path) -> None:
    example = torch.randn(1, 1, 28, 28)
    again = rebuild(written(tmp_path, pruned("convnet", width=8), example))
    before = again(example).detach()
    again(example).square().sum().backward()
    with torch.no_grad():
        for weight in again.parameters():
            assert weight.grad is not None
            weight -= 0.01 * weight.grad
    assert not torch.allclose(again(example), before)
    third = TorchExporter()
    torch.testing.assert_close(third.run(third.export(again, example), example, threads=1), again(example))


def test_fp16_is_half_the_size_computes_in_it_and_int8_is_refused() -> None:
    model, example, exporter = pruned("resnet8"), torch.randn(4, 1, 28, 28), TorchExporter()
    whole = exporter.export(model, example)
    told: dict[str, Any] = {"model": model, "example": example, "calibration": example, "hold": nullcontext}
    half = exporter.in_precision(whole, "fp16", **told)
    given, wanted = (exporter.run(file, example, threads=1) for file in (half, whole))
    assert given.dtype == torch.float32
    assert 1e-6 < float((given - wanted).abs().max() / wanted.abs().max()) < 0.02
    assert len(half) < 0.7 * len(whole)
    with pytest.raises(ExportFailed, match="fp32, fp16") as caught:
        exporter.in_precision(whole, "int8", **told)
    assert caught.value.code == "precision_not_available"


def test_the_loader_runs_alone_without_our_source(tmp_path: Path) -> None:
    path = written(tmp_path, pruned("vit"), torch.randn(1, 1, 28, 28))
    alone = tmp_path / "rebuild.py"
    alone.write_text(Path(loader.__file__).read_text())
    done = subprocess.run(
        [sys.executable, "-P", "-I", "-W", "ignore", str(alone), str(path)],
        cwd=tmp_path,
        env={},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "takes input: (any, 1, 28, 28), torch.float32" in done.stdout
    assert "gives output: (1, 10), torch.float32" in done.stdout


def test_what_writes_in_place_is_written_without(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(inplace=True), nn.Flatten(), nn.Linear(4 * 36, 3)).eval()
    again = rebuild(written(tmp_path, model, torch.randn(1, 1, 8, 8)))
    samples = torch.randn(3, 1, 8, 8)
    torch.testing.assert_close(again(samples), model(samples))


def test_a_signature_is_kept_with_its_types_and_free_sizes(tmp_path: Path) -> None:
    model, one = text_net()
    path = written(tmp_path, model, one)
    again = rebuild(path)
    assert [(port.name, port.shape, port.dtype) for port in again.inputs] == [("input_ids", (None, None), torch.int64)]
    assert again.outputs == ("sentence_embedding",)
    texts = torch.randint(1, 50, (3, 11))
    with torch.no_grad():
        torch.testing.assert_close(again(texts), model.net(texts))  # another number of texts, and of tokens
        arrays = TorchExporter().check(path.read_bytes(), one, model(one))
    assert {name: array.dtype.name for name, array in arrays.items()} == {
        "input_input_ids": "int64",
        "output_sentence_embedding": "float32",
    }
    given: dict[str, Any] = {"model": model, "example": one, "calibration": one, "hold": nullcontext}
    half = TorchExporter().in_precision(b"", "fp16", **given)
    with torch.no_grad():
        assert 0 < float((TorchExporter().run(half, one, threads=1) - model(one)).abs().max()) < 0.01


class Counts(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("runs", torch.zeros(()))

    def forward(self, inputs: Tensor) -> Tensor:
        self.runs += 1
        return inputs + self.runs


class Branches(nn.Module):
    def forward(self, inputs: Tensor) -> Tensor:
        return inputs if float(inputs.sum()) > 0 else -inputs


@pytest.mark.parametrize(("model", "reason"), [(Counts(), "changes its own buffers"), (Branches(), "cannot be traced")])
def test_what_cannot_be_written_is_told(model: nn.Module, reason: str) -> None:
    with pytest.raises(ExportFailed, match=reason):
        TorchExporter().export(model.eval(), torch.randn(2, 4))


def node(op: str, *args: Any) -> dict[str, Any]:
    return {"name": "made", "op": op, "args": [{"value": "input"}, *args], "kwargs": {}}


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"nodes": [node("os.system")]}, "no operator this loader"),
        ({"nodes": [node("aten.from_file.default")]}, "no operator this loader"),
        ({"nodes": [node("aten.__class__.mro")]}, "no operator this loader"),
        ({"nodes": [node("aten.relu_.default")]}, "writes into its arguments"),
        ({"nodes": [node("aten.add.Tensor", {"value": "later"})]}, "reads .*later"),
        ({"nodes": [node("aten.add.Tensor", {"weight": "absent"})]}, "reads .*absent"),
        ({"nodes": [node("aten.add.Tensor", {"value": "input", "weight": "bias"})]}, "which is not there"),
        ({"results": [{"value": "nowhere"}]}, "reads .*nowhere"),
        ({"inputs": [{"name": "x; y", "shape": [1], "dtype": "float32"}]}, "no name of an input"),
        ({"inputs": [{"name": "input", "shape": [1], "dtype": "load"}]}, "no dtype"),
        ({"version": 2}, "of version 2"),
        ({"nodes": None}, "cannot be read"),
    ],
)
def test_a_graph_is_not_believed(tmp_path: Path, change: dict[str, Any], reason: str) -> None:
    path = written(tmp_path, nn.Linear(4, 4).eval(), torch.randn(1, 4))
    with safe_open(path, framework="pt") as file:
        graph = json.loads(file.metadata()[loader.FORMAT])
    save_file(load_file(path), path, metadata={loader.FORMAT: json.dumps({**graph, **change})})
    with pytest.raises(BadModelFile, match=reason):
        rebuild(path)


def test_weights_alone_are_told_apart(tmp_path: Path) -> None:
    save_file({"a": torch.zeros(2)}, tmp_path / "plain.safetensors")
    with pytest.raises(BadModelFile, match="weights only"):
        rebuild(tmp_path / "plain.safetensors")
