"""ONNX files of lower precision, made from the fp32 file: fp16, and int8 by static quantisation (QDQ).

Inputs and outputs stay fp32, so that a file of any precision takes the same feeds. No file leaves here unchecked.

fp16: weights and arithmetic in half precision, where the runtime has kernels for it; ONNX Runtime on a CPU mostly has none,
and casts around each operator.

int8: unsigned 8-bit activations, signed weights with one scale a channel. Measured on x86 with VNNI, one thread, a ResNet-20
of width 16: fp32 0.66 ms, signed activations 0.87 ms (their additions stay in floating point), unsigned 0.32 ms; ARM takes both.
Weights use 7 of their 8 bits: x86 without VNNI adds pairs of products in 16 bits, which would saturate, and a file must give the
same answers on every device its accuracy is told for.

Source: ONNX Runtime, "Quantize ONNX models" (data type selection, ``reduce_range``).
"""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from pathlib import Path

import numpy as np
import onnx
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
from onnxruntime.quantization.shape_inference import quant_pre_process
from onnxruntime.transformers.float16 import convert_float_to_float16
from torch import Tensor

from domain.errors import FieldProblem, Invalid
from domain.ports import BuildAbandoned, Hold
from pruning.exporters.feeds import feeds_of_file
from pruning.exporters.outputs import ExportFailed

PRECISIONS = ("fp32", "fp16", "int8")
CALIBRATION_SAMPLES = 256
CALIBRATION_BATCH = 16  # where the file takes any


def in_precision(file: bytes, precision: str, calibration: Tensor, *, hold: Hold = nullcontext) -> bytes:
    """Return an fp32 ONNX file in another precision, valid by ``onnx.checker``.

    Args:
        file: As the ONNX exporter made it: one input ``input``, fixed batch.
        precision: ``fp32``, ``fp16`` or ``int8``.
        calibration: Training samples, shape ``(N, ...)``; only int8 looks at them.
        hold: Entered around every batch of work.

    Raises:
        Invalid: ``precision_not_available``.
        ExportFailed: Where the file cannot be converted.
    """
    require_precision(precision)
    if precision == "fp32":
        return file
    try:
        made = _as_fp16(file, hold) if precision == "fp16" else _as_int8(file, calibration, hold)
        onnx.checker.check_model(onnx.load_from_string(made), full_check=True)
    except BuildAbandoned:
        raise
    except Exception as error:  # Two converters of graphs raise what they like on operators they do not know.
        reason = (str(error).splitlines() or [""])[0]
        raise ExportFailed(f"The model cannot be written in {precision}: {type(error).__name__}: {reason}") from error
    return made


def require_precision(precision: str) -> None:
    """Raise Invalid ``precision_not_available`` where no file of a precision can be made."""
    if precision not in PRECISIONS:
        message = f"Files of precision {precision} are not made; ask for one of: {', '.join(PRECISIONS)}."
        raise Invalid(message, code="precision_not_available", fields=[FieldProblem("candidate.precision", message)])


def _as_fp16(file: bytes, hold: Hold) -> bytes:
    with hold():
        model = convert_float_to_float16(onnx.load_from_string(file), keep_io_types=True)
        _sort(model.graph)
        return bytes(model.SerializeToString())


def _as_int8(file: bytes, calibration: Tensor, hold: Hold) -> bytes:
    model = onnx.load_from_string(file)
    samples = _Samples(model, calibration, hold)
    with tempfile.TemporaryDirectory(prefix="pruneloop-int8-") as folder, _quiet(), samples:
        ready, made = Path(folder) / "ready.onnx", Path(folder) / "int8.onnx"
        # Fuses and infers shapes first: what ONNX Runtime would fuse must be quantised as one operator.
        quant_pre_process(model, ready, skip_symbolic_shape=True)
        quantize_static(
            ready,
            made,
            samples,
            quant_format=QuantFormat.QDQ,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            per_channel=True,
            reduce_range=True,
        )
        return made.read_bytes()


class _Samples(CalibrationDataReader):  # type: ignore[misc]  # the library has no types
    """Feeds calibration samples in batches of the file's own size; the last is filled up from the front.

    Between batches it lets ``hold`` go, so that a measurement on the same host waits for one batch and not for all.
    """

    def __init__(self, model: onnx.ModelProto, samples: Tensor, hold: Hold) -> None:
        # A free batch has no number; several inputs lie side by side in a sample.
        self._batch = model.graph.input[0].type.tensor_type.shape.dim[0].dim_value or CALIBRATION_BATCH
        self._feeds = feeds_of_file(model, samples)
        self._count = len(samples)
        self._starts = iter(range(0, self._count, self._batch))
        self._hold = hold
        self._held = ExitStack()

    def __enter__(self) -> _Samples:
        self._held.enter_context(self._hold())
        return self

    def __exit__(self, *error: object) -> None:
        self._held.close()

    def get_next(self) -> dict[str, np.ndarray] | None:
        self._held.close()
        self._held.enter_context(self._hold())
        start = next(self._starts, None)
        if start is None:
            return None
        index = np.arange(start, start + self._batch) % self._count
        return {name: np.ascontiguousarray(array[index]) for name, array in self._feeds.items()}


def _sort(graph: onnx.GraphProto) -> None:
    """Put nodes behind those they read: the converter appends its casts at the end, and the checker refuses that."""
    made = {value.name for value in (*graph.input, *graph.initializer)} | {""}
    waiting, ordered = list(graph.node), []
    while waiting:
        ready = [node for node in waiting if made.issuperset(node.input)]
        if not ready:
            raise ExportFailed("The graph of the converted file is not acyclic.")
        ordered.extend(ready)
        made.update(name for node in ready for name in node.output)
        waiting = [node for node in waiting if not made.issuperset(node.output)]
    del graph.node[:]
    graph.node.extend(ordered)


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence the quantiser's hints on the root logger: they are for its own command line."""
    root = logging.getLogger()
    before = root.level
    root.setLevel(logging.ERROR)
    try:
        yield
    finally:
        root.setLevel(before)
