"""LSTM, GRU and plain recurrent layers: ONNX stacks and orders gates otherwise than torch."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from pruning.from_onnx.errors import NotConverted
from pruning.from_onnx.node import Node
from pruning.from_onnx.registry import operator
from pruning.from_onnx.values import Const, Layer, Result

# Rows of torch's weights, as blocks of ONNX's: input, output, forget, cell -> input, forget, cell, output; and so on.
ORDER = {"LSTM": (0, 2, 3, 1), "GRU": (1, 0, 2), "RNN": (0,)}
KINDS: dict[str, Any] = {"LSTM": nn.LSTM, "GRU": nn.GRU, "RNN": nn.RNN}
ACTIVATIONS = {"LSTM": ["Sigmoid", "Tanh", "Tanh"], "GRU": ["Sigmoid", "Tanh"], "RNN": ["Tanh"]}


class Recurrent(nn.Module):
    """A recurrent layer that takes and gives what ONNX's does: ``(sequence, batch, features)`` in, directions apart out.

    ``layer`` is torch's own; a layer that runs backwards only is one that runs forwards on the flipped sequence.
    """

    def __init__(self, layer: nn.RNNBase, *, is_reversed: bool, is_batch_first: bool) -> None:
        super().__init__()
        self.layer = layer
        self.is_reversed = is_reversed
        self.is_batch_first = is_batch_first

    def forward(self, x: Tensor, hidden: Tensor | None = None, cell: Tensor | None = None) -> tuple[Tensor, ...]:
        """Return every step ``(sequence, directions, batch, hidden)``, the last hidden state, and of an LSTM its cell."""
        if self.is_batch_first:
            x = x.transpose(0, 1)
            hidden, cell = (None if one is None else one.transpose(0, 1).contiguous() for one in (hidden, cell))
        if self.is_reversed:
            x = x.flip(0)
        directions = 2 if self.layer.bidirectional else 1
        size = (directions, x.shape[1], self.layer.hidden_size)
        hidden = x.new_zeros(size) if hidden is None else _like(hidden, x)
        if isinstance(self.layer, nn.LSTM):
            steps, (last, last_cell) = self.layer(x, (hidden, x.new_zeros(size) if cell is None else _like(cell, x)))
            states: tuple[Tensor, ...] = (last, last_cell)
        else:
            steps, last = self.layer(x, hidden)
            states = (last,)
        steps = steps.reshape(*steps.shape[:2], directions, -1)
        steps = steps.flip(0) if self.is_reversed else steps
        if self.is_batch_first:
            return steps.transpose(0, 1), *(state.transpose(0, 1) for state in states)
        return steps.permute(0, 2, 1, 3), *states


def _like(state: Tensor, x: Tensor) -> Tensor:
    """Return a state in the precision of what is computed: one that a file makes of constants is fp32 in a halved network, too."""
    return state if state.dtype == x.dtype else state.to(x.dtype)


@operator("LSTM", "GRU", "RNN")
def recurrent(node: Node) -> Result:
    kind = node.source.operator
    _refuse(node, kind)
    weights, recurrences = node.const(1, "weights"), node.const(2, "recurrence weights")
    biases = node.const(3, "biases") if node.has(3) else None
    direction, hidden = node.attribute("direction", "forward"), recurrences.tensor.shape[2]
    layer = KINDS[kind](
        weights.tensor.shape[2],
        hidden,
        bias=biases is not None,
        bidirectional=direction == "bidirectional",
        device="meta",
    )
    gates = len(ORDER[kind])
    for index in range(weights.tensor.shape[0]):
        end = "l0_reverse" if index else "l0"
        places: list[tuple[str, Const, int, int]] = [
            ("weight_ih", weights, 0, gates),
            ("weight_hh", recurrences, 0, gates),
        ]
        if biases is not None:
            places += [("bias_ih", biases, 0, gates), ("bias_hh", biases, gates, gates)]
        for name, const, first, count in places:
            block = const.tensor[index].reshape(-1, hidden, *const.tensor.shape[2:])[first : first + count]
            ordered = block[list(ORDER[kind])].reshape(gates * hidden, *const.tensor.shape[2:])
            made = Const(ordered, f"{const.name}.{name}_{end}", is_weight=True)
            setattr(layer, f"{name}_{end}", node.parameter(made))
    module = Recurrent(layer, is_reversed=direction == "reverse", is_batch_first=bool(node.attribute("layout", 0)))
    states = tuple(node.optional(index) for index in (5, 6) if kind == "LSTM" or index == 5)
    return Layer(module, (node.input(0), *states), weights, outputs=3 if kind == "LSTM" else 2)


def _refuse(node: Node, kind: str) -> None:
    given = node.attribute("activations")
    expected = ACTIVATIONS[kind] * (2 if node.attribute("direction") == "bidirectional" else 1)
    if given is not None and [one.lower() for one in given] != [one.lower() for one in expected]:
        raise NotConverted(f"activations {', '.join(given)}; torch has {', '.join(expected)} only")
    if node.attribute("clip") is not None or node.attribute("input_forget", 0) or node.has(7):
        raise NotConverted("clipping, coupled gates and peepholes are not in torch's layers")
    if kind == "GRU" and not node.attribute("linear_before_reset", 0):
        raise NotConverted("torch resets after the linear step only (linear_before_reset = 1)")
    if node.has(4):
        lengths, shape = node.optional(4), node.shape(0)
        steps = None if shape is None else shape[1 if node.attribute("layout", 0) else 0]
        if not isinstance(lengths, Const) or steps is None or not bool((lengths.tensor == steps).all()):
            raise NotConverted("sequences of unequal length")
