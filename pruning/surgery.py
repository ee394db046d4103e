"""Apply widths to a model: a smaller dense module comes back, exactly as wide as asked, or an error says which group is not."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from domain.errors import FieldProblem, Invalid, PruneloopError
from pruning.groups import Group, Groups, Role, cut, trace


class SurgeryFailed(PruneloopError):
    """The cut model is not what was planned; ``code`` is ``group_skipped``, ``nothing_pruned`` or ``broken_surgery``."""

    default_code = "broken_surgery"


def channels_to_remove(scores: Tensor, width: int) -> list[int]:
    """Return exactly ``len(scores) - width`` channels with the lowest scores; ties go to the lower index.

    Args:
        scores: Importance of shape ``(channels,)``.
        width: Channels to keep.
    """
    order = torch.argsort(scores.detach().cpu(), stable=True)
    return sorted(order[: len(scores) - width].tolist())


def prune_to_widths(
    model: nn.Module,
    groups: Groups,
    widths: Mapping[str, int],
    importance: Mapping[str, Tensor],
    example: Tensor,
) -> nn.Module:
    """Return a copy of a model whose groups have the widths asked; the model itself is not touched.

    Args:
        model: Dense module ``groups`` was found on; may be frozen.
        groups: As ``find_groups`` gave them.
        widths: Group name -> channels kept; a group not named keeps all.
        importance: Group name -> scores of shape ``(channels,)``; needed for groups that lose channels.
        example: Inputs the model takes, shape ``(N, ...)``.

    Raises:
        Invalid: ``unknown_group`` or ``bad_width``.
        SurgeryFailed: ``group_skipped`` where a real width differs from the plan, ``nothing_pruned`` where channels should
            have gone and none did, ``broken_surgery`` where a buffer or a shape does not fit.
    """
    _check_widths(groups, widths)
    graph = trace(model, example)
    planned_loss = 0
    for group in groups.groups:
        width = widths.get(group.name, group.channels)
        if width < group.channels:
            cut(graph, group.name, channels_to_remove(importance[group.name], width))
            planned_loss += group.channels - width
    pruned: nn.Module = graph.model
    frozen = {name for name, parameter in model.named_parameters() if not parameter.requires_grad}
    for name, parameter in pruned.named_parameters():
        parameter.requires_grad_(name not in frozen)
    pruned.train(model.training)
    _verify(model, pruned, groups, widths, example, planned_loss)
    return pruned


def read_widths(model: nn.Module, groups: Groups) -> dict[str, int]:
    """Read the kept width of every group off the module's weights."""
    return {group.name: _out_channels(model.get_submodule(group.name)) for group in groups.groups}


def _check_widths(groups: Groups, widths: Mapping[str, int]) -> None:
    known = {group.name: group for group in groups.groups}
    for name, width in widths.items():
        field = f"candidate.widths.{name}"
        if name not in known:
            message = f"The model has no group {name!r}; known: {', '.join(known)}."
            raise Invalid(message, code="unknown_group", fields=[FieldProblem(field, message)])
        if not 1 <= width <= known[name].channels:
            message = (
                f"Group {name!r} has {known[name].channels} channels and cannot keep {width}; keep 1 or more of them."
            )
            raise Invalid(message, code="bad_width", fields=[FieldProblem(field, message)])


def _verify(
    model: nn.Module,
    pruned: nn.Module,
    groups: Groups,
    widths: Mapping[str, int],
    example: Tensor,
    planned_loss: int,
) -> None:
    real = read_widths(pruned, groups)
    wrong = [
        f"{group.name} has {real[group.name]} of {group.channels} channels, {wanted} were asked"
        for group in groups.groups
        if (wanted := widths.get(group.name, group.channels)) != real[group.name]
    ]
    if planned_loss and all(real[group.name] == group.channels for group in groups.groups):
        raise SurgeryFailed(f"Nothing was removed: {'; '.join(wrong)}.", code="nothing_pruned")
    if wrong:
        raise SurgeryFailed(f"Groups were cut otherwise than planned: {'; '.join(wrong)}.", code="group_skipped")
    for group in groups.groups:
        _verify_members(pruned, group, real[group.name])
    was_training = model.training
    try:
        with torch.no_grad():
            before, after = model.eval()(example[:2]), pruned.eval()(example[:2])
    except RuntimeError as error:
        raise SurgeryFailed(f"The cut model does not run: {error}") from error
    finally:
        model.train(was_training)
        pruned.train(was_training)
    if after.shape != before.shape:
        raise SurgeryFailed(f"The cut model gives {tuple(after.shape)} where {tuple(before.shape)} was given before.")


def _verify_members(pruned: nn.Module, group: Group, width: int) -> None:
    """Buffers that keep their old length pass a forward in train mode and break export: look at every one."""
    for member in group.of_role(Role.PRODUCES, Role.NORMALISES, Role.CARRIES):
        module = pruned.get_submodule(member.name)
        expected = width * (len(member.index) // group.channels)
        tensors = [*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)]
        for name, tensor in tensors:
            if tensor.ndim > 0 and tensor.shape[0] != expected:
                raise SurgeryFailed(f"{member.name}.{name} has length {tensor.shape[0]}, not {expected}.")
        for attribute in ("out_channels", "out_features", "num_features"):
            if getattr(module, attribute, expected) != expected:
                raise SurgeryFailed(f"{member.name}.{attribute} is {getattr(module, attribute)}, not {expected}.")


def _out_channels(module: nn.Module) -> int:
    weight = module.weight
    assert isinstance(weight, Tensor)
    return weight.shape[0]
