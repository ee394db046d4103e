"""ONNX files by torch's TorchScript-based exporter: batch norm folded, checked in onnxruntime.

A model with a signature keeps it: names, types and free dimensions of its inputs and outputs. Any other has one input ``input``
and one output ``output``, and a fixed batch.

The newer exporter (``dynamo=True``) gave the same graphs at ten times the time, and a build exports once a trial.
"""

from __future__ import annotations

import io
import json
import warnings
from collections.abc import Mapping

import numpy as np
import onnx
import onnxruntime
import torch
from torch import Tensor, nn

from domain.artifact import ArtifactKind
from domain.ports import Hold
from pruning.exporters.feeds import SHAPES, feeds_of_session, in_batches
from pruning.exporters.outputs import ExportFailed, check_outputs, joined
from pruning.exporters.precision import in_precision
from pruning.signature import Packed, Port, signature_of

OPSET = 17
RUN_BATCH = 32  # where the file takes any


class OnnxExporter:
    """Makes and runs fp32 ONNX files."""

    format = "onnx"
    kind = ArtifactKind.ONNX

    def require(self) -> None:
        """Nothing beside the builder's own packages is needed."""

    def export(self, model: nn.Module, example: Tensor) -> bytes:
        buffer = io.BytesIO()
        was_training = model.training
        signature = signature_of(model)
        net: nn.Module = model.net if isinstance(model, Packed) else model
        free = signature.free_dims() if signature else {}
        args = model.unpack(example) if isinstance(model, Packed) else (example,)
        try:
            with warnings.catch_warnings(), torch.no_grad():
                warnings.filterwarnings("ignore", message=".*legacy TorchScript-based ONNX export", append=False)
                warnings.filterwarnings("ignore", category=DeprecationWarning, module=r"torch\..*")
                # Whether what was traced holds for other inputs is found out by running the file.
                warnings.filterwarnings("ignore", category=torch.jit.TracerWarning)  # type: ignore[attr-defined]
                warnings.filterwarnings("ignore", message=".*batch_size other than 1", append=False)
                # A padding's sizes are turned round step by step; the file that comes of it is run and compared all the same.
                warnings.filterwarnings("ignore", message="Constant folding - Only steps=1", append=False)
                torch.onnx.export(
                    net.eval(),
                    args,
                    buffer,  # type: ignore[arg-type]  # the exporter takes a file object, its annotation does not
                    dynamo=False,
                    opset_version=OPSET,
                    input_names=[port.name for port in signature.inputs] if signature else ["input"],
                    output_names=[port.name for port in signature.outputs] if signature else ["output"],
                    dynamic_axes=free or None,
                    do_constant_folding=True,
                )
        except (RuntimeError, ValueError, TypeError, torch.onnx.errors.OnnxExporterError) as error:
            raise ExportFailed(f"The model cannot be written as ONNX: {str(error).splitlines()[0]}") from error
        finally:
            model.train(was_training)
        made = onnx.load_from_string(buffer.getvalue())
        if signature:
            _restore_shapes(made, signature.inputs, signature.outputs)
            onnx.helper.set_model_props(made, {SHAPES: json.dumps([list(part.shape[1:]) for part in args])})
        file: bytes = made.SerializeToString()
        try:
            onnx.checker.check_model(made, full_check=True)
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
        return joined(self._run(_session(file, threads), inputs))

    def check(self, file: bytes, inputs: Tensor, outputs: Tensor) -> Mapping[str, np.ndarray]:
        session = _session(file, 1)
        names = [node.name for node in session.get_outputs()]
        given = dict(zip(names, self._run(session, inputs), strict=True))
        return check_outputs("ONNX", feeds_of_session(session, inputs), given, outputs)

    def _run(self, session: onnxruntime.InferenceSession, inputs: Tensor) -> list[Tensor]:
        """Return every output for inputs ``(N, ...)``, in batches of the file's own size; the last is filled up."""
        size = session.get_inputs()[0].shape[0]
        batch = size if isinstance(size, int) else min(RUN_BATCH, len(inputs))
        chunks = in_batches(feeds_of_session(session, inputs), batch, is_fixed=isinstance(size, int))
        parts = [[np.asarray(given)[:count] for given in session.run(None, chunk)] for chunk, count in chunks]
        return [torch.from_numpy(np.concatenate(given)) for given in zip(*parts, strict=True)]


def _restore_shapes(made: onnx.ModelProto, inputs: tuple[Port, ...], outputs: tuple[Port, ...]) -> None:
    """Name free dimensions as the signature does: the exporter invents names where it sees several free ones."""
    for values, ports in ((made.graph.input, inputs), (made.graph.output, outputs)):
        for value, port in zip(values, ports, strict=True):
            dims = value.type.tensor_type.shape.dim
            for axis, size in enumerate(port.shape[: len(dims)]):
                if isinstance(size, str):
                    dims[axis].dim_param = size


def _session(file: bytes, threads: int) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])
