"""What can be removed: groups of channels that hang together, found by tracing the model once.

Only here and in ``coupling``, ``sets`` and ``surgery`` Torch-Pruning is talked to, and nothing but its dependency graph is taken;
which channels go is always our own list. See docs/adr/0002-pruning-engine.md for the choice and the traps each guard stands for.

Source: Fang et al., DepGraph, CVPR 2023, arXiv:2301.12900, for grouping; Fang et al., Isomorphic Pruning, ECCV 2024,
arXiv:2407.04616, for comparing groups of one topology only.
"""

from __future__ import annotations

from collections.abc import Sequence
from copy import deepcopy
from dataclasses import replace

import torch
import torch_pruning as tp
from torch import Tensor, nn

from domain.candidate import GroupInfo, UnprunableLayer
from domain.errors import FieldProblem, Invalid
from pruning.cost import LayerCost, layer_costs
from pruning.coupling import Coupled, couple
from pruning.heads import find_heads, heads_members, why_attention_is_whole
from pruning.members import (
    CONVOLUTIONS,
    TRANSPOSED,
    Group,
    Groups,
    Kind,
    Member,
    Role,
    has_layer,
    is_depthwise,
    width_of,
)
from pruning.narrow import cut_units, deaf
from pruning.sets import couple_sets, why_one_set

__all__ = ["Group", "Groups", "Member", "Role", "cut", "find_groups", "regroup", "require_eager", "trace"]

_PRODUCERS = (*CONVOLUTIONS, *TRANSPOSED, nn.Linear)
_FINE = 4  # channels: sets of fewer are no steps worth taking alone


def find_groups(model: nn.Module, example: Tensor) -> Groups:
    """Find every coupled group that can be narrowed: of channels, of attention heads, of sets of a grouped convolution or norm.

    The model is not changed, may be frozen and may be called under ``no_grad``. A group counts only if a copy with one, and then
    half, of its units gone still runs and gives what the model gives when nobody reads them.

    Args:
        model: Eager module, not compiled, scripted or parametrised.
        example: Inputs the model takes, shape ``(N, ...)``.

    Raises:
        Invalid: ``model_not_eager`` or ``nothing_to_prune``.
    """
    require_eager(model)
    graph = trace(model, example)
    costs = layer_costs(model, example)
    stages = _stage_by_layer(costs)
    shared = _shared_parameter_owners(model)
    declared, refused = find_heads(model, example, costs, stages)
    groups, unprunable = list(declared), list(refused)
    # Layers that hold heads, which the trace takes for single channels.
    heads = {(member.name, member.role) for group in declared for member in group.members}
    taken = {name for name, role in heads if role is Role.PRODUCES} | {layer.name for layer in refused}
    for name, module in graph.model.named_modules():
        if not isinstance(module, _PRODUCERS) or name in taken or module not in graph.module2node:
            continue
        if isinstance(module, CONVOLUTIONS) and module.groups > 1:
            continue  # depthwise and grouped layers are carried by the group that feeds them
        kind, coupled = _coupled(graph, name, shared)
        members, reason = coupled.members, coupled.reason
        taken |= {member.name for member in members if member.role is Role.PRODUCES} | {name}
        if reason is None and len(set(members[0].root)) < 2:
            reason = why_one_set(model, members) if kind is Kind.SETS else "it has one channel only"
        if reason is None and any((member.name, member.role) in heads for member in members):
            reason = "its channels are attention heads elsewhere"
        group = Group(_describe(graph.model, name, coupled, kind, costs, stages), members, kind)
        if reason is None:
            reason = _why_it_cannot_be_narrowed(model, group, example)
        if reason is not None and "outputs" not in reason:  # a plainer word, where the layer is part of an attention
            reason = why_attention_is_whole(graph.model, name) or reason
        if reason is not None:
            unprunable.append(UnprunableLayer(name=name, reason=reason))
            makers = {Role.PRODUCES, Role.CARRIES} if kind is Kind.SETS else {Role.PRODUCES}
            with_it = {member.name for member in members if member.role in makers} - {name}
            with_it -= {layer.name for layer in unprunable}
            unprunable += [
                UnprunableLayer(name=one, reason=f"coupled with {name}: {reason}") for one in sorted(with_it)
            ]
            continue
        groups.append(group)
    seen = taken | {member.name for group in groups for member in group.members} | {layer.name for layer in unprunable}
    for name, module in model.named_modules():
        if isinstance(module, _PRODUCERS) and name not in seen:
            unprunable.append(UnprunableLayer(name=name, reason=_why_unseen(graph.model, name)))
    for name, module in model.named_modules():
        if isinstance(module, nn.RNNBase):
            reason = f"{type(module).__name__} keeps the gates of its hidden units in packed weights, which cannot be cut yet"
            unprunable.append(UnprunableLayer(name=name, reason=reason))
    named = seen | {layer.name for layer in unprunable}
    for name, module in model.named_modules():
        is_layer = not any(True for _ in module.children())  # what a container holds bare is no layer of its own
        if is_layer and name not in named and any(one.ndim > 1 for one in module.parameters(recurse=False)):
            reason = why_attention_is_whole(graph.model, name) or _why_a_stranger_is_whole(module)
            unprunable.append(UnprunableLayer(name=name, reason=reason))
    if not groups:
        listed = "; ".join(f"{layer.name}: {layer.reason}" for layer in unprunable) or "it has no layers with channels"
        message = f"The model has no group of channels that can be removed ({listed}). Choose another model."
        raise Invalid(message, code="nothing_to_prune", fields=[FieldProblem("model", message)])
    order = {name: number for number, (name, _) in enumerate(model.named_modules())}
    groups.sort(key=lambda group: order[group.name])
    return Groups(tuple(groups), tuple(unprunable))


def regroup(model: nn.Module, groups: Groups, example: Tensor) -> Groups:
    """Find the same groups again on a narrower model, so that its channels can be scored anew and cut further.

    One trace, and no guard by halving: every group passed that on the dense model. Names, stages and topologies stay; channels,
    members, indices, parameters and MACs are the narrower model's. Sensitivity is left out: it was measured on other widths.

    Args:
        model: What surgery made of the model ``groups`` was found on.
        groups: Groups of the wider model.
        example: Inputs the model takes, shape ``(N, ...)``.

    Raises:
        Invalid: ``groups_changed`` where a group does not hang together as it did.
    """
    graph = trace(model, example)
    costs = layer_costs(model, example)
    shared = _shared_parameter_owners(model)
    again = []
    for group in groups.groups:
        if not has_layer(model, group.members[0]):
            continue  # it went with a dropped block
        if group.kind is Kind.HEADS:
            coupled = Coupled(heads_members(model, group), None, is_summed=False)
        elif group.kind is Kind.SETS:
            coupled = couple_sets(graph, group.name, shared, _down_to_one(model, group))
        else:
            coupled = couple(graph, group.name, shared)
        members, reason = coupled.members, coupled.reason
        expected = {member.name for member in group.members if has_layer(model, member)}
        if reason is None and {member.name for member in members} != expected:
            reason = "other layers are coupled than before"
        if reason is not None:
            message = f"Group {group.name!r} cannot be cut further: {reason}. Start from the dense model instead."
            raise Invalid(message, code="groups_changed")
        found = _describe(graph.model, group.name, coupled, group.kind, costs, {})
        same = ("stage", "topology", "is_residual", "granularity")
        info = found.model_copy(update={name: getattr(group.info, name) for name in same})
        again.append(replace(group, info=info, members=members))
    return Groups(tuple(again), groups.unprunable)


def require_eager(model: nn.Module) -> None:
    """Refuse what cannot be traced and cut: compiled and scripted modules.

    Raises:
        Invalid: ``model_not_eager``.
    """
    for name, module in model.named_modules():
        kind = ""
        if hasattr(module, "_orig_mod"):
            kind = "compiled (torch.compile)"
        elif isinstance(module, torch.jit.ScriptModule):
            kind = "scripted or traced (torch.jit)"
        if kind:
            message = (
                f"{name or 'The model'} is {kind}: its layers cannot be seen or cut. Give the eager module; compile and"
                " export come after pruning."
            )
            raise Invalid(message, code="model_not_eager", fields=[FieldProblem("model", message)])


def trace(model: nn.Module, example: Tensor) -> tp.DependencyGraph:
    """Build Torch-Pruning's graph on a deep copy that has gradients on and is in eval mode; ``graph.model`` is the copy."""
    with torch.enable_grad():
        copy = deepcopy(model).eval()
        for parameter in copy.parameters():
            parameter.requires_grad_(True)  # the graph is read off grad_fn: a frozen net gives an empty one, silently
        try:
            return tp.DependencyGraph().build_dependency(copy, example_inputs=(example[:2],), verbose=False)
        except (ArithmeticError, AssertionError, AttributeError, IndexError, KeyError, TypeError, ValueError) as error:
            message = (
                f"The model's channels cannot be followed ({type(error).__name__}: {error}). Torch-Pruning does not know a"
                f" reshape that"
                " mixes channels, such as a channel shuffle; write it otherwise, or choose another model."
            )
            raise Invalid(message, code="channels_not_followed", fields=[FieldProblem("model", message)]) from error


def cut(graph: tp.DependencyGraph, root: str, remove: Sequence[int]) -> None:
    """Remove channels of the group of ``root`` from ``graph.model``, in place."""
    module = graph.model.get_submodule(root)
    pruner = graph.get_pruner_of_module(module)
    graph.get_pruning_group(module, pruner.prune_out_channels, list(remove)).prune()


def _why_it_cannot_be_narrowed(model: nn.Module, group: Group, example: Tensor) -> str | None:
    """Narrow the group by one and then to half on a copy and run it: the guard against what a trace cannot see.

    The cut copy must give what the whole model gives when nobody reads the channels that went. A flatten that puts the channels
    last, or a softmax over them, runs just as well when it is cut, and gives something else. Where a layer norm takes the mean over
    the channels, that is so by its nature, and only that the copy runs is asked.
    """
    graph = trace(model, example)
    half = group.channels // 2
    is_normed = any(isinstance(_member_of(model, member), nn.LayerNorm) for member in group.members)
    with torch.no_grad():
        before = graph.model(example[:2])
        wanted = None if is_normed else deaf(graph.model, group.members, range(half))(example[:2])
        try:
            if group.kind is Kind.SETS:
                cut_units(graph.model, [(group, range(half))])
            else:
                cut(graph, group.name, [0])  # what needs even widths, or multiples of a head's size, shows here
                graph.model(example[:2])
                cut(graph, group.name, range(half - 1))  # the first half, with the one that is gone
            after = graph.model(example[:2])
        except (RuntimeError, ValueError, IndexError, TypeError, AttributeError, AssertionError) as error:
            return f"the model does not run with fewer of its {group.kind}: {str(error).splitlines()[0]}"
    if not isinstance(after, Tensor) or after.shape != before.shape:
        return "its channels are the model's outputs, or change their shape"
    if wanted is not None and not _is_close(after, wanted):
        return "its channels are not independent: without half of them the others give something else"
    return None


def _member_of(model: nn.Module, member: Member) -> object:
    owner, _, name = member.name.rpartition(".")
    return getattr(model.get_submodule(owner), name, None)


def _is_close(given: Tensor, wanted: Tensor) -> bool:
    scale = float(wanted.float().abs().max())
    return torch.allclose(given.float(), wanted.float(), rtol=1e-2, atol=1e-3 * max(scale, 1e-6))


def _why_unseen(model: nn.Module, name: str) -> str:
    module = model.get_submodule(name)
    if isinstance(module, CONVOLUTIONS) and module.groups > 1:
        return f"a grouped convolution ({module.groups} groups) of channels that no layer here makes"
    unseen = "it was not reached by a forward pass, or only in a way that hides its channels"
    return why_attention_is_whole(model, name) or unseen


def _why_a_stranger_is_whole(module: nn.Module) -> str:
    """Return why a layer with weights that is no convolution, linear or recurrent one stays as it is."""
    if isinstance(module, nn.Embedding):
        return "a table that rows are looked up in; its columns are not cut yet"
    return f"layers of type {type(module).__name__} are not supported yet"


def _coupled(graph: tp.DependencyGraph, root: str, shared: set[str]) -> tuple[Kind, Coupled]:
    coupled = couple(graph, root, shared)
    return (Kind.SETS, couple_sets(graph, root, shared)) if coupled.grouped else (Kind.CHANNELS, coupled)


def _down_to_one(model: nn.Module, group: Group) -> frozenset[str]:
    """Return the grouped convolutions of a group of sets that have one group left: as such they look like any other."""
    carriers = (member.name for member in group.of_role(Role.CARRIES) if has_layer(model, member))
    return frozenset(name for name in carriers if model.get_submodule(name).groups == 1)


def _describe(
    model: nn.Module,
    root: str,
    coupled: Coupled,
    kind: Kind,
    costs: dict[str, LayerCost],
    stages: dict[str, int],
) -> GroupInfo:
    members = coupled.members
    makers = (
        {Role.PRODUCES, Role.CARRIES} if kind is Kind.SETS else {Role.PRODUCES}
    )  # a grouped one costs as much as any
    producers = [member.name for member in members if member.role is Role.PRODUCES]
    is_residual = len(producers) > 1 and coupled.is_summed
    channels = len(set(members[0].root))
    kinds = sorted({_kind(model, member) for member in members if member.role is not Role.CONSUMES})
    consumers = sorted({_kind(model, member) for member in members if member.role is Role.CONSUMES})
    return GroupInfo(
        name=root,
        channels=channels,
        stage=stages.get(root, 0),
        is_residual=is_residual,
        topology=f"{'sets:' * (kind is Kind.SETS)}{'outer' if is_residual else 'inner'}:{'+'.join(kinds)}>{'+'.join(consumers)}",
        members=tuple(dict.fromkeys(member.name for member in members)),
        params=sum(_params_of(model, member) for member in members),
        macs=sum(costs[member.name].macs for member in members if member.role in makers and member.name in costs),
        granularity=_step(channels, len(members[0].index)) if kind is Kind.SETS else None,
    )


def _step(sets: int, channels: int) -> int:
    return max(1, min(sets // 2, _FINE * sets // channels))


def _kind(model: nn.Module, member: Member) -> str:
    if member.role is Role.SCALES:
        return "scale"
    module = model.get_submodule(member.name)
    if isinstance(module, (*CONVOLUTIONS, *TRANSPOSED)):
        kernel = "x".join(str(size) for size in module.kernel_size)
        kind = "transposed" if isinstance(module, TRANSPOSED) else "conv"
        if member.role is Role.CARRIES:
            kind = "depthwise" if is_depthwise(module) else "grouped"
        return f"{kind}{kernel}"
    return type(module).__name__.lower()


def _params_of(model: nn.Module, member: Member) -> int:
    if member.role is Role.SCALES:
        return model.get_parameter(member.name).numel()
    module = model.get_submodule(member.name)
    if member.role is Role.CONSUMES:
        weight = module.weight
        assert isinstance(weight, Tensor)
        return weight.numel() // width_of(module, Role.CONSUMES) * len(member.index)
    return sum(parameter.numel() for parameter in module.parameters(recurse=False))


def _stage_by_layer(costs: dict[str, LayerCost]) -> dict[str, int]:
    """Number the resolutions layers put out, finest first: 28x28 -> 0, 14x14 -> 1, ..."""
    resolutions = sorted({cost.positions for cost in costs.values()}, reverse=True)
    return {name: resolutions.index(cost.positions) for name, cost in costs.items()}


def _shared_parameter_owners(model: nn.Module) -> set[str]:
    owners: dict[int, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        owners.setdefault(id(parameter), []).append(name.rpartition(".")[0])
    return {owner for names in owners.values() if len(names) > 1 for owner in names}
