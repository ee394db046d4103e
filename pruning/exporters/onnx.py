"""ONNX files by torch's TorchScript-based exporter: batch norm folded, fixed batch, checked in onnxruntime.

The newer exporter (``dynamo=True``) gave the same graphs at ten times the time, and a build exports once a trial.
"""

from __future__ import annotations

import io
import warnings
from collections.abc import Mapping

import numpy as np
import onnx
import onnxruntime
import torch
from torch import Tensor, nn

from domain.artifact import ArtifactKind
from domain.ports import Hold
from pruning.exporters.outputs import ExportFailed, check_outputs
from pruning.exporters.precision import in_precision

OPSET = 17


class OnnxExporter:
    """Makes and runs fp32 ONNX files with one input ``input`` and one output ``output``."""

    format = "onnx"
    kind = ArtifactKind.ONNX

    def export(self, model: nn.Module, example: Tensor) -> bytes:
        buffer = io.BytesIO()
        was_training = model.training
        try:
            with warnings.catch_warnings(), torch.no_grad():
                warnings.filterwarnings("ignore", message=".*legacy TorchScript-based ONNX export", append=False)
                warnings.filterwarnings("ignore", category=DeprecationWarning, module=r"torch\..*")
                torch.onnx.export(
                    model.eval(),
                    (example,),
                    buffer,  # type: ignore[arg-type]  # the exporter takes a file object, its annotation does not
                    dynamo=False,
                    opset_version=OPSET,
                    input_names=["input"],
                    output_names=["output"],
                    do_constant_folding=True,
                )
        except (RuntimeError, ValueError, TypeError, torch.onnx.errors.OnnxExporterError) as error:
            raise ExportFailed(f"The model cannot be written as ONNX: {str(error).splitlines()[0]}") from error
        finally:
            model.train(was_training)
        file = buffer.getvalue()
        try:
            onnx.checker.check_model(onnx.load_from_string(file), full_check=True)
        except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
            raise ExportFailed(f"The ONNX file is not valid: {str(error).splitlines()[0]}") from error
        return file

    def in_precision(
        self, file: bytes, precision: str, *, model: nn.Module, example: Tensor, calibration: Tensor, hold: Hold
    ) -> bytes:
        del model, example
        return in_precision(file, precision, calibration, hold=hold)

    def run(self, file: bytes, inputs: Tensor, *, threads: int, precision: str = "fp32") -> Tensor:
        del precision  # the file's own nodes say it
        session = _session(file, threads)
        batch = int(session.get_inputs()[0].shape[0])
        values = inputs.float().cpu().numpy()
        outputs = []
        for start in range(0, len(values), batch):
            chunk = values[start : start + batch]
            filled = chunk if len(chunk) == batch else np.resize(chunk, (batch, *chunk.shape[1:]))
            outputs.append(session.run(None, {"input": np.ascontiguousarray(filled)})[0][: len(chunk)])
        return torch.from_numpy(np.concatenate(outputs))

    def check(self, file: bytes, inputs: Tensor, outputs: Tensor) -> Mapping[str, np.ndarray]:
        return check_outputs("ONNX", self.run(file, inputs, threads=1), inputs, outputs)


def _session(file: bytes, threads: int) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])
