"""A converted graph as its author wrote it: biases back in their layers, and the heads of attentions free to be fewer.

Nothing here changes what the module gives.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, fx, nn

from pruning.from_onnx.operators.constants import size_of
from pruning.from_onnx.operators.shapes import reshaped, split_evenly
from pruning.heads import Heads

_BIASED = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
_SPLITS_OF_FUSED = 3  # query, key and value side by side


def simplify(module: fx.GraphModule) -> None:
    """Put additions of one number a channel into the layers before them, in place."""
    users = _stored_users(module)
    for node in list(module.graph.nodes):
        if node.op != "call_function" or node.target is not torch.add or len(node.args) != 2 or node.kwargs:
            continue
        for made, added in (node.args, node.args[::-1]):
            if _is_layer(made) and _is_stored(added) and len(made.users) == 1 and len(users[str(added.target)]) == 1:
                layer, bias = module.get_submodule(str(made.target)), _stored(module, added)
                if isinstance(layer, _BIASED) and _is_called_once(module, made) and _take_bias(layer, bias):
                    node.replace_all_uses_with(made)
                    module.graph.erase_node(node)
                    break
    module.graph.eliminate_dead_code()
    module.recompile()
    read = {str(node.target) for node in module.graph.nodes if node.op == "get_attr"}
    for path in [name for name, _ in (*module.named_parameters(), *module.named_buffers())]:
        owner, _, leaf = path.rpartition(".")
        if path in users and path not in read:
            delattr(module.get_submodule(owner), leaf)


def free_heads(module: fx.GraphModule) -> tuple[Heads, ...]:
    """Find the attentions of a graph, let the number of their heads follow from their layers, and declare them.

    What is declared is believed by nobody until ``find_heads`` has cut half of the heads and compared.
    """
    found: list[Heads] = []
    for node in list(module.graph.nodes):
        heads = _attention(module, node)
        if heads is not None and heads not in found:
            found.append(heads)
    module.recompile()
    return tuple(found)


def _attention(module: fx.GraphModule, node: fx.Node) -> Heads | None:
    """Return the heads of the attention whose softmax a node is."""
    if node.op != "call_function" or node.target is not torch.softmax or not isinstance(node.args[0], fx.Node):
        return None
    product = _next_product(node)
    if product is None:
        return None
    value = product.args[1]
    if not isinstance(value, fx.Node):
        return None
    scores = list(_layers_before(module, node.args[0]))
    values = list(_layers_before(module, value))
    readers = list(_layers_after(module, product))
    splits = {split for _, path in (*scores, *values) for split in path if _is_split(split)}
    sizes = {_sizes(split)[-1] for split in splits}
    if len(sizes) != 1 or not values or not scores or len(readers) != 1:
        return None
    (head_dim,) = sizes
    makes = tuple(dict.fromkeys(str(layer.target) for layer, _ in (*scores, *values)))
    if not isinstance(head_dim, int) or head_dim < 1:
        return None
    parts = 1
    if len(makes) == 1:
        parts = _SPLITS_OF_FUSED
        for path in (path for _, path in (*scores, *values)):
            for part in path:
                if part.target is torch.split:
                    part.target, part.args = split_evenly, (part.args[0], parts, part.args[2])
    for split in splits:
        free = list(_sizes(split))
        free[-2] = -1
        split.args = (split.args[0], free, *split.args[2:])
    return Heads(makes=makes, reads=(str(readers[0].target),), head_dim=head_dim, parts=parts)


def _next_product(node: fx.Node) -> fx.Node | None:
    """Return the product of attention weights and values, past what may stand between it and the softmax."""
    for _ in range(6):
        products = [user for user in node.users if user.target is torch.matmul and user.args[0] is node]
        if products:
            return products[0]
        following = [user for user in node.users if user.op == "call_function"]
        if not following:
            return None
        node = following[-1]
    return None


def _layers_before(module: fx.GraphModule, node: fx.Node) -> Iterator[tuple[fx.Node, tuple[fx.Node, ...]]]:
    """Yield the nearest linear layers a node is computed from, each with the nodes on the way back."""
    stack: list[tuple[fx.Node, tuple[fx.Node, ...]]] = [(node, ())]
    seen = set()
    while stack:
        at, path = stack.pop()
        if _is_layer(at):
            if isinstance(module.get_submodule(str(at.target)), nn.Linear):
                yield at, path
            continue
        if at in seen or len(path) > 24:
            continue
        seen.add(at)
        sources = at.all_input_nodes
        if _is_reshape(at) and isinstance(at.args[0], fx.Node):
            sources = [at.args[0]]  # not where its sizes come from
        stack += [(source, (*path, at)) for source in reversed(sources) if source.target is not size_of]


def _layers_after(module: fx.GraphModule, node: fx.Node) -> Iterator[fx.Node]:
    """Yield the linear layers that read a node, through nothing but moves."""
    stack = [node]
    while stack:
        at = stack.pop()
        for user in at.users:
            if _is_layer(user) and isinstance(module.get_submodule(str(user.target)), nn.Linear):
                yield user
            elif _is_reshape(user) or user.target in {torch.permute, torch.transpose, torch.flatten}:
                stack.append(user)


def _is_reshape(node: fx.Node) -> bool:
    return node.op == "call_function" and node.target in {torch.reshape, reshaped}


def _is_split(node: fx.Node) -> bool:
    """Whether a reshape makes heads out of features: one or two more dimensions than a sequence has, the last two known."""
    if not _is_reshape(node) or not isinstance(node.args[1], (list, tuple)):
        return False
    sizes = _sizes(node)
    return len(sizes) in {4, 5} and all(isinstance(size, int) for size in sizes[-2:])


def _sizes(node: fx.Node) -> list[Any]:
    sizes = node.args[1]
    assert isinstance(sizes, (list, tuple))
    return list(sizes)


def _is_layer(node: Any) -> bool:
    return isinstance(node, fx.Node) and node.op == "call_module"


def _is_stored(node: Any) -> bool:
    return isinstance(node, fx.Node) and node.op == "get_attr"


def _stored(module: fx.GraphModule, node: fx.Node) -> Tensor:
    owner, _, leaf = str(node.target).rpartition(".")
    found = getattr(module.get_submodule(owner), leaf)
    assert isinstance(found, Tensor)
    return found


def _stored_users(module: fx.GraphModule) -> dict[str, list[fx.Node]]:
    users: dict[str, list[fx.Node]] = {}
    for node in module.graph.nodes:
        if node.op == "get_attr":
            users.setdefault(str(node.target), []).extend(node.users)
    return users


def _is_called_once(module: fx.GraphModule, layer: fx.Node) -> bool:
    return sum(node.op == "call_module" and node.target == layer.target for node in module.graph.nodes) == 1


def _take_bias(layer: Any, added: Tensor) -> bool:
    """Add one number a channel to a layer's bias; False where it is something else."""
    if isinstance(layer, nn.Linear):
        channels, tail = layer.out_features, 0
    else:
        channels, tail = layer.out_channels, len(layer.kernel_size)
    if not added.is_floating_point() or added.ndim < tail + 1 or added.numel() != channels:
        return False
    if added.shape[added.ndim - tail - 1] != channels:
        return False
    bias = added.detach().reshape(-1).clone()
    if layer.bias is not None:
        bias += layer.bias.detach()
    layer.bias = nn.Parameter(bias)
    return True
