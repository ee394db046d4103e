"""Files of TensorFlow: channels go last before a flatten. Put first again; the columns of the layer that reads them move along.
along.

What a trace makes of a flatten is that each channel's values lie side by side. In such a file they do not, and a cut would take
others than those of the channel. Nothing here changes what the module gives.
"""

from __future__ import annotations

import torch
from torch import Tensor, fx, nn

from pruning.from_onnx.operators.shapes import reshaped
from pruning.from_onnx.values import SHAPE


def channels_first(module: fx.GraphModule) -> None:
    """Take the permutation of the channels out from before every flatten that only linear layers read, in place."""
    for node in list(module.graph.nodes):
        if node.op == "call_function" and node.target is torch.permute and _puts_channels_last(node):
            _take_out(module, node)
    module.graph.eliminate_dead_code()
    module.recompile()


def _puts_channels_last(node: fx.Node) -> bool:
    order = node.args[1]
    return isinstance(order, (list, tuple)) and list(order) == [0, *range(2, len(order)), 1]


def _take_out(module: fx.GraphModule, node: fx.Node) -> None:
    source = node.args[0]
    assert isinstance(source, fx.Node)
    shape = source.meta.get(SHAPE)
    if shape is None or len(shape) < 3 or not all(isinstance(size, int) for size in shape[1:]):
        return
    features = int(torch.Size(shape[1:]).numel())
    for flat in list(node.users):
        readers = _readers(module, flat, features) if _is_flatten(flat, node) else None
        if not readers:
            continue
        flat.replace_input_with(node, source)
        for layer in readers:
            layer.weight = nn.Parameter(_moved(layer.weight.detach(), shape[1:]), layer.weight.requires_grad)


def _is_flatten(flat: fx.Node, node: fx.Node) -> bool:
    if flat.op != "call_function" or flat.args[0] is not node:
        return False
    if flat.target is torch.flatten:
        return tuple(flat.args[1:]) in {(1,), (1, -1)}
    sizes = flat.args[1] if len(flat.args) > 1 else None
    return flat.target in {torch.reshape, reshaped} and isinstance(sizes, (list, tuple)) and len(sizes) == 2


def _readers(module: fx.GraphModule, flat: fx.Node, features: int) -> list[nn.Linear] | None:
    """Return the linear layers that read a flatten, each called here only; None where anything else reads it."""
    found = []
    for user in flat.users:
        layer = module.get_submodule(str(user.target)) if user.op == "call_module" else None
        calls = sum(node.op == "call_module" and node.target == user.target for node in module.graph.nodes)
        if not isinstance(layer, nn.Linear) or layer.in_features != features or calls != 1:
            return None
        found.append(layer)
    return found


def _moved(weight: Tensor, sizes: tuple[int, ...]) -> Tensor:
    """Return columns in the order of ``(C, ...)`` that were in the order of ``(..., C)``."""
    channels, *rest = sizes
    by_place = weight.reshape(len(weight), *rest, channels)
    return by_place.movedim(-1, 1).reshape(len(weight), -1).contiguous()
