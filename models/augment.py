"""Augmentation of uint8 batches where they lie, on the GPU.

Decoding 9469 photos a few hundred times over would starve the GPU; instead they are decoded once
and every crop, flip, RandAugment, mixup and cutmix happens on the device in batches. torchvision's
RandAugment and timm's Mixup draw one set of parameters a call, so a batch is cut into chunks that
draw their own. The teacher sees the very tensor that the student sees (patient and consistent
teaching, Beyer et al., arXiv 2106.05237), so nothing here depends on who looks.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from timm.data import Mixup
from torch import Tensor
from torchvision.transforms import InterpolationMode, v2

from intswin.models.preprocess import Preprocess


@dataclass(frozen=True)
class Augment:
    """Random-resized crop, flip, RandAugment, mixup or cutmix; then normalization.

    ``crop_scale`` is the smallest crop as a part of the image's area; ``magnitude`` is
    RandAugment's, of 30; ``mix_probability`` is that of mixup or cutmix, half each.
    """

    preprocess: Preprocess
    num_classes: int
    crop_scale: float = 0.2
    magnitude: int = 9
    mix_probability: float = 0.8
    chunk: int = 32

    def __call__(self, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Augment uint8 (N, 3, H, W) images of int64 (N,) labels; N must be even.

        Returns float32 (N, 3, S, S) network input and float32 (N, num_classes) soft labels.
        """
        cropped = random_resized_crop(images, self.preprocess.image_size, self.crop_scale)
        rand_augment = v2.RandAugment(
            magnitude=self.magnitude, interpolation=InterpolationMode.BILINEAR, fill=127.0
        )
        mix = Mixup(
            mixup_alpha=0.8,
            cutmix_alpha=1.0,
            prob=self.mix_probability,
            label_smoothing=0.0,
            num_classes=self.num_classes,
        )
        inputs, targets = [], []
        for part, part_labels in zip(
            cropped.split(self.chunk), labels.split(self.chunk), strict=True
        ):
            mixed, target = mix(normalize(rand_augment(part), self.preprocess), part_labels)
            inputs.append(mixed)
            targets.append(target)
        return torch.cat(inputs), torch.cat(targets)


def normalize(images: Tensor, preprocess: Preprocess) -> Tensor:
    """uint8 (N, 3, H, W) pixels to the float32 input of a network, on the tensor's device."""
    mean = torch.tensor(preprocess.mean, device=images.device).view(3, 1, 1)
    std = torch.tensor(preprocess.std, device=images.device).view(3, 1, 1)
    return (images.float() / 255 - mean) / std


def random_resized_crop(images: Tensor, size: int, smallest: float) -> Tensor:
    """Cut another random box out of each image and flip every other one, in one sampling.

    uint8 (N, 3, H, W) -> uint8 (N, 3, size, size). A box has ``smallest`` to 1 of the area and an
    aspect ratio of 3/4 to 4/3. Bilinear without antialiasing: the boxes of a pack that has the
    network's size are only ever enlarged.
    """
    count, device = len(images), images.device
    area = torch.empty(count, device=device).uniform_(smallest, 1)
    ratio = torch.empty(count, device=device).uniform_(math.log(3 / 4), math.log(4 / 3)).exp()
    width, height = (area * ratio).sqrt().clamp(max=1), (area / ratio).sqrt().clamp(max=1)
    flip = torch.randint(0, 2, (count,), device=device) * 2 - 1
    theta = torch.zeros(count, 2, 3, device=device)
    theta[:, 0, 0], theta[:, 1, 1] = width * flip, height
    theta[:, 0, 2] = (1 - width) * torch.empty(count, device=device).uniform_(-1, 1)
    theta[:, 1, 2] = (1 - height) * torch.empty(count, device=device).uniform_(-1, 1)
    grid = F.affine_grid(theta, [count, 3, size, size], align_corners=False)
    sampled = F.grid_sample(images.float(), grid, padding_mode="border", align_corners=False)
    return sampled.round().clamp(0, 255).to(torch.uint8)
