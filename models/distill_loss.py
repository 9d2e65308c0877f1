"""The loss of a student under a frozen teacher of the same architecture.

Four terms: KL divergence of the class probabilities at a temperature (Hinton et al., arXiv
1503.02531), distance of the outputs of replaced blocks, distance of stage outputs, and cross
entropy where labels exist. The weights and the choice of terms are ours, not the paper's.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from intswin.models.errors import IntswinError

if TYPE_CHECKING:
    from typing_extensions import Self

FEATURE_LOSSES = ("mse", "cosine")
PARTS = ("logits", "blocks", "stages", "labels")


@dataclass(frozen=True)
class LossWeights:
    """Weight of each term.

    Attributes:
        logits: of KL(teacher || student), multiplied by temperature^2.
        blocks: of the replaced blocks' outputs.
        stages: of the stages' outputs (Swin only; a ViT has none).
        labels: of the cross entropy; without labels the term is left out.
        temperature: of both softmaxes of the KL.
        feature: "mse", relative to the variance of the teacher's map of each image, or "cosine",
            1 - cosine over channels.
    """

    logits: float = 1.0
    blocks: float = 1.0
    stages: float = 1.0
    labels: float = 0.5
    temperature: float = 2.0
    feature: str = "mse"

    def __post_init__(self) -> None:
        if self.feature not in FEATURE_LOSSES:
            known = ", ".join(FEATURE_LOSSES)
            raise IntswinError(f"unknown feature loss {self.feature!r}; use one of: {known}")
        if self.temperature <= 0:
            raise IntswinError(f"a temperature of {self.temperature} is not positive")


def feature_distance(own: Tensor, taught: Tensor, kind: str) -> Tensor:
    """Distance of two feature maps (N, ..., channels), 0 when equal; see LossWeights.feature."""
    own, taught = own.float(), taught.float()
    if kind == "cosine":
        return 1 - F.cosine_similarity(own, taught, dim=-1).mean()
    # by image, not by batch: the loss must not depend on how a batch is cut
    error = (own - taught).flatten(1).square().mean(1)
    return (error / taught.flatten(1).var(1).clamp(min=1e-12)).mean()


def logit_divergence(logits: Tensor, taught: Tensor, temperature: float) -> Tensor:
    """temperature^2 * KL(teacher || student), mean over the batch."""
    return temperature**2 * F.kl_div(
        F.log_softmax(logits.float() / temperature, -1),
        F.log_softmax(taught.float() / temperature, -1),
        reduction="batchmean",
        log_target=True,
    )


def label_loss(logits: Tensor, targets: Tensor | None) -> Tensor:
    """Cross entropy with soft labels (N, classes), 0 without labels."""
    if targets is None:
        return logits.new_zeros((), dtype=torch.float32)
    return torch.sum(-targets * F.log_softmax(logits.float(), -1), -1).mean()


class TaughtLoss(nn.Module):
    """A loss that holds a frozen teacher: it has no gradients and always evaluates."""

    def __init__(self, teacher: nn.Module) -> None:
        super().__init__()
        self.teacher = teacher.requires_grad_(False).eval()

    def train(self, mode: bool = True) -> Self:
        """Set the mode of all but the teacher."""
        super().train(mode)
        self.teacher.eval()
        return self


class BlockDistillation(TaughtLoss):
    """Student and teacher run on one batch, and their loss.

    `replaced` names the blocks whose outputs are compared; the trainer extends it.
    """

    def __init__(self, student: nn.Module, teacher: nn.Module, weights: LossWeights) -> None:
        super().__init__(teacher)
        self.student, self.weights = student, weights
        self.replaced: list[str] = []
        stages = getattr(student, "layers", None)
        self.stages = [f"layers.{i}" for i in range(len(stages))] if stages is not None else []

    def forward(self, images: Tensor, targets: Tensor | None) -> tuple[Tensor, Tensor]:
        """Loss of normalised images (N, 3, H, W) with soft labels (N, classes) or None.

        Returns:
            The scalar loss, and its unweighted parts (4,) in the order of PARTS.
        """
        names = list(dict.fromkeys([*self.replaced, *self.stages]))
        with torch.no_grad(), outputs_of(self.teacher, names) as taught:
            taught_logits = self.teacher(images)
        with outputs_of(self.student, names) as own:
            logits = self.student(images)

        def distance(of: list[str]) -> Tensor:
            if not of:
                return logits.new_zeros((), dtype=torch.float32)
            kind = self.weights.feature
            return torch.stack([feature_distance(own[n], taught[n], kind) for n in of]).mean()

        w = self.weights
        parts = torch.stack(
            (
                logit_divergence(logits, taught_logits, w.temperature),
                distance(self.replaced),
                distance(self.stages),
                label_loss(logits, targets),
            )
        )
        factors = torch.tensor((w.logits, w.blocks, w.stages, w.labels), device=parts.device)
        return (parts * factors).sum(), parts.detach()


@contextmanager
def outputs_of(model: nn.Module, names: list[str]) -> Iterator[dict[str, Tensor]]:
    """Collect what these submodules return while the model runs."""
    seen: dict[str, Tensor] = {}

    def keep(name: str) -> object:
        def hook(module: nn.Module, inputs: object, output: Tensor) -> None:
            seen[name] = output

        return model.get_submodule(name).register_forward_hook(hook)

    handles = [keep(name) for name in names]
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()  # type: ignore[attr-defined]
