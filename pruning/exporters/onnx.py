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
from domain.errors import PruneloopError

OPSET = 17
RELATIVE_TOLERANCE = 1e-3
ABSOLUTE_TOLERANCE = 1e-4  # of the outputs' largest value


class ExportFailed(PruneloopError):
    """A file could not be made, is not valid, or does not give what the module gives."""

    default_code = "export_failed"


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

    def run(self, file: bytes, inputs: Tensor, *, threads: int) -> Tensor:
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
        given = self.run(file, inputs, threads=1).numpy()
        wanted = outputs.float().cpu().numpy()
        scale = float(np.abs(wanted).max())
        if given.shape != wanted.shape or not np.allclose(
            given, wanted, rtol=RELATIVE_TOLERANCE, atol=ABSOLUTE_TOLERANCE * max(scale, 1e-6)
        ):
            worst = float(np.abs(given - wanted).max()) if given.shape == wanted.shape else float("nan")
            raise ExportFailed(
                f"The ONNX file gives other outputs than the module: off by {worst:.3g} where the largest is {scale:.3g}.",
                code="export_differs",
            )
        return {"input_input": inputs.float().cpu().numpy(), "output_output": wanted}


def _session(file: bytes, threads: int) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])
