"""Building on a CUDA device: what is trained there is as good as on a CPU, goes on where it stopped, and leaves as a file.

Skipped where torch sees no such device; tests of a pretended one are elsewhere.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import nullcontext, suppress
from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from torch import Tensor, nn

from domain.build import BuildRequest, BuildResult, CandidateRequest, FinalRequest, PrepareRequest
from domain.candidate import Candidate, ImportanceMix, RecoveryPlan
from domain.job import DataSpec, ModelSpec
from domain.ports import BuildAbandoned
from pruning.accuracy import evaluate, predict
from pruning.builder import TorchBuilder
from pruning.checkpoint import Checkpoint, Checkpoints
from pruning.datasets import load_data
from pruning.datasets.splits import CheckedSplits
from pruning.gpu import make_exact
from pruning.groups import find_groups
from pruning.importance import gather_evidence, mixed_importance
from pruning.models import build_model
from pruning.precision import Compute, choose_compute, faster_compute
from pruning.recovery import Recipe, TrainingSet, dense_recipe, reestimate_batch_norm, steps_of, train
from pruning.weights import load_weights
from tests.unit.pruning.folder import FolderStore

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no CUDA device here")

ROOT = Path(__file__).resolve().parents[3]
CPU, CUDA = torch.device("cpu"), torch.device("cuda")
ON_CPU, ON_CUDA = Compute(CPU), Compute(CUDA)
DATA = DataSpec(name="digits")
MODELS = {
    "resnet8": ModelSpec(name="resnet8", params={"width": 8}),
    "mobilenet": ModelSpec(name="mobilenet", params={"width": 8}),
    "vit": ModelSpec(name="vit", params={"image": 8, "patch": 2, "dim": 24, "depth": 2, "heads": 3}),
}
PRECISIONS = ("fp32", "bf16", "fp16")
A_FEW = 0.04  # of 300 images: twelve


@pytest.fixture(scope="module")
def splits() -> CheckedSplits:
    return load_data(DATA, FolderStore(Path("none")))


@pytest.fixture(autouse=True)
def exact() -> Iterator[None]:
    """As a builder computes; put back, as it is the process's."""
    cudnn, matmul = torch.backends.cudnn, torch.backends.cuda.matmul
    before = cudnn.allow_tf32, matmul.allow_tf32, cudnn.deterministic
    make_exact(CUDA)
    yield
    cudnn.allow_tf32, matmul.allow_tf32, cudnn.deterministic = before


def _fresh(spec: ModelSpec, compute: Compute) -> nn.Module:
    torch.manual_seed(0)
    return compute.adopt(build_model(spec))


def _weights(model: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.cpu() for name, tensor in model.state_dict().items()}


# --- training -------------------------------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def learned_on_cpu(splits: CheckedSplits) -> dict[str, float]:
    scores = {}
    for name, spec in MODELS.items():
        model = _fresh(spec, ON_CPU)
        train(model, TrainingSet(*splits.train), dense_recipe(model, 0), ON_CPU)
        scores[name] = evaluate(model, *splits.val, ON_CPU)  # type: ignore[arg-type]  # digits are labelled
    return scores


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("name", MODELS)
def test_training_reaches_what_it_reaches_on_a_cpu(
    splits: CheckedSplits, learned_on_cpu: dict[str, float], name: str, precision: str
) -> None:
    compute = choose_compute(CUDA, precision)
    model = _fresh(MODELS[name], compute)
    train(model, TrainingSet(*splits.train), dense_recipe(model, 0), compute)
    assert {(weight.dtype, weight.device.type) for weight in model.parameters()} == {(torch.float32, "cuda")}
    reached = evaluate(model, *splits.val, compute)  # type: ignore[arg-type]
    assert reached > learned_on_cpu[name] - A_FEW
    assert reached == evaluate(deepcopy(model).cpu(), *splits.val, ON_CPU)  # type: ignore[arg-type]


class Scaler(torch.amp.GradScaler):
    """Notes what it was asked to scale, and by how much."""

    made: list[Scaler] = []  # noqa: RUF012 - of the test, emptied by it

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.times: list[float] = []
        Scaler.made.append(self)

    def scale(self, outputs: Any) -> Any:
        self.times.append(float(super().scale(torch.ones_like(outputs.detach()))))
        return super().scale(outputs)


@pytest.mark.parametrize("precision", PRECISIONS)
def test_the_loss_is_scaled_in_fp16_only_and_a_step_that_overflows_is_left_out(
    monkeypatch: pytest.MonkeyPatch, precision: str
) -> None:
    Scaler.made.clear()
    monkeypatch.setattr(torch.amp, "GradScaler", Scaler)
    compute = choose_compute(CUDA, precision)
    generator = torch.Generator().manual_seed(0)
    inputs = 300 * torch.randn(256, 4, generator=generator)  # their gradients do not fit into fp16 at the first scale
    labels = (inputs[:, 0] > 0).long()
    torch.manual_seed(0)
    model = nn.Linear(4, 2).to(CUDA)
    recipe = Recipe(epochs=4, learning_rate=1e-3, batch=32)
    train(model, TrainingSet(inputs, labels), recipe, compute)
    (scaler,) = Scaler.made
    assert len(scaler.times) == steps_of(recipe, 256) == 32
    if precision == "fp16":
        assert scaler.times[0] == 65536 and scaler.times[-1] < 65536, "it never came down"
        assert scaler.times[-1] == scaler.get_scale()
    else:
        assert set(scaler.times) == {1.0}
    assert all(bool(torch.isfinite(weight).all()) for weight in model.parameters())
    assert evaluate(model, inputs, labels, compute) > 0.9


class Killed(BaseException):
    """The process is gone: nobody cleans up."""


def _dropping(kind: str) -> nn.Module:
    norm: nn.Module = nn.BatchNorm2d(4) if kind == "sgd" else nn.Flatten(2)
    last: list[nn.Module] = [nn.LayerNorm(4 * 36)] if kind == "adam" else []
    return nn.Sequential(nn.Conv2d(1, 4, 3), norm, nn.Flatten(), *last, nn.Dropout(0.3), nn.Linear(4 * 36, 10))


@pytest.mark.parametrize("error", [Killed, BuildAbandoned])
@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("kind", ["sgd", "adam"])
def test_an_interrupted_training_ends_with_the_same_weights(
    tmp_path: Path, splits: CheckedSplits, kind: str, precision: str, error: type[BaseException]
) -> None:
    data = TrainingSet(splits.train[0][:128], splits.train[1][:128], max_shift=1)  # type: ignore[index]
    recipe = Recipe(epochs=4, learning_rate=0.05, batch=16, seed=5)
    compute = choose_compute(CUDA, precision)

    def trained(checkpoint: Checkpoint | None, stop_at: int = 0) -> tuple[dict[str, Tensor], int]:
        torch.manual_seed(1)
        model, seen = compute.adopt(_dropping(kind)), 0

        def progress(done: float) -> None:
            nonlocal seen
            seen += 1
            if seen == stop_at:
                raise error

        with suppress(error):
            train(model, data, recipe, compute, progress=progress, checkpoint=checkpoint)
        return _weights(model), seen

    whole, steps = trained(None)
    kept = Checkpoints(tmp_path, every_s=0.0)
    _, before = trained(kept.of("a build", "recover"), 11)
    torch.cuda.manual_seed(99)  # the next process has drawn something else
    after, rest = trained(kept.of("a build", "recover"))
    assert before == 11 and before + rest == steps == 32, "work that was done was done again"
    assert all(torch.equal(after[name], whole[name]) for name in whole)
    assert list(tmp_path.iterdir()) == []


def test_training_leaves_the_gpus_random_numbers_to_others(splits: CheckedSplits) -> None:
    model = ON_CUDA.adopt(_dropping("sgd"))
    before = torch.cuda.get_rng_state()
    train(model, TrainingSet(*splits.train), Recipe(epochs=0.2, learning_rate=0.05), ON_CUDA)
    assert torch.equal(torch.cuda.get_rng_state(), before)


def test_a_batch_is_over_when_the_gpu_is(splits: CheckedSplits) -> None:
    """What a hold lets in must not go on beside the measurement that waits for its end."""
    busy: list[bool] = []

    class Held:
        def __enter__(self) -> None: ...

        def __exit__(self, *_: object) -> None:
            busy.append(not torch.cuda.current_stream().query())

    model = _fresh(ModelSpec(name="resnet20", params={"width": 32}), ON_CUDA)
    train(model, TrainingSet(*splits.train), Recipe(epochs=0.2, learning_rate=0.05), ON_CUDA, hold=Held)
    reestimate_batch_norm(model, splits.train[0], ON_CUDA, hold=Held)
    predict(model, splits.val[0], ON_CUDA, hold=Held)
    assert len(busy) > 10 and not any(busy)


@pytest.mark.parametrize("name", MODELS)
def test_whether_to_train_in_bf16_is_tried_and_leaves_no_trace(splits: CheckedSplits, name: str) -> None:
    model = _fresh(MODELS[name], ON_CUDA)
    before = _weights(model)
    offered = choose_compute(CUDA, "auto")
    chosen = faster_compute(model, splits.train[0][:32], offered)
    assert chosen in {offered, ON_CUDA}
    assert model.training and all(weight.grad is None for weight in model.parameters())
    assert all(torch.equal(tensor, before[key]) for key, tensor in _weights(model).items())


# --- statistics and scores ------------------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def resnet(splits: CheckedSplits) -> nn.Module:
    model = _fresh(MODELS["resnet8"], ON_CPU)
    train(model, TrainingSet(*splits.train), Recipe(epochs=2, learning_rate=0.05), ON_CPU)
    return model


def test_fp32_is_fp32(resnet: nn.Module, splits: CheckedSplits) -> None:
    exactly = predict(deepcopy(resnet).double(), splits.val[0].double(), ON_CPU)
    given = predict(ON_CUDA.adopt(deepcopy(resnet)), splits.val[0], ON_CUDA)
    assert float((given - exactly).abs().max() / exactly.abs().max()) < 1e-5, "TF32 would be off by a thousandth"


def test_batch_norm_is_reestimated_as_on_a_cpu(resnet: nn.Module, splits: CheckedSplits) -> None:
    here, there = deepcopy(resnet), ON_CUDA.adopt(deepcopy(resnet))
    for model, compute in ((here, ON_CPU), (there, ON_CUDA)):
        reestimate_batch_norm(model, splits.train[0] * 2, compute)
    wanted = _weights(here)
    for name, tensor in _weights(there).items():
        torch.testing.assert_close(tensor, wanted[name], rtol=1e-4, atol=1e-5)
    assert not torch.equal(wanted["bn.running_mean"], _weights(resnet)["bn.running_mean"])


def test_importance_is_that_of_a_cpu_and_lies_there(resnet: nn.Module, splits: CheckedSplits) -> None:
    found = []
    for compute in (ON_CPU, ON_CUDA):
        model = compute.adopt(deepcopy(resnet))
        groups = find_groups(model, compute.place(splits.train[0][:2]))
        batch = compute.place(splits.train[0][:64]), splits.train[1][:64].to(compute.device)  # type: ignore[index]
        evidence = gather_evidence(model, groups, [batch])
        found.append(mixed_importance(model, groups, ImportanceMix(l2=1, taylor=1, activation=1), evidence))
    here, there = found
    assert here.keys() == there.keys()
    for name, scores in there.items():
        assert scores.device == CPU
        torch.testing.assert_close(scores, here[name], rtol=1e-3, atol=1e-3)


# --- whole builds ---------------------------------------------------------------------------------------------------
def _build(builder: TorchBuilder, request: BuildRequest) -> BuildResult:
    outcome = builder.build(request, progress=lambda stage, fraction: None, hold=nullcontext)
    assert isinstance(outcome, BuildResult), outcome
    return outcome


def _accuracy_of_file(
    store: FolderStore, result: BuildResult, index: int, split: tuple[Tensor, Tensor | None]
) -> float:
    inputs, labels = split
    assert labels is not None
    session = onnxruntime.InferenceSession(
        store.read(result.artifacts[index].artifact.digest), providers=["CPUExecutionProvider"]
    )
    logits = [session.run(None, {"input": part.numpy()})[0] for part in inputs.split(2)]
    return float((np.concatenate(logits).argmax(1) == labels.numpy()).mean())


@pytest.mark.parametrize("recovery", ["auto", "fp16"])
@pytest.mark.parametrize("name", MODELS)
def test_what_is_built_on_cuda_is_as_good_on_a_cpu(
    store: FolderStore, splits: CheckedSplits, name: str, recovery: str
) -> None:
    spec = MODELS[name]
    builder = TorchBuilder(store, threads=1, torch_device="cuda")
    torch.cuda.reset_peak_memory_stats()
    idle_bytes = torch.cuda.max_memory_allocated()
    prepared = _build(builder, PrepareRequest(model=spec, data=DATA, batch=2, formats=("onnx", "torch")))
    assert torch.cuda.max_memory_allocated() > idle_bytes, "it was not built there"
    assert prepared.accuracy.search == _accuracy_of_file(store, prepared, 0, splits.val) > 0.8

    groups = find_groups(_fresh(spec, ON_CPU).eval(), splits.train[0][:2])
    assert [group.name for group in prepared.groups] == [group.name for group in groups.groups]
    assert prepared.unprunable == groups.unprunable

    candidate = Candidate(
        sparsity={},
        widths={group.name: max(1, group.channels // 2) for group in prepared.groups},
        importance=ImportanceMix(l2=1, taylor=1, activation=1),
        recovery=RecoveryPlan(epochs=2, learning_rate=0.05, precision=recovery),
    )
    request: dict[str, Any] = {"model": spec, "data": DATA, "batch": 2, "weights": prepared.weights}
    built = _build(builder, CandidateRequest(**request, candidate=candidate, formats=("onnx", "torch")))
    assert built.widths == candidate.widths and built.macs < prepared.macs
    assert built.accuracy.search == _accuracy_of_file(store, built, 0, splits.val) > 0.5

    final = _build(builder, FinalRequest(**request, start=built.weights, candidate=candidate, epochs=2))
    assert final.accuracy.search == _accuracy_of_file(store, final, 0, splits.val)
    assert final.accuracy.test == _accuracy_of_file(store, final, 0, splits.test)
    assert final.accuracy.test is not None and final.accuracy.test > 0.6
    # The weights that are stored, in the module a CPU builds of them.
    on_cpu = TorchBuilder(store, threads=1, torch_device="cpu")
    plain = candidate.model_copy(update={"recovery": RecoveryPlan(precision="fp32")})
    again = _build(on_cpu, FinalRequest(**request, start=final.weights, candidate=plain, epochs=0))
    assert again.accuracy.test == final.accuracy.test
    assert again.artifacts[0].artifact == final.artifacts[0].artifact, "one and the same file"


def test_a_weights_file_of_cuda_loads_on_a_cpu(store: FolderStore, splits: CheckedSplits) -> None:
    builder = TorchBuilder(store, threads=1, torch_device="cuda")
    prepared = _build(builder, PrepareRequest(model=MODELS["resnet8"], data=DATA, precisions=("fp32", "fp16", "int8")))
    model = build_model(MODELS["resnet8"])
    load_weights(model, store.read(prepared.weights.digest))
    assert evaluate(model, *splits.val, ON_CPU) == prepared.accuracy.search  # type: ignore[arg-type]
    assert [file.precision for file in prepared.artifacts] == ["fp32", "fp16", "int8"]
    assert all(file.accuracy_search is not None and file.accuracy_search > 0.9 for file in prepared.artifacts)


IN_A_FORK = """
import os, sys
from contextlib import nullcontext
from pathlib import Path
import pruning.builder

child = os.fork()
if child:
    raise SystemExit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))

import torch
from domain.artifact import ArtifactKind
from domain.build import BuildResult, PrepareRequest
from domain.job import DataSpec, ModelSpec
from domain.build import BuilderSpent
from tests.unit.pruning.folder import FolderStore

store = FolderStore(Path(sys.argv[1]))
builder = pruning.builder.TorchBuilder(store, threads=1)

def build(request):
    return builder.build(request, progress=lambda stage, fraction: None, hold=nullcontext)

def leave(is_well, told):
    print(told, flush=True)
    os._exit(0 if is_well else 1)

"""


def _forked(folder: Path, code: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", IN_A_FORK + code, str(folder)],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path])},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]


def test_a_forked_worker_builds_on_cuda(tmp_path: Path) -> None:
    """A build worker imports before it forks and builds in the child: CUDA must not have been started by the import."""
    code = """
outcome = build(PrepareRequest(model=ModelSpec(name="convnet", params={"width": 4}), data=DataSpec(name="digits")))
leave(isinstance(outcome, BuildResult) and torch.cuda.max_memory_allocated() > 0, outcome)
"""
    _forked(tmp_path, code)


def test_ids_that_no_vocabulary_holds_are_the_models_fault_and_end_the_worker(tmp_path: Path) -> None:
    """The GPU is lost to the process by it. The builds after this one must not be blamed."""
    code = """
import io
import numpy as np

ids = np.ones((64, 8), np.float32)
ids[0, 3] = 5000
file = io.BytesIO()
np.savez(file, train_inputs=ids, val_inputs=ids, test_inputs=ids)
data = DataSpec(source="npz", artifact=store.put_bytes(file.getvalue(), ArtifactKind.DATA).digest)
sizes = dict(vocabulary=50, dim=16, depth=1, heads=2, hidden=32, longest=12)
try:
    leave(False, build(PrepareRequest(model=ModelSpec(name="bert", params=sizes), data=data, metric="fidelity")))
except BuilderSpent as spent:
    told = spent.outcome
    leave(told.code == "gpu_assertion" and told.blame == "candidate" and "vocabulary" in told.reason, told)
"""
    _forked(tmp_path, code)
