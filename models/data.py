"""Labeled images for training, calibrating and measuring, from a pack or from a folder.

NumPy and Pillow alone: evaluating a compiled artifact needs no torch. Images stay encoded until a
batch is asked for, so a set of any size costs the memory of its files. Augmentation is not done
here (see ``augment.py``).

A pack is an ``.npz`` with ``data`` (all JPEG files, one after another, uint8), ``offsets`` (n + 1,
int64), ``labels`` (n), ``classes`` (WordNet ids) and ``meta`` (JSON: ``names``,
``imagenet1k_index``).
"""

from __future__ import annotations

import io
import itertools
import json
import zipfile
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from intswin.models.errors import IntswinError
from intswin.models.preprocess import Preprocess, load_image

DECODE_THREADS = 8


@dataclass(frozen=True)
class ImageSet:
    """Encoded images with their labels.

    ``files`` holds paths, or the bytes of image files. ``labels`` is int64 (n,), an index into
    ``classes``, or None for photos without labels. ``wordnet_ids`` and ``imagenet1k_index`` give
    each class's WordNet id and its index among ImageNet-1k's 1000 classes, where known.
    """

    source: str
    files: Sequence[Path | bytes]
    preprocess: Preprocess
    classes: list[str]
    labels: np.ndarray | None
    wordnet_ids: list[str] | None = None
    imagenet1k_index: list[int] | None = None

    def __len__(self) -> int:
        return len(self.files)

    def batches(self, batch_size: int) -> Iterator[np.ndarray]:
        """Yield uint8 (batch_size, H, W, 3) in order; the last one may be smaller."""
        for start in range(0, len(self), batch_size):
            yield self.decode(range(start, min(start + batch_size, len(self))))

    def decode(self, indices: Sequence[int] | None = None) -> np.ndarray:
        """Decode the images at ``indices`` (all by default) to uint8 (n, H, W, 3)."""
        chosen = range(len(self)) if indices is None else indices
        with ThreadPoolExecutor(DECODE_THREADS) as pool:  # Pillow decodes outside the GIL
            return np.stack(list(pool.map(self._decode_one, chosen)))

    def _decode_one(self, index: int) -> np.ndarray:
        file = self.files[index]
        if isinstance(file, Path):
            return load_image(file, self.preprocess)
        try:
            return load_image(io.BytesIO(file), self.preprocess)
        except IntswinError as error:
            raise IntswinError(
                f"{self.source}: image {index} cannot be decoded; the pack is corrupt, copy it anew"
            ) from error


def open_images(path: str | Path, preprocess: Preprocess, limit: int | None = None) -> ImageSet:
    """Open an ``.npz`` pack, a folder of class folders, or a folder of unlabeled photos.

    A folder with class folders is read as torchvision's ImageFolder does: classes in sorted order,
    every image file below each. ``limit`` keeps that many images, evenly spread over the set and
    the same ones each time. Raises IntswinError when there is nothing to read.
    """
    path = Path(path)
    if not path.exists():
        raise IntswinError(f"{path}: no such file or folder; give an .npz pack or a folder")
    images = _open_folder(path, preprocess) if path.is_dir() else _open_pack(path, preprocess)
    return images if limit is None else _spread(images, limit)


def _spread(images: ImageSet, limit: int) -> ImageSet:
    if limit < 1:
        raise IntswinError(f"{limit} images are none; ask for at least 1")
    if limit >= len(images):
        return images
    # The middles of `limit` equal stretches: every class of a sorted set gets its share.
    chosen = ((np.arange(limit) * 2 + 1) * len(images)) // (2 * limit)
    return ImageSet(
        source=images.source,
        files=[images.files[int(i)] for i in chosen],
        preprocess=images.preprocess,
        classes=images.classes,
        labels=None if images.labels is None else images.labels[chosen],
        wordnet_ids=images.wordnet_ids,
        imagenet1k_index=images.imagenet1k_index,
    )


def _open_pack(path: Path, preprocess: Preprocess) -> ImageSet:
    try:
        with np.load(path, allow_pickle=False) as pack:
            data, offsets = pack["data"], pack["offsets"].astype(np.int64)
            labels = pack["labels"].astype(np.int64)
            wordnet_ids = [str(name, "utf-8") for name in pack["classes"].tolist()]
            meta = json.loads(pack["meta"].item())
    except (OSError, EOFError, KeyError, ValueError, AttributeError, zipfile.BadZipFile) as error:
        raise IntswinError(
            f"{path} is not an image pack, or it is corrupt ({error}); copy it anew"
        ) from error
    ends_right = len(offsets) > 0 and offsets[0] == 0 and offsets[-1] == len(data)
    if not ends_right or len(labels) != len(offsets) - 1 or (np.diff(offsets) <= 0).any():
        raise IntswinError(f"{path}: offsets, labels and data do not fit together; copy it anew")
    if len(labels) == 0:
        raise IntswinError(f"{path} holds no image; give a pack with images")
    if labels.min() < 0 or labels.max() >= len(wordnet_ids):
        raise IntswinError(f"{path}: a label is outside its {len(wordnet_ids)} classes")
    return ImageSet(
        source=str(path),
        files=[data[a:b].tobytes() for a, b in itertools.pairwise(offsets)],
        preprocess=preprocess,
        classes=list(meta.get("names", wordnet_ids)),
        labels=labels,
        wordnet_ids=wordnet_ids,
        imagenet1k_index=meta.get("imagenet1k_index"),
    )


def _open_folder(path: Path, preprocess: Preprocess) -> ImageSet:
    suffixes = set(Image.registered_extensions())

    def photos(folder: Path, pattern: str) -> list[Path]:
        return sorted(f for f in folder.glob(pattern) if f.suffix.lower() in suffixes)

    by_class = {
        folder.name: photos(folder, "**/*") for folder in sorted(path.iterdir()) if folder.is_dir()
    }
    by_class = {name: files for name, files in by_class.items() if files}
    if not by_class:
        flat = photos(path, "*")
        if not flat:
            raise IntswinError(f"{path} holds no photo; give a folder of photos or an .npz pack")
        return ImageSet(str(path), flat, preprocess, classes=[], labels=None)
    counts = [len(files) for files in by_class.values()]
    return ImageSet(
        source=str(path),
        files=[file for files in by_class.values() for file in files],
        preprocess=preprocess,
        classes=list(by_class),
        labels=np.repeat(np.arange(len(counts)), counts),
    )
