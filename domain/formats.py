"""The formats a model is exported in, what each can hold, and which one a runtime reads.

One table for all who must agree: the API refuses what a format cannot hold, the search asks for the files of its targets'
runtimes, the builder makes them. That a built-in runtime really reads what stands here is held by its contract test.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Format:
    """What files of a format can hold; ``max_batch`` is None where any batch goes."""

    precisions: tuple[str, ...]
    max_batch: int | None = None


ONNX, NCNN = "onnx", "ncnn"
FORMATS: dict[str, Format] = {
    ONNX: Format(("fp32", "fp16", "int8")),
    # int8 needs ncnn's table and quantiser, which no package brings. A blob of ncnn is one sample: it has no batch axis.
    NCNN: Format(("fp32", "fp16"), max_batch=1),
}
READ_BY = {"ncnn": NCNN}
"""Runtime -> format, where it is not ONNX."""


def format_of(runtime: str) -> str:
    """Return the format a target's file is built in; a plug-in's runtime reads ONNX."""
    return READ_BY.get(runtime, ONNX)


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
