"""What every build of one job shares: data, the dense model, its groups, importance and the teacher's answers."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from domain.candidate import Candidate, ImportanceMix
from domain.errors import FieldProblem, Invalid
from domain.job import ModelSpec
from domain.ports import Hold
from pruning.accuracy import accuracy_of, predict
from pruning.datasets.splits import CheckedSplits, Pair, check_labels
from pruning.groups import Groups, find_groups, regroup, require_eager
from pruning.importance import Evidence, gather_evidence, mixed_importance
from pruning.models import build_model
from pruning.precision import Compute
from pruning.recovery import CALIBRATION_SAMPLES, TrainingSet
from pruning.surgery import prune_to_widths

METRICS = ("accuracy", "agreement")
EVIDENCE_SAMPLES = 320
EVIDENCE_BATCH = 64


@dataclass
class Dense:
    """A dense model with what was already found out about it; each piece is computed once and kept.

    Args:
        model: Dense module on ``compute.device``.
        splits: Checked data.
        compute: Device and precision of calibration passes.
        metric: ``accuracy`` or ``agreement``.
        classes: Number of logits.
        seed: Of the order calibration samples are drawn in.
    """

    model: nn.Module
    splits: CheckedSplits
    compute: Compute
    metric: str
    classes: int
    seed: int
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
        """Return what counts as right on ``val`` or ``test``: the labels, or the dense model's answers for agreement."""
        pair: Pair = getattr(self.splits, split)
        if self.metric == "accuracy":
            assert pair[1] is not None
            return pair[1]
        if split not in self._labels:
            self._labels[split] = predict(self.model, pair[0], self.compute, hold=hold).argmax(1)
        return self._labels[split]

    def evaluate(self, model: nn.Module, split: str, hold: Hold) -> float:
        """Return a model's accuracy (or agreement) on ``val`` or ``test``."""
        pair: Pair = getattr(self.splits, split)
        return accuracy_of(predict(model, pair[0], self.compute, hold=hold), self.labels(split, hold))

    def training_set(self, *, distill: bool, hold: Hold) -> TrainingSet:
        """Return what recovery learns from; without labels the teacher is always there."""
        inputs, labels = self.splits.train
        teacher = self.teacher(hold) if distill or labels is None else None
        return TrainingSet(inputs, labels, teacher, self.splits.max_shift)

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
        return Dense(
            model, self.splits, self.compute, self.metric, self.classes, self.seed, _groups=groups, _labels=self._labels
        )

    def _evidence_batches(self, hold: Hold) -> list[tuple[Tensor, Tensor]]:
        inputs, labels = self.calibration()
        if labels is None:  # then what the dense model says is what must be kept
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
) -> Dense:
    """Build a job's model, check that it and the data fit each other, and fill it with weights.

    Args:
        spec: The job's model.
        splits: The job's data.
        metric: As the job asks; without labels it becomes ``agreement``.
        seed: Of the fresh weights.
        compute: Device and precision.
        fill: Loads or trains the weights, given the model and the rest.

    Raises:
        Invalid: ``unknown_metric``, ``model_rejects_data``, ``model_output``, ``labels_out_of_range`` and those of
            ``build_model``.
    """
    if metric not in METRICS:
        message = f"Unknown metric {metric!r}; choose {' or '.join(METRICS)}."
        raise Invalid(message, code="unknown_metric", fields=[FieldProblem("objective.metric", message)])
    torch.manual_seed(seed)
    model = build_model(spec)
    require_eager(model)
    model = compute.adopt(model)
    classes = _classes_of(model, splits, compute)
    check_labels(splits, classes)
    dense = Dense(model, splits, compute, metric if splits.has_labels else "agreement", classes, seed)
    fill(model, dense)
    model.eval()
    return dense


def _classes_of(model: nn.Module, splits: CheckedSplits, compute: Compute) -> int:
    example = splits.train[0][:2]
    was_training = model.training
    try:
        with torch.no_grad():
            outputs = model.eval()(compute.place(example))
    except Exception as error:  # A boundary: a plug-in's forward raises what it likes on data it was not made for.
        message = f"The model does not take samples of shape {tuple(example.shape[1:])}: {str(error).splitlines()[0]}"
        raise Invalid(message, code="model_rejects_data", fields=[FieldProblem("model.params", message)]) from error
    finally:
        model.train(was_training)
    if not isinstance(outputs, Tensor) or outputs.ndim != 2 or len(outputs) != len(example):
        shape = tuple(outputs.shape) if isinstance(outputs, Tensor) else type(outputs).__name__
        message = f"The model must give logits of shape (samples, classes), not {shape}."
        raise Invalid(message, code="model_output", fields=[FieldProblem("model.name", message)])
    return outputs.shape[1]
