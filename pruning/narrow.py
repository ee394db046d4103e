"""Take positions out of layers in place: how heads and sets of channels go, which Torch-Pruning's graph does not know as such."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from copy import deepcopy

import torch
from torch import Tensor, nn

from pruning.members import CONVOLUTIONS, TRANSPOSED, Group, Kind, Member, Role, channel_axis


def cut_units(model: nn.Module, removed: Iterable[tuple[Group, Collection[int]]]) -> None:
    """Remove heads of attentions and sets of channels from a model, in place.

    Args:
        model: What the groups were found on, not cut yet: positions count as they were.
        removed: Groups, each with the numbers of the units that go. All at once, as one layer may read units of several.
    """
    gone: dict[tuple[str, Role], set[int]] = {}
    for group, units in removed:
        numbers = set(units)
        for member in group.members:
            positions = {index for index, unit in zip(member.index, member.root, strict=True) if unit in numbers}
            if member.role is Role.SCALES:
                owner, _, name = member.name.rpartition(".")
                axis = scale_axis(model.get_parameter(member.name), len(member.index))
                kept = [index for index in range(len(member.index)) if index not in positions]
                _take(model.get_submodule(owner), name, kept, axis)
            else:
                gone.setdefault((member.name, member.role), set()).update(positions)
        if group.kind is Kind.HEADS:
            left = group.channels - len(numbers)
            each = len(group.of_role(Role.CONSUMES)[0].index) // group.channels
            for path, value in ((group.count, left), (group.features, left * each)):
                if path is not None:
                    owner, _, attribute = path.rpartition(".")
                    setattr(model.get_submodule(owner), attribute, value)
    for (name, role), positions in gone.items():
        _narrow(model.get_submodule(name), role, positions)


def deaf(model: nn.Module, members: Iterable[Member], gone: Collection[int]) -> nn.Module:
    """Return a copy of a model in which no layer reads some units of a group: what a network without them has to give."""
    copy = deepcopy(model)
    for member in members:
        if member.role is Role.CONSUMES:
            module = copy.get_submodule(member.name)
            weight = module.weight
            assert isinstance(weight, Tensor)
            unread = [index for index, unit in zip(member.index, member.root, strict=True) if unit in gone]
            places = torch.tensor(unread, dtype=torch.int64, device=weight.device)
            weight.data.index_fill_(channel_axis(module, Role.CONSUMES), places, 0.0)
    return copy


def scale_axis(parameter: Tensor, channels: int) -> int:
    """Return the dimension of a bare parameter that channels lie along: the last that is as long as they are many.

    That is ``(C, 1, 1)`` of a layer scale, ``(1, tokens, C)`` of positions.
    """
    return max(axis for axis, size in enumerate(parameter.shape) if size == channels)


def _narrow(module: nn.Module, role: Role, gone: set[int]) -> None:
    old = _length(module, role)
    kept = [index for index in range(old) if index not in gone]
    if role is Role.CONSUMES:
        _take(module, "weight", kept, channel_axis(module, role))
        setattr(module, "in_features" if isinstance(module, nn.Linear) else "in_channels", len(kept))
        return
    for name in ("weight", "bias", "running_mean", "running_var"):
        tensor = getattr(module, name, None)
        if isinstance(tensor, Tensor):
            _take(module, name, kept, channel_axis(module, role) if tensor.ndim > 1 else 0)
    if isinstance(module, CONVOLUTIONS) and role is Role.CARRIES:
        read = module.in_channels // module.groups
        module.groups = module.groups * len(kept) // old
        module.in_channels, module.out_channels = module.groups * read, len(kept)
    elif isinstance(module, nn.GroupNorm):
        module.num_groups = module.num_groups * len(kept) // old
        module.num_channels = len(kept)
    elif isinstance(module, nn.LayerNorm):
        module.normalized_shape = (len(kept),)
    elif isinstance(module, nn.Linear):
        module.out_features = len(kept)
    else:
        setattr(
            module, "out_channels" if isinstance(module, (*CONVOLUTIONS, *TRANSPOSED)) else "num_features", len(kept)
        )


def _length(module: nn.Module, role: Role) -> int:
    if isinstance(module, nn.modules.batchnorm._BatchNorm):
        return module.num_features
    if isinstance(module, nn.GroupNorm):
        return module.num_channels
    if isinstance(module, nn.LayerNorm):
        return module.normalized_shape[0]
    weight = module.weight
    assert isinstance(weight, Tensor)
    return weight.shape[channel_axis(module, role)]


def _take(module: nn.Module, name: str, kept: list[int], axis: int) -> None:
    tensor = getattr(module, name)
    taken = tensor.detach().index_select(axis, torch.tensor(kept, device=tensor.device))
    if isinstance(tensor, nn.Parameter):
        setattr(module, name, nn.Parameter(taken, requires_grad=tensor.requires_grad))
    else:
        setattr(module, name, taken)
