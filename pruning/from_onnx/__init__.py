"""A trainable torch module from an ONNX file: nothing is unpickled and nothing of the file is executed while it is read.

Layers become what they were in torch (``Conv2d``, ``Linear``, ``BatchNorm2d``, ``LSTM``, ...), under the names of their weights, so
that the module can be traced, cut and trained; everything else is a call in a flat ``torch.fx`` graph. Arithmetic on shapes is
done once, here; a free batch stays free. See docs/adr/0005-own-onnx-converter.md.
"""

from __future__ import annotations

from pruning.from_onnx.conversion import Converted, convert, supported_operators
from pruning.from_onnx.errors import BadOnnx, NeedsConstant, UnsupportedOnnx
from pruning.from_onnx.reading import TensorInfo

__all__ = ["BadOnnx", "Converted", "NeedsConstant", "TensorInfo", "UnsupportedOnnx", "convert", "supported_operators"]
