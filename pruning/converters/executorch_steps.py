"""ExecuTorch's steps, carried out in its environment by ``child``: a torch file becomes a ``.pte`` file, or such a file is run.

Delegated to XNNPACK, which is what runs on the processor of a phone. int8 by XNNPACK's own quantiser over calibration samples.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
from executorch.backends.xnnpack.quantizer.xnnpack_quantizer import XNNPACKQuantizer, get_symmetric_quantization_config
from executorch.exir import to_edge_transform_and_lower
from executorch.runtime import Runtime
from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e

# Numbers of ExecuTorch's ScalarType, which its Python gives where it has no word of torch's.
DTYPES = {
    0: "uint8",
    1: "int8",
    2: "int16",
    3: "int32",
    4: "int64",
    5: "float16",
    6: "float32",
    7: "float64",
    11: "bool",
}
load_model: Any = None


def convert(folder: Path, options: dict[str, Any]) -> None:
    """``model.safetensors`` and ``example.npz`` to ``model.pte``; with ``calibration.npz`` in int8."""
    torch.set_num_threads(1)
    model = load_model(folder / "model.safetensors")
    names = [port.name for port in model.inputs]
    example = _tensors(folder / "example.npz", names)
    program = torch.export.export(model, example, strict=False)
    if options["precision"] == "int8":
        quantizer = XNNPACKQuantizer().set_global(get_symmetric_quantization_config(is_per_channel=True))
        watched = prepare_pt2e(program.module(), quantizer)
        samples = _tensors(folder / "calibration.npz", names)
        for parts in zip(*(tensor.split(options["batch"]) for tensor in samples), strict=True):
            if len(parts[0]) == options["batch"]:
                watched(*parts)
        program = torch.export.export(convert_pt2e(watched), example, strict=False)
    made = to_edge_transform_and_lower(program, partitioner=[XnnpackPartitioner()]).to_executorch()
    (folder / "model.pte").write_bytes(bytes(made.buffer))


def describe(folder: Path, options: dict[str, Any]) -> None:
    """``model.pte`` to ``inputs.json``: name, shape and torch's word for the type of each input."""
    meta = Runtime.get().load_program(str(folder / "model.pte")).load_method("forward").metadata
    inputs = [meta.input_tensor_meta(number) for number in range(meta.num_inputs())]
    told = [
        [f"input_{i}" if len(inputs) > 1 else "input", list(one.sizes()), DTYPES[one.dtype()]]
        for i, one in enumerate(inputs)
    ]
    (folder / "inputs.json").write_text(json.dumps(told))


def run(folder: Path, options: dict[str, Any]) -> None:
    """``model.pte`` on ``feeds.npz``, in batches of the file's own; ``outputs.npz`` holds ``0``, ``1``, ... in order."""
    torch.set_num_threads(options["threads"])
    method = Runtime.get().load_program(str(folder / "model.pte")).load_method("forward")
    feeds = _tensors(folder / "feeds.npz", options["inputs"])
    given: list[list[np.ndarray]] = []
    for parts in zip(*(tensor.split(options["batch"]) for tensor in feeds), strict=True):
        given.append([np.array(tensor.numpy()) for tensor in method.execute([part.contiguous() for part in parts])])
    made: dict[str, Any] = {str(i): np.concatenate(parts) for i, parts in enumerate(zip(*given, strict=True))}
    np.savez(folder / "outputs.npz", **made)


def _tensors(path: Path, names: list[str]) -> tuple[torch.Tensor, ...]:
    with np.load(path, allow_pickle=False) as arrays:
        return tuple(torch.from_numpy(arrays[name]) for name in names)
