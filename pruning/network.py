"""The layers of a model as the search counts them: cost of each and the groups its channels belong to."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn

from domain.network import LayerInfo
from pruning.cost import layer_costs
from pruning.groups import Group, Groups, Member, Role
from pruning.members import TRANSPOSED, Kind


def describe_layers(model: nn.Module, groups: Groups, example: Tensor) -> tuple[LayerInfo, ...]:
    """Describe every layer that costs multiply-accumulates, in the order they run.

    Args:
        model: The dense module ``groups`` was found on.
        groups: Its groups.
        example: Inputs the model takes, shape ``(N, ...)``.
    """
    outputs: dict[str, dict[str, int]] = {}
    inputs: dict[str, dict[str, int]] = {}
    for group in groups.groups:
        for member in group.members:
            if member.role in {Role.PRODUCES, Role.CARRIES}:
                outputs.setdefault(member.name, {})[group.name] = _each(group, member)
            elif member.role is Role.CONSUMES:
                inputs.setdefault(member.name, {})[group.name] = _each(group, member)
    layers = []
    for name, cost in layer_costs(model, example).items():
        out_channels, in_channels = _channels(model.get_submodule(name))
        layers.append(
            LayerInfo(
                name=name,
                macs=cost.macs,
                positions=max(1, cost.positions),
                out_channels=out_channels,
                in_channels=in_channels,
                out_groups=outputs.get(name, {}),
                in_groups=inputs.get(name, {}),
                is_packed=not isinstance(model.get_submodule(name), nn.Linear),
            )
        )
    costs = {layer.name: layer for layer in layers}
    scores = (_scores(group, costs) for group in groups.groups if group.kind is Kind.HEADS)
    return (*layers, *(layer for layer in scores if layer is not None))


def _scores(group: Group, layers: Mapping[str, LayerInfo]) -> LayerInfo | None:
    """Return what the heads of an attention do between its layers, as a layer that every token's heads feed with every token.

    No module is called for it, and in a narrow network it is what takes the time.
    """
    reader = next((member for member in group.members if member.role is Role.CONSUMES and member.name in layers), None)
    if reader is None:
        return None
    tokens, features = layers[reader.name].positions, len(reader.index)
    owner, _, _ = reader.name.rpartition(".")
    return LayerInfo(
        name=f"{owner}.scores",
        macs=2 * tokens * tokens * features,  # query by key, and what comes of it by value
        positions=tokens,
        out_channels=features,
        in_channels=tokens,
        out_groups={group.name: features // group.channels},
        is_packed=False,
    )


def _each(group: Group, member: Member) -> int:
    return max(1, len(member.index) // group.channels)


def _channels(module: nn.Module) -> tuple[int, int]:
    weight = module.weight
    assert isinstance(weight, Tensor)
    if isinstance(module, TRANSPOSED):
        return weight.shape[1] * module.groups, weight.shape[0] // module.groups
    return weight.shape[0], weight.shape[1]
