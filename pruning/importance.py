"""Which channels matter: one function a criterion, each giving scores of shape ``(channels,)``, float32; low goes first.

Every criterion is a mean over the members of the group that say something, so that a group coupled over many layers is not
worth more than a small one; ``mixed_importance`` divides each by its mean over channels before it adds them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch
import torch.nn.functional as F  # noqa: N812 - torch's own custom
from torch import Tensor, nn

from domain.candidate import ImportanceMix
from domain.errors import Invalid
from domain.ports import Hold
from pruning.groups import Group, Groups, Member, Role
from pruning.members import channel_axis
from pruning.narrow import scale_axis


@dataclass(frozen=True)
class Evidence:
    """What calibration batches say: per group name, first-order Taylor and activation scores of shape ``(channels,)``."""

    taylor: Mapping[str, Tensor]
    activation: Mapping[str, Tensor]


def l2_importance(model: nn.Module, group: Group) -> Tensor:
    """Score channels by the L2 norm of their weights, averaged over the coupled layers.

    Source: Li et al., Pruning Filters, ICLR 2017, arXiv:1608.08710, with the group mean of DepGraph, arXiv:2301.12900.
    """
    scores = []
    for member in group.members:
        slices = _weight_slices(model, member)
        if slices is not None:
            scores.append(_to_channels(slices.detach().float().pow(2).sum(1), member, group.channels).sqrt())
    return torch.stack(scores).mean(0)


def taylor_terms(model: nn.Module, group: Group) -> Tensor:
    """Score channels by the first-order change of the loss if they went, from the gradients of one batch.

    ``|gamma * dgamma + beta * dbeta|`` summed over the coupled batch norms; where there is none, ``|sum(w * dw)|`` summed over
    the producing layers.

    Source: Molchanov et al., CVPR 2019, arXiv:1906.10771, and the batch-norm form of HALP, arXiv:2110.10811 (from the paper).
    """
    total = torch.zeros(group.channels)
    members = [
        member for member in group.of_role(Role.NORMALISES) if _parameter(model, member, "weight") is not None
    ] or group.of_role(Role.PRODUCES)
    for member in members:
        change = torch.zeros(group.channels)
        for name in ("weight", "bias"):
            parameter = _parameter(model, member, name)
            if parameter is not None and parameter.grad is not None:
                product = (parameter.detach() * parameter.grad).float().cpu()
                if product.ndim > 1:
                    product = product.movedim(channel_axis(model.get_submodule(member.name), member.role), 0).flatten(1)
                per_index = product.sum(1) if product.ndim > 1 else product
                change = change + _to_channels(per_index, member, group.channels)
        total += change.abs()
    return total


def activation_importance(means: Mapping[str, Tensor], group: Group) -> Tensor:
    """Score channels by the mean absolute value that the layers reading them get, averaged over those layers.

    Args:
        means: Consumer name -> mean absolute input per input channel, shape ``(in_channels,)``.
        group: The group to score.
    """
    scores = []
    for member in group.of_role(Role.CONSUMES):
        if member.name in means:
            positions = len(member.index) / group.channels
            picked = means[member.name][list(member.index)]
            scores.append(_scatter(picked, member, group.channels) / positions)
    return torch.stack(scores).mean(0) if scores else torch.zeros(group.channels)


def gather_evidence(
    model: nn.Module,
    groups: Groups,
    batches: Iterable[tuple[Tensor, Tensor]],
    *,
    hold: Hold = nullcontext,
    autocast: Callable[[], AbstractContextManager[object]] = nullcontext,
) -> Evidence:
    """Run forward and backward over calibration batches and average both data-driven criteria over them.

    Args:
        model: Dense module; left without gradients, in the mode it was in.
        groups: Groups to score.
        batches: ``(inputs, labels)`` on the model's device; labels are class indices, or a sign for every output value.
        hold: Entered around every batch.
        autocast: Gives the precision context of the forward pass.
    """
    readers = {member.name for group in groups.groups for member in group.of_role(Role.CONSUMES)}
    sums: dict[str, Tensor] = {}
    taylor = {group.name: torch.zeros(group.channels) for group in groups.groups}
    count = 0

    def record(name: str) -> object:
        def hook(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            value = inputs[0].detach().float().abs()
            axis = value.ndim - 1 if isinstance(module, nn.Linear) else 1
            mean = value.mean(dim=[dim for dim in range(value.ndim) if dim != axis]).cpu()
            sums[name] = sums[name] + mean if name in sums else mean

        return model.get_submodule(name).register_forward_pre_hook(hook)

    hooks = [record(name) for name in sorted(readers)]
    was_training = model.training
    flags = {name: parameter.requires_grad for name, parameter in model.named_parameters()}
    try:
        model.eval()
        with torch.enable_grad():
            model.requires_grad_(True)
            for inputs, labels in batches:
                with hold():
                    model.zero_grad(set_to_none=True)
                    with autocast():
                        outputs = model(inputs).float()
                        is_signs = labels.is_floating_point()
                        loss = (outputs * labels).sum(1).mean() if is_signs else F.cross_entropy(outputs, labels)
                    loss.backward()
                    for group in groups.groups:
                        taylor[group.name] += taylor_terms(model, group)
                    count += 1
    finally:
        for hook in hooks:
            hook.remove()  # type: ignore[attr-defined]
        model.zero_grad(set_to_none=True)
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(flags[name])
        model.train(was_training)
    if count == 0:
        raise Invalid("Importance from data needs at least one calibration batch.", code="data_empty")
    means = {name: total / count for name, total in sums.items()}
    return Evidence(
        taylor={name: total / count for name, total in taylor.items()},
        activation={group.name: activation_importance(means, group) for group in groups.groups},
    )


def mixed_importance(
    model: nn.Module, groups: Groups, mix: ImportanceMix, evidence: Evidence | None
) -> dict[str, Tensor]:
    """Mix the criteria, each normalised to mean one over its group's channels.

    Args:
        model: Dense module.
        groups: Groups to score.
        mix: Weights of the criteria; they are normalised to sum to one.
        evidence: Needed where ``mix`` asks for ``taylor`` or ``activation``.

    Returns:
        Group name -> scores of shape ``(channels,)``, float32, on the CPU; low goes first.

    Raises:
        Invalid: ``empty_importance_mix`` where all weights are zero, ``bad_importance`` where a score is not finite.
    """
    total = mix.l2 + mix.taylor + mix.activation
    if total <= 0:
        raise Invalid(
            "All weights of the importance mix are zero; give one of them a weight.", code="empty_importance_mix"
        )
    scores: dict[str, Tensor] = {}
    for group in groups.groups:
        parts: list[tuple[float, Tensor]] = []
        if mix.l2 > 0:
            parts.append((mix.l2, l2_importance(model, group)))
        if mix.taylor + mix.activation > 0:
            if evidence is None:
                raise Invalid("taylor and activation importance need calibration data.", code="data_empty")
            parts += [(mix.taylor, evidence.taylor[group.name]), (mix.activation, evidence.activation[group.name])]
        mixed = torch.zeros(group.channels)
        for weight, part in parts:
            mixed += weight / total * mean_normalised(part.float().cpu())
        if not bool(torch.isfinite(mixed).all()):
            raise Invalid(
                f"Importance of group {group.name!r} is not finite; check the weights.", code="bad_importance"
            )
        scores[group.name] = mixed
    return scores


def mean_normalised(scores: Tensor) -> Tensor:
    """Divide scores by their mean; all zeros stay zeros."""
    mean = scores.mean()
    return scores / mean if mean > 0 else torch.zeros_like(scores)


def _parameter(model: nn.Module, member: Member, name: str) -> Tensor | None:
    value = getattr(model.get_submodule(member.name), name, None)
    return value if isinstance(value, Tensor) else None


def _weight_slices(model: nn.Module, member: Member) -> Tensor | None:
    """Return weights by the member's channel dimension, shape ``(its channels, weights each)``; None if it holds none."""
    if member.role is Role.SCALES:
        parameter = model.get_parameter(member.name)
        return parameter.movedim(scale_axis(parameter, len(member.index)), 0).reshape(len(member.index), -1)
    weight = _parameter(model, member, "weight")
    if weight is None:
        return None
    weight = weight.movedim(channel_axis(model.get_submodule(member.name), member.role), 0)
    return weight.reshape(weight.shape[0], -1)


def _to_channels(per_index: Tensor, member: Member, channels: int) -> Tensor:
    return _scatter(per_index.float().cpu()[list(member.index)], member, channels)


def _scatter(values: Tensor, member: Member, channels: int) -> Tensor:
    return torch.zeros(channels).index_add_(0, torch.tensor(member.root), values)
