"""What every compiled network does, wherever it runs: batches, photos, labels."""

from __future__ import annotations

import abc
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from intswin.models.errors import IntswinError
from intswin.models.preprocess import Preprocess, load_image

KernelTimes = list[tuple[str, float]]


@dataclass(frozen=True)
class Prediction:
    """One class that an image may show."""

    label: str
    probability: float
    index: int


class Network(abc.ABC):
    """A network that is ready to run; made by `runtime.load`.

    Attributes:
        metadata: what the artifact says about itself.
        batch: images per call, as compiled.
        preprocess: size, crop and interpolation of the images.
        classes: names, in the order of the logits.
    """

    def __init__(self, metadata: dict[str, Any]) -> None:
        self.metadata = metadata
        self.batch: int = metadata["batch"]
        self.preprocess = Preprocess.from_json(metadata["preprocessing"])
        self.classes: list[str] = metadata["classes"]
        size = self.preprocess.image_size
        self._image_shape = (size, size, 3)

    @abc.abstractmethod
    def __call__(self, images: np.ndarray) -> np.ndarray:
        """Logits of exactly the compiled batch.

        Args:
            images: uint8 (batch, size, size, 3), RGB.

        Returns:
            int32 (batch, classes); multiplied by metadata["logit_scale"] they are real logits.

        Raises:
            IntswinError: another shape or dtype.
        """

    @abc.abstractmethod
    def kernel_times(self, images: np.ndarray) -> KernelTimes:
        """Seconds of each kernel of one call, in execution order; `images` as in `__call__`."""

    def logits(self, images: np.ndarray) -> np.ndarray:
        """Logits of any number of images, computed in batches; the last one is padded.

        uint8 (N, size, size, 3) to int32 (N, classes). Raises IntswinError as `__call__` does.
        """
        self._check(images)
        rest = -len(images) % self.batch
        padded = np.concatenate([images, np.zeros((rest, *images.shape[1:]), np.uint8)])
        parts = [self(padded[i : i + self.batch]) for i in range(0, len(padded), self.batch)]
        if not parts:
            return np.zeros((0, len(self.classes)), np.int32)
        return np.concatenate(parts)[: len(images)]

    def predict(
        self, images: np.ndarray | Sequence[str | Path | np.ndarray], top: int = 1
    ) -> list[list[Prediction]]:
        """The `top` most probable classes of each image, most probable first.

        Args:
            images: paths of photos, which are resized and cropped as the network expects, or uint8
                arrays (size, size, 3), or one array (N, size, size, 3).
            top: classes to give for an image.

        Raises:
            IntswinError: a path is not an image, or an array has another shape or dtype.
        """
        if isinstance(images, str | Path):
            images = [images]
        pixels = [
            load_image(image, self.preprocess) if isinstance(image, str | Path) else image
            for image in images
        ]
        for array in pixels:
            self._check(np.asarray(array)[None])
        if not pixels:
            return []
        probabilities = softmax(self.logits(np.stack(pixels)) * self.metadata["logit_scale"])
        order = np.argsort(-probabilities, axis=1, kind="stable")[:, :top]
        return [
            [Prediction(self.classes[i], float(row[i]), int(i)) for i in best]
            for row, best in zip(probabilities, order, strict=True)
        ]

    def _check_batch(self, images: np.ndarray) -> None:
        self._check(images)
        if len(images) != self.batch:
            raise IntswinError(
                f"got {len(images)} images, and the artifact is compiled for batch {self.batch}; "
                f"use .logits or .predict for any number"
            )

    def _check(self, images: np.ndarray) -> None:
        if (
            not isinstance(images, np.ndarray)
            or images.dtype != np.uint8
            or images.ndim != 4
            or images.shape[1:] != self._image_shape
        ):
            got = f"{getattr(images, 'dtype', type(images).__name__)} {np.shape(images)[-3:]}"
            raise IntswinError(
                f"an image is {got}; this network takes uint8 {self._image_shape} pixels"
            )


def softmax(logits: np.ndarray) -> np.ndarray:
    """Probabilities of float (N, classes) logits. It is outside the integer-only region."""
    shifted = np.exp(logits - logits.max(axis=1, keepdims=True))
    return shifted / shifted.sum(axis=1, keepdims=True)
