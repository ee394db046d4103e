"""Artifacts: content-addressed files, named by the sha256 of their bytes."""

from __future__ import annotations

import hashlib
import re
from enum import StrEnum
from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, StringConstraints

DIGEST_PATTERN = r"^sha256:[0-9a-f]{64}$"
Digest = Annotated[str, StringConstraints(pattern=DIGEST_PATTERN)]


class ArtifactKind(StrEnum):
    """What a file is for. ``ONNX`` and later formats are deployable; the rest serve the loop."""

    ONNX = "onnx"
    NCNN = "ncnn"  # model.param and model.bin in one, see domain.ncnn_file
    OPENVINO = "openvino"  # model.xml and model.bin in one, see domain.openvino_file
    LITERT = "litert"  # a .tflite flatbuffer, see domain.litert_file
    EXECUTORCH = "executorch"  # a .pte program for XNNPACK
    PT2 = "pt2"  # a torch.export archive: written, never read from elsewhere
    TORCH = "torch"  # safetensors with the graph in its header, see domain.torch_file
    WEIGHTS = "weights"  # safetensors
    DATA = "data"  # npz, no pickles
    CHECK = "check"  # npz: example inputs and the outputs the artifact must give
    MANIFEST = "manifest"  # JSON


class ArtifactRef(BaseModel):
    """A stored file: digest, size in bytes and kind."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    digest: Digest
    size_bytes: int = Field(ge=0)
    kind: ArtifactKind


def digest_of(data: bytes) -> str:
    """Return ``sha256:<hex>`` of bytes in memory."""
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


def digest_of_file(path: Path) -> str:
    """Return ``sha256:<hex>`` of a file, read in blocks."""
    with path.open("rb") as file:
        return f"sha256:{hashlib.file_digest(file, 'sha256').hexdigest()}"


def is_digest(text: str) -> bool:
    return re.match(DIGEST_PATTERN, text) is not None
