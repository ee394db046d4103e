"""Resize and Upsample: the plain forms are ``interpolate``; every other form of coordinates goes dimension by dimension."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812 - as everywhere
from torch import Tensor

from pruning.from_onnx.errors import NotConverted
from pruning.from_onnx.node import Node
from pruning.from_onnx.registry import operator
from pruning.from_onnx.values import Call, Const, Result, Value

COORDINATES = {"half_pixel", "half_pixel_symmetric", "pytorch_half_pixel", "align_corners", "asymmetric"}
LINEAR = {3: "linear", 4: "bilinear", 5: "trilinear"}


@operator("Resize", "Upsample")
def resize(node: Node) -> Result:
    is_old = node.source.operator == "Upsample" or node.opset < 11
    mode = node.attribute("mode", "nearest")
    coordinates = node.attribute("coordinate_transformation_mode", "asymmetric" if is_old else "half_pixel")
    rounding = node.attribute("nearest_mode", "floor" if is_old else "round_prefer_floor")
    if mode not in {"nearest", "linear", "cubic"} or coordinates not in COORDINATES:
        raise NotConverted(f"mode {mode} with coordinates {coordinates}")
    if node.attribute("antialias", 0):
        raise NotConverted("antialiasing is not converted")
    policy = node.attribute("keep_aspect_ratio_policy", "stretch")
    scales, sizes = _scales_and_sizes(node, is_old)
    rank = node.known_rank()
    axes = [axis % rank for axis in node.attribute("axes", range(rank))]
    shape = node.shape(0) or ()
    if policy != "stretch" and sizes is not None:
        known = [size for size in sizes if isinstance(size, int)] if isinstance(sizes, list) else []
        old = [size for axis in axes if (size := shape[axis]) is not None]
        if len(known) != len(axes) or len(old) != len(axes):
            raise NotConverted(f"{policy} needs known sizes")
        ratios = [new / size for new, size in zip(known, old, strict=True)]
        ratio = min(ratios) if policy == "not_larger" else max(ratios)
        sizes, scales = [int(ratio * size + 0.5) for size in old], [ratio] * len(axes)
    plain = _plain(node, mode, coordinates, rounding, axes, scales, sizes)
    if plain is not None:
        return plain
    details = (
        coordinates,
        rounding,
        float(node.attribute("cubic_coeff_a", -0.75)),
        bool(node.attribute("exclude_outside", 0)),
    )
    return Call(resized, (node.input(0), mode, axes, scales, sizes, *details))


def resized(
    x: Tensor, mode: str, axes: list[int], scales: list[float] | None, sizes: list[int] | None, coordinates: str,
    rounding: str, coefficient: float, excludes_outside: bool,
) -> Tensor:  # fmt: skip
    """Resize dimension by dimension: each new place is a weighted sum of one, two or four old ones."""
    for index, axis in enumerate(axes):
        old = x.shape[axis]
        scale = scales[index] if scales is not None else None
        new = sizes[index] if sizes is not None else int(old * (scale or 1.0))
        ratio = scale if scale is not None else new / old
        if new == old and ratio == 1.0:
            continue
        places = source_places(new, old, ratio, coordinates, x.device)
        if mode == "nearest":
            x = x.index_select(axis, nearest(places, rounding).clamp(0, old - 1))
            continue
        left = torch.floor(places)
        offset = places - left
        if mode == "linear":
            taps, weights = [0, 1], [1 - offset, offset]
        else:
            taps, weights = [-1, 0, 1, 2], cubic_weights(offset, coefficient)
        spots = [left.to(torch.int64) + tap for tap in taps]
        if excludes_outside:
            weights = [w * ((s >= 0) & (s < old)) for w, s in zip(weights, spots, strict=True)]
            total = torch.stack(weights).sum(0)
            weights = [w / total for w in weights]
        shape = [1] * x.ndim
        shape[axis] = -1
        parts = [
            x.index_select(axis, spot.clamp(0, old - 1)) * weight.to(x.dtype).reshape(shape)
            for spot, weight in zip(spots, weights, strict=True)
        ]
        x = torch.stack(parts).sum(0).to(x.dtype)
    return x


def source_places(new: int, old: int, scale: float, coordinates: str, device: torch.device) -> Tensor:
    """Return where each new place lies in the old dimension, float64, shape ``(new,)``."""
    places = torch.arange(new, dtype=torch.float64, device=device)
    if coordinates == "asymmetric":
        return places / scale
    if coordinates == "align_corners":
        length = old * scale  # as the reference has it: not rounded down where scales were given
        return places * ((old - 1) / (length - 1)) if length > 1 else torch.zeros_like(places)
    if coordinates == "pytorch_half_pixel" and new == 1:
        return torch.full_like(places, -0.5)
    made = (places + 0.5) / scale - 0.5
    if coordinates == "half_pixel_symmetric":
        adjustment = new / (scale * old)
        return old / 2 * (1 - adjustment) + made
    return made


def nearest(places: Tensor, rounding: str) -> Tensor:
    functions: dict[str, Any] = {
        "round_prefer_floor": lambda p: torch.ceil(p - 0.5),
        "round_prefer_ceil": lambda p: torch.floor(p + 0.5),
        "floor": torch.floor,
        "ceil": torch.ceil,
    }
    made: Tensor = functions[rounding](places)
    return made.to(torch.int64)


def cubic_weights(offset: Tensor, a: float) -> list[Tensor]:
    """Return the weights of four neighbours. Source: Keys, Cubic convolution interpolation, 1981."""
    t, u = offset, 1 - offset
    far = [((a * (s + 1) - 5 * a) * (s + 1) + 8 * a) * (s + 1) - 4 * a for s in (t, u)]
    near = [((a + 2) * s - (a + 3)) * s * s + 1 for s in (t, u)]
    return [far[0], near[0], near[1], far[1]]


def _scales_and_sizes(node: Node, is_old: bool) -> tuple[list[float] | None, Any]:
    """Return scales or sizes; the index of their inputs moved in opset 11, when regions came before them."""
    if node.source.operator == "Upsample" and node.attribute("scales") is not None:
        return list(node.attribute("scales")), None
    index = 1 if is_old else 2
    if node.has(index):
        scales = node.inputs[index]
        if not isinstance(scales, Const):
            node.const(index, "scales")
        elif scales.tensor.numel():
            return [float(scale) for scale in scales.tensor.double().tolist()], None
    if node.has(3):
        return None, node.ints(3)
    raise NotConverted("neither scales nor sizes")


def _plain(
    node: Node, mode: str, coordinates: str, rounding: str, axes: list[int], scales: list[float] | None, sizes: Any
) -> Result | None:
    """Return torch's own form where it means the same: the last dimensions of images, by whole steps or to sizes."""
    rank, shape = node.known_rank(), node.shape(0) or ()
    spatial = list(range(2, rank))
    if rank not in LINEAR or axes not in (spatial, list(range(rank))):
        return None
    skipped = len(axes) - len(spatial)
    value: Value = node.input(0)
    if scales is not None:
        if any(scale != 1.0 for scale in scales[:skipped]):
            return None
        scales = scales[skipped:]
        is_whole = all(scale >= 1 and scale == int(scale) for scale in scales)
        if not is_whole:
            return None
        size: dict[str, Any] = {"scale_factor": scales}
    else:
        if not isinstance(sizes, list) or node.attribute("keep_aspect_ratio_policy", "stretch") != "stretch":
            return None
        if any(new != old for new, old in zip(sizes[:skipped], shape[:skipped], strict=True) if isinstance(new, int)):
            return None
        if mode == "nearest":
            known = all(
                isinstance(new, int) and old and new % old == 0
                for new, old in zip(sizes[skipped:], shape[2:], strict=True)
            )
            if not known:
                return None
        size = {"size": sizes[skipped:]}
    if mode == "nearest" and (coordinates, rounding) == ("asymmetric", "floor"):
        return Call(F.interpolate, (value,), {**size, "mode": "nearest"})
    if mode == "nearest" or (mode == "cubic" and (rank != 4 or node.attribute("cubic_coeff_a", -0.75) != -0.75)):
        return None
    if node.attribute("exclude_outside", 0) or coordinates not in {"half_pixel", "pytorch_half_pixel", "align_corners"}:
        return None
    if coordinates == "pytorch_half_pixel" and "size" in size and 1 in size["size"]:
        return None
    kind = "bicubic" if mode == "cubic" else LINEAR[rank]
    return Call(F.interpolate, (value,), {**size, "mode": kind, "align_corners": coordinates == "align_corners"})
