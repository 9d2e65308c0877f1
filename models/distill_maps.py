"""What the GELU Swin is taught: the label, the teacher's classes, and the teacher's feature maps.

9469 photos of 10 classes say too little to train a Swin from scratch, and 10 soft labels hardly
more. A teacher's maps before pooling are thousands of numbers a photo, and those of a convolution
network bring the locality that a transformer would have to learn from far more photos (locality
guidance, Li et al., arXiv 2207.10026). So a MobileNetV2 of ImageNet-1k teaches the Swin all its
1000 classes, and its maps at strides 8, 16 and 32, through linear layers that are dropped
afterwards.

This trains the embedded GELU network; ``distill.py`` makes the ReLU network of it.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import timm
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from intswin.models.checkpoint import load_checkpoint
from intswin.models.distill_loss import TaughtLoss, label_loss, logit_divergence
from intswin.models.preprocess import Preprocess

Taught = tuple[Tensor, list[Tensor]]


class SwinStages(nn.Module):
    """A Swin that also gives its maps at strides 8, 16 and 32 (the last one after the norm)."""

    def __init__(self, swin: nn.Module) -> None:
        super().__init__()
        timm_swin: Any = swin  # nn.Module's types know no submodules
        self.swin = timm_swin
        self.channels = [info["num_chs"] for info in timm_swin.feature_info[-3:]]

    def forward(self, images: Tensor) -> Taught:
        """(N, 3, H, W) -> logits (N, classes), maps [(N, h, w, channels)]."""
        x = self.swin.patch_embed(images)
        maps = []
        for stage in self.swin.layers:
            x = stage(x)
            maps.append(x)
        x = self.swin.norm(x)
        return self.swin.forward_head(x), [*maps[-3:-1], x]


class MobileNetTeacher(nn.Module):
    """An ImageNet-1k MobileNetV2 from a TFLite file, with TFLite's padding.

    It reads pixels in [-1, 1], made of images that are normalised as ``student`` says.
    """

    channels = (32, 96, 1280)
    factor: Tensor
    shift: Tensor

    def __init__(self, checkpoint: str | Path, student: Preprocess) -> None:
        super().__init__()
        self.net: Any = timm.create_model("mobilenetv2_100", pretrained=False, pad_type="same")
        load_checkpoint(self.net, checkpoint)
        mean, std = (torch.tensor(v).view(3, 1, 1) for v in (student.mean, student.std))
        self.register_buffer("factor", 2 * std, persistent=False)
        self.register_buffer("shift", 2 * mean - 1, persistent=False)

    def forward(self, images: Tensor) -> Taught:
        """(N, 3, H, W) -> logits (N, 1000), maps [(N, h, w, channels)] at strides 8, 16, 32."""
        images = images * self.factor + self.shift
        last, maps = self.net.forward_intermediates(images, indices=[2, 3])
        return self.net.forward_head(last), [m.permute(0, 2, 3, 1) for m in (*maps, last)]


class Distillation(TaughtLoss):
    """The training loss of one student under one frozen teacher.

    ``label_rows`` are the outputs, of ImageNet's 1000, that stand for the data's classes.
    """

    def __init__(
        self,
        student: nn.Module,
        teacher: MobileNetTeacher,
        label_rows: Sequence[int],
        *,
        label_weight: float,
        map_weight: float,
        temperature: float,
    ) -> None:
        super().__init__(teacher)
        self.student = SwinStages(student)
        self.label_weight, self.map_weight = label_weight, map_weight
        self.temperature = temperature
        self.label_rows: Tensor
        self.register_buffer("label_rows", torch.tensor(label_rows), persistent=False)
        self.projections = nn.ModuleList(
            nn.Linear(own, taught)
            for own, taught in zip(self.student.channels, teacher.channels, strict=True)
        )

    def forward(self, images: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """Loss of (N, 3, H, W) images with (N, classes) soft labels.

        Returns the scalar loss, and its parts (3,) before weighting: label, classes, maps.
        """
        with torch.no_grad():
            taught_logits, taught_maps = self.teacher(images)
        logits, maps = self.student(images)
        label = label_loss(logits[:, self.label_rows], targets)
        classes = logit_divergence(logits, taught_logits, self.temperature)
        map_losses = [
            map_loss(project(own), taught)
            for project, own, taught in zip(self.projections, maps, taught_maps, strict=True)
        ]
        map_term = torch.stack(map_losses).mean()
        loss = self.label_weight * label + classes + self.map_weight * map_term
        return loss, torch.stack((label, classes, map_term)).detach()


def map_loss(own: Tensor, taught: Tensor) -> Tensor:
    """1 - correlation over the channels, averaged over places: blind to each place's contrast."""
    own, taught = own.float(), taught.float()
    channels = own.shape[-1:]
    return F.mse_loss(F.layer_norm(own, channels), F.layer_norm(taught, channels)) / 2
