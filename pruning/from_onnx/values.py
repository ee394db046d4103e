"""What a value of the file is while it is converted: known, a list of sizes, or computed from the model's inputs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, fx, nn

from pruning.from_onnx.reading import Shape

Item = int | fx.Node  # a size: known, or read off a tensor when the module runs


SHAPE = "pruneloop_shape"  # of a graph's node, in its meta: sizes, None where any goes


@dataclass(frozen=True, eq=False)
class Const:
    """A known tensor; ``is_weight`` where it came from an initialiser, so that it may be trained."""

    tensor: Tensor
    name: str
    is_weight: bool = False


@dataclass(frozen=True, eq=False)
class Ints:
    """An int64 tensor of rank 1 (or 0: ``is_scalar``) of sizes, some of which are known only when the module runs."""

    items: tuple[Item, ...]
    is_scalar: bool = False


@dataclass(frozen=True, eq=False)
class Traced:
    """A tensor the module computes, with what is known of it."""

    node: fx.Node
    shape: Shape | None = None
    dtype: torch.dtype | None = None


Value = Const | Ints | Traced


@dataclass(frozen=True, eq=False)
class Call:
    """A function of tensors and Python values; computed at once where all are known, else put into the graph."""

    function: Callable[..., Any]
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any] = field(default_factory=dict)
    outputs: int = 1


@dataclass(frozen=True, eq=False)
class Layer:
    """A module with weights of the file; ``weight`` names it. ``after`` turns what it gives into the node's outputs."""

    module: nn.Module
    args: tuple[Any, ...]
    weight: Const | None = None
    after: Callable[..., Any] | None = None
    after_args: tuple[Any, ...] = ()
    outputs: int = 1


Result = Value | Call | Layer | tuple[Value | None, ...]


def make_ints(items: tuple[Item, ...], *, is_scalar: bool, name: str) -> Const | Ints:
    """Return sizes as a constant where all are known."""
    if all(isinstance(item, int) for item in items):
        values = torch.tensor(items, dtype=torch.int64)
        return Const(values.reshape(()) if is_scalar else values, name)
    return Ints(items, is_scalar)


def stack_ints(items: list[int], is_scalar: bool, like: Tensor) -> Tensor:
    """Return sizes as an int64 tensor on the device of ``like``."""
    values = torch.tensor(items, dtype=torch.int64, device=like.device)
    return values.reshape(()) if is_scalar else values


def unstack_ints(values: Tensor) -> list[int]:
    """Return the integers of a computed tensor."""
    return [int(value) for value in values.reshape(-1).tolist()]
