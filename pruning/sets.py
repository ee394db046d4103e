"""Sets of channels: what one group of a grouped convolution, or of a group norm, works on goes whole or stays whole.

A single channel cannot go: a grouped convolution reads equally many in every group, and a group norm takes its mean over a fixed
number. A whole set can: the others give what they gave. So a grouped convolution ties the channels it reads to those it makes, and
the width of such a group counts sets. ResNeXt (arXiv:1611.05431) and RegNet (arXiv:2003.13678) are made of them.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch_pruning as tp
from torch import nn

from pruning.coupling import Coupled, couple
from pruning.members import Member, Role


def couple_sets(
    graph: tp.DependencyGraph, root: str, shared: set[str], also_grouped: frozenset[str] = frozenset()
) -> Coupled:
    """Return what hangs together with a layer's channels across grouped convolutions, in sets: ``Member.root`` numbers them.

    Args:
        graph: Of the model.
        root: A layer whose channels a grouped convolution or a group norm takes, or that are added to such.
        shared: Names of layers that share a parameter with another.
        also_grouped: Names of convolutions that count as grouped although one group is all they have left.
    """
    first = couple(graph, root, shared, also_grouped=also_grouped)
    sets = _sets_of(graph.model, first.grouped[0])
    members: list[Member] = []
    reason, is_summed = first.reason, first.is_summed
    todo = [(first, sets)]
    seen = {(member.name, member.role) for member in first.grouped}
    while todo:
        coupled, sets = todo.pop(0)
        is_summed |= coupled.is_summed
        reason = reason or coupled.reason
        members += [_in_sets(member, sets) for member in coupled.members]
        for member in coupled.grouped:
            module = graph.model.get_submodule(member.name)
            own = _sets_of(graph.model, member)
            if any(sets.get(channel) != number for channel, number in own.items()):
                reason = (
                    reason or f"coupled with {member.name}: its groups are others than those of what it is coupled with"
                )
            if isinstance(module, nn.GroupNorm):
                continue
            if member.name in shared:
                reason = reason or f"coupled with {member.name}, which shares a parameter with another layer"
            if member.role is Role.PRODUCES:
                members.append(_in_sets(Member(member.name, Role.CARRIES, member.index, member.root), sets))
            other = Role.CONSUMES if member.role is Role.PRODUCES else Role.PRODUCES
            if (member.name, other) not in seen:
                beyond = couple(graph, member.name, shared, reads=other is Role.CONSUMES, also_grouped=also_grouped)
                seen |= {(one.name, one.role) for one in beyond.grouped}
                itself = next(one for one in beyond.grouped if (one.name, one.role) == (member.name, other))
                todo.append((beyond, _sets_of(graph.model, itself)))
    count = len({number for member in members for number in member.root})
    for member in members:
        each = len(member.index) // count
        if any(member.root.count(number) != each for number in range(count)):
            reason = reason or f"coupled with {member.name} in part only"
    return Coupled(tuple(members), reason, is_summed)


def why_one_set(model: nn.Module, members: tuple[Member, ...]) -> str:
    """Return why a group that is a single set stays whole."""
    norms = [one.name for one in members if isinstance(getattr(model.get_submodule(one.name), "num_groups", None), int)]
    return (
        f"coupled with {norms[0]}: a GroupNorm of one group takes its mean over all channels"
        if norms
        else "it has one set only"
    )


def _sets_of(model: nn.Module, member: Member) -> dict[int, int]:
    """Return channel of the coupling -> number of the set it is in, as one of its grouped members has it."""
    module = model.get_submodule(member.name)
    if isinstance(module, nn.GroupNorm):
        each = module.num_channels // module.num_groups
    else:
        assert isinstance(module, nn.Conv1d | nn.Conv2d | nn.Conv3d)
        each = (module.out_channels if member.role is Role.PRODUCES else module.in_channels) // module.groups
    return {channel: index // each for index, channel in zip(member.index, member.root, strict=True)}


def _in_sets(member: Member, sets: Mapping[int, int]) -> Member:
    return Member(member.name, member.role, member.index, tuple(sets.get(channel, 0) for channel in member.root))
