"""What hangs together: the members of one layer's channels, read off Torch-Pruning's graph, or why they must stay whole."""

from __future__ import annotations

from dataclasses import dataclass

import torch_pruning as tp
from torch import Tensor, nn

from pruning.members import CONVOLUTIONS, TRANSPOSED, Member, Role, is_depthwise

_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
_TRACED_OPS = tuple(
    getattr(tp.ops, name)
    for name in ("_ConcatOp", "_SplitOp", "_ReshapeOp", "_ElementWiseOp", "_SliceOp", "_ExpandOp", "_UnbindOp")
)


@dataclass(frozen=True)
class Coupled:
    """Members of a layer's channels.

    Args:
        members: What the channels are in each layer.
        reason: Why the channels must stay, if they must.
        is_summed: Whether two things are added up somewhere: a skip, and not a gate.
        grouped: Members, of ``members`` too where they normalise, that work on sets of channels: a grouped convolution that makes
            or reads the channels, a group norm.
    """

    members: tuple[Member, ...]
    reason: str | None
    is_summed: bool
    grouped: tuple[Member, ...] = ()


def couple(
    graph: tp.DependencyGraph,
    root: str,
    shared: set[str],
    *,
    reads: bool = False,
    also_grouped: frozenset[str] = frozenset(),
) -> Coupled:
    """Return what hangs together with a layer's channels.

    Args:
        graph: Of the model.
        root: The layer.
        shared: Names of layers that share a parameter with another.
        reads: The channels it reads instead of those it makes.
        also_grouped: Names of convolutions that count as grouped although one group is all they have left.
    """
    module = graph.model.get_submodule(root)
    names = {module: name for name, module in graph.model.named_modules()}
    parameters = {parameter: name for name, parameter in graph.model.named_parameters()}
    pruner = graph.get_pruner_of_module(module)
    channels = pruner.get_in_channels(module) if reads else pruner.get_out_channels(module)
    prune = pruner.prune_in_channels if reads else pruner.prune_out_channels
    members: list[Member] = []
    grouped: list[Member] = []
    reason: str | None = None
    is_summed = False
    for item in graph.get_pruning_group(module, prune, list(range(channels))):
        target, index, mapped = item.dep.target.module, tuple(item.idxs), tuple(item.root_idxs)
        role: Role | str
        if isinstance(target, nn.Parameter):
            name, role = parameters[target], Role.SCALES
            if not _is_last_wide(target, channels):
                reason = reason or f"parameter {name} of shape {tuple(target.shape)} has no clear channel dimension"
        elif isinstance(target, tp.ops._OutputOp):
            reason = reason or "its channels are the model's outputs"
            continue
        elif isinstance(target, _TRACED_OPS):
            node = item.dep.target
            is_summed |= len(node.inputs) > 1 and node.grad_fn.name() == "AddBackward0"
            continue
        else:
            name = names[target]
            is_out = graph.is_out_channel_pruning_fn(item.dep.handler)
            if _is_grouped(target) or name in also_grouped:
                grouped.append(Member(name, Role.PRODUCES if is_out else Role.CONSUMES, index, mapped))
                if not isinstance(target, nn.GroupNorm):
                    continue  # both of its sides go together: see ``sets``
                role = Role.NORMALISES
            else:
                role = _role_of(target, is_out, channels)
            if not isinstance(role, Role):
                reason = reason or f"coupled with {name}: {role}"
                continue
            if name in shared:
                reason = reason or f"coupled with {name}, which shares a parameter with another layer"
        if len(index) != len(mapped) or set(mapped) != set(range(channels)):
            reason = reason or f"coupled with {name} in part only"
        members.append(Member(name, role, index, mapped))
    return Coupled(tuple(members), reason, is_summed, tuple(grouped))


def _is_grouped(module: nn.Module) -> bool:
    if isinstance(module, nn.GroupNorm):
        return True
    return isinstance(module, CONVOLUTIONS) and module.groups > 1 and not is_depthwise(module)


def _is_last_wide(parameter: Tensor, channels: int) -> bool:
    """Whether the last dimension longer than one, which is the one that gets cut, is as long as the group is wide.

    A layer scale ``(C, 1, 1)`` and positions ``(1, tokens, C)`` pass; where other dimensions are as long by chance, cutting the
    wrong one does not run, which the guard sees.
    """
    wide = [size for size in parameter.shape if size > 1]
    return channels in {*wide[-1:], *parameter.shape[-1:]}


def _role_of(module: nn.Module, is_out: bool, channels: int) -> Role | str:
    if nn.utils.parametrize.is_parametrized(module):
        return "its weight is parametrised; remove the parametrisation first"
    if isinstance(module, CONVOLUTIONS):
        if is_depthwise(module):
            return Role.CARRIES
        return Role.PRODUCES if is_out else Role.CONSUMES
    if isinstance(module, TRANSPOSED):
        if module.groups == 1:
            return Role.PRODUCES if is_out else Role.CONSUMES
        return f"a grouped transposed convolution ({module.groups} groups) cannot lose single channels"
    if isinstance(module, nn.Linear):
        return Role.PRODUCES if is_out else Role.CONSUMES
    if isinstance(module, _NORMS):
        return Role.NORMALISES
    if isinstance(module, nn.LayerNorm):
        if len(module.normalized_shape) == 1 and module.normalized_shape[0] >= channels:
            return Role.NORMALISES  # over other values than channels by chance of length: such a cut does not run
        return f"it normalises over {tuple(module.normalized_shape)}, not over the {channels} channels alone"
    if isinstance(module, nn.MultiheadAttention):
        return "nn.MultiheadAttention keeps its heads in one packed weight, which cannot be cut yet"
    return f"layers of type {type(module).__name__} are not supported yet"
