"""An ONNX file as plain nodes, constants and shapes; what the file claims of shapes inside is not believed but inferred."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
import onnx.inliner
import torch
from google.protobuf.message import DecodeError
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor

from pruning.from_onnx.errors import BadOnnx
from pruning.from_onnx.folding import fold_conditions

OLDEST_OPSET = 9
DEFAULT_DOMAINS = ("", "ai.onnx")
Shape = tuple[int | None, ...]

DTYPES: dict[int, torch.dtype] = {
    TensorProto.FLOAT: torch.float32, TensorProto.FLOAT16: torch.float16, TensorProto.DOUBLE: torch.float64,
    TensorProto.BFLOAT16: torch.bfloat16, TensorProto.BOOL: torch.bool,
    TensorProto.INT8: torch.int8, TensorProto.INT16: torch.int16, TensorProto.INT32: torch.int32,
    TensorProto.INT64: torch.int64, TensorProto.UINT8: torch.uint8, TensorProto.UINT16: torch.uint16,
    TensorProto.UINT32: torch.uint32, TensorProto.UINT64: torch.uint64,
}  # fmt: skip


@dataclass(frozen=True)
class TensorInfo:
    """An input or output: name in the file, shape with None where any size goes (or None: any shape), dtype."""

    name: str
    shape: Shape | None
    dtype: torch.dtype | None
    free: tuple[str | None, ...] = ()  # names of free sizes, where the file gives them

    @property
    def sizes(self) -> tuple[int | str | None, ...]:
        """The shape with names where sizes are free and named."""
        shape = self.shape or ()
        names = self.free or (None,) * len(shape)
        return tuple(name if size is None else size for size, name in zip(shape, names, strict=True))


@dataclass(frozen=True)
class OnnxNode:
    """A node: operator, its domain, a name to tell a person, attributes as Python values and tensors."""

    operator: str
    domain: str
    name: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    attributes: Mapping[str, Any]


@dataclass(frozen=True)
class OnnxGraph:
    """A checked file: nodes in the order they are computed in, initialisers, and what is known of each value."""

    opset: int
    nodes: tuple[OnnxNode, ...]
    constants: Mapping[str, Tensor]
    inputs: tuple[TensorInfo, ...]
    outputs: tuple[str, ...]
    known: Mapping[str, TensorInfo]
    output_infos: tuple[TensorInfo, ...] = ()
    baked_batch: int | None = None


def read_graph(file: bytes, *, frees_batch: bool = False) -> OnnxGraph:
    """Parse and check a file.

    Args:
        file: The file's bytes.
        frees_batch: Take the first size of every input for a batch and let it be any, whatever the file says of it.

    Raises:
        BadOnnx: If it is damaged, invalid, of an opset that is not known, or keeps weights in other files.
    """
    try:
        model = onnx.load_from_string(file)
    except (DecodeError, ValueError, TypeError) as error:
        raise BadOnnx(f"The file is not ONNX, or it is damaged ({_first_line(error)}); export it again.") from error
    if any(tensor.data_location == TensorProto.EXTERNAL for tensor in _tensors(model.graph)):
        raise BadOnnx("The file keeps weights in other files; save it with all tensors in one file.")
    try:
        onnx.checker.check_model(model)
        if model.functions:
            model = onnx.inliner.inline_local_functions(model)
        model = fold_conditions(model)
        outputs = tuple(_info(value) for value in model.graph.output)
        baked = _free_batch(model) if frees_batch else None
        opset = _opset(model)
        known = _infer(model)
        graph = model.graph
        constants = {tensor.name: as_tensor(tensor) for tensor in graph.initializer}
        nodes = tuple(_node(index, node) for index, node in enumerate(graph.node))
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError, ValueError, TypeError) as error:
        raise BadOnnx(f"The ONNX file is not valid: {_first_line(error)}; export it again.") from error
    if graph.sparse_initializer:
        raise BadOnnx("The file holds sparse tensors; save it with dense ones.")
    inputs = tuple(_info(value) for value in graph.input if value.name not in constants)
    names = tuple(value.name for value in graph.output)
    told = tuple(_output_info(one, known.get(one.name), baked) for one in outputs)
    return OnnxGraph(opset, nodes, constants, inputs, names, known, told, baked)


def as_tensor(tensor: onnx.TensorProto) -> Tensor:
    """Return a tensor of the file as one of torch's, in memory of its own.

    Raises:
        ValueError: If torch has no such dtype.
    """
    if tensor.data_type not in DTYPES:
        kind = TensorProto.DataType.Name(tensor.data_type)
        raise ValueError(f"tensor {tensor.name} is of type {kind}, which torch does not compute with")
    array = np.array(numpy_helper.to_array(tensor))
    if tensor.data_type == TensorProto.BFLOAT16:
        return torch.from_numpy(array.view(np.int16)).view(torch.bfloat16)
    return torch.from_numpy(array)


def _opset(model: onnx.ModelProto) -> int:
    versions = [entry.version for entry in model.opset_import if entry.domain in DEFAULT_DOMAINS]
    newest = onnx.defs.onnx_opset_version()
    if not versions or not OLDEST_OPSET <= max(versions) <= newest:
        raise BadOnnx(
            f"The file is of opset {max(versions, default='unknown')}; {OLDEST_OPSET} to {newest} are read. Export it anew."
        )
    return max(versions)


def _infer(model: onnx.ModelProto) -> dict[str, TensorInfo]:
    """Return shape and dtype of every value, from the inputs and the operators alone."""
    bare = onnx.ModelProto()
    bare.CopyFrom(model)
    del bare.graph.value_info[:]
    for output in bare.graph.output:
        if output.type.HasField("tensor_type"):
            output.type.tensor_type.ClearField("shape")
    graph = onnx.shape_inference.infer_shapes(bare, data_prop=True).graph
    known = {info.name: info for info in map(_info, (*graph.value_info, *graph.output, *graph.input))}
    for tensor in graph.initializer:
        known[tensor.name] = TensorInfo(tensor.name, tuple(tensor.dims), DTYPES.get(tensor.data_type))
    return known


def _info(value: onnx.ValueInfoProto) -> TensorInfo:
    kind = value.type.tensor_type
    if not value.type.HasField("tensor_type"):
        return TensorInfo(value.name, None, None)
    shape = None
    if kind.HasField("shape"):
        # Some exporters write -1 for a size that is free.
        shape = tuple(
            dim.dim_value if dim.HasField("dim_value") and dim.dim_value >= 0 else None for dim in kind.shape.dim
        )
    names = tuple(dim.dim_param if dim.dim_param.strip("?") else None for dim in kind.shape.dim)
    return TensorInfo(value.name, shape, DTYPES.get(kind.elem_type), names if shape is not None else ())


def _free_batch(model: onnx.ModelProto) -> int | None:
    """Let the first size of every input be any; return what the file had fixed it to."""
    constants = {tensor.name for tensor in model.graph.initializer}
    baked: int | None = None
    for value in model.graph.input:
        dims = value.type.tensor_type.shape.dim
        if value.name not in constants and len(dims) > 0 and dims[0].dim_value > 0:
            baked = dims[0].dim_value
            dims[0].dim_param = "batch"
    return baked


def _output_info(told: TensorInfo, found: TensorInfo | None, baked: int | None) -> TensorInfo:
    """Return an output's sizes as the file names them, where it says any; a batch that was baked in is free."""
    dtype = told.dtype if found is None or found.dtype is None else found.dtype
    shape = told.shape if told.shape is not None else (found.shape if found is not None else None)
    if not shape:
        return TensorInfo(told.name, shape, dtype)
    names = told.free or (None,) * len(shape)
    if baked is not None and shape[0] in {baked, None}:
        shape, names = (None, *shape[1:]), ("batch", *names[1:])
    return TensorInfo(told.name, shape, dtype, names)


def _node(index: int, node: onnx.NodeProto) -> OnnxNode:
    domain = "" if node.domain in DEFAULT_DOMAINS else node.domain
    attributes = {attribute.name: _attribute(attribute) for attribute in node.attribute}
    return OnnxNode(
        node.op_type, domain, node.name or f"node {index}", tuple(node.input), tuple(node.output), attributes
    )


def _attribute(attribute: onnx.AttributeProto) -> Any:
    value = helper.get_attribute_value(attribute)
    if isinstance(value, bytes):
        return value.decode(errors="replace")
    if attribute.type == onnx.AttributeProto.TENSOR:
        return as_tensor(value)
    if attribute.type in {onnx.AttributeProto.INTS, onnx.AttributeProto.FLOATS}:
        return list(value)
    if attribute.type == onnx.AttributeProto.STRINGS:
        return [one.decode(errors="replace") for one in value]
    return value


def _tensors(graph: onnx.GraphProto) -> Iterator[onnx.TensorProto]:
    """Walk every tensor of a graph, those in attributes and in graphs below it too."""
    yield from graph.initializer
    for sparse in graph.sparse_initializer:
        yield from (sparse.values, sparse.indices)
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.HasField("t"):
                yield attribute.t
            yield from attribute.tensors
            for below in (attribute.g, *attribute.graphs):
                yield from _tensors(below)


def _first_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return (lines or [type(error).__name__])[0][:300]
