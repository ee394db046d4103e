"""The builder on a real little job: prepare, candidates, finals, and every bad input as a value with a code."""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from safetensors.torch import load
from torch import nn

from domain.artifact import ArtifactKind
from domain.build import (
    BuildKind,
    BuildOutcome,
    BuildRequest,
    BuildResult,
    CandidateRequest,
    FinalRequest,
    Inherited,
    PrepareRequest,
)
from domain.candidate import Candidate, ImportanceMix, RecoveryPlan, is_inside
from domain.job import DataSpec, ModelSpec
from domain.outcome import Blame, Failed
from domain.ports import BuildAbandoned
from pruning.builder import TorchBuilder
from pruning.datasets import load_data
from pruning.exporters import ExportFailed
from pruning.exporters.onnx import OnnxExporter
from pruning.models import build_model
from pruning.sensitivity import LEAST_LOSS
from pruning.weights import dump_weights
from tests.unit.pruning.folder import FolderStore

MODEL = ModelSpec(name="convnet", params={"width": 8})
DATA = DataSpec(name="digits")


def _quiet(stage: str, fraction: float) -> None:
    pass


def _build(builder: TorchBuilder, request: BuildRequest) -> BuildOutcome:
    return builder.build(request, progress=_quiet, hold=nullcontext)


def _built(outcome: BuildOutcome) -> BuildResult:
    assert isinstance(outcome, BuildResult), outcome
    return outcome


def _failed(outcome: BuildOutcome) -> Failed:
    assert isinstance(outcome, Failed), outcome
    return outcome


@pytest.fixture(scope="module")
def builder(store: FolderStore) -> TorchBuilder:
    return TorchBuilder(store, threads=1, torch_device="cpu")


@pytest.fixture(scope="module")
def prepared(builder: TorchBuilder) -> BuildResult:
    return _built(_build(builder, PrepareRequest(model=MODEL, data=DATA, batch=2)))


def _candidate(prepared: BuildResult, sparsity: float = 0.5, epochs: float = 1.0) -> Candidate:
    return Candidate(
        sparsity={group.name: sparsity for group in prepared.groups},
        widths={group.name: round(group.channels * (1 - sparsity)) for group in prepared.groups},
        importance=ImportanceMix(l2=1, taylor=1, activation=1),
        recovery=RecoveryPlan(epochs=epochs, learning_rate=0.05, precision="fp32"),  # auto goes by the clock
    )


def _candidate_request(prepared: BuildResult, candidate: Candidate) -> CandidateRequest:
    return CandidateRequest(model=MODEL, data=DATA, batch=2, weights=prepared.weights, candidate=candidate)


@pytest.fixture(scope="module")
def pruned(builder: TorchBuilder, prepared: BuildResult) -> BuildResult:
    return _built(_build(builder, _candidate_request(prepared, _candidate(prepared))))


def _run_check(store: FolderStore, result: BuildResult) -> tuple[np.ndarray, np.ndarray]:
    (artifact,) = result.artifacts
    session = onnxruntime.InferenceSession(store.read(artifact.artifact.digest), providers=["CPUExecutionProvider"])
    with np.load(io.BytesIO(store.read(artifact.check.digest)), allow_pickle=False) as check:
        given = session.run(None, {name.name: check[f"input_{name.name}"] for name in session.get_inputs()})[0]
        return given, check[f"output_{session.get_outputs()[0].name}"]


def test_prepare_trains_finds_groups_and_measures_their_sensitivity(prepared: BuildResult) -> None:
    assert prepared.accuracy.search > 0.95
    assert [group.name for group in prepared.groups] == list(prepared.widths)
    assert prepared.widths == {group.name: group.channels for group in prepared.groups}
    for group in prepared.groups:
        asked = (
            {"0.75", "0.5"} if group.sensitivity["0.75"] > LEAST_LOSS else {"0.75"}
        )  # half, where three quarters cost
        assert set(group.sensitivity) == asked
        assert all(-1 <= loss <= 1 for loss in group.sensitivity.values())
    assert max(group.sensitivity["0.75"] for group in prepared.groups) > 0
    assert [layer.name for layer in prepared.unprunable] == ["classifier"]
    assert prepared.splits is not None and prepared.splits.train == 1097
    assert {"load", "train", "groups", "sensitivity", "evaluate", "export"} <= set(prepared.stages_s)
    assert prepared.versions["torch-pruning"] == "1.6.1"
    assert not prepared.is_slow_to_recover


def test_every_build_comes_with_a_check_its_file_passes(
    store: FolderStore, prepared: BuildResult, pruned: BuildResult
) -> None:
    for result in (prepared, pruned):
        given, wanted = _run_check(store, result)
        assert given.shape == (2, 10)
        np.testing.assert_allclose(given, wanted, rtol=1e-3, atol=1e-3)


def test_a_candidate_is_as_wide_as_asked_smaller_and_tells_three_accuracies(
    store: FolderStore, prepared: BuildResult, pruned: BuildResult
) -> None:
    assert pruned.widths == _candidate(prepared).widths
    assert pruned.macs < 0.35 * prepared.macs and pruned.params < 0.35 * prepared.params
    assert pruned.accuracy.search > 0.9
    weights = load(store.read(pruned.weights.digest))
    assert {name: len(weights[f"{name}.weight"]) for name in pruned.widths} == pruned.widths


def test_a_candidate_without_recovery_stops_after_batch_norm(builder: TorchBuilder, prepared: BuildResult) -> None:
    result = _built(_build(builder, _candidate_request(prepared, _candidate(prepared, 0.125, epochs=0))))
    assert 0 < result.accuracy.search <= 1
    assert "recover" not in result.stages_s


def test_a_fresh_builder_gives_the_same_candidate_as_one_that_remembers(
    store: FolderStore, prepared: BuildResult, pruned: BuildResult
) -> None:
    """A final may land on another worker: what is cached may change the time, never the result."""
    fresh = TorchBuilder(store, threads=1, torch_device="cpu")
    again = _built(_build(fresh, _candidate_request(prepared, _candidate(prepared))))
    assert again.weights == pruned.weights
    assert again.artifacts == pruned.artifacts


def test_a_final_goes_on_from_the_candidates_weights_and_tells_the_files_accuracy_on_test(
    store: FolderStore, builder: TorchBuilder, prepared: BuildResult, pruned: BuildResult
) -> None:
    final = _built(
        _build(
            builder,
            FinalRequest(
                model=MODEL,
                data=DATA,
                batch=2,
                weights=prepared.weights,
                start=pruned.weights,
                candidate=_candidate(prepared),
                epochs=2,
            ),
        )
    )
    assert final.widths == pruned.widths
    assert final.weights != pruned.weights
    assert final.accuracy.test_samples == 400
    assert final.accuracy.test is not None and final.accuracy.test > 0.93
    assert final.accuracy.test == pytest.approx(_test_accuracy(store, final))


def _test_accuracy(store: FolderStore, result: BuildResult) -> float:
    inputs, labels = load_data(DATA, store).test
    assert labels is not None
    session = onnxruntime.InferenceSession(
        store.read(result.artifacts[0].artifact.digest), providers=["CPUExecutionProvider"]
    )
    logits = [session.run(None, {"input": pair.numpy()})[0] for pair in inputs.split(2)]
    return float((np.concatenate(logits).argmax(1) == labels.numpy()).mean())


def test_a_final_of_no_epochs_is_the_candidate_itself(
    builder: TorchBuilder, prepared: BuildResult, pruned: BuildResult
) -> None:
    request = FinalRequest(
        model=MODEL,
        data=DATA,
        batch=2,
        weights=prepared.weights,
        start=pruned.weights,
        candidate=_candidate(prepared),
        epochs=0,
    )
    final = _built(_build(builder, request))
    assert final.weights == pruned.weights
    assert final.files == pruned.files
    assert final.accuracy.search == pruned.accuracy.search


def test_a_final_without_candidate_is_the_dense_model_on_test(
    store: FolderStore, builder: TorchBuilder, prepared: BuildResult
) -> None:
    final = _built(_build(builder, FinalRequest(model=MODEL, data=DATA, batch=2, weights=prepared.weights)))
    assert final.weights == prepared.weights
    assert [one.artifact for one in final.artifacts] == [one.artifact for one in prepared.artifacts]
    assert final.accuracy.test == pytest.approx(_test_accuracy(store, final))


def test_the_latency_probes_are_files_of_the_widths_they_say(store: FolderStore, prepared: BuildResult) -> None:
    dense = prepared.artifacts[0].artifact
    assert len(prepared.probes) >= 5
    assert {probe.file.artifact for probe in prepared.probes} <= set(prepared.files)
    for probe in prepared.probes:
        graph = onnx.load_from_string(store.read(probe.file.artifact.digest)).graph
        channels = {tensor.dims[0] for tensor in graph.initializer if len(tensor.dims) == 4}
        gone = {name for name in probe.widths if is_inside(name, probe.dropped)}
        assert channels == {width for name, width in probe.widths.items() if name not in gone}
        assert probe.file.artifact.size_bytes < dense.size_bytes


def test_a_probe_that_cannot_be_a_file_is_left_out(
    builder: TorchBuilder, prepared: BuildResult, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = OnnxExporter.check
    sizes = sorted(probe.file.artifact.size_bytes for probe in prepared.probes)

    def check(self: OnnxExporter, file: bytes, inputs: Any, outputs: Any) -> Mapping[str, np.ndarray]:
        if len(file) == sizes[0]:
            raise ExportFailed("It gives other outputs.")
        return real(self, file, inputs, outputs)

    monkeypatch.setattr(OnnxExporter, "check", check)
    again = _built(_build(builder, PrepareRequest(model=MODEL, data=DATA, batch=2)))
    assert sorted(probe.file.artifact.size_bytes for probe in again.probes) == sizes[1:]


def test_building_leaves_the_dense_model_alone(builder: TorchBuilder, prepared: BuildResult) -> None:
    """After all the builds above, a final of the dense model still gives the prepare build's files."""
    final = _built(_build(builder, FinalRequest(model=MODEL, data=DATA, batch=2, weights=prepared.weights)))
    assert final.weights == prepared.weights


def test_time_spent_waiting_for_quiet_is_told_apart(builder: TorchBuilder, prepared: BuildResult) -> None:
    import time

    entered = 0

    @contextmanager
    def slow_hold() -> Iterator[None]:
        nonlocal entered
        entered += 1
        time.sleep(0.01)
        yield

    stages: list[tuple[str, float]] = []
    result = _built(
        builder.build(
            _candidate_request(prepared, _candidate(prepared, 0.25)),
            progress=lambda stage, fraction: stages.append((stage, fraction)),
            hold=slow_hold,
        )
    )
    assert entered >= 34 + 6
    assert result.stages_s["hold"] >= 0.009 * entered
    assert ("recover", 1.0) in stages
    assert all(0 <= fraction <= 1 for _, fraction in stages)


def test_an_abandoned_build_goes_through_as_it_is(builder: TorchBuilder, prepared: BuildResult) -> None:
    def progress(stage: str, fraction: float) -> None:
        if stage == "recover" and fraction > 0.3:
            raise BuildAbandoned

    with pytest.raises(BuildAbandoned):
        builder.build(_candidate_request(prepared, _candidate(prepared)), progress=progress, hold=nullcontext)


def _fresh_weights(store: FolderStore, spec: ModelSpec, *, has_nan: bool = False) -> str:
    model = build_model(spec)
    if has_nan:
        nn.init.constant_(next(model.parameters()), float("nan"))
    return store.put_bytes(dump_weights(model), ArtifactKind.WEIGHTS).digest


def _npz(store: FolderStore, **arrays: np.ndarray) -> DataSpec:
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)  # type: ignore[arg-type]
    return DataSpec(source="npz", artifact=store.put_bytes(buffer.getvalue(), ArtifactKind.DATA).digest)


def _images(store: FolderStore, *, has_labels: bool = True, highest: int = 9) -> DataSpec:
    inputs, labels = load_data(DATA, store).train
    assert labels is not None
    arrays = {"train_inputs": inputs.numpy()}
    if has_labels:
        arrays["train_labels"] = np.where(labels.numpy() == 9, highest, labels.numpy())
    return _npz(store, **arrays)


def test_without_labels_the_metric_is_agreement_with_the_dense_model(
    store: FolderStore, builder: TorchBuilder, prepared: BuildResult
) -> None:
    spec = ModelSpec(name="convnet", params={"width": 8}, weights=prepared.weights.digest)
    data = _images(store, has_labels=False)
    dense = _built(_build(builder, PrepareRequest(model=spec, data=data)))
    assert dense.accuracy.search == 1.0
    assert "metric: agreement" in dense.notes
    assert dense.splits is not None and "cut from train" in dense.splits.how
    candidate = _candidate(dense)
    cut = _built(_build(builder, CandidateRequest(model=spec, data=data, weights=dense.weights, candidate=candidate)))
    assert 0.85 < cut.accuracy.search < 1.0


@pytest.mark.parametrize(
    ("model", "code"),
    [
        (ModelSpec(name="resnet9"), "unknown_model"),
        (ModelSpec(name="convnet", params={"depth": 3}), "bad_model_params"),
        (ModelSpec(name="convnet", params={"in_channels": 3}), "model_rejects_data"),
        (ModelSpec(name="convnet", params={"classes": 5}), "labels_out_of_range"),
        (ModelSpec(source="onnx", artifact="sha256:" + "0" * 64), "model_not_found"),
        (ModelSpec(name="convnet", weights="sha256:" + "0" * 64), "not_found"),
    ],
)
def test_a_bad_model_is_a_value_with_a_code(builder: TorchBuilder, model: ModelSpec, code: str) -> None:
    failed = _failed(_build(builder, PrepareRequest(model=model, data=DATA)))
    assert (failed.code, failed.blame, failed.retryable) == (code, Blame.CANDIDATE, False)


def test_nan_weights_are_the_candidates_fault(store: FolderStore, builder: TorchBuilder) -> None:
    weights = _fresh_weights(store, MODEL, has_nan=True)
    spec = ModelSpec(name="convnet", params={"width": 8}, weights=weights)
    failed = _failed(_build(builder, PrepareRequest(model=spec, data=DATA)))
    assert (failed.code, failed.blame, failed.stage) == ("nan_weights", Blame.CANDIDATE, "load")


def test_labels_outside_the_classes_name_the_field(store: FolderStore, builder: TorchBuilder) -> None:
    failed = _failed(_build(builder, PrepareRequest(model=MODEL, data=_images(store, highest=10))))
    assert failed.code == "labels_out_of_range"
    assert "10" in failed.reason and "_labels" in failed.reason


def test_no_labels_and_no_weights_is_nothing_to_train_on(store: FolderStore, builder: TorchBuilder) -> None:
    failed = _failed(_build(builder, PrepareRequest(model=MODEL, data=_images(store, has_labels=False))))
    assert failed.code == "labels_missing"
    assert "model.weights" in failed.reason


def test_an_unknown_metric_is_refused(builder: TorchBuilder) -> None:
    failed = _failed(_build(builder, PrepareRequest(model=MODEL, data=DATA, metric="bleu")))
    assert failed.code == "unknown_metric"


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ({"widths": {"nobody": 3}}, "unknown_group"),
        ({"widths": {"features.0": 0}}, "bad_width"),
        ({"precision": "int4"}, "precision_not_available"),
        ({"importance": ImportanceMix(l2=0)}, "empty_importance_mix"),
        ({"recovery": RecoveryPlan(precision="fp4")}, "unknown_precision"),
        ({"recovery": RecoveryPlan(learning_rate=1e12)}, "diverged"),
    ],
)
def test_a_bad_candidate_is_the_candidates_fault(
    builder: TorchBuilder, prepared: BuildResult, change: dict[str, object], code: str
) -> None:
    candidate = _candidate(prepared).model_copy(update=change)
    failed = _failed(_build(builder, _candidate_request(prepared, candidate)))
    assert (failed.code, failed.blame) == (code, Blame.CANDIDATE)


def test_a_bad_candidate_leaves_the_builder_fit_for_the_next(
    builder: TorchBuilder, prepared: BuildResult, pruned: BuildResult
) -> None:
    bad = _candidate(prepared).model_copy(update={"recovery": RecoveryPlan(learning_rate=1e12)})
    _failed(_build(builder, _candidate_request(prepared, bad)))
    again = _built(_build(builder, _candidate_request(prepared, _candidate(prepared))))
    assert again.kind is BuildKind.CANDIDATE
    assert again.weights == pruned.weights


def test_start_weights_of_another_architecture_are_refused(
    builder: TorchBuilder, prepared: BuildResult, pruned: BuildResult
) -> None:
    request = FinalRequest(
        model=MODEL,
        data=DATA,
        weights=prepared.weights,
        start=pruned.weights,
        candidate=_candidate(prepared, 0.25),
    )
    assert _failed(_build(builder, request)).code == "weights_do_not_fit"


def test_a_narrower_candidate_is_cut_from_a_recovered_one_and_keeps_what_it_learnt(
    builder: TorchBuilder, store: FolderStore, prepared: BuildResult
) -> None:
    wide = _candidate(prepared, 0.25)
    parent = _built(_build(builder, _candidate_request(prepared, wide)))
    start = Inherited(candidate=wide, weights=parent.weights)
    narrow = _candidate(prepared, 0.5, epochs=0)
    request = _candidate_request(prepared, narrow).model_copy(update={"start": start})
    child = _built(_build(builder, request))
    assert child.widths == {name: narrow.widths[name] for name in child.widths}
    orphan = _built(_build(builder, _candidate_request(prepared, narrow)))
    assert child.accuracy.search >= orphan.accuracy.search
    name = f"{prepared.groups[0].name}.weight"  # the first layer: its inputs are the image's, and stay
    kept, recovered = (load(store.read(one.weights.digest))[name] for one in (child, parent))
    assert all(
        any(bool((row == other).all()) for other in recovered) for row in kept
    )  # every filter is one of the recovered parent's, not of the dense model's

    fresh = TorchBuilder(store, threads=1)
    assert _built(_build(fresh, request)).artifacts[0].artifact == child.artifacts[0].artifact


def test_a_candidate_of_the_same_widths_is_only_made_into_another_file(
    builder: TorchBuilder, prepared: BuildResult
) -> None:
    wide = _candidate(prepared, 0.25)
    parent = _built(_build(builder, _candidate_request(prepared, wide)))
    start = Inherited(candidate=wide, weights=parent.weights)
    recovery = wide.recovery.model_copy(update={"epochs": 0.0})
    twin = wide.model_copy(update={"precision": "int8", "recovery": recovery})
    built = _built(_build(builder, _candidate_request(prepared, twin).model_copy(update={"start": start})))
    assert built.weights == parent.weights
    assert built.artifacts[0].precision == "int8"
    assert built.accuracy.search == pytest.approx(parent.accuracy.search, abs=0.05)
