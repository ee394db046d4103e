"""A network as its layers: which group feeds which, so that the work of any widths is known before anything is built."""

from __future__ import annotations

from collections.abc import Mapping

from pydantic import BaseModel, ConfigDict, Field


class LayerInfo(BaseModel):
    """A convolution or linear layer of the dense model, and the groups its channels belong to."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    macs: int = Field(ge=0, description="Multiply-accumulates per sample.")
    positions: int = Field(ge=1, description="Positions of the output: height x width, tokens, or 1.")
    out_channels: int = Field(ge=1)
    in_channels: int = Field(ge=1, description="1 for a depthwise layer: each output reads one input.")
    out_groups: dict[str, int] = Field(
        default_factory=dict, description="Group -> output channels of this layer that one channel of it stands for."
    )
    in_groups: dict[str, int] = Field(
        default_factory=dict, description="Group -> input channels of this layer that one channel of it stands for."
    )

    is_packed: bool = Field(
        default=True, description="A convolution, whose channels runtimes pack; matrix products take any width."
    )

    def kept(self, lost: Mapping[str, int]) -> tuple[int, int]:
        """Return the output and input channels left when groups have lost so many channels."""
        out = self.out_channels - sum(each * lost.get(group, 0) for group, each in self.out_groups.items())
        into = self.in_channels - sum(each * lost.get(group, 0) for group, each in self.in_groups.items())
        return out, into
