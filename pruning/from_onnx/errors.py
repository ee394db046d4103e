"""Why a file is not converted; every reason names the node."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from domain.errors import FieldProblem, Invalid


class BadOnnx(Invalid):
    """The file is no valid ONNX model, or keeps its weights elsewhere."""

    default_code = "bad_onnx"


@dataclass(frozen=True)
class Refusal:
    """One node that is not converted: operator, name in the file, reason, and whether a constant input would mend it."""

    operator: str
    node: str
    reason: str
    needs_constant: bool = False

    def __str__(self) -> str:
        return f"{self.operator} ({self.node}): {self.reason}"


class UnsupportedOnnx(Invalid):
    """Operators, or forms of them, that are not converted; ``refusals`` holds every one of them."""

    default_code = "unsupported_onnx"

    def __init__(self, refusals: Sequence[Refusal]) -> None:
        self.refusals = tuple(refusals)
        told = "; ".join(str(refusal) for refusal in self.refusals)
        super().__init__(
            f"{len(self.refusals)} node(s) of the ONNX file cannot be turned into torch: {told}. Export the model without them.",
            fields=[FieldProblem("model", str(refusal)) for refusal in self.refusals],
            metadata={"operators": sorted({refusal.operator for refusal in self.refusals})},
        )


class NotConverted(Exception):
    """Raised by an operator about its node; becomes a ``Refusal``."""


class NeedsConstant(NotConverted):
    """An input that must be known when the file is converted is computed from data."""
