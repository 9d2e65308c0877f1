"""From an image file to the uint8 pixels that a network reads.

NumPy and Pillow alone, so that a compiled artifact classifies photos where torch is not installed.
The normalization by mean and std is not done here: quantized networks fold it into their input's
scale, float networks apply it with :meth:`Preprocess.normalize`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
from PIL import Image

from intswin.models.errors import IntswinError

INTERPOLATION = {
    "nearest": Image.Resampling.NEAREST,
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
}


@dataclass(frozen=True)
class Preprocess:
    """How pixels become a network's input.

    The shortest side is resized to ``image_size / crop_pct`` pixels, the center of ``image_size``
    by ``image_size`` pixels is cut out, and a float network sees ``(pixel / 255 - mean) / std``.
    """

    image_size: int = 224
    crop_pct: float = 0.9
    interpolation: str = "bicubic"
    mean: tuple[float, float, float] = (0.485, 0.456, 0.406)
    std: tuple[float, float, float] = (0.229, 0.224, 0.225)

    def __post_init__(self) -> None:
        if self.interpolation not in INTERPOLATION:
            known = ", ".join(INTERPOLATION)
            raise IntswinError(f"unknown interpolation {self.interpolation!r}; use one of {known}")

    def to_json(self) -> dict[str, Any]:
        """The fields as a JSON object; :meth:`from_json` reads it back."""
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, fields: dict[str, Any]) -> Preprocess:
        """Rebuild from :meth:`to_json`'s object, or raise IntswinError when a field is off."""
        try:
            return cls(
                image_size=int(fields["image_size"]),
                crop_pct=float(fields["crop_pct"]),
                interpolation=str(fields["interpolation"]),
                mean=_triple(fields["mean"]),
                std=_triple(fields["std"]),
            )
        except (KeyError, TypeError, ValueError) as error:
            raise IntswinError(f"preprocessing {fields!r} cannot be read: {error!r}") from error

    def normalize(self, images: np.ndarray) -> np.ndarray:
        """uint8 (N, H, W, 3) pixels to a float network's float32 (N, 3, H, W) input."""
        mean = np.asarray(self.mean, np.float32)
        std = np.asarray(self.std, np.float32)
        scaled = (images.astype(np.float32) / np.float32(255) - mean) / std
        return np.ascontiguousarray(scaled.transpose(0, 3, 1, 2))


def _triple(values: Sequence[float]) -> tuple[float, float, float]:
    red, green, blue = values
    return float(red), float(green), float(blue)


def load_image(path: str | Path | IO[bytes], preprocess: Preprocess) -> np.ndarray:
    """Decode one image file (or open binary file) to uint8 (image_size, image_size, 3) RGB.

    An image that has exactly the network's size is used as it is: it was cut out before. Raises
    IntswinError when the file is missing or is not an image.
    """
    name = getattr(path, "name", "the image") if hasattr(path, "read") else path
    try:
        with Image.open(path) as opened:
            image = opened.convert("RGB")
    except FileNotFoundError as error:
        raise IntswinError(f"{name}: no such file; give the path of a photo") from error
    except IsADirectoryError as error:
        raise IntswinError(f"{name} is a folder; give the path of a photo") from error
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        # Pillow reports truncated and malformed files by any of these.
        raise IntswinError(f"{name} is not an image that Pillow can read; give a photo") from error
    return np.asarray(_resize_and_crop(image, preprocess))


def _resize_and_crop(image: Image.Image, preprocess: Preprocess) -> Image.Image:
    size = preprocess.image_size
    if image.size == (size, size):
        return image
    shortest = max(size, round(size / preprocess.crop_pct))
    scale = shortest / min(image.size)
    width, height = (max(size, round(side * scale)) for side in image.size)
    resized = image.resize((width, height), INTERPOLATION[preprocess.interpolation])
    left, top = (width - size) // 2, (height - size) // 2
    return resized.crop((left, top, left + size, top + size))
