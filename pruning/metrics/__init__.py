"""Metrics a job may name, what kind of task each stands for, and labels in the shape that the task wants.

``accuracy``       classes: share of samples whose highest logit is the label. One output: a yes-or-no answer, right side of zero.
``top5``           classes: share of samples with the label among the five highest logits.
``f1``             classes or tags: mean over them of F1.
``map``            tags or classes: mean over them of average precision.
``rmse``           values: root mean square error against the labels.
``spearman``       values: rank correlation with the labels, mean over the outputs.
``agreement``      without labels: share of the dense model's own answers; of outputs that are no logits of one label a sample
                   (a mask, boxes, several outputs), the share of their variance that is kept.
``fidelity``       without labels: the share of variance kept, of logits and embeddings too.
``pair_spearman``  of embeddings: rows 2i and 2i + 1 are a pair, whose similarity people rated (both rows carry the rating).

Others come by entry points of the group ``pruneloop.metrics``: a callable ``(outputs, labels) -> float``, more is better, where
``outputs`` is a tuple of the model's outputs, each ``(N, ...)``. Its attribute ``task`` says what recovery learns from the labels:
``classes``, ``tags``, ``values``, or nothing, where the dense model is the only teacher (boxes of a detector).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum

import torch
from torch import Tensor

from domain.errors import FieldProblem, Invalid
from domain.scores import METRICS, PLUGIN_GROUP
from pruning.metrics import scores
from pruning.plugins import Registry

__all__ = ["METRICS", "PLUGIN_METRICS", "Metric", "Task", "find_metric"]

Score = Callable[[tuple[Tensor, ...], Tensor], float]


class Task(StrEnum):
    """What outputs are, and so how a model is trained."""

    CLASSES = "classes"  # logits of one label a sample: cross-entropy
    TAGS = "tags"  # a logit a tag, any number of which hold: binary cross-entropy
    VALUES = "values"  # numbers to come close to: squared error


@dataclass(frozen=True)
class Metric:
    """A metric of a job whose outputs are known.

    Args:
        name: As in the job.
        task: How the model is trained.
        needs_labels: Whether it compares with labels; else with the dense model's answers.
        learns_labels: Whether labels are something to learn from; else the dense model is the only teacher.
        score: Outputs, each ``(N, ...)``, and what was wanted to a number.
    """

    name: str
    task: Task
    needs_labels: bool
    learns_labels: bool
    score: Score


PLUGIN_METRICS: Registry[object] = Registry(PLUGIN_GROUP, "metric", "objective.metric", {})
_NEED_LABELS = frozenset({"accuracy", "top5", "f1", "map", "rmse", "spearman", "pair_spearman"})


def needs_labels(name: str, registry: Registry[object] = PLUGIN_METRICS) -> bool:
    """Whether a metric compares with labels. Raises Invalid ``unknown_metric`` where there is none of the name."""
    if name in METRICS:
        return name in _NEED_LABELS
    if name not in registry.names():
        message = f"Unknown metric {name!r}; choose one of {', '.join((*METRICS, *registry.names()))}."
        raise Invalid(message, code="unknown_metric", fields=[FieldProblem("objective.metric", message)])
    return True


def find_metric(
    name: str,
    *,
    gives_logits: bool,
    width: int,
    label_dims: int | None,
    registry: Registry[object] = PLUGIN_METRICS,
) -> Metric:
    """Return a metric for a model's outputs.

    Args:
        name: As in the job.
        gives_logits: Whether there is one output ``(N, width)``.
        width: Output values a sample.
        label_dims: Dimensions of the labels; None without.
        registry: Where plug-ins are looked up.

    Raises:
        Invalid: ``unknown_metric``, ``broken_plugin``, ``model_output`` or ``data_shape``.
    """
    needs_labels(name, registry)
    if name not in METRICS:
        return _of_plugin(name, registry)
    if name == "agreement":
        task = Task.CLASSES if gives_logits and width > 1 else Task.VALUES
        kept = scores.accuracy if task is Task.CLASSES else scores.variance_kept
        return Metric(name, task, needs_labels=False, learns_labels=task is Task.CLASSES, score=_of_one(kept))
    if name in {"fidelity", "pair_spearman"}:
        like = scores.pair_spearman if name == "pair_spearman" else scores.variance_kept
        return Metric(name, Task.VALUES, needs_labels=name in _NEED_LABELS, learns_labels=False, score=_of_one(like))
    if name in {"rmse", "spearman"}:
        close = scores.rmse_skill if name == "rmse" else scores.mean_spearman
        return Metric(name, Task.VALUES, needs_labels=True, learns_labels=True, score=_of_one(close))
    if not gives_logits:
        message = (
            f"The model must give one output of logits, of shape (samples, classes), for {name}. Ask for the metric `agreement`,"
            " which compares any outputs with the dense model's, or for one of a plug-in (group pruneloop.metrics)."
        )
        raise Invalid(message, code="model_output", fields=[FieldProblem("model.name", message)])
    task = Task.TAGS if width == 1 or label_dims == 2 else Task.CLASSES
    return Metric(name, task, needs_labels=True, learns_labels=True, score=_of_one(_labelled(name, task, width)))


def _labelled(name: str, task: Task, width: int) -> Callable[[Tensor, Tensor], float]:
    if name == "top5" and (task is Task.TAGS or width <= scores.TOP):
        raise _unfit(f"top5 needs one label a sample and more than {scores.TOP} classes, the model has {width}")
    if name == "accuracy" and task is Task.TAGS and width > 1:
        raise _unfit("accuracy needs one class a sample; labels of several tags a sample are scored by `f1` or `map`")
    if name == "map" and task is Task.CLASSES:
        return lambda logits, labels: scores.average_precision(logits.softmax(1), scores.one_hot(labels, width))
    table = {
        ("accuracy", Task.CLASSES): scores.accuracy,
        ("accuracy", Task.TAGS): scores.right_tags,
        ("top5", Task.CLASSES): scores.top_five,
        ("f1", Task.CLASSES): scores.f1_of_classes,
        ("f1", Task.TAGS): scores.f1_of_tags,
        ("map", Task.TAGS): scores.average_precision,
    }
    return table[name, task]


def _unfit(why: str) -> Invalid:
    message = f"The metric does not fit the labels: {why}."
    return Invalid(message, code="metric_unfit", fields=[FieldProblem("objective.metric", message)])


def _of_one(score: Callable[[Tensor, Tensor], float]) -> Score:
    """Score outputs side by side, as they are trained."""

    def scored(outputs: tuple[Tensor, ...], wanted: Tensor) -> float:
        whole = outputs[0] if len(outputs) == 1 and outputs[0].ndim == 2 else _side_by_side(outputs)
        return score(whole, wanted)

    return scored


def _side_by_side(outputs: tuple[Tensor, ...]) -> Tensor:
    return torch.cat([output.flatten(1).to(torch.float32) for output in outputs], dim=1)


def _of_plugin(name: str, registry: Registry[object]) -> Metric:
    found = registry.factory(name)
    told = getattr(found, "task", None)
    try:
        task = Task(told) if told is not None else Task.VALUES
    except ValueError as error:
        message = f"The metric {name!r} says its task is {told!r}; it may be {', '.join(Task)} or left out."
        raise Invalid(message, code="broken_plugin", fields=[FieldProblem("objective.metric", message)]) from error

    def score(outputs: tuple[Tensor, ...], labels: Tensor) -> float:
        given: object = found(outputs, labels)
        if not isinstance(given, (int, float)) or given != given:
            raise Invalid(f"The metric {name!r} gave {given!r}, not a number; mend the plug-in.", code="broken_plugin")
        return float(given)

    return Metric(name, task, needs_labels=True, learns_labels=told is not None, score=score)
