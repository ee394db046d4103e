"""ncnn files from the builder: the module's outputs, the model's own names, and a converter that is not trusted."""

from __future__ import annotations

import time
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from benchmarks.families import Detector
from domain.build import BuildOutcome, BuildRequest, BuildResult, CandidateRequest, FinalRequest, PrepareRequest
from domain.candidate import Candidate, RecoveryPlan
from domain.errors import Unavailable
from domain.job import DataSpec, ModelSpec
from domain.ncnn_file import unpack
from domain.outcome import Blame, Failed
from pruning.builder import TorchBuilder
from pruning.exporters import ExportFailed
from pruning.exporters.ncnn import NcnnExporter
from pruning.exporters.outputs import joined
from pruning.groups import find_groups
from pruning.models import build_model
from pruning.signature import Packed, Port, Signature
from pruning.surgery import prune_to_widths
from tests.unit.pruning.folder import FolderStore
from workers.agent.checks import read_check, verify
from workers.agent.runtimes.ncnn import Ncnn

MODEL = ModelSpec(name="convnet", params={"width": 16})
DATA = DataSpec(name="digits")
NETS = ("resnet8", "mobilenet", "convnet")


def net(name: str, *, widths: int | None = None) -> tuple[nn.Module, Tensor]:
    """Return a net whose outputs depend on every layer, dense or of one odd width, and one input."""
    torch.manual_seed(0)
    model, inputs = build_model(ModelSpec(name=name, params={"width": 12})).eval(), torch.randn(1, 1, 28, 28)
    if widths is not None:
        groups = find_groups(model, inputs)
        scores = {group.name: torch.rand(group.channels) for group in groups.groups}
        model = prune_to_widths(model, groups, {group.name: widths for group in groups.groups}, scores, inputs).eval()
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    for norm in norms:  # statistics of its own, or the signal dies on its way
        norm.reset_running_stats()
        norm.momentum = None
    with torch.no_grad():
        model.train()
        for _ in range(3):
            model(torch.randn(32, 1, 28, 28))
    return model.eval(), inputs


@pytest.mark.parametrize("name", NETS)
@pytest.mark.parametrize("widths", [None, 7, 5])
def test_the_file_gives_what_the_module_gives(name: str, widths: int | None) -> None:
    model, inputs = net(name, widths=widths)
    exporter = NcnnExporter()
    file = exporter.export(model, inputs)
    samples = torch.randn(20, 1, 28, 28)
    with torch.no_grad():
        wanted, arrays = model(samples), exporter.check(file, inputs, model(inputs))
    given = exporter.run(file, samples, threads=1)
    assert set(arrays) == {"input_input", "output_output"}
    assert wanted.std(0).min() > 1e-3 * wanted.abs().max()  # the samples differ, so equal means something
    torch.testing.assert_close(given, wanted, rtol=1e-3, atol=1e-4 * float(wanted.abs().max()))
    assert exporter.export(model, inputs) == file


@pytest.mark.parametrize("name", NETS)
def test_fp16_halves_the_file_and_rounds_its_weights(name: str) -> None:
    model, inputs = net(name, widths=7)
    exporter = NcnnExporter()
    file = exporter.export(model, inputs)
    half = exporter.in_precision(file, "fp16", model=model, example=inputs, calibration=inputs, hold=nullcontext)
    assert len(half) < 0.8 * len(file)
    samples = torch.randn(20, 1, 28, 28)
    given = exporter.run(half, samples, threads=1, precision="fp16")
    with torch.no_grad():
        wanted = model(samples)
    difference = float((given - wanted).abs().max() / wanted.abs().max())
    assert 1e-6 < difference < 0.02


def test_a_file_of_other_weights_is_caught() -> None:
    (one, inputs), exporter = net("resnet8"), NcnnExporter()
    other = build_model(ModelSpec(name="resnet8", params={"width": 12})).eval()
    with torch.no_grad(), pytest.raises(ExportFailed) as caught:
        exporter.check(exporter.export(one, inputs), inputs, other(inputs))
    assert caught.value.code == "export_differs"


def test_inputs_and_outputs_keep_their_names_and_the_input_its_size(tmp_path: Path) -> None:
    model, inputs = net("convnet")
    graph = unpack(NcnnExporter().export(model, inputs), tmp_path)
    assert graph.inputs == {"input": (1, 28, 28)}
    assert graph.outputs == ("output",)


def test_several_outputs_come_in_the_models_order_and_a_device_gives_them_too(tmp_path: Path) -> None:
    ports = Port("boxes", ("batch", 16, 4)), Port("scores", ("batch", 16))
    model = Packed(Detector().eval(), Signature((Port("image", ("batch", 1, 32, 32)),), ports))
    model.bind((1, 32, 32))
    exporter, samples = NcnnExporter(), torch.randn(3, 1, 32, 32)
    with torch.no_grad():
        file = exporter.export(model.eval(), samples[:1])
        arrays = exporter.check(file, samples, joined(model.outputs(samples)))
    assert {name: array.shape for name, array in arrays.items() if name.startswith("output")} == {
        "output_output_0": (3, 16, 4),
        "output_output_1": (3, 16),
    }
    (tmp_path / "net.ncnn").write_bytes(file)
    session = Ncnn().load(tmp_path / "net.ncnn", threads=1, precision="fp32", batch=1)
    session.bind({"input": samples[:1].numpy()})
    session.run()
    given = session.outputs()
    for name in ("output_0", "output_1"):
        np.testing.assert_allclose(given[name], arrays[f"output_{name}"][:1], rtol=1e-4, atol=1e-4)


def test_a_batch_and_int8_are_refused_by_name() -> None:
    model, inputs = net("convnet")
    exporter = NcnnExporter()
    with pytest.raises(ExportFailed, match="batch of 1, asked is 2") as caught:
        exporter.export(model, torch.cat([inputs, inputs]))
    assert caught.value.code == "batch_not_available"
    with pytest.raises(ExportFailed, match="fp32, fp16") as caught:
        exporter.in_precision(b"", "int8", model=model, example=inputs, calibration=inputs, hold=nullcontext)
    assert caught.value.code == "precision_not_available"


class Sorts(nn.Module):
    def forward(self, inputs: Tensor) -> Tensor:
        return torch.sort(inputs.flatten(1), dim=1, descending=True)[0]


class Chooses(nn.Module):
    def forward(self, inputs: Tensor) -> Tensor:
        return torch.where(inputs.flatten(1) > 0, inputs.flatten(1), 2 * inputs.flatten(1))


@pytest.mark.parametrize(
    ("model", "reason"),
    [(Sorts(), "TopK"), (Chooses(), "ncnn has no torch.gt, torch.where")],  # the first is the converter's end
)
def test_an_operator_that_ncnn_lacks_is_named(model: nn.Module, reason: str) -> None:
    with pytest.raises(ExportFailed, match=reason) as caught:
        NcnnExporter().export(model, torch.randn(1, 1, 4, 4))
    assert caught.value.code == "export_failed"


def test_a_file_that_gives_another_shape_is_caught() -> None:
    exporter, inputs = NcnnExporter(), torch.randn(1, 1, 4, 4)
    file = exporter.export(nn.ReLU(), inputs)
    with pytest.raises(ExportFailed, match="of shape") as caught:
        exporter.check(file, inputs, inputs.flatten(1)[:, :8])
    assert caught.value.code == "export_differs"


def pretend(folder: Path, script: str) -> Path:
    program = folder / "pnnx"
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(0o755)
    return program


def test_a_converter_that_hangs_is_ended_with_all_it_started(tmp_path: Path) -> None:
    alive = tmp_path / "alive"
    program = pretend(tmp_path, f"(while true; do date +%s%N > {alive}; sleep 0.05; done) & wait")
    model, inputs = net("convnet")
    begin_s = time.monotonic()
    with pytest.raises(ExportFailed, match="did not finish in 1 s") as caught:
        NcnnExporter(program, timeout_s=1).export(model, inputs)
    assert caught.value.code == "export_timeout"
    assert time.monotonic() - begin_s < 20
    last = alive.read_text()
    time.sleep(0.5)
    assert alive.read_text() == last


@pytest.mark.parametrize(
    ("script", "reason"),
    [
        ("kill -SEGV $$", "SIGSEGV"),
        ("echo 'unsupported op NonMaxSuppression' >&2; exit 3", "NonMaxSuppression"),
        ("true", "gives no ncnn file"),
        ("echo nonsense > model.param; touch model.bin", "gives no ncnn file"),
        ("ln -s /etc/hostname model.param; touch model.bin", "gives no ncnn file"),
        (
            "printf '7767517\\n2 2\\nInput in0 0 1 in0\\ntorch.topk t 1 1 in0 out0\\n' > model.param; touch model.bin",
            "ncnn has no torch.topk",
        ),
    ],
)
def test_whatever_the_converter_does_is_a_failure_with_a_reason(tmp_path: Path, script: str, reason: str) -> None:
    model, inputs = net("convnet")
    with pytest.raises(ExportFailed, match=reason):
        NcnnExporter(pretend(tmp_path, script)).export(model, inputs)


def test_a_converter_that_is_not_there_is_told_with_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, inputs = net("convnet")
    with pytest.raises(Unavailable, match="pip install"):
        NcnnExporter(tmp_path / "none").export(model, inputs)
    monkeypatch.setattr("pruning.exporters.ncnn.find_spec", lambda name: None)
    with pytest.raises(Unavailable, match="pip install"):
        NcnnExporter().export(model, inputs)


@pytest.fixture(scope="module")
def builder(store: FolderStore) -> TorchBuilder:
    return TorchBuilder(store, threads=1, torch_device="cpu")


def _build(builder: TorchBuilder, request: BuildRequest) -> BuildOutcome:
    return builder.build(request, progress=lambda stage, fraction: None, hold=nullcontext)


def _candidate(prepared: BuildResult, precision: str) -> Candidate:
    return Candidate(
        sparsity={group.name: 0.5 for group in prepared.groups},
        widths={group.name: group.channels // 2 - 1 for group in prepared.groups},
        precision=precision,
        recovery=RecoveryPlan(epochs=0),
    )


@pytest.fixture(scope="module")
def prepared(builder: TorchBuilder) -> BuildResult:
    request = PrepareRequest(model=MODEL, data=DATA, precisions=("fp32", "int8", "fp16"), formats=("ncnn", "onnx"))
    outcome = _build(builder, request)
    assert isinstance(outcome, BuildResult), outcome
    return outcome


def test_the_dense_model_comes_in_every_format_and_each_precision_that_has(
    store: FolderStore, prepared: BuildResult, tmp_path: Path
) -> None:
    made = [(built.format, built.precision) for built in prepared.artifacts]
    assert made == [("ncnn", "fp32"), ("ncnn", "fp16"), ("onnx", "fp32"), ("onnx", "int8"), ("onnx", "fp16")]
    for built in prepared.artifacts:
        assert str(built.artifact.kind) == built.format
        assert built.accuracy_search is not None
    for built in prepared.artifacts[:2]:
        session = Ncnn().load(store.local_path(built.artifact.digest), threads=1, precision=built.precision, batch=1)
        check = read_check(store.local_path(built.check.digest))
        assert verify(session, check, batch=1, precision=built.precision) < 1e-4  # what the builder saw, on the device


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_a_candidate_and_its_final_are_told_the_accuracy_of_the_file_that_is_measured(
    store: FolderStore, builder: TorchBuilder, prepared: BuildResult, precision: str
) -> None:
    common = {"model": MODEL, "data": DATA, "weights": prepared.weights}
    candidate = _candidate(prepared, precision)
    built = _build(builder, CandidateRequest(**common, candidate=candidate, formats=("ncnn",)))
    assert isinstance(built, BuildResult), built
    assert [(file.format, file.precision) for file in built.artifacts] == [("ncnn", precision)]
    request = FinalRequest(**common, start=built.weights, candidate=candidate, epochs=0, formats=("ncnn", "onnx"))
    final = _build(builder, request)
    assert isinstance(final, BuildResult), final
    ncnn, onnx = final.artifacts
    assert (ncnn.format, onnx.format) == ("ncnn", "onnx")
    assert final.accuracy.test == ncnn.accuracy_test
    assert ncnn.accuracy_test == pytest.approx(onnx.accuracy_test, abs=0.01)
    assert len(store.read(ncnn.artifact.digest)) == ncnn.artifact.size_bytes


@pytest.mark.parametrize(
    ("change", "code"), [({"precision": "int8"}, "precision_not_available"), ({"batch": 2}, "batch_not_available")]
)
def test_what_ncnn_cannot_hold_is_a_value_of_the_build(
    builder: TorchBuilder, prepared: BuildResult, change: dict[str, object], code: str
) -> None:
    candidate = _candidate(prepared, str(change.pop("precision", "fp32")))
    request = CandidateRequest(
        model=MODEL, data=DATA, weights=prepared.weights, candidate=candidate, formats=("ncnn",), **change
    )
    failed = _build(builder, request)
    assert isinstance(failed, Failed)
    assert (failed.code, failed.blame) == (code, Blame.CANDIDATE)
    assert "ncnn" in failed.reason


def test_the_outputs_of_two_formats_are_those_of_one_model(store: FolderStore, prepared: BuildResult) -> None:
    checks = {
        built.format: np.load(store.local_path(built.check.digest), allow_pickle=False)["output_output"]
        for built in prepared.artifacts
        if built.precision == "fp32"
    }
    np.testing.assert_array_equal(checks["ncnn"], checks["onnx"])
