"""Images on the training device, and batches that are a function of the step alone.

Every random choice of a batch (its images, crops, colours, mixup) comes from a seed made of the
run's seed, the step and the place in the batch. So a run that was killed repeats its batches
exactly when it goes on, and two processes that share a batch see what one process would have seen.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from intswin.models.augment import Augment
from intswin.models.data import ImageSet, open_images
from intswin.models.errors import IntswinError
from intswin.models.memory import too_little_memory
from intswin.models.preprocess import Preprocess


@dataclass(frozen=True)
class Pixels:
    """Decoded images on a device: uint8 (n, 3, H, W), and int64 (n,) labels or None."""

    images: Tensor
    labels: Tensor | None
    described: ImageSet


def load_pixels(
    sources: Sequence[Path], preprocess: Preprocess, device: str, limit: int | None
) -> Pixels:
    """Decode packs and folders onto the device, once.

    Labels are dropped when one source has none. Raises IntswinError when sources have different
    classes, or when the images do not fit the device's memory.
    """
    sets = [open_images(source, preprocess, limit) for source in sources]
    labels: Tensor | None = None
    if all(s.labels is not None for s in sets):
        for images in sets:
            if images.classes != sets[0].classes:
                raise IntswinError(f"{images.source} has other classes than {sets[0].source}")
        joined = np.concatenate([s.labels for s in sets if s.labels is not None])
        labels = torch.from_numpy(joined).to(device)
    count = sum(map(len, sets))
    with too_little_memory(f"{count} images do not fit the memory of {device}; pass --limit"):
        pixels = np.concatenate([images.decode() for images in sets])
        on_device = torch.from_numpy(pixels).permute(0, 3, 1, 2).contiguous().to(device)
    return Pixels(on_device, labels, sets[0])


@dataclass(frozen=True)
class Batches:
    """Augmented batches of a run by step.

    Attributes:
        size: images of a step, over all processes and accumulated parts.
    """

    pixels: Pixels
    augment: Augment
    size: int
    seed: int

    def __post_init__(self) -> None:
        count = len(self.pixels.images)
        if self.size < 2 or self.size % 2 or self.size > count:
            raise IntswinError(
                f"a batch of {self.size} cannot be made of {count} images; "
                f"pass --batch-size with an even number from 2 to {count // 2 * 2}"
            )

    def part(self, step: int, index: int, count: int) -> tuple[Tensor, Tensor | None]:
        """Part `index` of `count` equal ones of a step's batch: float images, soft labels.

        Raises IntswinError when the parts do not consist of whole augmentation chunks.
        """
        each, rest = divmod(self.size, count)
        chunk = min(self.augment.chunk, each)
        if rest or each % chunk or chunk % 2:
            raise IntswinError(
                f"a batch of {self.size} cannot be cut into {count} equal parts of whole chunks "
                f"of {self.augment.chunk} images; change --batch-size or --accumulate"
            )
        chosen = self._chosen(step)[index * each : (index + 1) * each]
        inputs, targets = [], []
        device = self.pixels.images.device
        for place, rows in enumerate(chosen.split(chunk)):
            seed_step(self.seed, step, 1 + index * each // chunk + place)
            on_device = rows.to(device)
            labels = self.pixels.labels
            mixed, target = self.augment(
                self.pixels.images[on_device],
                torch.zeros_like(on_device) if labels is None else labels[on_device],
            )
            inputs.append(mixed)
            targets.append(target)
        return torch.cat(inputs), None if self.pixels.labels is None else torch.cat(targets)

    @property
    def per_epoch(self) -> int:
        """Steps in which each image is seen at most once."""
        return len(self.pixels.images) // self.size

    def _chosen(self, step: int) -> Tensor:
        epoch, place = divmod(step, self.per_epoch)
        generator = torch.Generator().manual_seed(_mix(self.seed, epoch, 0))
        order = torch.randperm(len(self.pixels.images), generator=generator)
        return order[place * self.size : (place + 1) * self.size]


def seed_step(seed: int, step: int, place: int) -> None:
    """Seed torch and NumPy's global state, from which timm's Mixup draws."""
    mixed = _mix(seed, step, place)
    torch.manual_seed(mixed)
    np.random.seed(mixed % 2**32)  # noqa: NPY002


def _mix(*numbers: int) -> int:
    """One well-mixed 63-bit seed of several small numbers."""
    return int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0] >> 1)
