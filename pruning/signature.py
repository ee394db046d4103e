"""What a network takes and gives by name, and one tensor in, one tensor out for everything that cuts, trains and scores it.

The rest of ``pruning`` knows one input ``(N, ...)`` and one output ``(N, values)``. A network of several inputs or outputs is put
into a ``Packed``, whose samples hold the inputs flattened side by side, in order, and whose output holds the outputs so. Files are
made of the network inside it, under the names, types and free dimensions of its signature.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor, nn

from domain.errors import FieldProblem, Invalid
from pruning.heads import Heads

Size = int | str | None
"""A size: known, free under a name, or free."""

Ending = Literal["", "softmax", "sigmoid"]

EXACT_INTEGERS = 2**24  # float32 holds every integer up to here: samples are kept as float32


@dataclass(frozen=True)
class Port:
    """An input or output: its name in the file, its sizes with the batch first, and its type."""

    name: str
    shape: tuple[Size, ...]
    dtype: torch.dtype = torch.float32


@dataclass(frozen=True)
class Signature:
    """Names, sizes and types of what a network takes and gives, in order."""

    inputs: tuple[Port, ...]
    outputs: tuple[Port, ...]

    def free_dims(self) -> dict[str, dict[int, str]]:
        """Return input or output -> axis -> name, for every size that is free: what exporters call dynamic axes."""
        found: dict[str, dict[int, str]] = {}
        for port in (*self.inputs, *self.outputs):
            for axis, size in enumerate(port.shape):
                if not isinstance(size, int):
                    name = size or ("batch" if axis == 0 else f"{port.name}_{axis}")
                    found.setdefault(port.name, {})[axis] = name
        return found


class Packed(nn.Module):
    """A network of named inputs and outputs, as one of one tensor in and one tensor out.

    Args:
        net: Takes the inputs in order; gives a tensor, or a tuple of them.
        signature: Of ``net``.
        heads: Attention heads of ``net`` by the names of its layers.
        ending: The one output is a softmax, or a sigmoid. Then logits come out, so that it can be trained as it was.

    Shapes: in ``(N, ...)`` as the one input has it, or ``(N, values)`` with several inputs side by side; out ``(N, values)``.
    """

    def __init__(
        self, net: nn.Module, signature: Signature, *, ending: Ending = "", heads: Sequence[Heads] = ()
    ) -> None:
        super().__init__()
        self.net = net
        self.signature = signature
        self.ending: Ending = ending
        self.heads = tuple(heads)
        self.sample_shapes: tuple[tuple[int, ...], ...] = ()

    def bind(self, sample: Sequence[int]) -> None:
        """Say what one sample of the data looks like; sizes the network leaves free are taken from it.

        Raises:
            Invalid: ``model_rejects_data``.
        """
        self.sample_shapes = sample_shapes(self.signature.inputs, tuple(sample))

    def head_groups(self) -> tuple[Heads, ...]:
        return tuple(
            replace(
                heads,
                makes=tuple(f"net.{name}" for name in heads.makes),
                reads=tuple(f"net.{name}" for name in heads.reads),
            )
            for heads in self.heads
        )

    def unpack(self, samples: Tensor) -> tuple[Tensor, ...]:
        """Return the network's inputs, in their types."""
        return unpack(self.signature.inputs, self.sample_shapes, samples)

    def outputs(self, samples: Tensor) -> tuple[Tensor, ...]:
        """Return what the network itself gives: what its file must give."""
        # Not through __call__: that of a converted graph prints the generated code where it fails, as it may while being cut.
        given = self.net.forward(*self.unpack(samples))
        return tuple(given) if isinstance(given, (tuple, list)) else (given,)

    def to_logits(self, output: Tensor) -> Tensor:
        """Return what the file's output ``(N, values)`` is as logits; where it is no probability, itself."""
        if self.ending == "softmax":
            return output.clamp_min(1e-9).log()
        return output.clamp(1e-7, 1 - 1e-7).logit() if self.ending == "sigmoid" else output

    def forward(self, samples: Tensor) -> Tensor:
        outputs = self.outputs(samples)
        if self.ending:
            return self.to_logits(outputs[0])
        if len(outputs) == 1 and outputs[0].ndim == 2:
            return outputs[0]
        return torch.cat([output.flatten(1).to(torch.float32) for output in outputs], dim=1)


def sample_shapes(inputs: Sequence[Port], sample: tuple[int, ...]) -> tuple[tuple[int, ...], ...]:
    """Return the shape each input has for one sample of data.

    With several inputs a sample is a vector that holds them one after another; free sizes are then the same number for all of them
    (the tokens of ids and mask), and follow from the vector's length.

    Raises:
        Invalid: ``model_rejects_data``.
    """
    if len(inputs) == 1:
        wanted = inputs[0].shape[1:]
        fits = len(wanted) == len(sample) and all(
            not isinstance(size, int) or size == got for size, got in zip(wanted, sample, strict=True)
        )
        if not fits:
            raise _rejected(f"Input {inputs[0].name} takes samples of shape {_shown(wanted)}, the data has {sample}.")
        return (sample,)
    if len(sample) != 1:
        raise _rejected(
            f"The model has {len(inputs)} inputs ({', '.join(port.name for port in inputs)}); give them as one vector a sample,"
            f" flattened side by side in this order. The data has samples of shape {sample}."
        )
    for free in range(sample[0] + 1):
        shapes = tuple(tuple(size if isinstance(size, int) else free for size in port.shape[1:]) for port in inputs)
        total = sum(torch.Size(shape).numel() for shape in shapes)
        if total == sample[0]:
            return shapes
        if total > sample[0] or all(isinstance(size, int) for port in inputs for size in port.shape[1:]):
            break
    told = ", ".join(f"{port.name} {_shown(port.shape[1:])}" for port in inputs)
    raise _rejected(f"The inputs are {told}; {sample[0]} values a sample do not hold them side by side.")


def unpack(inputs: Sequence[Port], shapes: Sequence[tuple[int, ...]], samples: Tensor) -> tuple[Tensor, ...]:
    """Return the inputs that samples ``(N, ...)`` hold, in their shapes and types."""
    if len(inputs) == 1:
        return (samples.to(inputs[0].dtype),)
    lengths = [torch.Size(shape).numel() for shape in shapes]
    parts = samples.split(lengths, dim=1)
    return tuple(
        part.reshape(-1, *shape).to(port.dtype) for part, shape, port in zip(parts, shapes, inputs, strict=True)
    )


def signature_of(model: nn.Module) -> Signature | None:
    """Return the signature of a model that has one; the others take ``input`` and give ``output``."""
    found = getattr(model, "signature", None)
    return found if isinstance(found, Signature) else None


def file_outputs(model: nn.Module, samples: Tensor) -> tuple[Tensor, ...]:
    """Return what the file of a model must give for samples, one tensor an output."""
    return model.outputs(samples) if isinstance(model, Packed) else (model(samples),)


def _shown(shape: Sequence[Size]) -> str:
    return f"({', '.join('any' if size is None else str(size) for size in shape)})"


def _rejected(message: str) -> Invalid:
    return Invalid(message, code="model_rejects_data", fields=[FieldProblem("data", message)])
