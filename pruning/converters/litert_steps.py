"""LiteRT's steps, carried out in its environment by ``child``: a torch file becomes a ``.tflite`` file.

fp16: weights in half precision, computed as the runtime likes. int8: activations and weights by a static quantisation over
calibration samples, inputs and outputs in fp32 as in every other format.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import litert_torch
import numpy as np
import torch
from ai_edge_litert.tools import flatbuffer_utils
from ai_edge_quantizer import calibrator, qtyping, quantizer, recipe, recipe_manager
from ai_edge_quantizer.utils import qsv_utils

KEY = "serving_default"
load_model: Any = None


def convert(folder: Path, options: dict[str, Any]) -> None:
    """``model.safetensors`` and ``example.npz`` to ``model.tflite``; its signature has the model's own names."""
    torch.set_num_threads(1)
    model = load_model(folder / "model.safetensors")
    with np.load(folder / "example.npz", allow_pickle=False) as arrays:
        example = tuple(torch.from_numpy(arrays[port.name]) for port in model.inputs)
    made = folder / "unnamed.tflite"
    litert_torch.convert(model, example).export(str(made))
    _rename(made, folder / "model.tflite", [port.name for port in model.inputs], list(model.outputs))


def quantise(folder: Path, options: dict[str, Any]) -> None:
    """``model.tflite`` to ``made.tflite`` in ``options["precision"]``; int8 looks at ``calibration.npz``."""
    file = str(folder / "model.tflite")
    if options["precision"] == "fp16":
        half = quantizer.Quantizer(file)
        half.update_quantization_recipe(
            regex=".*",
            operation_name=qtyping.TFLOperationName.ALL_SUPPORTED,
            op_config=qtyping.OpQuantizationConfig(
                weight_tensor_config=qtyping.TensorQuantizationConfig(num_bits=16, dtype=qtyping.TensorDataType.FLOAT),
                compute_precision=qtyping.ComputePrecision.FLOAT,
            ),
            algorithm_key="float_casting",
        )
        _write(half.quantize(enable_progress_report=False), folder)
        return
    whole = quantizer.Quantizer(file, recipe.static_wi8_ai8())
    # What goes in and comes out stays fp32.
    for place in (qtyping.TFLOperationName.INPUT, qtyping.TFLOperationName.OUTPUT):
        whole.update_quantization_recipe(regex=".*", operation_name=place, algorithm_key="no_quantize")
    with np.load(folder / "calibration.npz", allow_pickle=False) as arrays:
        feeds = {name: arrays[name] for name in arrays.files}
    batch = options["batch"]
    count = len(next(iter(feeds.values()))) // batch
    samples = [{name: array[i * batch : (i + 1) * batch] for name, array in feeds.items()} for i in range(count)]
    # Not Quantizer.calibrate: it takes a moving average of what single samples reach, and cuts off what most of them exceed (a
    # MobileNet's outputs were off by a third of the largest; by the whole range seen they are off by a twelfth).
    asked = recipe_manager.RecipeManager()
    asked.load_quantization_recipe(whole.get_quantization_recipe())
    watch = calibrator.Calibrator(file, num_threads=1, qsv_update_func=qsv_utils.min_max_update)
    watch.calibrate({KEY: samples}, asked)
    _write(whole.quantize(watch.get_model_qsvs(), enable_progress_bar=False, enable_progress_report=False), folder)


def _write(result: Any, folder: Path) -> None:
    (folder / "made.tflite").write_bytes(bytes(result.quantized_model))


def _rename(source: Path, target: Path, inputs: list[str], outputs: list[str]) -> None:
    model = flatbuffer_utils.read_model(str(source))
    (signature,) = model.signatureDefs
    for entries, names in ((signature.inputs, inputs), (signature.outputs, outputs)):
        assert len(entries) == len(names), (len(entries), names)
        # The converter numbers them: args_0, args_1, output_0.
        ordered = sorted(entries, key=lambda entry: int(_text(entry.name).rpartition("_")[2]))
        for entry, name in zip(ordered, names, strict=True):
            entry.name = name.encode()
    flatbuffer_utils.write_model(model, str(target))


def _text(name: bytes | str) -> str:
    return name.decode() if isinstance(name, bytes) else name
