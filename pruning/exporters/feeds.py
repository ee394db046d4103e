"""What a file is fed: samples ``(N, ...)``, or several inputs side by side in them, as arrays by the file's own names."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import onnx
import onnxruntime
import torch
from torch import Tensor

from pruning.signature import Port, sample_shapes, unpack

SHAPES = "pruneloop.sample_shapes"  # metadata of a file with a signature: the shape of each input for one sample

_DTYPES = {
    "tensor(float)": torch.float32, "tensor(float16)": torch.float16, "tensor(double)": torch.float64,
    "tensor(int64)": torch.int64, "tensor(int32)": torch.int32, "tensor(int16)": torch.int16, "tensor(int8)": torch.int8,
    "tensor(uint8)": torch.uint8, "tensor(bool)": torch.bool,
}  # fmt: skip


def feeds_of_session(session: onnxruntime.InferenceSession, samples: Tensor) -> dict[str, np.ndarray]:
    """Return input name -> array for a loaded file."""
    ports = [Port(node.name, tuple(node.shape), _DTYPES[node.type]) for node in session.get_inputs()]
    return _feeds(ports, session.get_modelmeta().custom_metadata_map.get(SHAPES), samples)


def feeds_of_file(model: onnx.ModelProto, samples: Tensor) -> dict[str, np.ndarray]:
    """Return input name -> array for a file that was not loaded."""
    constants = {tensor.name for tensor in model.graph.initializer}
    ports = []
    for value in model.graph.input:
        if value.name not in constants:
            kind = value.type.tensor_type
            dtype = torch.from_numpy(np.zeros(1, onnx.helper.tensor_dtype_to_np_dtype(kind.elem_type))).dtype
            sizes = tuple(dim.dim_value if dim.HasField("dim_value") else None for dim in kind.shape.dim)
            ports.append(Port(value.name, sizes, dtype))
    told = {entry.key: entry.value for entry in model.metadata_props}
    return _feeds(ports, told.get(SHAPES), samples)


def feeds_of_ports(ports: Sequence[Port], samples: Tensor) -> dict[str, np.ndarray]:
    """Return input name -> array for a file whose own inputs say what they take; sizes left free follow from the samples.

    Raises:
        Invalid: ``model_rejects_data``.
    """
    shapes = sample_shapes(ports, tuple(samples.shape[1:]))
    return _arrays(ports, shapes, samples)


def in_batches(
    feeds: Mapping[str, np.ndarray], batch: int, *, is_fixed: bool
) -> Iterator[tuple[dict[str, np.ndarray], int]]:
    """Yield feeds of ``batch`` samples and how many of them count; the last of a fixed batch is filled up."""
    samples = len(next(iter(feeds.values())))
    for start in range(0, samples, batch):
        count = min(batch, samples - start)
        chunk = {name: array[start : start + count] for name, array in feeds.items()}
        if count < batch and is_fixed:
            chunk = {name: np.resize(array, (batch, *array.shape[1:])) for name, array in chunk.items()}
        yield chunk, count


def _feeds(ports: Sequence[Port], told: str | None, samples: Tensor) -> dict[str, np.ndarray]:
    if told:
        shapes = [tuple(shape) for shape in json.loads(told)]
    else:
        shapes = [tuple(size for size in port.shape[1:] if isinstance(size, int)) for port in ports]
    return _arrays(ports, shapes, samples)


def _arrays(ports: Sequence[Port], shapes: Sequence[tuple[int, ...]], samples: Tensor) -> dict[str, np.ndarray]:
    parts = unpack(ports, shapes, samples.float().cpu())
    return {port.name: np.ascontiguousarray(part.numpy()) for port, part in zip(ports, parts, strict=True)}
