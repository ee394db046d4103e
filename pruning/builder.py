"""The Builder port: a request in, recovered, evaluated and exported artifacts out."""

from __future__ import annotations

import io
import json
import platform
import zlib
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext, suppress
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from domain.artifact import ArtifactKind, ArtifactRef
from domain.build import (
    AccuracyReport,
    BuildKind,
    BuildOutcome,
    BuildRequest,
    BuildResult,
    BuiltArtifact,
    CandidateRequest,
    FinalRequest,
    Inherited,
    LatencyProbe,
    PrepareRequest,
)
from domain.candidate import BlockInfo, Candidate, GroupInfo, ImportanceMix, RecoveryPlan
from domain.errors import FieldProblem, Invalid, PruneloopError, Unavailable
from domain.formats import ONNX
from domain.outcome import Blame, Failed
from domain.ports import ArtifactStore, BuildAbandoned, BuildProgress, Hold
from pruning.checkpoint import NONE, Checkpoints
from pruning.cost import count_macs, count_params
from pruning.datasets import load_data, state_of
from pruning.datasets.splits import CheckedSplits
from pruning.dense import Dense, open_dense
from pruning.exporters import Exporter, ExportFailed, make_exporter
from pruning.exporters.outputs import with_outputs
from pruning.exporters.precision import CALIBRATION_SAMPLES, require_precision
from pruning.gpu import make_exact, unless_spent
from pruning.latency_probes import shapes
from pruning.models import check_model
from pruning.network import describe_layers
from pruning.precision import choose_compute, choose_device, faster_compute
from pruning.recovery import Recipe, batch_of, dense_recipe, is_transformer, reestimate_batch_norm, train
from pruning.reports import of_first, report, sizes_of
from pruning.rough import Rough
from pruning.sensitivity import score_groups
from pruning.skipping import score_blocks
from pruning.stopwatch import Stopwatch
from pruning.surgery import read_widths
from pruning.wanted import no_denormals, to_export, wanted_files
from pruning.weights import dump_weights, load_weights
from pruning.zeros import set_zeros

SENSITIVITY_SAMPLES = 200  # of val, and half as many calibration samples: a few dozen evaluations must stay cheap
CACHED_MODELS = 2
EXPORT_CODES = frozenset(
    {"export_failed", "export_differs", "export_timeout", "exporter_missing", "batch_not_available"}
)

_VERSIONS = {
    "python": platform.python_version(),
    # Torch-Pruning's own __version__ says 1.6.0 in the 1.6.1 wheel: only the metadata is right.
    **{name: version(name) for name in ("torch", "torch-pruning", "onnx", "onnxruntime", "numpy")},
}


class TorchBuilder:
    """Builds with torch on this machine. One build at a time: torch's thread count and seed are the process's.

    Args:
        artifacts: Where weights and data come from and files go.
        threads: Torch threads of a build, and of onnxruntime when a final is run on the test split.
        torch_device: ``auto``, ``cpu``, ``cuda``, ...
        checkpoints: Where long trainings note how far they are.
        datasets_dir: What the operator lets jobs read by ``data.path``; None: nothing.
    """

    def __init__(
        self,
        artifacts: ArtifactStore,
        *,
        threads: int,
        torch_device: str = "auto",
        checkpoints: Checkpoints = NONE,
        datasets_dir: Path | None = None,
    ) -> None:
        checkpoints.clear_old()
        self._checkpoints = checkpoints
        self._request = ""  # of the build in hand: its trainings' checkpoints are named by it
        self._datasets_dir = datasets_dir
        self._artifacts = artifacts
        self._threads = threads
        self._compute = choose_compute(choose_device(torch_device), "auto")
        self._models: OrderedDict[str, Dense] = OrderedDict()
        self._parents: OrderedDict[str, Dense] = OrderedDict()
        self._data: tuple[str, CheckedSplits] | None = None

    def build(self, request: BuildRequest, *, progress: BuildProgress, hold: Hold) -> BuildOutcome:
        """Carry out a request; everything comes back as a value.

        Raises:
            BuildAbandoned: As ``progress`` does.
            BuilderSpent: With the value, where the GPU is lost to this process.
        """
        watch = Stopwatch(progress, hold)
        torch.set_num_threads(self._threads)
        make_exact(self._compute.device)
        self._request = request.model_dump_json()
        return unless_spent(self._outcome(request, watch), self._compute.device)

    def _outcome(self, request: BuildRequest, watch: Stopwatch) -> BuildOutcome:
        try:
            if request.kind is BuildKind.PREPARE:
                return self._prepare(request, watch)
            if request.kind is BuildKind.CANDIDATE:
                return self._candidate(request, watch)
            return self._final(request, watch)
        except BuildAbandoned:
            raise
        except Unavailable as error:
            return _failed(watch, error.message, error.code, Blame.SYSTEM, retryable=True)
        except PruneloopError as error:
            return _failed(watch, error.message, error.code, Blame.CANDIDATE)
        except (torch.OutOfMemoryError, MemoryError, OSError) as error:
            reason = f"The builder ran out of memory or disk: {error}. Free some, or build on a larger machine."
            return _failed(watch, reason, "out_of_resources", Blame.SYSTEM, retryable=True)
        except Exception as error:  # The declared boundary: models and data are other people's, and may raise anything.
            reason = f"{type(error).__name__} in {watch.stage}: {error}"
            return _failed(watch, reason, "build_raised", Blame.CANDIDATE)

    # --- the three kinds --------------------------------------------------------------------------------------------
    def _prepare(self, request: PrepareRequest, watch: Stopwatch) -> BuildResult:
        watch.stage = "load"
        check_model(request.model, self._artifacts)  # what cannot be pruned is said before any work is done
        for format in (*request.formats, *request.exports):
            make_exporter(format).require()
        splits = self._load_data(request, watch)
        notes: list[str] = []

        def fill(model: nn.Module, dense: Dense) -> None:
            self._try_exports(dense, model, request, watch)
            if request.model.weights is not None:
                load_weights(model, self._artifacts.read(request.model.weights))
                notes.append("weights as given")
            elif request.model.source == "onnx":
                notes.append("weights of the file")
            else:
                notes.append(self._train_dense(model, dense, request.seed, watch))

        watch.stage = "load"
        dense = open_dense(request.model, splits, request.metric, request.seed, self._compute, fill, self._artifacts)
        notes += [f"metric: {dense.metric.name}", f"precision of calibration and training: {dense.compute.precision}"]
        with watch.measure("groups"):
            groups = dense.groups()
        with watch.measure("evaluate"):
            search = dense.evaluate(dense.model, "val", watch.hold)
        with watch.measure("sensitivity"):
            rough = Rough(dense, SENSITIVITY_SAMPLES, watch.hold)
            infos = score_groups(rough, watch)
            blocks = score_blocks(rough, watch)
        weights = self._store_weights(dense.model)
        artifacts = self._export(dense, dense.model, request, request.precisions, search, watch)
        probes = self._latency_probes(dense, infos, blocks, request, watch)
        self._remember(self._key(request, weights), dense)
        return BuildResult(
            kind=BuildKind.PREPARE,
            accuracy=report(dense, of_first(artifacts, search)),
            macs=count_macs(dense.model, dense.example),
            params=count_params(dense.model),
            widths=read_widths(dense.model, groups),
            weights=weights,
            artifacts=artifacts,
            groups=infos,
            blocks=blocks,
            unprunable=groups.unprunable,
            layers=describe_layers(dense.model, groups, dense.example),
            probes=probes,
            is_slow_to_recover=is_transformer(dense.model),
            splits=sizes_of(splits),
            stages_s=watch.stages_s,
            versions=_VERSIONS,
            notes=tuple(notes),
        )

    def _candidate(self, request: CandidateRequest, watch: Stopwatch) -> BuildResult:
        require_precision(request.candidate.precision)
        dense = self._dense(request, watch)
        with watch.measure("prune"):
            source = dense if request.start is None else self._inherited(dense, request, request.start, watch)
            model = source.pruned_as(request.candidate, watch.hold)
        hold_zeros = set_zeros(model, request.candidate.zeros)
        if request.start is None or not _is_same_network(request.start.candidate, request.candidate):
            with watch.measure("batch_norm"):
                reestimate_batch_norm(model, dense.calibration()[0], dense.compute, hold=watch.hold)
        # What it is worth before recovery is not looked at: it ranks candidates badly, and cost a tenth of a build.
        plan = request.candidate.recovery
        if plan.epochs > 0:
            self._recover(dense, model, plan, plan.epochs, request.seed, watch, hold_zeros)
        with watch.measure("evaluate"):
            search = dense.evaluate(model, "val", watch.hold)
        artifacts = self._export(dense, model, request, (request.candidate.precision,), search, watch)
        accuracy = report(dense, of_first(artifacts, search))
        return self._result(BuildKind.CANDIDATE, dense, model, accuracy, artifacts, watch)

    def _final(self, request: FinalRequest, watch: Stopwatch) -> BuildResult:
        dense = self._dense(request, watch)
        model, precisions = dense.model, request.precisions
        if request.candidate is not None:
            require_precision(request.candidate.precision)
            precisions = (request.candidate.precision,)
            with watch.measure("prune"):
                model = dense.pruned_as(request.candidate, watch.hold)
                if request.start is not None:
                    load_weights(model, self._artifacts.read(request.start.digest), field="start")
                else:
                    reestimate_batch_norm(model, dense.calibration()[0], dense.compute, hold=watch.hold)
                hold_zeros = set_zeros(model, request.candidate.zeros)
            self._recover(dense, model, request.candidate.recovery, request.epochs, request.seed, watch, hold_zeros)
        with watch.measure("evaluate"):
            search = dense.evaluate(model, "val", watch.hold)
        exported = self._export(dense, model, request, precisions, search, watch)
        search = of_first(exported, search)
        with watch.measure("test"):
            labels = dense.labels("test", watch.hold)
            tests = [dense.score_file(self._run_file(file, dense.splits.test[0], watch), labels) for file in exported]
        artifacts = tuple(
            file.model_copy(update={"accuracy_test": test}) for file, test in zip(exported, tests, strict=True)
        )
        accuracy = report(dense, search, tests[0])
        return self._result(BuildKind.FINAL, dense, model, accuracy, artifacts, watch)

    # --- steps ------------------------------------------------------------------------------------------------------
    def _load_data(self, request: BuildRequest, watch: Stopwatch) -> CheckedSplits:
        key = state_of(request.data, self._artifacts, self._datasets_dir)
        if self._data is None or self._data[0] != key:
            with watch.measure("load"):
                self._data = key, load_data(request.data, self._artifacts, folder=self._datasets_dir)
        return self._data[1]

    def _dense(self, request: CandidateRequest | FinalRequest, watch: Stopwatch) -> Dense:
        """Return the job's dense model, from the last builds or built anew from its weights."""
        key = self._key(request, request.weights)
        if key not in self._models:
            splits = self._load_data(request, watch)

            def fill(model: nn.Module, dense: Dense) -> None:
                load_weights(model, self._artifacts.read(request.weights.digest), field="weights")

            with watch.measure("load"):
                dense = open_dense(
                    request.model, splits, request.metric, request.seed, self._compute, fill, self._artifacts
                )
            self._remember(key, dense)
        self._models.move_to_end(key)
        return self._models[key]

    def _inherited(self, dense: Dense, request: CandidateRequest, start: Inherited, watch: Stopwatch) -> Dense:
        """Return the network a candidate inherits from, as a source to cut: its importance is scored anew.

        Source: each deeper candidate goes on from the recovered shallower one, as in NetAdapt, arXiv:1804.03230.
        """
        key = self._key(request, start.weights)
        if key not in self._parents:
            plain = start.candidate.model_copy(update={"importance": ImportanceMix()})  # only its shape is wanted
            model = dense.pruned_as(plain, watch.hold)
            load_weights(model, self._artifacts.read(start.weights.digest), field="start")
            self._parents[key] = dense.narrowed(model)
            while len(self._parents) > CACHED_MODELS:
                self._parents.popitem(last=False)
        self._parents.move_to_end(key)
        return self._parents[key]

    def _key(self, request: BuildRequest, weights: ArtifactRef) -> str:
        """Return what the dense model and all that is cached with it depend on."""
        model = request.model.model_dump(mode="json", exclude={"weights"})
        data = state_of(request.data, self._artifacts, self._datasets_dir)
        return json.dumps([model, data, request.metric, request.seed, weights.digest], sort_keys=True)

    def _remember(self, key: str, dense: Dense) -> None:
        self._models[key] = dense
        while len(self._models) > CACHED_MODELS:
            self._models.popitem(last=False)

    def _train_dense(self, model: nn.Module, dense: Dense, seed: int, watch: Stopwatch) -> str:
        inputs, labels = dense.splits.train
        if labels is None:
            message = (
                "The data has no train_labels and the job brings no weights, so there is nothing to train the dense model"
                " on. Add train_labels, or upload trained weights as safetensors and name them in `model.weights`."
            )
            raise Invalid(message, code="labels_missing", fields=[FieldProblem("data.train_labels", message)])
        with watch.measure("train"):
            data = dense.training_set(distill=False, hold=watch.hold)
            recipe = dense_recipe(model, seed)
            checkpoint = self._checkpoints.of(self._request, "train")
            train(model, data, recipe, dense.compute, progress=watch.tell, hold=watch.hold, checkpoint=checkpoint)
        return f"dense model trained here: {recipe.epochs:g} epochs on {len(inputs)} samples"

    def _try_exports(self, dense: Dense, model: nn.Module, request: PrepareRequest, watch: Stopwatch) -> None:
        """Make every file but ONNX once with fresh weights: what a format has no word for is named before a minute is spent."""
        wanted = [format for format in (*request.formats, *request.exports) if format != ONNX]
        if not wanted:
            return
        on_cpu, inputs, outputs = to_export(dense, model, request)
        for format in wanted:
            exporter = make_exporter(format)
            with watch.measure("export"), watch.hold():
                exporter.check(exporter.export(on_cpu, inputs), inputs, outputs)

    def _latency_probes(
        self,
        dense: Dense,
        groups: Sequence[GroupInfo],
        blocks: Sequence[BlockInfo],
        request: PrepareRequest,
        watch: Stopwatch,
    ) -> tuple[LatencyProbe, ...]:
        """Return untrained networks to be timed, as ONNX in fp32: other formats take too long to make for what they tell."""
        if ONNX not in request.formats or "fp32" not in request.precisions:
            return ()
        exporter = make_exporter(ONNX)
        found = []
        with watch.measure("probes"):
            for candidate in shapes(groups, blocks):
                with (
                    watch.hold(),
                    suppress(ExportFailed),
                ):  # a job ends for its candidates, not for what a probe would tell
                    model, inputs, outputs = to_export(dense, dense.pruned_as(candidate, nullcontext), request)
                    file = exporter.export(model, inputs)
                    check = exporter.check(file, inputs, outputs)
                    stored = self._stored(exporter, file, check, "fp32", None, weighs=False)
                    found.append(LatencyProbe(widths=candidate.widths, dropped=candidate.dropped, file=stored))
        return tuple(found)

    def _recover(
        self,
        dense: Dense,
        model: nn.Module,
        plan: RecoveryPlan,
        epochs: float,
        seed: int,
        watch: Stopwatch,
        after_step: Callable[[], None],
    ) -> None:
        compute = dense.compute.in_precision(plan.precision)
        with watch.measure("recover"):
            data = dense.training_set(distill=plan.distill, hold=watch.hold)
            recipe = Recipe(epochs=epochs, learning_rate=plan.learning_rate, seed=seed)
            checkpoint = self._checkpoints.of(self._request, "recover")
            before = checkpoint.peek("precision")
            if before is not None:  # what was chosen then is gone on with
                compute = compute.in_precision(before)
            elif plan.precision == "auto" and epochs > 0:
                compute = faster_compute(
                    model, data.inputs[: batch_of(recipe, len(data.inputs))], compute, hold=watch.hold
                )
            checkpoint.notes["precision"] = compute.precision
            train(
                model,
                data,
                recipe,
                compute,
                progress=watch.tell,
                hold=watch.hold,
                after_step=after_step,
                checkpoint=checkpoint,
            )

    def _export(
        self,
        dense: Dense,
        model: nn.Module,
        request: BuildRequest,
        precisions: tuple[str, ...],
        accuracy: float,
        watch: Stopwatch,
    ) -> tuple[BuiltArtifact, ...]:
        """Return a file of every format in every precision it has, each with the check it must pass and its accuracy on val.

        The fp32 file was just found equal to the module, so it has the module's accuracy; the others are run.
        """
        wanted = wanted_files(request.formats, precisions)
        with watch.measure("export"):
            on_cpu, inputs, outputs = to_export(dense, model, request)
        artifacts = []
        candidate = None if isinstance(request, PrepareRequest) else request.candidate
        weighs = candidate is None or bool(candidate.zeros)
        for format, own_precisions in wanted.items():
            exporter = make_exporter(format)
            with watch.measure("export"), watch.hold():
                file = exporter.export(on_cpu, inputs)
                arrays = exporter.check(file, inputs, outputs)
            for precision in own_precisions:
                made, check, own = file, arrays, accuracy
                if precision != "fp32":
                    with watch.measure("convert"):
                        samples = dense.calibration()[0][:CALIBRATION_SAMPLES]
                        made = exporter.in_precision(
                            file, precision, model=on_cpu, example=inputs, calibration=samples, hold=watch.hold
                        )
                        # What it must give elsewhere is what it gives here: its rounding is its own.
                        given = exporter.run(made, inputs, threads=1, precision=precision)
                        check = with_outputs(arrays, given)
                    with watch.measure("evaluate"), watch.hold():
                        logits = exporter.run(made, dense.splits.val[0], threads=self._threads, precision=precision)
                    own = dense.score_file(logits, dense.labels("val", watch.hold))
                artifacts.append(self._stored(exporter, made, check, precision, own, weighs=weighs))
        return tuple(artifacts)

    def _stored(
        self,
        exporter: Exporter,
        file: bytes,
        check: Mapping[str, np.ndarray],
        precision: str,
        accuracy: float | None,
        *,
        weighs: bool,
    ) -> BuiltArtifact:
        buffer = io.BytesIO()
        np.savez(buffer, allow_pickle=False, **{name: no_denormals(array) for name, array in check.items()})
        return BuiltArtifact(
            format=exporter.format,
            artifact=self._artifacts.put_bytes(file, exporter.kind),
            check=self._artifacts.put_bytes(buffer.getvalue(), ArtifactKind.CHECK),
            precision=precision,
            accuracy_search=accuracy,
            compressed_bytes=len(zlib.compress(file, level=1)) if weighs else None,
        )

    def _run_file(self, artifact: BuiltArtifact, inputs: Tensor, watch: Stopwatch) -> Tensor:
        """Run the stored file, as a user would get it, in its runtime."""
        file = self._artifacts.read(artifact.artifact.digest)
        exporter = make_exporter(artifact.format)
        with watch.hold():
            return exporter.run(file, inputs, threads=self._threads, precision=artifact.precision)

    def _store_weights(self, model: nn.Module) -> ArtifactRef:
        return self._artifacts.put_bytes(dump_weights(model), ArtifactKind.WEIGHTS)

    def _result(
        self,
        kind: BuildKind,
        dense: Dense,
        model: nn.Module,
        accuracy: AccuracyReport,
        artifacts: tuple[BuiltArtifact, ...],
        watch: Stopwatch,
    ) -> BuildResult:
        return BuildResult(
            kind=kind,
            accuracy=accuracy,
            macs=count_macs(model, dense.example),
            params=count_params(model),
            widths=read_widths(model, dense.groups()),
            weights=self._store_weights(model),
            artifacts=artifacts,
            splits=sizes_of(dense.splits),
            stages_s=watch.stages_s,
            versions=_VERSIONS,
            notes=(f"metric: {dense.metric.name}",),
        )


def _is_same_network(one: Candidate, other: Candidate) -> bool:
    return (one.kept_widths, one.dropped, one.zeros) == (other.kept_widths, other.dropped, other.zeros)


def _failed(watch: Stopwatch, reason: str, code: str, blame: Blame, *, retryable: bool = False) -> Failed:
    stage = "export" if code in EXPORT_CODES else watch.stage
    return Failed(stage=stage, reason=reason, blame=blame, retryable=retryable, code=code)
