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
from pruning.accuracy import predict
from pruning.datasets.labels import fit_labels
from pruning.datasets.splits import CheckedSplits, Pair
from pruning.groups import Groups, find_groups, regroup, require_eager
from pruning.importance import Evidence, gather_evidence, mixed_importance
from pruning.metrics import Metric, Task, find_metric, needs_labels
from pruning.metrics.scores import spread_of
from pruning.models import build_model
from pruning.models.from_file import require_free_batch
from pruning.precision import Compute
from pruning.recovery import CALIBRATION_SAMPLES, TrainingSet
from pruning.signature import Packed, Port, Signature
from pruning.surgery import prune_to_widths

EVIDENCE_BATCH = 64
MOST_OUTPUT_BYTES = 4 * 2**30


@dataclass
class Dense:
    """A dense model with what was already found out about it; each piece is computed once and kept.

    Args:
        model: Dense module on ``compute.device``.
        splits: Checked data.
        compute: Device and precision of calibration passes.
        metric: What outputs are scored by, and what they are.
        classes: Number of logits, or of output values.
        seed: Of the order calibration samples are drawn in.
        output_shapes: Of every output, for one sample.
    """

    model: nn.Module
    splits: CheckedSplits
    compute: Compute
    metric: Metric
    classes: int
    seed: int
    output_shapes: tuple[tuple[int, ...], ...] = ()
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
        index = order[:CALIBRATION_SAMPLES]
        return inputs[index], None if labels is None else labels[index]

    def teacher(self, hold: Hold) -> Tensor:
        """Return the dense model's logits on train, shape ``(N, classes)``.

        Of classes they may be rough: what a student is told of the others is softened anyway, and the pass over all of train is
        a good part of a first candidate. Numbers to come close to are exact.
        """
        if self._teacher is None:
            is_rough = self.metric.task is Task.CLASSES
            self._teacher = predict(self.model, self.splits.train[0], self.compute, hold=hold, is_rough=is_rough)
        return self._teacher

    def labels(self, split: str, hold: Hold) -> Tensor:
        """Return what counts as right on ``val`` or ``test``: the labels, or else the dense model's answers."""
        pair: Pair = getattr(self.splits, split)
        if self.metric.needs_labels:
            assert pair[1] is not None
            return pair[1]
        if split not in self._labels:
            outputs = predict(self.model, pair[0], self.compute, hold=hold)
            self._labels[split] = outputs.argmax(1) if self.metric.task is Task.CLASSES else outputs
        return self._labels[split]

    def score(self, outputs: Tensor, wanted: Tensor) -> float:
        """Return the metric of the module's outputs ``(N, values)`` against what counts as right."""
        if not self.output_shapes:
            return self.metric.score((outputs,), wanted)
        lengths = [torch.Size(shape).numel() for shape in self.output_shapes]
        parts = zip(outputs.split(lengths, dim=1), self.output_shapes, strict=True)
        return self.metric.score(tuple(part.reshape(-1, *shape) for part, shape in parts), wanted)

    def score_file(self, outputs: Tensor, wanted: Tensor) -> float:
        """Return the metric of a file's outputs: where it ends in a softmax or sigmoid, the module gives logits instead."""
        return self.score(self.model.to_logits(outputs) if isinstance(self.model, Packed) else outputs, wanted)

    def spread(self, split: str) -> float | None:
        """Return the standard deviation of a split's labels, which is what ``rmse`` is told in; None for other metrics."""
        labels = getattr(self.splits, split)[1]
        return spread_of(labels) if self.metric.name == "rmse" and labels is not None else None

    def evaluate(self, model: nn.Module, split: str, hold: Hold) -> float:
        """Return a model's metric on ``val`` or ``test``."""
        pair: Pair = getattr(self.splits, split)
        return self.score(predict(model, pair[0], self.compute, hold=hold), self.labels(split, hold))

    def training_set(self, *, distill: bool, hold: Hold) -> TrainingSet:
        """Return what recovery learns from; without labels the teacher is always there."""
        inputs, labels = self.splits.train
        labels = labels if self.metric.learns_labels else None
        teacher = self.teacher(hold) if distill or labels is None else None
        lengths = tuple(torch.Size(shape).numel() for shape in self.output_shapes)
        return TrainingSet(inputs, labels, teacher, self.splits.max_shift, self.metric.task, lengths)

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
        if self.metric.task is not Task.CLASSES:
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
    if needs_labels(metric):
        if metric == "accuracy" and not splits.has_labels:
            metric = "agreement"
        elif splits.val[1] is None or splits.test[1] is None:
            message = (
                f"The metric {metric} needs labels of val and test (for pair_spearman: the rating of each pair, on both of its"
                f" rows)."
                " Add them, or ask for `agreement`, which compares with the dense model."
            )
            raise Invalid(message, code="labels_missing", fields=[FieldProblem("data.val_labels", message)])
    torch.manual_seed(seed)
    model = build_model(spec, artifacts=artifacts)
    require_eager(model)
    compute = compute.suited_to(model)
    sample = splits.train[0].shape[1:]
    if isinstance(model, Packed):
        model.bind(sample)
    model = compute.adopt(
        model
    ).eval()  # as what follows finds it: batch norms of a file must not learn from two samples
    model, shapes, gives_logits = _with_one_output(model, splits, compute)
    if spec.source == "onnx" and isinstance(model, Packed):
        require_free_batch(model, compute.place(splits.train[0][:2]))
    width = _width_of(model, splits, compute)
    labels = splits.val[1] if splits.val[1] is not None else splits.train[1]
    found = find_metric(
        metric, gives_logits=gives_logits, width=width, label_dims=None if labels is None else labels.ndim
    )
    if isinstance(model, Packed) and model.ending == "sigmoid" and found.task is not Task.TAGS:
        model.ending = ""  # a share or a probability that is to be come close to as it is
    dense = Dense(model, fit_labels(splits, found, width), compute, found, width, seed, shapes)
    fill(model, dense)
    model.eval()
    return dense


def _with_one_output(
    model: nn.Module, splits: CheckedSplits, compute: Compute
) -> tuple[nn.Module, tuple[tuple[int, ...], ...], bool]:
    """Return a model of one output ``(N, values)``, the shapes of what it gave, and whether these may be logits.

    Raises:
        Invalid: ``model_rejects_data`` or ``model_output``.
    """
    example = splits.train[0][:2]
    outputs = _given(model, example, compute)
    gives_logits = len(outputs) == 1 and outputs[0].ndim == 2
    if any(len(output) != len(example) for output in outputs if output.ndim) or any(not one.ndim for one in outputs):
        shapes = ", ".join(str(tuple(output.shape)) for output in outputs)
        message = f"Every output must have the samples first; {len(example)} samples gave {shapes}."
        raise Invalid(message, code="model_output", fields=[FieldProblem("model.name", message)])
    total = sum(output[0].numel() for output in outputs)
    samples = max(len(inputs) for inputs, _ in (splits.train, splits.val, splits.test))
    if 4 * total * samples > MOST_OUTPUT_BYTES:
        message = (
            f"The model gives {total} values a sample; the dense model's answers on {samples} samples take more than"
            f" {MOST_OUTPUT_BYTES // 2**30} GiB. Give fewer or smaller samples."
        )
        raise Invalid(message, code="outputs_too_large", fields=[FieldProblem("data", message)])
    own_shapes = tuple(tuple(output.shape[1:]) for output in outputs)
    if isinstance(model, Packed) or gives_logits:
        return model, own_shapes, gives_logits
    names = ["output", *(f"output_{number}" for number in range(1, len(outputs)))]
    ports = tuple(Port(name, tuple(output.shape)) for name, output in zip(names, outputs, strict=True))
    packed = Packed(model, Signature((Port("input", tuple(example.shape)),), ports))
    packed.bind(example.shape[1:])
    return packed, own_shapes, False


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


def _width_of(model: nn.Module, splits: CheckedSplits, compute: Compute) -> int:
    with torch.no_grad():
        return model.eval()(compute.place(splits.train[0][:2])).shape[1]
