"""The formats a model is exported in, what each can hold, and which ones a runtime reads.

One table for all who must agree: the API refuses what a format cannot hold, the search asks for the files of its targets'
runtimes, the builder makes them. That a built-in runtime really reads what stands here is held by its contract test.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Format:
    """What files of a format can hold, and what their names end in; ``max_batch`` is None where any batch goes."""

    precisions: tuple[str, ...]
    suffix: str
    max_batch: int | None = None


ONNX, NCNN, OPENVINO, TORCH = "onnx", "ncnn", "openvino", "torch"
LITERT, EXECUTORCH, PT2 = "litert", "executorch", "pt2"
FORMATS: dict[str, Format] = {
    ONNX: Format(("fp32", "fp16", "int8"), "onnx"),
    # int8 needs ncnn's table and quantiser, which no package brings. A blob of ncnn is one sample: it has no batch axis.
    NCNN: Format(("fp32", "fp16"), "ncnn", max_batch=1),
    OPENVINO: Format(("fp32", "fp16", "int8"), "openvino"),
    TORCH: Format(("fp32", "fp16"), "safetensors"),  # torch has no int8 kernels that a plain graph would reach
    LITERT: Format(("fp32", "fp16", "int8"), "tflite"),
    # No runtime of an agent reads these two: ExecuTorch's wants torch, and a .pt2 may hold pickles.
    EXECUTORCH: Format(("fp32", "fp16", "int8"), "pte"),
    PT2: Format(("fp32", "fp16"), "pt2"),
}
READ_BY: dict[str, tuple[str, ...]] = {
    "litert": (LITERT,),
    "ncnn": (NCNN,),
    "onnxruntime": (ONNX,),
    "onnxruntime-cuda": (ONNX,),
    "onnxruntime-tensorrt": (ONNX,),
    "onnxruntime-xnnpack": (ONNX,),
    "openvino": (ONNX, OPENVINO),
    "replay": (ONNX,),
    "torch": (ONNX, TORCH),
    "torch-compile": (ONNX, TORCH),
    "torch-compile-cuda": (ONNX, TORCH),
    "torch-cuda": (ONNX, TORCH),
}
"""Runtime -> the formats it reads; the first is what a target gets that names none. A plug-in's runtime gets ONNX."""


def format_of(runtime: str, wanted: str | None = None) -> str:
    """Return the format a target's file is built in: the one its job names, else its runtime's first."""
    return wanted or READ_BY.get(runtime, (ONNX,))[0]


def kind_of_suffix(suffix: str) -> str | None:
    """Return the format whose files end in a suffix (without the dot), else None."""
    return next((name for name, known in FORMATS.items() if known.suffix == suffix.lower()), None)


def why_not(name: str, *, precision: str = "fp32", batch: int = 1) -> tuple[str, str] | None:
    """Return (stable code, reason) where files of a format cannot hold a precision or a batch, else None.

    A plug-in's format is not known here: its exporter says so itself.
    """
    known = FORMATS.get(name)
    if known is None:
        return None
    if precision not in known.precisions:
        text = f"{name} files are not made in {precision}; ask for one of: {', '.join(known.precisions)}."
        return "precision_not_available", text
    if known.max_batch is not None and batch > known.max_batch:
        text = f"{name} files hold a batch of {known.max_batch}, asked is {batch}; ask for {known.max_batch}."
        return "batch_not_available", text
    return None
