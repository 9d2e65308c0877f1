"""Run a compiled artifact: uint8 images in, int32 logits or labels out.

Needs NumPy, Pillow and TVM's runtime, neither torch nor timm.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from intswin.compile import artifact, host_cpu
from intswin.compile.tvm_runtime import VirtualMachine, aligned_empty
from intswin.models.errors import IntswinError
from intswin.models.preprocess import Preprocess, load_image


@dataclass(frozen=True)
class Prediction:
    """One class that an image may show."""

    label: str
    probability: float
    index: int


class CompiledNetwork:
    """A network that is ready to run; made by `load`.

    It may be called from several threads. Calls wait for each other: one image already uses every
    core.

    Attributes:
        metadata: what the artifact says about itself.
        batch: images per call, as compiled.
        preprocess: size, crop and interpolation of the images.
        classes: names, in the order of the logits.
    """

    def __init__(self, library: bytes, metadata: dict[str, Any]) -> None:
        self.metadata = metadata
        self.batch: int = metadata["batch"]
        self.preprocess = Preprocess.from_json(metadata["preprocessing"])
        self.classes: list[str] = metadata["classes"]
        size = self.preprocess.image_size
        self._machine = VirtualMachine(library)
        self._input = aligned_empty((self.batch, size, size, 3), "uint8")
        self._lock = threading.Lock()

    def __call__(self, images: np.ndarray) -> np.ndarray:
        """Logits of exactly the compiled batch.

        Args:
            images: uint8 (batch, size, size, 3), RGB.

        Returns:
            int32 (batch, classes); multiplied by metadata["logit_scale"] they are real logits.

        Raises:
            IntswinError: another shape or dtype.
        """
        self._check(images)
        if len(images) != self.batch:
            raise IntswinError(
                f"got {len(images)} images, and the artifact is compiled for batch {self.batch}; "
                f"use .logits or .predict for any number"
            )
        with self._lock:
            np.copyto(self._input, images)
            return self._machine.main(self._input).copy()

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

    def kernel_times(self, images: np.ndarray) -> list[tuple[str, float]]:
        """Seconds of each kernel of one call, in execution order; `images` as in `__call__`."""
        self._check(images)
        with self._lock:
            np.copyto(self._input, images)
            return self._machine.kernel_times(self._input)

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

    def _check(self, images: np.ndarray) -> None:
        size = self.preprocess.image_size
        if (
            not isinstance(images, np.ndarray)
            or images.dtype != np.uint8
            or images.ndim != 4
            or images.shape[1:] != (size, size, 3)
        ):
            got = f"{getattr(images, 'dtype', type(images).__name__)} {np.shape(images)[-3:]}"
            raise IntswinError(
                f"an image is {got}; this network takes uint8 ({size}, {size}, 3) pixels"
            )


def load(path: str | Path) -> CompiledNetwork:
    """Open an artifact for this machine's CPU.

    Raises:
        IntswinError: not an artifact, damaged, or compiled for another machine.
    """
    stored = artifact.read(path)
    check_runs_here(stored)
    return CompiledNetwork(stored.library, stored.metadata)


def check_runs_here(stored: artifact.Artifact) -> None:
    """Raise IntswinError when the artifact's code cannot run on this machine."""
    target = stored.metadata["target"]
    if target["kind"] != "llvm":
        reason = "it runs on a GPU, and this version runs CPU artifacts only"
    else:
        reason = host_cpu.missing(target["machine"], target["features"])
    if reason:
        raise IntswinError(
            f"{stored.path} is compiled for target {target['name']}: {reason}; "
            f"compile it for this machine with: intswin compile --target llvm"
        )


def softmax(logits: np.ndarray) -> np.ndarray:
    """Probabilities of float (N, classes) logits. It is outside the integer-only region."""
    shifted = np.exp(logits - logits.max(axis=1, keepdims=True))
    return shifted / shifted.sum(axis=1, keepdims=True)
