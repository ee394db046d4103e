"""A candidate: what a trial proposes to remove, as sparsity and kept width per group, and how to recover it."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Collection

from pydantic import BaseModel, ConfigDict, Field, field_validator

from domain.errors import Invalid


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
    granularity: int | None = Field(
        default=None,
        ge=1,
        description="Smallest step of the width that makes sense; None: as the device's alignment has it. 1 for heads.",
    )
    sensitivity: dict[str, float] = Field(
        default_factory=dict,
        description="Sparsity (as text, e.g. '0.5') -> accuracy lost on the search split, this group alone, re-normalised.",
    )


class BlockInfo(BaseModel):
    """A block with a skip round it, which the identity can replace as a whole."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str = Field(description="Module name; stable for one model.")
    groups: tuple[str, ...] = Field(default=(), description="Groups that vanish with it.")
    macs: int = Field(ge=0, description="Multiply-accumulates per sample that go with it.")
    params: int = Field(ge=0, description="Parameters that go with it.")
    weight_norm: float = Field(ge=0, description="L2 norm of its weights, over the root of their number.")
    output_change: float = Field(
        ge=0, description="Length of the change of the model's outputs when it alone is skipped, over their length."
    )
    sensitivity: float = Field(
        description="Accuracy lost on part of the search split when it alone goes, re-normalised."
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
    """Per-group sparsity thresholds, the whole widths they round to on the target, and the blocks that go altogether."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    sparsity: dict[str, float] = Field(description="Group name -> fraction of channels removed, 0 <= s < 1, as asked.")
    widths: dict[str, int] = Field(description="Group name -> channels kept, after alignment.")
    dropped: tuple[str, ...] = Field(default=(), description="Blocks replaced by the identity, sorted.")
    zeros: str = Field(
        default="",
        description="Single weights set to zero in what is left: `row:0.75` the smallest three quarters of each row, `2:4` two of "
        "every four; empty: none.",
    )
    precision: str = "fp32"
    importance: ImportanceMix = ImportanceMix()
    recovery: RecoveryPlan = RecoveryPlan()

    @field_validator("dropped")
    @classmethod
    def _sort_dropped(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(sorted(set(names)))

    @field_validator("zeros")
    @classmethod
    def _known_zeros(cls, text: str) -> str:
        if text:
            parse_zeros(text)
        return text

    @property
    def kept_widths(self) -> dict[str, int]:
        """Widths of the groups that are there: those inside a dropped block are gone, whatever width they were given."""
        if not self.dropped:
            return dict(self.widths)
        return {name: width for name, width in self.widths.items() if not is_inside(name, self.dropped)}

    @property
    def identity(self) -> tuple[frozenset[tuple[str, int]], tuple[str, ...], str, str]:
        """What ``architecture`` is the hash of: equal for equal networks, and quick to compare among thousands."""
        return frozenset(self.kept_widths.items()), self.dropped, self.precision, self.zeros

    @property
    def architecture(self) -> str:
        """Hash of what decides latency: kept widths, blocks, zeros and precision. Equal architectures are built once a job."""
        return _short_hash(
            {
                "widths": self.kept_widths,
                "dropped": sorted(set(self.dropped)),
                "precision": self.precision,
                "zeros": self.zeros,
            }
        )

    @property
    def key(self) -> str:
        """Hash of all that decides the build: architecture, which channels go, and the recovery."""
        rest = self.model_dump(mode="json", exclude={"sparsity", "widths"})
        return _short_hash({**rest, "widths": self.kept_widths, "dropped": sorted(set(self.dropped))})

    def is_dense(self, groups: list[GroupInfo]) -> bool:
        whole = all(self.widths.get(group.name, group.channels) >= group.channels for group in groups)
        return whole and not self.dropped and not self.zeros


_ZEROS = re.compile(r"row:(0\.\d{1,3})|(\d{1,2}):(\d{1,2})")


def parse_zeros(text: str) -> tuple[float, tuple[int, int] | None]:
    """Return the share of weights that ``Candidate.zeros`` sets to zero, and (kept, of) where it is an N:M pattern.

    Raises:
        Invalid: ``bad_zeros``.
    """
    found = _ZEROS.fullmatch(text)
    if found is not None and found[1]:
        share = float(found[1])
        if share > 0:
            return share, None
    elif found is not None and 0 < int(found[2]) < int(found[3]):
        return 1 - int(found[2]) / int(found[3]), (int(found[2]), int(found[3]))
    raise Invalid(f"{text!r} names no pattern of zeros; write row:0.75, or 2:4.", code="bad_zeros")


def is_inside(name: str, blocks: Collection[str]) -> bool:
    """Whether a module of this name is one of some blocks, or lies in one."""
    return any(name == block or name.startswith(f"{block}.") for block in blocks)


def _short_hash(value: object) -> str:
    text = json.dumps(value, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:24]
