"""Apply widths to a model: a smaller dense module comes back, exactly as wide as asked, or an error says which group is not."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from copy import deepcopy

import torch
from torch import Tensor, nn

from domain.candidate import is_inside
from domain.errors import FieldProblem, Invalid, PruneloopError
from pruning.blocks import drop_blocks
from pruning.groups import Group, Groups, Member, Role, cut, trace
from pruning.members import Kind, channel_axis, has_layer, width_of
from pruning.narrow import cut_units


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
    dropped: Collection[str] = (),
) -> nn.Module:
    """Return a copy of a model whose groups have the widths asked, without the blocks dropped; the model is not touched.

    Args:
        model: Dense module ``groups`` was found on; may be frozen.
        groups: As ``find_groups`` gave them.
        widths: Group name -> channels kept; a group not named keeps all.
        importance: Group name -> scores of shape ``(channels,)``; needed for groups that lose channels.
        example: Inputs the model takes, shape ``(N, ...)``.
        dropped: Names of blocks that become identities; widths of groups inside them count for nothing.

    Raises:
        Invalid: ``unknown_group``, ``bad_width`` or ``unknown_block``.
        SurgeryFailed: ``group_skipped`` where a real width differs from the plan, ``nothing_pruned`` where channels should
            have gone and none did, ``broken_surgery`` where a buffer or a shape does not fit.
    """
    widths = {name: width for name, width in widths.items() if not is_inside(name, dropped)}
    left = tuple(group for group in groups.groups if not is_inside(group.name, dropped))
    groups = Groups(left, groups.unprunable)
    _check_widths(groups, widths)
    model = drop_blocks(model, dropped) if dropped else model
    removed = [
        (group, channels_to_remove(importance[group.name], widths[group.name]))
        for group in groups.groups
        if widths.get(group.name, group.channels) < group.channels
    ]
    units = [one for one in removed if one[0].kind is not Kind.CHANNELS]
    narrower = deepcopy(model) if units else model
    cut_units(narrower, units)  # first: what a graph was traced on before would not hear of them
    graph = trace(narrower, example)
    for group, remove in removed:
        if group.kind is Kind.CHANNELS:
            cut(graph, group.name, remove)
    planned_loss = sum(len(remove) for _, remove in removed)
    pruned: nn.Module = graph.model
    frozen = {name for name, parameter in model.named_parameters() if not parameter.requires_grad}
    for name, parameter in pruned.named_parameters():
        parameter.requires_grad_(name not in frozen)
    pruned.train(model.training)
    _verify(model, pruned, groups, widths, example, planned_loss)
    return pruned


def read_widths(model: nn.Module, groups: Groups) -> dict[str, int]:
    """Read the kept width of every group off the module's weights; groups that went with a dropped block are left out."""
    return {
        group.name: width_of(model.get_submodule(group.name), Role.PRODUCES) // _positions(group, group.members[0])
        for group in groups.groups
        if has_layer(model, group.members[0])
    }


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
    _verify_layers(model, pruned, groups, real)
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


def _verify_layers(model: nn.Module, pruned: nn.Module, groups: Groups, real: Mapping[str, int]) -> None:
    """Buffers that keep their old length pass a forward in train mode and break export: look at every one."""
    lost: dict[tuple[str, bool], int] = {}
    for group in groups.groups:
        for member in group.members:
            if member.role is not Role.SCALES and has_layer(pruned, member):
                side = member.name, member.role is Role.CONSUMES
                lost[side] = lost.get(side, 0) + (group.channels - real[group.name]) * _positions(group, member)
    for (name, is_reader), positions in lost.items():
        before, after = model.get_submodule(name), pruned.get_submodule(name)
        if is_reader:
            expected = width_of(before, Role.CONSUMES) - positions
            got = width_of(after, Role.CONSUMES)
            if got != expected:
                raise SurgeryFailed(f"{name} reads {got} channels, not {expected}.")
            continue
        old = dict([*before.named_parameters(recurse=False), *before.named_buffers(recurse=False)])
        for tensor_name, tensor in [*after.named_parameters(recurse=False), *after.named_buffers(recurse=False)]:
            axis = channel_axis(before, Role.PRODUCES) if tensor.ndim > 1 else 0
            if tensor.ndim > 0 and tensor.shape[axis] != old[tensor_name].shape[axis] - positions:
                expected = old[tensor_name].shape[axis] - positions
                raise SurgeryFailed(f"{name}.{tensor_name} has length {tensor.shape[axis]}, not {expected}.")
        for attribute in ("out_channels", "out_features", "num_features", "num_channels"):
            expected = getattr(before, attribute, 0) - positions
            if hasattr(after, attribute) and getattr(after, attribute) != expected:
                raise SurgeryFailed(f"{name}.{attribute} is {getattr(after, attribute)}, not {expected}.")


def _positions(group: Group, member: Member) -> int:
    return len(member.index) // group.channels
