"""Networks of the families people bring, trained here and given as they give theirs: an ONNX file, and data as an npz.

Each couples its channels in another way: side by side, by gates, in groups, across a skip and a transposed convolution, through
steps of time, from embeddings, to several outputs. What they learn is small: digits of scikit-learn, scenes and ratings drawn here.
"""

from __future__ import annotations

import io
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812 - torch's own custom
from torch import Tensor, nn

from domain.artifact import ArtifactKind
from domain.job import DataSpec, ModelSpec
from domain.ports import ArtifactStore
from pruning.datasets.digits import digits

SIDE, CELLS = 32, 4  # pixels of a scene, and cells of the detector's grid along one side
USERS, ITEMS, KNOWN = 20, 30, 4
Arrays = dict[str, np.ndarray]


def conv(before: int, width: int, kernel: int = 3, groups: int = 1, stride: int = 1) -> nn.Sequential:
    """Return a convolution with its batch norm and ReLU."""
    layer = nn.Conv2d(before, width, kernel, padding=kernel // 2, groups=groups, stride=stride, bias=False)
    return nn.Sequential(layer, nn.BatchNorm2d(width), nn.ReLU())


class DenseNet(nn.Module):
    """Every layer reads all before it, side by side. Source: Huang et al., arXiv:1608.06993."""

    def __init__(self, width: int = 16) -> None:
        super().__init__()
        grown = width // 2
        self.stem = conv(1, width)
        self.layers = nn.ModuleList(conv(width + grown * number, grown) for number in range(3))
        self.classifier = nn.Linear(width + 3 * grown, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for layer in self.layers:
            x = torch.cat([x, layer(x)], 1)
        return self.classifier(x.mean((2, 3)))


class Inverted(nn.Module):
    """An inverted residual with squeeze and excite. Source: Howard et al., MobileNetV3, arXiv:1905.02244."""

    def __init__(self, width: int = 16) -> None:
        super().__init__()
        wide, narrow = 3 * width, 3 * width // 4
        self.stem = conv(1, width)
        self.expand, self.depthwise = conv(width, wide, 1), conv(wide, wide, 3, groups=wide)
        self.squeeze, self.excite = nn.Conv2d(wide, narrow, 1), nn.Conv2d(narrow, wide, 1)
        self.project = nn.Sequential(nn.Conv2d(wide, width, 1, bias=False), nn.BatchNorm2d(width))
        self.classifier = nn.Linear(width, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        y = self.depthwise(self.expand(x))
        gate = F.hardsigmoid(self.excite(F.relu(self.squeeze(y.mean((2, 3), keepdim=True)))))
        return self.classifier((x + self.project(y * gate)).mean((2, 3)))


class Unet(nn.Module):
    """Down, up by a transposed convolution, and across by a concatenation; gives a map. Source: arXiv:1505.04597."""

    def __init__(self, width: int = 12) -> None:
        super().__init__()
        self.first, self.down = conv(1, width), conv(width, 2 * width, stride=2)
        self.up = nn.ConvTranspose2d(2 * width, width, 2, stride=2)
        self.last, self.head = conv(2 * width, width), nn.Conv2d(width, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        across = self.first(x)
        up = self.up(self.down(across))
        return self.head(self.last(torch.cat([up, across], 1))).flatten(1)


class Grouped(nn.Module):
    """A grouped convolution between two plain ones."""

    def __init__(self, width: int = 16, groups: int = 4) -> None:
        super().__init__()
        self.before, self.grouped = conv(1, width), conv(width, width, groups=groups)
        self.after, self.classifier = conv(width, 3 * width // 2), nn.Linear(3 * width // 2, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(self.after(self.grouped(self.before(x))).mean((2, 3)))


class Recurrent(nn.Module):
    """Rows of an image, one after another."""

    def __init__(self, kind: type[nn.LSTM] | type[nn.GRU], width: int = 24, hidden: int = 32) -> None:
        super().__init__()
        self.recurrent = kind(8, width, batch_first=True)
        self.hidden, self.classifier = nn.Linear(width, hidden), nn.Linear(hidden, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(F.relu(self.hidden(self.recurrent(x.squeeze(1))[0][:, -1])))


class Recommender(nn.Module):
    """A user, an item and what is known of both, to one rating."""

    def __init__(self, width: int = 32, embedding: int = 8) -> None:
        super().__init__()
        self.user, self.item = nn.Embedding(USERS, embedding), nn.Embedding(ITEMS, embedding)
        self.hidden = nn.Sequential(
            *(nn.Linear(2 * embedding + KNOWN, width), nn.ReLU()),
            *(nn.Linear(width, width // 2), nn.ReLU(), nn.Linear(width // 2, 1)),
        )

    def forward(self, user: Tensor, item: Tensor, known: Tensor) -> Tensor:
        return self.hidden(torch.cat([self.user(user[:, 0]), self.item(item[:, 0]), known], 1))


class Detector(nn.Module):
    """A cell of a grid says whether a box begins in it, and where its four sides are."""

    def __init__(self, width: int = 16) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        before = 1
        for channels in (width, 3 * width // 2, 2 * width):
            layers += conv(before, channels, stride=2)
            before = channels
        self.body = nn.Sequential(*layers)
        self.neck = nn.Sequential(nn.Conv2d(before, before, 3, padding=1), nn.ReLU())
        self.boxes, self.scores = nn.Conv2d(before, 4, 1), nn.Conv2d(before, 1, 1)

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        features = self.neck(self.body(image))
        return SIDE * self.boxes(features).flatten(2).transpose(1, 2), self.scores(features).flatten(1)


def scenes(count: int, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return images with one bright rectangle, its label ``(N, 1, 5)``, and what a detector should give, side by side."""
    generator = torch.Generator().manual_seed(seed)
    images = 0.1 * torch.rand(count, 1, SIDE, SIDE, generator=generator)
    corner = torch.randint(0, 20, (count, 2), generator=generator)
    sides = torch.randint(6, 12, (count, 2), generator=generator)
    labels = torch.zeros(count, 1, 5)
    boxes, scores = torch.zeros(count, CELLS * CELLS, 4), torch.full((count, CELLS * CELLS), -4.0)
    for number, ((left, top), (width, height)) in enumerate(zip(corner.tolist(), sides.tolist(), strict=True)):
        images[number, 0, top : top + height, left : left + width] += 1.0
        box = torch.tensor([left, top, left + width, top + height], dtype=torch.float32)
        labels[number, 0, 1:] = box
        boxes[number] = box
        middle = (top + height // 2) * CELLS // SIDE * CELLS + (left + width // 2) * CELLS // SIDE
        scores[number, middle] = 4.0
    return images, labels, torch.cat([boxes.flatten(1), scores], 1)


def detector_loss(given: tuple[Tensor, Tensor], wanted: Tensor) -> Tensor:
    """Return the loss detectors are trained by: where a box is, its sides count; where none is, only that none is."""
    boxes, logits = given
    cells = CELLS * CELLS
    there = (wanted[:, 4 * cells :] > 0).float()
    off = (boxes - wanted[:, : 4 * cells].reshape(-1, cells, 4)).abs().mean(2) / SIDE * there
    return F.binary_cross_entropy_with_logits(logits, there) + 4 * off.sum(1).mean()


@dataclass(frozen=True)
class Given:
    """What a user brings: a file with trained weights, data, and what the model is scored by."""

    model: ModelSpec
    data: DataSpec
    metric: str


def classifier(net: Callable[[], nn.Module], epochs: int = 25) -> Callable[[ArtifactStore], Given]:
    """Return what trains a network on digits and gives it as a file."""

    def give(store: ArtifactStore) -> Given:
        splits = digits()
        arrays: Arrays = {}
        for name in ("train", "val", "test"):
            inputs, labels = getattr(splits, name)
            arrays |= {f"{name}_inputs": inputs.numpy(), f"{name}_labels": labels.numpy()}
        images, labels = splits.train
        assert labels is not None
        model = _trained(net, [images], labels, F.cross_entropy, epochs)
        return Given(_file(store, model, {"image": images[:2]}, ("logits",)), npz_of(store, arrays), "accuracy")

    return give


def denoiser(store: ArtifactStore, width: int = 24) -> Given:
    """Give a U-Net that takes the noise off digits."""
    splits, arrays = digits(), dict[str, np.ndarray]()
    generator = torch.Generator().manual_seed(0)
    for name in ("train", "val", "test"):
        clean, _ = getattr(splits, name)
        noisy = clean + 0.5 * torch.randn(clean.shape, generator=generator)
        arrays |= {f"{name}_inputs": noisy.numpy(), f"{name}_labels": clean.flatten(1).numpy()}
    images, wanted = torch.from_numpy(arrays["train_inputs"]), torch.from_numpy(arrays["train_labels"])
    model = _trained(lambda: Unet(width), [images], wanted, F.mse_loss, 40)
    return Given(_file(store, model, {"image": images[:2]}, ("pixels",)), npz_of(store, arrays), "rmse")


def detector(store: ArtifactStore, width: int = 16) -> Given:
    """Give a detector, and scenes that nobody labelled: its own answers are all there is to go by."""
    arrays = {}
    for seed, (name, count) in enumerate((("train", 1100), ("val", 300), ("test", 400))):
        images, _, wanted = scenes(count, seed)
        arrays[f"{name}_inputs"] = images.numpy()
        if name == "train":
            model = _trained(lambda: Detector(width), [images], wanted, detector_loss, 25)
            file = _file(store, model, {"image": images[:2]}, ("boxes", "scores"))
    return Given(file, npz_of(store, arrays), "agreement")


def recommender(store: ArtifactStore, width: int = 128) -> Given:
    """Give a recommender of three inputs; ratings come from tastes and qualities that are drawn here."""
    rng = np.random.default_rng(0)
    tastes, qualities = rng.normal(size=(USERS, 3)), rng.normal(size=(ITEMS, 3))
    arrays: Arrays = {}
    for name, count in (("train", 4000), ("val", 400), ("test", 400)):
        user, item, known = (
            rng.integers(USERS, size=count),
            rng.integers(ITEMS, size=count),
            rng.normal(size=(count, KNOWN)),
        )
        ratings = (tastes[user] * qualities[item]).sum(1) + known[:, 0] * known[:, 1] + rng.normal(0, 0.2, count)
        arrays[f"{name}_inputs"] = np.column_stack([user, item, known]).astype(np.float32)
        arrays[f"{name}_labels"] = ratings[:, None].astype(np.float32)
    rows = torch.from_numpy(arrays["train_inputs"])
    inputs = {"user": rows[:, :1].long(), "item": rows[:, 1:2].long(), "known": rows[:, 2:]}
    wanted = torch.from_numpy(arrays["train_labels"])
    model = _trained(lambda: Recommender(width), list(inputs.values()), wanted, F.mse_loss, 40)
    example = {name: values[:2] for name, values in inputs.items()}
    return Given(_file(store, model, example, ("rating",)), npz_of(store, arrays), "spearman")


def _trained(
    net: Callable[[], nn.Module], inputs: Sequence[Tensor], wanted: Tensor, loss: Callable[..., Tensor], epochs: int
) -> nn.Module:
    torch.manual_seed(0)
    model = net()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.003)
    steps = epochs * -(-len(wanted) // 64)
    falling = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for _ in range(epochs):
        for index in torch.randperm(len(wanted)).split(64):
            optimizer.zero_grad()
            loss(model(*(values[index] for values in inputs)), wanted[index]).backward()
            optimizer.step()
            falling.step()
    return model.eval()


def _file(store: ArtifactStore, model: nn.Module, example: dict[str, Tensor], outputs: Sequence[str]) -> ModelSpec:
    buffer = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that this exporter is the older one: it is what most files were written by
        torch.onnx.export(
            model, tuple(example.values()), buffer, dynamo=False, input_names=[*example], output_names=[*outputs],  # type: ignore[arg-type]
            dynamic_axes={name: {0: "batch"} for name in (*example, *outputs)},
        )  # fmt: skip
    return ModelSpec(source="onnx", artifact=store.put_bytes(buffer.getvalue(), ArtifactKind.ONNX).digest)


def npz_of(store: ArtifactStore, arrays: Arrays) -> DataSpec:
    """Store arrays ``{train,val,test}_{inputs,labels}`` as a user's file of data."""
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)  # type: ignore[arg-type]
    return DataSpec(source="npz", artifact=store.put_bytes(buffer.getvalue(), ArtifactKind.DATA).digest)
