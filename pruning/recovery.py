"""Train a pruned model back: batch-norm re-estimation, then fine-tuning with distillation from the dense model.

The same loop trains the dense model first where a job brings no weights. Everything random comes from one seed.

Source: Li et al., EagleEye, ECCV 2020, arXiv:2007.02491, for ranking by re-estimated batch norm; Hinton et al.,
arXiv:1503.02531, for distillation. The teacher's logits are computed once and reused under light shifts.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F  # noqa: N812 - torch's own custom
from torch import Tensor, nn

from domain.errors import PruneloopError
from domain.ports import BuildAbandoned, Hold
from pruning.checkpoint import NONE, Checkpoint
from pruning.metrics import Task
from pruning.precision import Compute

CALIBRATION_SAMPLES = 512  # also of importance: with 320 a ViT's first cut lost four points more
CALIBRATION_BATCH = 128

_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)


class TrainingDiverged(PruneloopError):
    """The loss is no number any more."""

    default_code = "diverged"


@dataclass(frozen=True)
class TrainingSet:
    """What to learn from: inputs ``(N, ...)``, labels ``(N,)`` or None, the teacher's logits ``(N, classes)`` or None.

    One of labels and teacher must be there; labels are as the task wants them. ``max_shift`` is in pixels: inputs ``(N, C, H, W)``
    are moved at random by up to that much each way, filled with their lowest value; 0 leaves them alone. ``outputs``: lengths of
    the outputs that lie side by side in the logits, where there are several: each counts as much as any other.
    """

    inputs: Tensor
    labels: Tensor | None = None
    teacher: Tensor | None = None
    max_shift: int = 0
    task: Task = Task.CLASSES
    outputs: tuple[int, ...] = ()

    def without_teacher(self) -> TrainingSet:
        return replace(self, teacher=None)


@dataclass(frozen=True)
class Recipe:
    """How to train: length, rates and the loss.

    Epochs may be fractional; the step count is rounded up. ``batch`` None goes by the number of samples: a short recovery on
    little data needs steps more than it needs wide batches (one epoch of mnist-5k at 50 % sparsity: cross-entropy on val
    0.16 with batches of 32, 0.19 with 64, at a fifth more time).
    """

    epochs: float
    learning_rate: float
    batch: int | None = None
    warmup: float = 0.15
    momentum: float = 0.9
    weight_decay: float = 5e-4
    label_smoothing: float = 0.0
    temperature: float = 4.0
    distillation: float = 0.7
    seed: int = 0


ADAM_SHARE = 0.08
"""AdamW's rate over SGD's for the same ``learning_rate``: a recipe's 0.05 is 0.004, as small transformers like it."""

DENSE_RECIPE = Recipe(epochs=5.0, learning_rate=0.05, label_smoothing=0.05)
"""98 % on the test split of mnist-5k with resnet8 of width 32; five epochs in batches of 32 gave what eight in 64 did."""

TRANSFORMER_EPOCHS = 20.0
"""A transformer learns slower: 97.9 % on the test split of mnist-5k with vit after twenty epochs, a minute on one core."""


def dense_recipe(model: nn.Module, seed: int) -> Recipe:
    """Return how to train a dense model where a job brings no weights."""
    epochs = TRANSFORMER_EPOCHS if is_transformer(model) else DENSE_RECIPE.epochs
    return replace(DENSE_RECIPE, epochs=epochs, seed=seed)


def is_transformer(model: nn.Module) -> bool:
    """Whether a model is trained like one: layer norms tell."""
    return any(isinstance(module, nn.LayerNorm) for module in model.modules())


def reestimate_batch_norm(
    model: nn.Module,
    inputs: Tensor,
    compute: Compute,
    *,
    hold: Hold = nullcontext,
    samples: int = CALIBRATION_SAMPLES,
) -> None:
    """Replace running means and variances by plain averages over calibration inputs, in place; weights do not change.

    Args:
        model: On ``compute.device``; left in the mode it was in.
        inputs: Calibration inputs of shape ``(N, ...)``; the first ``samples`` are used.
        compute: Where and how to run.
        hold: Entered around every batch.
        samples: Calibration samples at most.
    """
    norms = [module for module in model.modules() if isinstance(module, _NORMS) and module.track_running_stats]
    if not norms:
        return
    momenta = [norm.momentum for norm in norms]
    was_training = model.training
    model.eval()
    try:
        for norm in norms:
            norm.reset_running_stats()
            norm.momentum = None  # cumulative average: every batch counts the same
            norm.train()
        for chunk in inputs[:samples].split(CALIBRATION_BATCH):
            if len(chunk) > 1:  # a batch norm has no variance to offer for a single sample
                with hold(), torch.no_grad(), compute.autocast():
                    model(compute.place(chunk))
                    compute.finish()
    finally:
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum
        model.train(was_training)


def train(
    model: nn.Module,
    data: TrainingSet,
    recipe: Recipe,
    compute: Compute,
    *,
    progress: Callable[[float], None] = lambda fraction: None,
    hold: Hold = nullcontext,
    after_step: Callable[[], None] = lambda: None,
    checkpoint: Checkpoint | None = None,
) -> None:
    """Train a model in place with warm-up and cosine decay; left in eval mode, all parameters unfrozen.

    By SGD, or by AdamW at ``ADAM_SHARE`` of the rate where layer norms say that it is a transformer: those hardly learn by SGD.

    Args:
        model: On ``compute.device``.
        data: Inputs with labels, a teacher, or both.
        recipe: How.
        compute: Device and precision; fp16 trains with a loss scale.
        progress: Told the fraction done after every batch; may raise to stop.
        hold: Entered around every batch.
        after_step: Called after every step: what must hold of the weights is put right there (``pruning.zeros``).
        checkpoint: Where an interrupted training of the same kind stood, and where to note how far this one is; also at the
            moment ``progress`` stops it.

    Raises:
        TrainingDiverged: Where the loss is not finite.
    """
    batch = batch_of(recipe, len(data.inputs))
    steps = steps_of(recipe, len(data.inputs))
    if steps == 0:
        model.eval()
        return
    model.requires_grad_(True)
    model.train()
    optimizer, peak = _optimizer(model, recipe)
    scaler = torch.amp.GradScaler(compute.device.type, enabled=compute.needs_scaler)
    generator = torch.Generator().manual_seed(recipe.seed)
    with torch.random.fork_rng(devices=compute.drawing_devices), torch.enable_grad():
        torch.manual_seed(recipe.seed)  # dropout and the like
        checkpoint = checkpoint or NONE.of()
        done = checkpoint.load(model, optimizer, scaler)
        for step, index in zip(range(steps), _shuffled(len(data.inputs), batch, generator), strict=False):
            if step < done:  # draw the same random numbers as then, and do nothing with them
                shift_of(data.inputs[index], data.max_shift, generator)
                continue
            with hold():
                for group in optimizer.param_groups:
                    group["lr"] = peak * rate_at(step, steps, recipe.warmup)
                inputs = compute.place(shifted(data.inputs[index], data.max_shift, generator))
                with compute.autocast():
                    logits = model(inputs)
                loss = loss_of(logits.float(), data, index, recipe)
                if not bool(torch.isfinite(loss.detach())):
                    raise TrainingDiverged(
                        f"The loss is {float(loss.detach())} at step {step + 1} of {steps}; lower recovery's learning rate"
                        f" (now {recipe.learning_rate:g}) or prune less."
                    )
                optimizer.zero_grad(set_to_none=True)
                scaler.scale(loss).backward()
                scaler.step(optimizer)
                scaler.update()
                after_step()
                compute.finish()  # a measurement that begins now must not share the GPU with the rest of this batch
            checkpoint.save_if_due(step + 1, model, optimizer, scaler)
            try:
                progress((step + 1) / steps)
            except BuildAbandoned:
                checkpoint.save(step + 1, model, optimizer, scaler)
                raise
    checkpoint.done()
    model.zero_grad(set_to_none=True)
    model.eval()


def _optimizer(model: nn.Module, recipe: Recipe) -> tuple[torch.optim.Optimizer, float]:
    """Return the optimizer and its peak rate."""
    if is_transformer(model):
        peak = ADAM_SHARE * recipe.learning_rate
        # Decoupled decay is multiplied by the rate, which is smaller here.
        decay = recipe.weight_decay / ADAM_SHARE
        return torch.optim.AdamW(model.parameters(), lr=peak, betas=(recipe.momentum, 0.99), weight_decay=decay), peak
    sgd = torch.optim.SGD(
        model.parameters(),
        lr=recipe.learning_rate,
        momentum=recipe.momentum,
        nesterov=True,
        weight_decay=recipe.weight_decay,
    )
    return sgd, recipe.learning_rate


def steps_of(recipe: Recipe, samples: int) -> int:
    """Return the number of batches a recipe takes, rounded up; zero epochs are none."""
    return math.ceil(recipe.epochs * _batches(samples, batch_of(recipe, samples)))


def batch_of(recipe: Recipe, samples: int) -> int:
    """Return the batch size of a recipe on so many samples."""
    if recipe.batch is not None:
        return recipe.batch
    return 32 if samples < 10_000 else 64 if samples < 100_000 else 128


def rate_at(step: int, steps: int, warmup: float) -> float:
    """Return the share of the peak learning rate at a step: linear warm-up, then half a cosine down to zero."""
    rise = warmup * steps
    if step + 1 <= rise:
        return (step + 1) / (rise + 1)
    return 0.5 * (1 + math.cos(math.pi * (step + 1 - rise) / (steps + 1 - rise)))


def loss_of(logits: Tensor, data: TrainingSet, index: Tensor, recipe: Recipe) -> Tensor:
    """Return the loss against the labels, the teacher's outputs, or their mix.

    Of classes: cross-entropy, and Kullback-Leibler divergence from the teacher. Of tags: binary cross-entropy with either. Of
    values: the share of the wanted values' variance in the batch that is missed, averaged over outputs.
    """
    parts: list[tuple[float, Tensor]] = []
    if data.labels is not None:
        share = 1.0 if data.teacher is None else 1.0 - recipe.distillation
        parts.append((share, _from_labels(logits, data.labels[index].to(logits.device), data, recipe)))
    if data.teacher is not None:
        share = 1.0 if data.labels is None else recipe.distillation
        parts.append((share, _from_teacher(logits, data.teacher[index].to(logits.device), data, recipe)))
    if not parts:
        raise ValueError("a training set needs labels, a teacher or both")
    return torch.stack([weight * part for weight, part in parts]).sum()


def _from_labels(logits: Tensor, labels: Tensor, data: TrainingSet, recipe: Recipe) -> Tensor:
    if data.task is Task.CLASSES:
        return F.cross_entropy(logits, labels, label_smoothing=recipe.label_smoothing)
    if data.task is Task.TAGS:
        return F.binary_cross_entropy_with_logits(logits, labels)
    return _missed(logits, labels, data.outputs)


def _from_teacher(logits: Tensor, teacher: Tensor, data: TrainingSet, recipe: Recipe) -> Tensor:
    if data.task is Task.TAGS:
        return F.binary_cross_entropy_with_logits(logits, teacher.sigmoid())
    if data.task is Task.VALUES:
        return _missed(logits, teacher, data.outputs)
    soft = F.log_softmax(teacher / recipe.temperature, dim=1)
    own = F.log_softmax(logits / recipe.temperature, dim=1)
    return recipe.temperature**2 * F.kl_div(own, soft, reduction="batchmean", log_target=True)


def _missed(values: Tensor, wanted: Tensor, outputs: tuple[int, ...] = ()) -> Tensor:
    """Return the share of the wanted values' variance that is missed, averaged over outputs.

    One share for all would be that of the output with the largest values: a detector's boxes are in pixels, and drown its scores.
    """
    if len(outputs) > 1:
        pairs = zip(values.split(outputs, dim=1), wanted.split(outputs, dim=1), strict=True)
        return torch.stack([_missed(own, right) for own, right in pairs]).mean()
    spread = (wanted - wanted.mean(0)).square().mean()
    return (values - wanted).square().mean() / spread.clamp_min(1e-12)


def shifted(inputs: Tensor, pixels: int, generator: torch.Generator) -> Tensor:
    """Move each image of ``(N, C, H, W)`` by up to ``pixels`` each way, filled with the batch's lowest value."""
    offsets = shift_of(inputs, pixels, generator)
    if offsets is None:
        return inputs
    samples, _, height, width = inputs.shape
    padded = F.pad(inputs, (pixels,) * 4, value=float(inputs.min()))
    rows = (offsets[0] + torch.arange(height))[:, :, None]
    columns = (offsets[1] + torch.arange(width))[:, None, :]
    picked = padded[torch.arange(samples)[:, None, None], :, rows, columns]
    return picked.permute(0, 3, 1, 2)


def shift_of(inputs: Tensor, pixels: int, generator: torch.Generator) -> Tensor | None:
    """Draw how far each image is moved, ``(2, N, 1)``; None where nothing is moved."""
    if pixels == 0 or inputs.ndim != 4:
        return None
    return torch.randint(0, 2 * pixels + 1, (2, len(inputs), 1), generator=generator)


def _batches(samples: int, batch: int) -> int:
    return max(1, samples // batch)


def _shuffled(samples: int, batch: int, generator: torch.Generator) -> Iterator[Tensor]:
    """Yield batches of indices for ever, a new order each epoch; the odd rest of an epoch is left out."""
    while True:
        order = torch.randperm(samples, generator=generator)
        for number in range(_batches(samples, batch)):
            yield order[number * batch : (number + 1) * batch]
