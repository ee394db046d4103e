"""Which blocks can go as a whole: those the identity may take the place of, for a skip goes round them or no channel meets another.

A module with a skip is a block if it runs once a forward pass, gives one tensor of its first input's shape, and its output is that
input plus something: going back from the output through additions, activations and layer norms only, one gets to the input itself.
A projected shortcut is none, for it changes what goes by. The model without the block must run.

A depthwise convolution that keeps the image's size is one too, outside of such blocks: each channel of its output comes of the
same channel of its input. With it go the norm and the activation right behind it in their sequence.

Where blocks lie in blocks, the inner ones are offered if they hold all of the outer one's weights (a stage of residual blocks,
or a transformer layer of two residual halves), and otherwise the outer one alone: it is more than its parts.

Source: Veit et al., Residual Networks Behave Like Ensembles, NeurIPS 2016, arXiv:1605.06431, for leaving blocks out.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from copy import deepcopy
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from domain.candidate import is_inside
from domain.errors import FieldProblem, Invalid
from pruning.members import Groups, is_depthwise

_ADDITION = "AddBackward0"
# What may stand between the addition and the end of a block: it keeps shapes and mixes no channels' meaning.
_PASSED = frozenset(
    {
        "ReluBackward0",
        "HardtanhBackward0",  # ReLU6 too
        "HardtanhBackward1",
        "LeakyReluBackward0",
        "EluBackward0",
        "GeluBackward0",
        "SiluBackward0",
        "HardswishBackward0",
        "MishBackward0",
        "NativeLayerNormBackward0",
        "CloneBackward0",
        "AliasBackward0",
    }
)

# What may go with a depthwise convolution, in this order.
_BEHIND = (
    (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d),
    (nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.ELU, nn.GELU, nn.SiLU, nn.Hardswish, nn.Mish),
)


class Skipped(nn.Module):
    """What stands where a block was: gives back its first input, whatever else (a mask, say) comes with it."""

    def forward(self, inputs: Tensor, *others: object, **more: object) -> Tensor:
        return inputs


@dataclass(frozen=True)
class _Call:
    """How a module was called: its first input, and the rest."""

    inputs: Tensor
    others: tuple[object, ...]
    more: dict[str, object]


@dataclass(frozen=True)
class Block:
    """A module that the identity can replace, and the groups that vanish with it: none with a depthwise layer."""

    name: str
    groups: tuple[str, ...]


def find_blocks(model: nn.Module, groups: Groups, example: Tensor) -> tuple[Block, ...]:
    """Find every block that can be left out, in the order their modules are defined.

    Args:
        model: Eager module; not changed.
        groups: Its groups.
        example: Inputs the model takes, shape ``(N, ...)``.
    """
    with torch.enable_grad():
        copy = deepcopy(model).eval().requires_grad_(True)
        given = _calls_that_keep_shape(copy, example[:2])
        skips = tuple(_descend(copy, "", given))
    depthwise = [name for name in given if is_depthwise(model.get_submodule(name)) and not is_inside(name, skips)]
    places = {name: place for place, (name, _) in enumerate(model.named_modules())}
    names = sorted([*skips, *depthwise], key=places.__getitem__)
    blocks = []
    for name in names:
        inside = [group for group in groups.groups if is_inside(group.name, (name,))]
        reaches_out = any(not is_inside(member.name, (name,)) for group in inside for member in group.members)
        # A group named after a layer in the block that lives on outside would lose its name.
        if not reaches_out and not _is_shared(copy, name) and _runs_without(model, name, example[:2]):
            blocks.append(Block(name, tuple(group.name for group in inside)))
    return tuple(blocks)


def drop_blocks(model: nn.Module, names: Collection[str]) -> nn.Module:
    """Return a copy of a model in which the identity stands for some blocks; one that is dropped already stays so.

    Raises:
        Invalid: ``unknown_block``.
    """
    copy = deepcopy(model)
    for name in names:
        owner, _, _ = name.rpartition(".")
        try:
            for leaf in _leaves(copy, name):
                setattr(copy.get_submodule(owner), leaf, Skipped())
        except AttributeError as error:
            message = f"The model has no block {name!r}; the prepare build lists those that can be dropped."
            raise Invalid(message, code="unknown_block", fields=[FieldProblem("candidate.dropped", message)]) from error
    return copy


def _leaves(model: nn.Module, name: str) -> list[str]:
    """Return what goes with a block, by its name in the module that holds it: the block, and what is behind a depthwise layer."""
    owner_name, _, leaf = name.rpartition(".")
    module, owner = model.get_submodule(name), model.get_submodule(owner_name)
    gone = [leaf]
    if is_depthwise(module) and isinstance(owner, nn.Sequential):
        behind = list(owner.named_children())
        behind = behind[[child for child, _ in behind].index(leaf) + 1 :]
        for kinds in _BEHIND:
            if behind and isinstance(behind[0][1], kinds):
                gone.append(behind.pop(0)[0])
    return gone


def _calls_that_keep_shape(model: nn.Module, example: Tensor) -> dict[str, _Call]:
    """Return the call of every module that runs once and gives one tensor of its first input's shape and type."""
    given: dict[str, _Call] = {}
    calls: dict[str, int] = {}
    hooks = []

    def watch(name: str, module: nn.Module) -> None:
        def record(module: nn.Module, args: tuple[object, ...], kwargs: dict[str, object], output: object) -> None:
            calls[name] = calls.get(name, 0) + 1
            inputs = args[0] if args else None
            if not isinstance(inputs, Tensor) or not isinstance(output, Tensor):
                return
            if inputs.shape == output.shape and inputs.dtype == output.dtype:
                given[name] = _Call(inputs.detach().clone(), args[1:], kwargs)

        hooks.append(module.register_forward_hook(record, with_kwargs=True))

    for name, module in model.named_modules():
        if name and (is_depthwise(module) or any(True for _ in module.children())):
            watch(name, module)
    try:
        model(example)
    finally:
        for hook in hooks:
            hook.remove()
    return {name: call for name, call in given.items() if calls[name] == 1}


def _descend(model: nn.Module, name: str, given: dict[str, _Call]) -> Iterator[str]:
    """Yield the blocks at or below a module."""
    module = model.get_submodule(name)
    inner = [
        block
        for child, _ in module.named_children()
        for block in _descend(model, f"{name}.{child}" if name else child, given)
    ]
    if name in given and _has_skip(module, given[name]):
        own = {id(parameter) for parameter in module.parameters()}
        covered = {id(parameter) for block in inner for parameter in model.get_submodule(block).parameters()}
        if own and covered != own:
            inner = [name]
    yield from inner


def _has_skip(module: nn.Module, call: _Call) -> bool:
    """Whether a module's output is its input plus something, as far as the graph of a forward pass tells."""
    start = call.inputs.clone().requires_grad_(True) * 1  # a leaf could not be written to in place
    output = module(start, *call.others, **call.more)
    stack = [(output.grad_fn, False)]
    seen = set()
    while stack:
        node, has_added = stack.pop()
        if node is None or (node, has_added) in seen:
            continue
        seen.add((node, has_added))
        if node is start.grad_fn:
            if has_added:
                return True
        elif node.name() == _ADDITION:
            stack += [(before, True) for before, _ in node.next_functions]
        elif node.name() in _PASSED:
            stack += [(before, has_added) for before, _ in node.next_functions[:1]]
    return False


def _is_shared(model: nn.Module, name: str) -> bool:
    """Whether a weight of a block is used outside it as well."""
    own = {id(parameter) for parameter in model.get_submodule(name).parameters()}
    owners = model.named_parameters(remove_duplicate=False)
    return any(id(parameter) in own and not is_inside(owner, (name,)) for owner, parameter in owners)


def _runs_without(model: nn.Module, name: str, example: Tensor) -> bool:
    with torch.no_grad():
        shape = deepcopy(model).eval()(example).shape
        try:
            return bool(drop_blocks(model, (name,)).eval()(example).shape == shape)
        except (RuntimeError, ValueError, IndexError, TypeError, AttributeError, AssertionError):
            return False
