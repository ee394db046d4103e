"""A candidate: what a trial proposes to remove, as sparsity and kept width per group, and how to recover it."""

from __future__ import annotations

import hashlib
import json

from pydantic import BaseModel, ConfigDict, Field


class GroupInfo(BaseModel):
    """A set of coupled channels that must be removed together, as the builder found it.

    ``members`` are module names; ``macs_per_channel_in`` is not stored: MACs of a candidate come from its build.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str = Field(description="Module name of the group's root layer; stable for one model.")
    channels: int = Field(ge=1, description="Channels of the dense model.")
    stage: int = Field(ge=0, description="Index of the resolution stage the group lives in, 0 = first.")
    is_residual: bool = Field(
        description="True where a skip connection couples several layers (outer); False inside a block (inner)."
    )
    topology: str = Field(description="Groups with equal topology are comparable in importance (isomorphic scope).")
    members: tuple[str, ...]
    params: int = Field(ge=0, description="Parameters of all coupled slices together.")
    macs: int = Field(ge=0, description="Multiply-accumulates per sample of the group's producing layers.")
    sensitivity: dict[str, float] = Field(
        default_factory=dict,
        description="Sparsity (as text, e.g. '0.5') -> accuracy lost on the search split, this group alone, re-normalised.",
    )


class UnprunableLayer(BaseModel):
    """A layer that stays whole, with the reason in words."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    reason: str


class ImportanceMix(BaseModel):
    """Weights of the importance criteria; they are normalised to sum to one when used."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    l2: float = Field(default=1.0, ge=0)
    taylor: float = Field(default=0.0, ge=0)
    activation: float = Field(default=0.0, ge=0)


class RecoveryPlan(BaseModel):
    """How a pruned model is trained back: length in epochs, peak learning rate, distillation from the dense model."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    epochs: float = Field(default=1.0, ge=0)
    learning_rate: float = Field(default=0.02, gt=0)
    distill: bool = True
    precision: str = "auto"


class Candidate(BaseModel):
    """Per-group sparsity thresholds and the whole widths they round to on the target."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    sparsity: dict[str, float] = Field(description="Group name -> fraction of channels removed, 0 <= s < 1, as asked.")
    widths: dict[str, int] = Field(description="Group name -> channels kept, after alignment.")
    precision: str = "fp32"
    importance: ImportanceMix = ImportanceMix()
    recovery: RecoveryPlan = RecoveryPlan()

    @property
    def architecture(self) -> str:
        """Hash of what decides latency: kept widths and precision. Equal architectures are built once a job."""
        return _short_hash({"widths": dict(sorted(self.widths.items())), "precision": self.precision})

    @property
    def key(self) -> str:
        """Hash of all that decides the build: architecture, which channels go, and the recovery."""
        return _short_hash(self.model_dump(mode="json", exclude={"sparsity"}))

    def is_dense(self, groups: list[GroupInfo]) -> bool:
        return all(self.widths.get(group.name, group.channels) >= group.channels for group in groups)


def _short_hash(value: object) -> str:
    text = json.dumps(value, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:24]
