"""Weights as safetensors: the only form they are stored, uploaded or loaded in. A pickled file is refused, never opened."""

from __future__ import annotations

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor, nn

from domain.errors import FieldProblem, Invalid
from pruning.signature import Packed


def dump_weights(model: nn.Module) -> bytes:
    """Return a module's parameters and buffers as safetensors, contiguous, on the CPU."""
    model = model.net if isinstance(model, Packed) else model  # under its own names
    state = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in model.state_dict().items()}
    return save(state)


def load_weights(model: nn.Module, data: bytes, *, field: str = "model.weights") -> None:
    """Load safetensors into a module, strictly.

    Args:
        model: Changed in place.
        data: The file's bytes.
        field: Field named in errors.

    Raises:
        Invalid: ``weights_pickled``, ``bad_weights_file``, ``weights_do_not_fit`` or ``nan_weights``.
    """
    model = model.net if isinstance(model, Packed) else model
    state = _renamed(model, _read(data, field))
    wanted = model.state_dict()
    # A file may leave out the counters of batch norms: nothing depends on them.
    missing = sorted(name for name in wanted.keys() - state.keys() if not name.endswith("num_batches_tracked"))
    extra = sorted(state.keys() - wanted.keys())
    wrong = sorted(name for name in wanted.keys() & state.keys() if wanted[name].shape != state[name].shape)
    problems = [
        *(f"{name} is missing" for name in missing[:3]),
        *(f"{name} is not of this model" for name in extra[:3]),
        *(f"{name} has shape {tuple(state[name].shape)}, not {tuple(wanted[name].shape)}" for name in wrong[:3]),
    ]
    if problems:
        message = f"The weights do not fit the model: {'; '.join(problems)}. Give weights of this model and parameters."
        raise Invalid(message, code="weights_do_not_fit", fields=[FieldProblem(field, message)])
    broken = sorted(name for name, tensor in state.items() if not bool(torch.isfinite(tensor).all()))
    if broken:
        message = f"The weights hold NaN or infinity in {', '.join(broken[:3])}; give finite weights."
        raise Invalid(message, code="nan_weights", fields=[FieldProblem(field, message)])
    model.load_state_dict(state, strict=False)


def _renamed(model: nn.Module, state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Let modules that stand for somebody else's take that one's names: ``rename_weights(state, prefix)``."""
    for name, module in model.named_modules():
        rename = getattr(module, "rename_weights", None)
        if callable(rename):
            state = rename(state, f"{name}." if name else "")
    return state


def _read(data: bytes, field: str) -> dict[str, Tensor]:
    # A safetensors file begins with the length of its header, which may look like either magic number, and then "{".
    if data[8:9] != b"{" and (data[:2] == b"PK" or data[:1] == b"\x80"):
        message = "The weights look like a pickled torch file, which is never loaded; save them with safetensors."
        raise Invalid(message, code="weights_pickled", fields=[FieldProblem(field, message)])
    try:
        state: dict[str, Tensor] = load(data)
    except (SafetensorError, ValueError, KeyError) as error:
        message = f"The weights are not a safetensors file: {error}. Save them with safetensors."
        raise Invalid(message, code="bad_weights_file", fields=[FieldProblem(field, message)]) from error
    return state
