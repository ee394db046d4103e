"""What a group of coupled channels is: its members, and where in each of them its channels lie."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from torch import Tensor, nn

from domain.candidate import GroupInfo, UnprunableLayer

CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)


class Kind(StrEnum):
    """What the units of a group are, which go one by one."""

    CHANNELS = "channels"
    HEADS = "heads"  # of attentions, which a module declares and no trace finds
    SETS = "sets"  # of channels, each what one group of a grouped convolution or of a group norm works on


class Role(StrEnum):
    """What a member does with the group's channels."""

    PRODUCES = "out"  # a convolution or linear layer whose outputs they are
    CARRIES = "depthwise"  # a depthwise or grouped convolution: in and out at once
    NORMALISES = "norm"
    CONSUMES = "in"
    SCALES = "parameter"  # a bare parameter, such as a layer scale


@dataclass(frozen=True)
class Member:
    """One layer's part in a group.

    ``index[i]`` is a position along the layer's own channel dimension and ``root[i]`` the group's channel it belongs to:
    a linear layer after a flatten has several positions for one channel, a layer after a concatenation has an offset. Of a
    grouped convolution these are the channels it makes; those it reads go with them.
    """

    name: str
    role: Role
    index: tuple[int, ...]
    root: tuple[int, ...]


@dataclass(frozen=True)
class Group:
    """A group as the search sees it (``info``) and the members surgery and importance work on.

    ``info.channels`` counts units of its ``kind``. ``count`` names the attribute, by its full path, that holds the number of
    heads, where there is one; ``features`` that of heads times features.
    """

    info: GroupInfo
    members: tuple[Member, ...]
    kind: Kind = Kind.CHANNELS
    count: str | None = None
    features: str | None = None

    @property
    def name(self) -> str:
        return self.info.name

    @property
    def channels(self) -> int:
        return self.info.channels

    def of_role(self, *roles: Role) -> tuple[Member, ...]:
        return tuple(member for member in self.members if member.role in roles)


@dataclass(frozen=True)
class Groups:
    """All groups of a model, in the order their layers are defined, and the layers that stay whole, with reasons."""

    groups: tuple[Group, ...]
    unprunable: tuple[UnprunableLayer, ...]


def has_layer(model: nn.Module, member: Member) -> bool:
    """Whether a member is still part of a model: blocks that were dropped took theirs along."""
    owner, _, name = member.name.rpartition(".")
    try:
        found = getattr(model.get_submodule(owner), name, None)
    except AttributeError:
        return False
    return isinstance(found, Tensor) or hasattr(found, "weight")


def is_depthwise(module: nn.Module) -> bool:
    """Whether a layer is a convolution in which no channel meets another."""
    if not isinstance(module, CONVOLUTIONS):
        return False
    return 1 < module.in_channels == module.groups == module.out_channels


def channel_axis(module: nn.Module, role: Role) -> int:
    """Return the dimension of a layer's weight that its channels lie along; of transposed convolutions it is the other one."""
    is_transposed = isinstance(module, TRANSPOSED)
    return int((role is Role.CONSUMES) != is_transposed)


def width_of(module: nn.Module, role: Role) -> int:
    """Return how many channels a layer makes, or reads."""
    weight = module.weight
    assert isinstance(weight, Tensor)
    return weight.shape[channel_axis(module, role)]
