"""Where a training stood: written beside it now and then, so that the next one to try goes on from there.

Tensors as safetensors, whole or not at all; what cannot be read is no checkpoint. Everything that decides the next step is in it
(weights, buffers, the optimizer's state, the loss scale, the random numbers of CPU and GPU), so a training that was interrupted
ends with the very weights of one that was not, on the same kind of machine.
"""

from __future__ import annotations

import hashlib
import os
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

EVERY_S = 10.0
KEPT_S = 7 * 86400.0  # of a build that nobody took up again

Scaler = torch.amp.GradScaler


@dataclass(frozen=True)
class Checkpoints:
    """A folder of them. Source: the file is replaced as artifacts are, by one rename after its bytes are on disk.

    Args:
        folder: Shared by the build workers that may take up each other's work; None: none are kept.
        every_s: Between two of one training; a short one never writes any.
    """

    folder: Path | None
    every_s: float = EVERY_S
    clock: Callable[[], float] = time.monotonic

    def of(self, *what: str) -> Checkpoint:
        """Return the checkpoint of a training, named by all that decides it."""
        name = hashlib.sha256("\0".join(what).encode()).hexdigest()
        path = None if self.folder is None else self.folder / f"{name}.safetensors"
        return Checkpoint(path, self.every_s, self.clock)

    def clear_old(self) -> None:
        """Delete those nobody came back to."""
        for path in self.folder.glob("*") if self.folder is not None and self.folder.is_dir() else ():
            with suppress(FileNotFoundError):
                if time.time() - path.stat().st_mtime > KEPT_S:
                    path.unlink()


class Checkpoint:
    """One training's."""

    def __init__(self, path: Path | None, every_s: float, clock: Callable[[], float]) -> None:
        self._path, self._every_s, self._clock = path, every_s, clock
        self._last_s = clock()
        self.notes: dict[str, str] = {}

    def peek(self, name: str) -> str | None:
        """Return what was noted with the last one, None where there is none."""
        try:
            if self._path is not None and self._path.exists():
                with safe_open(self._path, framework="pt") as file:
                    return (file.metadata() or {}).get(name)
        except (OSError, SafetensorError):
            pass
        return None

    def load(self, model: nn.Module, optimizer: torch.optim.Optimizer, scaler: Scaler) -> int:
        """Put a training back to where it stood; return the steps done, 0 where there is nothing to go on from."""
        if self._path is None or not self._path.exists():
            return 0
        device = next(model.parameters()).device
        try:
            with safe_open(self._path, framework="pt") as file:
                step = int((file.metadata() or {})["step"])
                tensors: dict[str, Tensor] = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - no mapping
            weights = {name.removeprefix("model/"): t for name, t in tensors.items() if name.startswith("model/")}
            known = model.state_dict()
            if {name: t.shape for name, t in weights.items()} != {name: t.shape for name, t in known.items()}:
                return 0
        except (OSError, SafetensorError, KeyError, ValueError):
            return 0
        model.load_state_dict(weights)
        state: dict[int, dict[str, Tensor]] = {}
        for name, tensor in tensors.items():
            if name.startswith("optimizer/"):
                _, index, key = name.split("/")
                state.setdefault(int(index), {})[key] = tensor if key == "step" else tensor.to(device)
        optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
        if scaler.is_enabled() and "scale" in tensors:
            grown = {"_growth_tracker": int(tensors["scale_steps"])} if "scale_steps" in tensors else {}
            scaler.load_state_dict({**scaler.state_dict(), "scale": float(tensors["scale"]), **grown})
        torch.set_rng_state(tensors["random"])
        if device.type == "cuda" and "random_cuda" in tensors:
            torch.cuda.set_rng_state(tensors["random_cuda"], device)
        return step

    def save_if_due(self, step: int, model: nn.Module, optimizer: torch.optim.Optimizer, scaler: Scaler) -> None:
        if self._path is not None and self._clock() - self._last_s >= self._every_s:
            self.save(step, model, optimizer, scaler)

    def save(self, step: int, model: nn.Module, optimizer: torch.optim.Optimizer, scaler: Scaler) -> None:
        """Write where the training stands. A full disk costs the checkpoint, not the training."""
        if self._path is None:
            return
        tensors = {f"model/{name}": tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()}
        for index, state in optimizer.state_dict()["state"].items():
            for key, value in state.items():
                if value is not None:
                    tensors[f"optimizer/{index}/{key}"] = torch.as_tensor(value).detach().cpu().contiguous()
        tensors["random"] = torch.get_rng_state()
        device = next(model.parameters()).device
        if device.type == "cuda":  # dropout draws there
            tensors["random_cuda"] = torch.cuda.get_rng_state(device)
        if scaler.is_enabled():
            told = scaler.state_dict()
            tensors["scale"], tensors["scale_steps"] = (
                torch.tensor(told["scale"]),
                torch.tensor(told["_growth_tracker"]),
            )
        with suppress(OSError, SafetensorError):
            self._path.parent.mkdir(parents=True, exist_ok=True)
            handle, name = tempfile.mkstemp(dir=self._path.parent, prefix=".writing-")
            os.close(handle)
            try:
                # Tied weights may share memory; a file holds each by itself.
                save_file(
                    {key: tensor.clone() for key, tensor in tensors.items()}, name, {"step": str(step), **self.notes}
                )
                with Path(name).open("rb") as file:
                    os.fsync(file.fileno())
                Path(name).replace(self._path)
            finally:
                Path(name).unlink(missing_ok=True)
        self._last_s = self._clock()

    def done(self) -> None:
        """Forget it: the training is over."""
        if self._path is not None:
            self._path.unlink(missing_ok=True)


NONE = Checkpoints(None)
