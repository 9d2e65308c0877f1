"""`intswin evaluate --table`: the embedded network quantized by others' methods and by ours.

One float teacher, the same calibration images, the same labeled images. The others are fake
quantization in float arithmetic (models/fq_vit.py, models/ptq4vit.py); ours are the integer
networks that are compiled, computed by the integer reference.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch

from intswin.compile import pipeline
from intswin.models import integer_reference
from intswin.models.data import open_images
from intswin.models.errors import IntswinError
from intswin.models.fq_vit import fq_vit
from intswin.models.ptq4vit import ptq4vit
from intswin.models.swin import ASSETS

CALIBRATION_IMAGES = 32
BATCH = 16


@dataclass(frozen=True)
class TableRow:
    """A method and its top-1 accuracy in percent."""

    method: str
    arithmetic: str
    top1: float


def table(
    data: Path,
    calibration: Path | None,
    limit: int | None = None,
    progress: Callable[[str], None] = lambda line: None,
) -> list[TableRow]:
    """Measure float GELU, PTQ4ViT, FQ-ViT, ours with i-GELU and ours with ReLU.

    Args:
        data: labeled images to measure on.
        calibration: images that every method calibrates on; None means the packaged photos.
        limit: images of `data`, evenly spread.
        progress: is given a line at a time.

    Raises:
        IntswinError: the data has no labels, other classes, or is the calibration data too.
    """
    source = calibration or ASSETS / "photos"
    if source.resolve() == data.resolve():
        raise IntswinError("calibrate on other images than those that are measured")
    options = {
        name: pipeline.CompileOptions(
            activation=name, calibration=source, calibration_images=CALIBRATION_IMAGES
        )
        for name in ("igelu", "relu")
    }
    network = pipeline.load_float_network(options["igelu"])
    assert network.model is not None
    images = open_images(data, network.preprocess, limit)
    if images.labels is None:
        raise IntswinError(f"{data} has no labels; give a pack or a folder of class folders")
    classes = int(network.model.num_classes)  # type: ignore[arg-type]
    if len(images.classes) != classes:
        raise IntswinError(f"{data} has {len(images.classes)} classes and the network {classes}")
    chosen = open_images(source, network.preprocess, CALIBRATION_IMAGES).decode()
    inputs = torch.from_numpy(network.preprocess.normalize(chosen))

    def measured(method: str, arithmetic: str, run: Callable[[np.ndarray], np.ndarray]) -> TableRow:
        progress(f"measuring {method}")
        best = np.concatenate([run(batch).argmax(1) for batch in images.batches(BATCH)])
        return TableRow(method, arithmetic, 100 * float(np.mean(best == images.labels)))

    def torch_runner(model: torch.nn.Module) -> Callable[[np.ndarray], np.ndarray]:
        def run(batch: np.ndarray) -> np.ndarray:
            with torch.no_grad():
                return model(torch.from_numpy(network.preprocess.normalize(batch))).numpy()

        return run

    rows = [measured("float GELU", "float32", torch_runner(network.model))]
    others: dict[str, Callable[..., torch.nn.Module]] = {
        "PTQ4ViT W8A8": partial(ptq4vit, candidates=50, rounds=2),  # 100 and 3 take minutes
        "FQ-ViT W8A8": fq_vit,
    }
    for name, quantize in others.items():
        progress(f"calibrating {name}")
        quantized = quantize(network.model, inputs)
        rows.append(measured(name, "float32, fake quantization", torch_runner(quantized)))
    for name, chosen_options in options.items():
        progress(f"calibrating ours, {name}")
        ours = network if name == "igelu" else pipeline.load_float_network(chosen_options)
        calibrated = pipeline.load_calibration(chosen_options, ours)
        graph = pipeline.quantize_network(chosen_options, ours, calibrated).graph
        label = {"igelu": "ours, i-GELU int8", "relu": "ours, ReLU int8"}[name]
        rows.append(measured(label, "integer only", partial(integer_reference.run, graph)))
    return rows
