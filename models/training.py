"""The training loop of the GELU Swin under its MobileNetV2, on a wall-clock budget.

The learning rate follows a cosine over the time budget, not over a step count, so that a run of
``minutes`` ends annealed on whatever GPU it finds; torch.compile's first step is not counted. A run
can stop before its budget (``pause_after_minutes``, for machines lent in short sessions) and go on
from its state file. Left out: several GPUs, data that does not fit the GPU's memory as uint8, and
any choice by validation accuracy: the last EMA weights are the result, validation is only printed.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from timm.optim import create_optimizer_v2
from timm.scheduler import CosineLRScheduler
from timm.utils import ModelEmaV3
from torch import Tensor, nn

from intswin.models.augment import Augment, normalize
from intswin.models.data import ImageSet
from intswin.models.distill_data import load_pixels
from intswin.models.distill_maps import Distillation
from intswin.models.errors import IntswinError
from intswin.models.files import write_atomically
from intswin.models.preprocess import Preprocess

SCHEDULE_TICKS = 10_000
STATE_EVERY_S = 120.0


@dataclass(frozen=True)
class Recipe:
    """What a run can vary. ``minutes`` is the schedule's length, without compilation."""

    minutes: float
    batch_size: int
    learning_rate: float
    weight_decay: float
    ema_decay: float
    seed: int
    compile: bool = True
    pause_after_minutes: float | None = None
    report_every_s: float = 15.0


@dataclass(frozen=True)
class Photos:
    """Decoded photos on the training device: uint8 (n, 3, H, W) and int64 (n,) labels."""

    images: Tensor
    labels: Tensor


def load_photos(
    packs: Sequence[Path], preprocess: Preprocess, device: str, limit: int | None
) -> tuple[Photos, ImageSet]:
    """Decode labeled packs onto the device; the second value describes the classes.

    Raises IntswinError when one has no labels, or other classes than the first.
    """
    pixels = load_pixels(packs, preprocess, device, limit)
    if pixels.labels is None:
        names = " or ".join(map(str, packs))
        raise IntswinError(f"{names} has no labels; give class folders or a pack")
    return Photos(pixels.images, pixels.labels), pixels.described


def augmented_batches(
    photos: Photos, augment: Augment, batch_size: int
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield augmented batches without end, each photo once per round.

    On a GPU they are made on a stream of their own: RandAugment waits for its small uploads, and
    must not wait for the training step that runs meanwhile.
    """
    device = photos.images.device
    if device.type != "cuda":
        while True:
            for chosen in torch.randperm(len(photos.images)).split(batch_size):
                if len(chosen) == batch_size:
                    yield augment(photos.images[chosen], photos.labels[chosen])
    main, side = torch.cuda.current_stream(), torch.cuda.Stream()
    side.wait_stream(main)
    while True:
        with torch.cuda.stream(side):
            order = torch.randperm(len(photos.images), device=device)
        for start in range(0, len(order) - batch_size + 1, batch_size):
            with torch.cuda.stream(side):
                chosen = order[start : start + batch_size]
                inputs, targets = augment(photos.images[chosen], photos.labels[chosen])
            main.wait_stream(side)
            inputs.record_stream(main)
            targets.record_stream(main)
            yield inputs, targets


class Trainer:
    """Trains ``distillation.student`` and keeps an exponential moving average of its weights."""

    def __init__(
        self, distillation: Distillation, recipe: Recipe, augment: Augment, command: str
    ) -> None:
        self.recipe, self.augment = recipe, augment
        self.commands = [command]  # those before a resume come first
        self.distillation = distillation.train()
        self.device = distillation.label_rows.device
        self.step, self.elapsed_s = 0, 0.0
        self.optimizer = create_optimizer_v2(
            distillation,
            opt="adamw",
            lr=recipe.learning_rate,
            weight_decay=recipe.weight_decay,
            fused=self.device.type == "cuda",
        )
        self.schedule = CosineLRScheduler(
            self.optimizer,
            t_initial=SCHEDULE_TICKS,
            lr_min=recipe.learning_rate / 200,
            warmup_t=SCHEDULE_TICKS // 25,
            warmup_lr_init=recipe.learning_rate / 100,
            t_in_epochs=False,
        )
        self.ema = ModelEmaV3(distillation.student.swin, decay=recipe.ema_decay, use_warmup=True)
        self.loss = torch.compile(distillation) if recipe.compile else distillation

    @property
    def finished(self) -> bool:
        """Whether the whole time budget is used up."""
        return self.elapsed_s >= self.recipe.minutes * 60

    def run(self, photos: Photos, validation: Photos, state_path: Path) -> None:
        """Train until the budget or the pause, printing progress; keep ``state_path`` fresh.

        Raises IntswinError for a batch that cannot be made, and when training diverges.
        """
        recipe = self.recipe
        if recipe.batch_size % 2 or recipe.batch_size > len(photos.images):
            most = len(photos.images) // 2 * 2
            raise IntswinError(f"pass --batch-size with an even number of at most {most}")
        started = time.monotonic()
        pause_s = float("inf")
        if recipe.pause_after_minutes is not None:
            pause_s = recipe.pause_after_minutes * 60
        batches = augmented_batches(photos, self.augment, recipe.batch_size)
        parts = self._train_step(*next(batches)).tolist()
        print(f"first step after {time.monotonic() - started:.1f} s, loss {parts}", flush=True)
        self._report_from = self.step
        clock = last_report = last_state = time.monotonic()
        previous_done = None
        paused = False
        while not (self.finished or paused):
            # The batch is made while the previous step still runs; then wait for that step, lest
            # the queue grow and the clock lose touch with the work done.
            inputs, targets = next(batches)
            if previous_done is not None:
                previous_done.synchronize()
            now = time.monotonic()
            self.elapsed_s, clock = self.elapsed_s + now - clock, now
            paused = now - started > pause_s
            step_parts = self._train_step(inputs, targets)
            if self.device.type == "cuda":
                previous_done = torch.cuda.Event()
                previous_done.record()
            if now - last_report > recipe.report_every_s or self.finished or paused:
                self._report(step_parts, len(photos.images), now - last_report, validation)
                last_report = time.monotonic()
            if now - last_state > STATE_EVERY_S:
                self.save_state(state_path)
                last_state = now
        self.save_state(state_path)

    def _report(self, parts: Tensor, count: int, since_s: float, validation: Photos) -> None:
        batch = self.recipe.batch_size
        label, classes, maps = parts.tolist()
        speed = (self.step - self._report_from) * batch / since_s
        self._report_from = self.step
        rows = self.distillation.label_rows
        top1, _ = accuracy(self.ema.module, validation, self.augment.preprocess, rows)
        print(
            f"step {self.step} epoch {self.step * batch / count:.1f} "
            f"label {label:.3f} classes {classes:.3f} maps {maps:.3f} "
            f"lr {self.optimizer.param_groups[0]['lr']:.1e} {speed:.0f} photos/s "
            f"validation top-1 {top1:.2f} % "
            f"left {max(0.0, self.recipe.minutes * 60 - self.elapsed_s):.0f} s",
            flush=True,
        )

    def _train_step(self, inputs: Tensor, targets: Tensor) -> Tensor:
        progress = min(1.0, self.elapsed_s / (self.recipe.minutes * 60))
        self.schedule.step_update(round(progress * SCHEDULE_TICKS))
        inputs = inputs.contiguous(memory_format=torch.channels_last)
        with torch.autocast(self.device.type, torch.bfloat16):
            loss, parts = self.loss(inputs, targets)
        loss.backward()
        nn.utils.clip_grad_norm_(self.distillation.parameters(), 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.step += 1
        self.ema.update(self.distillation.student.swin, step=self.step)
        return parts

    def save_state(self, path: Path) -> None:
        """Write everything that :meth:`load_state` needs, whole or not at all.

        Raises IntswinError, and leaves the state as it was, when the weights are not finite.
        """
        if not all(weight.isfinite().all() for weight in self.distillation.parameters()):
            kept = f"the last good state is in {path}" if path.exists() else "no state was written"
            raise IntswinError(
                f"the weights are not finite after {self.step} steps ({kept}); "
                "pass a lower --learning-rate"
            )
        state = {
            "student": self.distillation.student.state_dict(),
            "projections": self.distillation.projections.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "ema": self.ema.module.state_dict(),
            "step": self.step,
            "elapsed_s": self.elapsed_s,
            "commands": self.commands,
        }
        write_atomically(path, lambda temporary: torch.save(state, temporary))

    def load_state(self, path: Path) -> None:
        """Go on where :meth:`save_state` left, or raise IntswinError."""
        try:
            state = torch.load(path, map_location=self.device, weights_only=True)
            self.distillation.student.load_state_dict(state["student"])
            self.distillation.projections.load_state_dict(state["projections"])
            self.optimizer.load_state_dict(state["optimizer"])
            self.ema.module.load_state_dict(state["ema"])
            self.step, self.elapsed_s = state["step"], state["elapsed_s"]
            self.commands = [*state["commands"], *self.commands]
        except (OSError, EOFError, RuntimeError, KeyError, ValueError) as error:
            reason = str(error).partition("\n")[0] or type(error).__name__
            raise IntswinError(f"{path} is not a state of this run ({reason})") from error
        seed_everything(self.recipe.seed + self.step)  # or the first photos would come again


def seed_everything(seed: int) -> None:
    """Seed torch (weights, crops, RandAugment) and NumPy's global state (timm's Mixup)."""
    torch.manual_seed(seed)
    np.random.seed(seed)  # noqa: NPY002 - timm's Mixup draws from it


@torch.inference_mode()
def accuracy(
    model: nn.Module,
    photos: Photos,
    preprocess: Preprocess,
    rows: Tensor | None = None,
    batch_size: int = 256,
) -> tuple[float, float]:
    """Top-1 and top-5 in percent, in the network's own precision.

    ``rows`` picks the outputs that are the photos' classes, all of them by default.
    """
    model.eval()
    hits = torch.zeros(2, dtype=torch.int64)
    for images, labels in zip(
        photos.images.split(batch_size), photos.labels.split(batch_size), strict=True
    ):
        logits = model(normalize(images, preprocess))
        if rows is not None:
            logits = logits[:, rows]
        hit = logits.topk(min(5, logits.shape[1])).indices == labels[:, None]
        hits += torch.stack((hit[:, 0].sum(), hit.any(1).sum())).cpu()
    top1, top5 = (100 * hits / len(photos.labels)).tolist()
    return top1, top5
