"""Operator name -> the function that converts a node of it."""

from __future__ import annotations

from collections.abc import Callable

from pruning.from_onnx.node import Node
from pruning.from_onnx.values import Result

Converter = Callable[[Node], Result]
OPERATORS: dict[str, Converter] = {}


def operator(*names: str) -> Callable[[Converter], Converter]:
    """Register a converter under ONNX operator names of the default domain."""

    def register(converter: Converter) -> Converter:
        for name in names:
            assert name not in OPERATORS, f"{name} is converted twice"
            OPERATORS[name] = converter
        return converter

    return register
