"""A folder of images, a folder a class: ``[train|val|test/]class/name.png``; without classes, images without labels."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError

from domain.data_files import DATA_SUFFIXES, MAX_UNPACKED_BYTES
from pruning.datasets.files import SPLIT_NAMES, Tree, without_common_folder
from pruning.datasets.params import Params
from pruning.datasets.problems import problem
from pruning.datasets.splits import Splits

FORMATS = ("PNG", "JPEG", "BMP", "WEBP", "GIF", "TIFF", "PPM")
SUFFIXES = DATA_SUFFIXES - {".csv", ".parquet", ".arrow"}
MAX_PIXELS = 64_000_000  # of one image, before it is made smaller: told by its header, before it is unpacked
MAX_SIDE = 4096


@dataclass(frozen=True)
class ImageForm:
    """What every image is made into.

    Args:
        size: (height, width) in pixels; None: as they are, all the same.
        mode: ``RGB`` or ``L`` (grey).
        fit: ``crop`` scales the shorter side and cuts the middle out, ``stretch`` changes the proportions.
        mean: Taken from each channel's values of 0..1.
        std: Then divided by.
        is_last: Channels come last, as TensorFlow has them.
    """

    size: tuple[int, int] | None
    mode: str
    fit: str
    mean: tuple[float, ...]
    std: tuple[float, ...]
    is_last: bool = False

    @classmethod
    def of(cls, params: Params) -> ImageForm:
        mode = params.choice("mode", ("RGB", "L"), "RGB")
        channels = 3 if mode == "RGB" else 1
        return cls(
            size=params.size("size", MAX_SIDE),
            mode=mode,
            fit=params.choice("fit", ("crop", "stretch"), "crop"),
            mean=params.numbers("mean", channels, 0.0),
            std=params.numbers("std", channels, 1.0),
            is_last=params.choice("layout", ("nchw", "nhwc"), "nchw") == "nhwc",
        )

    def decode(self, data: bytes, name: str) -> np.ndarray:
        """Return an image as float32 ``(C, H, W)``, or ``(H, W, C)``.

        Raises:
            Invalid: ``data_image``, with the image's name.
        """
        try:
            with Image.open(io.BytesIO(data), formats=FORMATS) as image:
                if image.width * image.height > MAX_PIXELS:
                    raise _unreadable(
                        name, f"it has {image.width} x {image.height} pixels; at most {MAX_PIXELS} are taken"
                    )
                made = self._fitted(image.convert(self.mode))
        except (UnidentifiedImageError, OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
            raise _unreadable(name, str(error)) from error
        pixels = np.asarray(made, np.float32).reshape(made.height, made.width, -1) / 255
        pixels = (pixels - np.array(self.mean, np.float32)) / np.array(self.std, np.float32)
        return np.ascontiguousarray(pixels if self.is_last else pixels.transpose(2, 0, 1))

    def _fitted(self, image: Image.Image) -> Image.Image:
        if self.size is None or (image.height, image.width) == self.size:
            return image
        height, width = self.size
        if self.fit == "stretch":
            return image.resize((width, height), Image.Resampling.BILINEAR)
        scale = max(height / image.height, width / image.width)
        resized = image.resize(
            (max(width, round(image.width * scale)), max(height, round(image.height * scale))),
            Image.Resampling.BILINEAR,
        )
        left, top = (resized.width - width) // 2, (resized.height - height) // 2
        return resized.crop((left, top, left + width, top + height))


def read_images(tree: Tree, given: Mapping[str, Any]) -> Splits:
    """Read a folder of images.

    Args:
        tree: Its files.
        given: The job's ``data.params``: those of ``ImageForm``, and ``max_shift``, pixels of augmentation.

    Raises:
        Invalid: ``data_missing``, ``data_image``, ``data_shape``, ``data_too_large`` or ``bad_data_params``.
    """
    params = Params(given, ("size", "mode", "fit", "mean", "std", "layout", "max_shift"))
    form, max_shift = ImageForm.of(params), params.whole("max_shift", 0, 64)
    names = tuple(name for name in tree.names if PurePosixPath(name).suffix.lower() in SUFFIXES)
    others = len(tree.names) - len(names)
    if not names:
        raise problem("data.artifact", "data_missing", f"There are no images; read are {', '.join(sorted(SUFFIXES))}.")
    by_split, classes = _sorted_out(names)
    budget = _Budget()
    pairs: dict[str, Any] = {}
    for split, samples in by_split.items():
        arrays = stack(
            (form.decode(tree.read(name), name) for name, _ in samples), [name for name, _ in samples], budget
        )
        labels = None if not classes else torch.tensor([classes.index(label) for _, label in samples])
        pairs[split] = (torch.from_numpy(arrays), labels)
    how = f"classes: {', '.join(classes)}" if classes else "images without labels"
    if others:
        how += f"; {others} file(s) that are no images were left out"
    return Splits(pairs["train"], pairs.get("val"), pairs.get("test"), how=how, max_shift=max_shift)


class _Budget:
    """Memory that is left for decoded images."""

    left = MAX_UNPACKED_BYTES

    def take(self, size_bytes: int) -> None:
        self.left -= size_bytes
        if self.left < 0:
            message = (
                f"The images take more than {MAX_UNPACKED_BYTES} bytes as numbers; give fewer, or a smaller `size`."
            )
            raise problem("data.params.size", "data_too_large", message)


def stack(arrays: Any, names: Sequence[str], budget: _Budget | None = None) -> np.ndarray:
    """Return images of one shape as one array; raises Invalid ``data_shape`` with the first that differs."""
    budget = budget or _Budget()
    found: list[np.ndarray] = []
    for array, name in zip(arrays, names, strict=True):
        if found and array.shape != found[0].shape:
            message = f"{name} has shape {array.shape}, {names[0]} {found[0].shape}; give `size` in data.params."
            raise problem("data.params.size", "data_shape", message)
        budget.take(array.nbytes)
        found.append(array)
    return np.stack(found)


def _sorted_out(names: tuple[str, ...]) -> tuple[dict[str, list[tuple[str, str]]], list[str]]:
    """Return split -> (file, class) of every image, and the classes in order; no classes where images lie beside one another."""
    prefix = without_common_folder(names, 2)
    if prefix.rstrip("/").lower() in SPLIT_NAMES:
        prefix = ""
    parts = {name: PurePosixPath(name.removeprefix(prefix)).parts for name in names}
    has_splits = all(len(one) > 1 and one[0].lower() in SPLIT_NAMES for one in parts.values())
    below = {name: one[1:] if has_splits else one for name, one in parts.items()}
    depths = {len(one) for one in below.values()}
    if depths - {1, 2} or len(depths) > 1:
        odd = next(name for name, one in below.items() if len(one) != max(set(depths) & {1, 2}, default=2))
        message = f"{odd} lies elsewhere than the other images; lay them out as class/image or train/class/image."
        raise problem("data.artifact", "data_shape", message)
    by_split: dict[str, list[tuple[str, str]]] = {}
    for name, one in below.items():
        split = SPLIT_NAMES[parts[name][0].lower()] if has_splits else "train"
        by_split.setdefault(split, []).append((name, one[0] if len(one) == 2 else ""))
    if "train" not in by_split:
        raise problem(
            "data.artifact", "data_missing", f"There is no folder train; there are {', '.join(sorted(by_split))}."
        )
    classes = sorted({label for _, label in by_split["train"]} - {""})
    for split, samples in by_split.items():
        unknown = {label for _, label in samples} - set(classes) - {""}
        if unknown:
            message = f"{split} has the class {min(unknown)}, which train has not ({', '.join(classes)})."
            raise problem("data.artifact", "data_shape", message)
    return by_split, classes


def _unreadable(name: str, why: str) -> Exception:
    return problem("data.artifact", "data_image", f"The image {name} cannot be read: {why}. Mend it or leave it out.")
