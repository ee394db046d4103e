"""Right before fast: a file must give the outputs its check holds, or its speed means nothing."""

from __future__ import annotations

import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from domain.errors import Invalid
from workers.agent.runtimes.base import Array, RuntimeSession, TensorSpec, UnreadableArtifact

INPUT, OUTPUT = "input_", "output_"

# Largest difference, as a fraction of the largest expected value. int8 kernels round and saturate differently from CPU to CPU,
# and a check's outputs may be those of the float model: this catches a broken file, not a loss of accuracy.
TOLERANCE = {"fp32": 2e-3, "fp16": 3e-2, "bf16": 6e-2, "int8": 0.4}
PROBABILITY_ROUNDING = float(np.finfo(np.float32).eps)  # of what is worked out from 1, however near 0 it is


class WrongOutput(Invalid):
    """The file computes something else than it should."""

    default_code = "wrong_output"


class BadCheck(Invalid):
    """The check itself cannot be used."""

    default_code = "check_unreadable"


@dataclass(frozen=True)
class Check:
    """Inputs and the outputs they must give, by name."""

    inputs: Mapping[str, Array]
    outputs: Mapping[str, Array]


def read_check(path: Path) -> Check:
    """Read an npz of ``input_<name>`` and ``output_<name>`` arrays.

    Raises:
        BadCheck: If it is not such a file; pickled arrays are refused, never loaded.
    """
    try:
        # Opened here: numpy leaves the file of a damaged archive open.
        with path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
            inputs = {key.removeprefix(INPUT): arrays[key] for key in arrays.files if key.startswith(INPUT)}
            outputs = {key.removeprefix(OUTPUT): arrays[key] for key in arrays.files if key.startswith(OUTPUT)}
    except (OSError, ValueError, EOFError, KeyError, AttributeError, zipfile.BadZipFile) as error:
        raise BadCheck(f"The check is not an npz file without pickles ({error}); export the artifact again.") from error
    if not inputs or not outputs:
        raise BadCheck("The check holds no input_<name> or no output_<name> arrays; export the artifact again.")
    return Check(inputs, outputs)


def feeds_for(specs: tuple[TensorSpec, ...], arrays: Mapping[str, Array], *, batch: int) -> dict[str, Array]:
    """Cut or repeat inputs along the first axis to ``batch`` samples; a file with a batch of its own must have this one.

    Raises:
        UnreadableArtifact: If an input is missing or the file's own batch is another.
    """
    feeds: dict[str, Array] = {}
    for spec in specs:
        if spec.name not in arrays:
            raise UnreadableArtifact(
                f"The file wants an input {spec.name}; its check holds {', '.join(sorted(arrays))} only."
            )
        array = np.asarray(arrays[spec.name])
        if spec.shape and spec.shape[0] is not None and spec.shape[0] != batch:
            raise UnreadableArtifact(
                f"Input {spec.name} is fixed to a batch of {spec.shape[0]}, asked is {batch}; export it with batch {batch}."
            )
        if array.ndim and array.shape[0] != batch:
            repeats = -(-batch // array.shape[0])
            array = np.concatenate([array] * repeats)[:batch] if repeats > 1 else array[:batch]
        feeds[spec.name] = np.ascontiguousarray(array)
    return feeds


def verify(session: RuntimeSession, check: Check, *, batch: int, precision: str) -> float:
    """Run the check, slice by slice of ``batch`` samples, and return the largest relative difference.

    Raises:
        WrongOutput: If an output is missing, has another shape, is not finite where it should be, or differs by more than
            the precision explains.
    """
    samples = min(len(array) for array in check.inputs.values())
    worst = 0.0
    for start in range(0, samples, batch):
        count = min(batch, samples - start)
        part = {name: array[start : start + count] for name, array in check.inputs.items()}
        session.bind(feeds_for(session.inputs, part, batch=batch))
        session.run()
        outputs = session.outputs()
        for name, whole in check.outputs.items():
            wanted = whole[start : start + count] if len(whole) == samples else whole
            given = _pick(outputs, name, len(check.outputs))
            worst = max(worst, _difference(name, given, wanted, whole, precision))
    return worst


def _pick(outputs: Mapping[str, Array], name: str, wanted: int) -> Array:
    if name in outputs:
        return outputs[name]
    if len(outputs) == wanted == 1:  # formats rename outputs; a single one cannot be mistaken
        return next(iter(outputs.values()))
    raise WrongOutput(f"The file gives no output {name}; it gives {', '.join(sorted(outputs))}.")


def _difference(name: str, given: Array, wanted: Array, whole: Array, precision: str) -> float:
    """Return how far off ``given`` is, as a share of the largest of ``whole``: of a sigmoid, one sample's may be next to 0."""
    given = given[: len(wanted)] if given.ndim == wanted.ndim and given.ndim else given
    if given.shape != wanted.shape:
        raise WrongOutput(f"Output {name} has shape {given.shape}, expected {wanted.shape}.")
    expected, found = wanted.astype(np.float64), given.astype(np.float64)
    if not np.isfinite(found).all() and np.isfinite(expected).all():
        raise WrongOutput(f"Output {name} holds NaN or infinity.")
    every = whole.astype(np.float64)
    largest = float(np.nanmax(np.abs(every), initial=0.0))
    is_probability = largest <= 1 and float(np.nanmin(every, initial=0.0)) >= 0
    rounding = PROBABILITY_ROUNDING if is_probability else 0.0
    off = max(0.0, float(np.nanmax(np.abs(found - expected), initial=0.0)) - rounding)
    relative = off / max(largest, 1e-6)
    tolerance = TOLERANCE.get(precision, TOLERANCE["fp32"])
    if relative > tolerance:
        raise WrongOutput(
            f"Output {name} differs by {relative:.2g} of its largest value; {precision} explains {tolerance:g}.",
            metadata={"output": name, "difference": relative, "tolerance": tolerance},
        )
    return relative
