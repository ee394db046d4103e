"""What every build of one job shares: data, the dense model, its groups, importance and the teacher's answers."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor, nn

from domain.candidate import Candidate, ImportanceMix
from domain.errors import FieldProblem, Invalid
from domain.job import ModelSpec
from domain.ports import ArtifactStore, Hold
from pruning.accuracy import accuracy_of, predict
from pruning.datasets.splits import CheckedSplits, Pair, check_labels
from pruning.groups import Groups, find_groups, regroup, require_eager
from pruning.importance import Evidence, gather_evidence, mixed_importance
from pruning.metrics import NEED_LABELS, is_of_classes, pair_spearman, require_metric, variance_kept
from pruning.models import build_model
from pruning.models.from_file import require_free_batch
from pruning.precision import Compute
from pruning.recovery import CALIBRATION_SAMPLES, TrainingSet
from pruning.signature import Packed, Port, Signature
from pruning.surgery import prune_to_widths

EVIDENCE_SAMPLES = 320
EVIDENCE_BATCH = 64
MOST_OUTPUT_BYTES = 4 * 2**30


@dataclass
class Dense:
    """A dense model with what was already found out about it; each piece is computed once and kept.

    Args:
        model: Dense module on ``compute.device``.
        splits: Checked data.
        compute: Device and precision of calibration passes.
        metric: One of ``metrics.METRICS``.
        classes: Number of logits, or of output values.
        seed: Of the order calibration samples are drawn in.
        is_of_classes: Outputs are logits of classes; else they are values.
    """

    model: nn.Module
    splits: CheckedSplits
    compute: Compute
    metric: str
    classes: int
    seed: int
    is_of_classes: bool = True
    _groups: Groups | None = None
    _teacher: Tensor | None = None
    _evidence: Evidence | None = None
    _labels: dict[str, Tensor] = field(default_factory=dict)

    @property
    def example(self) -> Tensor:
        """Two training samples on the model's device, to trace and check shapes with."""
        return self.compute.place(self.splits.train[0][:2])

    def groups(self) -> Groups:
        if self._groups is None:
            self._groups = find_groups(self.model, self.example)
        return self._groups

    def calibration(self) -> Pair:
        """Return the training samples batch norm and importance are calibrated on, in a seeded order."""
        inputs, labels = self.splits.train
        order = torch.randperm(len(inputs), generator=torch.Generator().manual_seed(self.seed))
        index = order[: max(EVIDENCE_SAMPLES, CALIBRATION_SAMPLES)]
        return inputs[index], None if labels is None else labels[index]

    def teacher(self, hold: Hold) -> Tensor:
        """Return the dense model's logits on train, shape ``(N, classes)``."""
        if self._teacher is None:
            self._teacher = predict(self.model, self.splits.train[0], self.compute, hold=hold)
        return self._teacher

    def labels(self, split: str, hold: Hold) -> Tensor:
        """Return what counts as right on ``val`` or ``test``: the labels, or else the dense model's answers."""
        pair: Pair = getattr(self.splits, split)
        if self.metric in NEED_LABELS:
            assert pair[1] is not None
            return pair[1]
        if split not in self._labels:
            outputs = predict(self.model, pair[0], self.compute, hold=hold)
            self._labels[split] = outputs.argmax(1) if self.is_of_classes else outputs
        return self._labels[split]

    def score(self, outputs: Tensor, wanted: Tensor) -> float:
        """Return the metric of outputs ``(N, values)`` against what counts as right."""
        if self.metric == "pair_spearman":
            return pair_spearman(outputs, wanted)
        return accuracy_of(outputs, wanted) if self.is_of_classes else variance_kept(outputs, wanted)

    def evaluate(self, model: nn.Module, split: str, hold: Hold) -> float:
        """Return a model's metric on ``val`` or ``test``."""
        pair: Pair = getattr(self.splits, split)
        return self.score(predict(model, pair[0], self.compute, hold=hold), self.labels(split, hold))

    def training_set(self, *, distill: bool, hold: Hold) -> TrainingSet:
        """Return what recovery learns from; without labels the teacher is always there."""
        inputs, labels = self.splits.train
        labels = labels if self.is_of_classes else None  # what values should be, only the dense model says
        teacher = self.teacher(hold) if distill or labels is None else None
        return TrainingSet(inputs, labels, teacher, self.splits.max_shift, self.is_of_classes)

    def importance(self, mix: ImportanceMix, hold: Hold) -> dict[str, Tensor]:
        """Return scores per group; the data-driven criteria are gathered once for all mixes."""
        if mix.taylor + mix.activation > 0 and self._evidence is None:
            self._evidence = gather_evidence(
                self.model, self.groups(), self._evidence_batches(hold), hold=hold, autocast=self.compute.autocast
            )
        return mixed_importance(self.model, self.groups(), mix, self._evidence)

    def prune(self, widths: dict[str, int], mix: ImportanceMix, hold: Hold, dropped: Collection[str] = ()) -> nn.Module:
        """Return a pruned copy on the model's device."""
        scores = self.importance(mix, hold)
        pruned = prune_to_widths(self.model, self.groups(), widths, scores, self.example, dropped)
        return self.compute.adopt(pruned)

    def pruned_as(self, candidate: Candidate, hold: Hold) -> nn.Module:
        return self.prune(dict(candidate.widths), candidate.importance, hold, candidate.dropped)

    def narrowed(self, model: nn.Module) -> Dense:
        """Return a source to cut further: a narrower recovered model in the place of the dense one.

        Data, metric and what counts as right stay the dense model's; groups and importance are the narrower model's own.
        """
        model.eval()
        groups = regroup(model, self.groups(), self.example)
        return replace(self, model=model, _groups=groups, _teacher=None, _evidence=None)

    def _evidence_batches(self, hold: Hold) -> list[tuple[Tensor, Tensor]]:
        inputs, labels = self.calibration()
        if not self.is_of_classes:
            # No loss has a slope where the model is its own teacher. Every output value counts, with a random sign.
            signs = torch.randint(0, 2, (len(inputs), self.classes), generator=torch.Generator().manual_seed(self.seed))
            labels = signs * 2.0 - 1.0
        elif labels is None:  # then what the dense model says is what must be kept
            labels = predict(self.model, inputs, self.compute, hold=hold).argmax(1)
        parts = zip(inputs.split(EVIDENCE_BATCH), labels.split(EVIDENCE_BATCH), strict=True)
        return [(self.compute.place(part), label.to(self.compute.device)) for part, label in parts]


def open_dense(
    spec: ModelSpec,
    splits: CheckedSplits,
    metric: str,
    seed: int,
    compute: Compute,
    fill: Callable[[nn.Module, Dense], None],
    artifacts: ArtifactStore | None = None,
) -> Dense:
    """Build a job's model, check that it and the data fit each other, and fill it with weights.

    Args:
        spec: The job's model.
        splits: The job's data.
        metric: As the job asks; without labels it becomes ``agreement``.
        seed: Of the fresh weights.
        compute: Device and precision.
        fill: Loads or trains the weights, given the model and the rest.
        artifacts: Where an uploaded model lies.

    Raises:
        Invalid: ``unknown_metric``, ``labels_missing``, ``model_rejects_data``, ``model_output``, ``labels_out_of_range`` and
            those of ``build_model``.
    """
    require_metric(metric)
    if metric == "pair_spearman" and (splits.val[1] is None or splits.test[1] is None):
        message = "pair_spearman needs val_labels and test_labels: the rating of each pair, on both of its rows."
        raise Invalid(message, code="labels_missing", fields=[FieldProblem("data.val_labels", message)])
    if metric == "accuracy" and not splits.has_labels:
        metric = "agreement"
    torch.manual_seed(seed)
    model = build_model(spec, artifacts=artifacts)
    require_eager(model)
    sample = splits.train[0].shape[1:]
    if isinstance(model, Packed):
        model.bind(sample)
    model = compute.adopt(model)
    model, gives_logits = _with_one_output(model, splits, compute, needs_logits=metric == "accuracy")
    if spec.source == "onnx" and isinstance(model, Packed):
        require_free_batch(model, compute.place(splits.train[0][:2]))
    of_classes = is_of_classes(metric, gives_logits=gives_logits)
    classes = _classes_of(model, splits, compute)
    if of_classes:
        check_labels(splits, classes)
    dense = Dense(model, splits, compute, metric, classes, seed, of_classes)
    fill(model, dense)
    model.eval()
    return dense


def _with_one_output(
    model: nn.Module, splits: CheckedSplits, compute: Compute, *, needs_logits: bool
) -> tuple[nn.Module, bool]:
    """Return a model of one output ``(N, values)``, and whether these are the logits of one label a sample.

    Raises:
        Invalid: ``model_rejects_data`` or ``model_output``.
    """
    example = splits.train[0][:2]
    outputs = _given(model, example, compute)
    if isinstance(model, Packed):
        gives_logits = len(outputs) == 1 and outputs[0].ndim == 2 and outputs[0].shape[1] > 1
    else:
        gives_logits = len(outputs) == 1 and outputs[0].ndim == 2
    if any(len(output) != len(example) for output in outputs if output.ndim) or any(not one.ndim for one in outputs):
        shapes = ", ".join(str(tuple(output.shape)) for output in outputs)
        message = f"Every output must have the samples first; {len(example)} samples gave {shapes}."
        raise Invalid(message, code="model_output", fields=[FieldProblem("model.name", message)])
    if needs_logits and not gives_logits:
        shapes = ", ".join(str(tuple(output.shape)) for output in outputs)
        message = (
            f"The model must give logits of shape (samples, classes) for accuracy, not {shapes}. Ask for the metric `agreement`,"
            " which compares any outputs with the dense model's."
        )
        raise Invalid(message, code="model_output", fields=[FieldProblem("model.name", message)])
    total = sum(output[0].numel() for output in outputs)
    samples = max(len(inputs) for inputs, _ in (splits.train, splits.val, splits.test))
    if 4 * total * samples > MOST_OUTPUT_BYTES:
        message = (
            f"The model gives {total} values a sample; the dense model's answers on {samples} samples take more than"
            f" {MOST_OUTPUT_BYTES // 2**30} GiB. Give fewer or smaller samples."
        )
        raise Invalid(message, code="outputs_too_large", fields=[FieldProblem("data", message)])
    if isinstance(model, Packed) or gives_logits:
        return model, gives_logits
    names = ["output", *(f"output_{number}" for number in range(1, len(outputs)))]
    ports = tuple(Port(name, tuple(output.shape)) for name, output in zip(names, outputs, strict=True))
    packed = Packed(model, Signature((Port("input", tuple(example.shape)),), ports))
    packed.bind(example.shape[1:])
    return packed, False


def _given(model: nn.Module, example: Tensor, compute: Compute) -> tuple[Tensor, ...]:
    was_training = model.training
    try:
        with torch.no_grad():
            placed = compute.place(example)
            outputs = model.eval().outputs(placed) if isinstance(model, Packed) else model.eval()(placed)
    except Exception as error:  # A boundary: a plug-in's forward raises what it likes on data it was not made for.
        first = (str(error).splitlines() or [type(error).__name__])[0]
        message = f"The model does not take samples of shape {tuple(example.shape[1:])}: {first}"
        raise Invalid(message, code="model_rejects_data", fields=[FieldProblem("model.params", message)]) from error
    finally:
        model.train(was_training)
    outputs = tuple(outputs) if isinstance(outputs, (tuple, list)) else (outputs,)
    if not outputs or not all(isinstance(output, Tensor) for output in outputs):
        kinds = ", ".join(type(output).__name__ for output in outputs) or "nothing"
        message = f"The model must give a tensor or a tuple of tensors, not {kinds}; wrap it in a module that does."
        raise Invalid(message, code="model_output", fields=[FieldProblem("model.name", message)])
    return outputs


def _classes_of(model: nn.Module, splits: CheckedSplits, compute: Compute) -> int:
    with torch.no_grad():
        return model.eval()(compute.place(splits.train[0][:2])).shape[1]
