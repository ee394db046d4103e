"""Attention heads: groups a module declares, because a trace cannot see where one head ends and the next begins.

A module with a method ``head_groups() -> Sequence[Heads]`` offers its heads one by one. For authors of plug-ins::

    class Attention(nn.Module):
        def __init__(self, dim, heads, head_dim):
            super().__init__()
            self.head_dim = head_dim
            self.query = nn.Linear(dim, heads * head_dim)   # key and value likewise
            self.proj = nn.Linear(heads * head_dim, dim)

        def head_groups(self):
            return (Heads(makes=("query", "key", "value"), reads=("proj",), head_dim=self.head_dim),)

The forward takes the number of heads from the shapes (``reshape(samples, tokens, -1, head_dim)``), or from an attribute named in
``Heads.count``, which is set with every cut. A declaration is believed only if a copy with half its heads runs and gives what
the whole model gives when nobody reads the others.
"""

from __future__ import annotations

from copy import deepcopy
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor, nn

from domain.candidate import GroupInfo, UnprunableLayer
from pruning.attention import known_layout
from pruning.cost import LayerCost
from pruning.members import Group, Kind, Member, Role
from pruning.narrow import cut_units, deaf

FUSED_NAMES = frozenset({"qkv", "Wqkv", "qkv_proj", "query_key_value", "c_attn", "in_proj", "to_qkv", "kv", "to_kv"})
COUNT_NAMES = ("num_heads", "num_attention_heads", "n_heads", "n_head", "heads")


@dataclass(frozen=True)
class Heads:
    """What a module declares of its attention heads.

    Args:
        makes: Names, inside the module, of the linear layers whose outputs are heads side by side; query first.
        reads: Names of the linear layers whose inputs are heads side by side.
        head_dim: Features of one head, the same in all those layers.
        count: Name of the module's attribute that holds the number of heads, where its forward needs one.
        parts: How often all heads lie side by side in a layer of ``makes``: 3 where query, key and value are one layer.
        features: Name of the attribute that holds heads times ``head_dim``, where its forward needs one.
    """

    makes: tuple[str, ...]
    reads: tuple[str, ...]
    head_dim: int
    count: str | None = None
    parts: int = 1
    features: str | None = None


def find_heads(
    model: nn.Module, example: Tensor, costs: dict[str, LayerCost], stages: dict[str, int]
) -> tuple[tuple[Group, ...], tuple[UnprunableLayer, ...]]:
    """Return a group for every declared set of heads that can be narrowed, and the ones refused, with the reason.

    Args:
        model: Eager module; not changed.
        example: Inputs the model takes, shape ``(N, ...)``.
        costs: Layer name -> cost.
        stages: Layer name -> resolution stage.
    """
    groups: list[Group] = []
    refused: list[UnprunableLayer] = []
    for owner, module in model.named_modules():
        declare = getattr(module, "head_groups", None)
        for heads in declare() if callable(declare) else _of_a_library(module):
            members, reason = _members(model, owner, heads)
            group = None
            if reason is None:
                group = _group(model, owner, heads, members, costs, stages)
                reason = _why_heads_cannot_go(model, group, example)
            if reason is None and group is not None:
                groups.append(group)
            else:
                refused += [UnprunableLayer(name=_join(owner, name), reason=reason or "") for name in heads.makes]
    return tuple(groups), tuple(refused)


def heads_members(model: nn.Module, group: Group) -> tuple[Member, ...]:
    """Return the members of a declared group as they stand in a narrower model."""
    members = []
    for member in group.members:
        parts = 1 + sum(head == 0 and before != 0 for before, head in pairwise(member.root))
        each = len(member.index) // group.channels // parts
        heads = _width(model.get_submodule(member.name), member.role) // each // parts
        members.append(_member(member.name, member.role, heads, each, parts))
    return tuple(members)


def _of_a_library(module: nn.Module) -> tuple[Heads, ...]:
    found = known_layout(module)
    if found is None:
        return ()
    layout, reader, head_dim = found
    count, features = (name if name and hasattr(module, name) else None for name in (layout.count, layout.features))
    return (Heads(layout.makes, (reader,), head_dim, count=count, parts=layout.parts, features=features),)


def why_attention_is_whole(model: nn.Module, name: str) -> str | None:
    """Return why a layer of an attention that declares nothing stays whole; None if it does not look like one."""
    owner, _, leaf = name.rpartition(".")
    parent = model.get_submodule(owner)
    module = model.get_submodule(name)
    if callable(getattr(parent, "head_groups", None)) or known_layout(parent) is not None:
        return None  # its heads are known: whatever keeps this layer whole, it is not that
    advice = "use separate query, key, value and output layers in a module that declares head_groups()"
    if isinstance(parent, nn.MultiheadAttention):
        return f"nn.MultiheadAttention keeps its heads in one packed weight, which cannot be cut yet; {advice}"
    if leaf in FUSED_NAMES and isinstance(module, nn.Linear):
        kind = type(parent).__name__
        return f"a fused query-key-value layer of {kind}, an attention whose heads are not known here, cannot be cut yet; {advice}"
    if any(isinstance(getattr(parent, count, None), int) for count in COUNT_NAMES):
        return f"part of {type(parent).__name__}, an attention whose heads are not known here; {advice}"
    return None


def _members(model: nn.Module, owner: str, heads: Heads) -> tuple[tuple[Member, ...], str | None]:
    members: list[Member] = []
    counts: set[int] = set()
    for role, names in ((Role.PRODUCES, heads.makes), (Role.CONSUMES, heads.reads)):
        for name in (_join(owner, name) for name in names):
            module = model.get_submodule(name)
            if not isinstance(module, nn.Linear) or nn.utils.parametrize.is_parametrized(module):
                return (), f"{name}, declared to hold heads, is not a plain linear layer"
            width, parts = _width(module, role), heads.parts if role is Role.PRODUCES else 1
            if width % (heads.head_dim * parts):
                return (), f"{name} has {width} features, which are no whole heads of {heads.head_dim}"
            count = width // heads.head_dim // parts
            counts.add(count)
            members.append(_member(name, role, count, heads.head_dim, parts))
    if not heads.makes or not heads.reads:
        return (), "its declaration names no layer that makes or reads heads"
    if len(counts) > 1:
        return (), f"its layers hold different numbers of heads ({', '.join(map(str, sorted(counts)))})"
    if counts == {1}:
        return (), "it has one head only"
    return tuple(members), None


def _group(
    model: nn.Module,
    owner: str,
    heads: Heads,
    members: tuple[Member, ...],
    costs: dict[str, LayerCost],
    stages: dict[str, int],
) -> Group:
    makers = [member.name for member in members if member.role is Role.PRODUCES]
    info = GroupInfo(
        name=makers[0],
        channels=len(set(members[0].root)),
        stage=stages.get(makers[0], 0),
        is_residual=False,
        topology=f"heads:{len(heads.makes) * heads.parts}x{heads.head_dim}",
        members=tuple(member.name for member in members),
        params=sum(_params(model, member) for member in members),
        macs=sum(costs[name].macs for name in makers if name in costs),
        granularity=1,
    )
    count, features = (None if name is None else _join(owner, name) for name in (heads.count, heads.features))
    return Group(info, members, kind=Kind.HEADS, count=count, features=features)


def _why_heads_cannot_go(model: nn.Module, group: Group, example: Tensor) -> str | None:
    """Cut half of the heads of a copy and compare with a copy in which nobody reads them."""
    gone = range(group.channels // 2)
    cut = deepcopy(model).eval()
    with torch.no_grad():
        wanted = deaf(cut, group.members, gone)(example[:2])
        try:
            cut_units(cut, [(group, gone)])
            given = cut(example[:2])
        except (RuntimeError, ValueError, IndexError, TypeError, AttributeError, AssertionError) as error:
            return f"the model does not run with fewer of its heads: {str(error).splitlines()[0]}"
    if given.shape != wanted.shape or not torch.allclose(given, wanted, rtol=1e-3, atol=1e-4):
        return "its heads are not independent: without half of them the others give something else"
    return None


def _member(name: str, role: Role, heads: int, each: int, parts: int = 1) -> Member:
    features = range(parts * heads * each)
    return Member(name, role, tuple(features), tuple(feature // each % heads for feature in features))


def _width(module: nn.Module, role: Role) -> int:
    weight = module.weight
    assert isinstance(weight, Tensor)
    return weight.shape[1 if role is Role.CONSUMES else 0]


def _params(model: nn.Module, member: Member) -> int:
    module = model.get_submodule(member.name)
    assert isinstance(module, nn.Linear)
    has_bias = module.bias is not None and member.role is Role.PRODUCES
    return module.weight.numel() + (module.bias.numel() if has_bias else 0)


def _join(owner: str, name: str) -> str:
    return f"{owner}.{name}" if owner else name
