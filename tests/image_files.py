"""Synthetic photos and packs for the tests: colored noise, one hue a class."""

import io
import json

import numpy as np
from PIL import Image


def photo(size, seed=0, mode="RGB"):
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), np.uint8)
    return Image.fromarray(pixels).convert(mode)


def write_pack(path, count=12, classes=3, size=224, index=None):
    files, labels = [], []
    for i in range(count):
        buffer = io.BytesIO()
        photo((size, size), seed=i).save(buffer, "JPEG")
        files.append(np.frombuffer(buffer.getvalue(), np.uint8))
        labels.append(i * classes // count)
    meta = {"names": [f"class {i}" for i in range(classes)]}
    if index is not None:
        meta["imagenet1k_index"] = index
    np.savez(
        path,
        data=np.concatenate(files),
        offsets=np.cumsum([0, *(len(f) for f in files)]).astype(np.int64),
        labels=np.array(labels, np.int16),
        classes=np.array([f"n{i:08d}".encode() for i in range(classes)]),
        meta=np.array(json.dumps(meta).encode()),
    )
    return path
