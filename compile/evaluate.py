"""Accuracy of a network in every form it takes, and which layer loses what.

One table: the float network in torch, the integer reference in NumPy, the compiled library. The
last two must agree in every bit; the table counts the images on which they do.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from intswin.compile import pipeline, runtime
from intswin.compile.artifact import Artifact
from intswin.compile.quantize import QuantizedNetwork
from intswin.compile.targets import get_target
from intswin.models import integer_reference
from intswin.models.data import ImageSet, open_images
from intswin.models.errors import IntswinError
from intswin.models.integer_graph import IntegerGraph
from intswin.models.preprocess import Preprocess

BATCH = 16
ImagesDone = Callable[[int, int], None]


@dataclasses.dataclass(frozen=True)
class Row:
    """One form of the network.

    Attributes:
        form: "float torch", "integer reference" or "compiled for TARGET".
        top1, top5: percent; top5 is None with fewer than 6 classes.
        agreement: percent of images with the float network's top-1 class; None without it.
        bit_exact: images whose int32 logits equal the reference's; None for other forms.
    """

    form: str
    top1: float
    top5: float | None
    agreement: float | None
    bit_exact: int | None


@dataclasses.dataclass(frozen=True)
class LayerError:
    """How well one integer tensor approximates its float value.

    Attributes:
        node, op: the integer operator.
        value: the float value.
        snr_db: 10 log10(signal power / error power) over the images.
        saturated: percent of elements at an end of the integer range.
    """

    node: str
    op: str
    value: str
    snr_db: float
    saturated: float


def evaluate(
    options: pipeline.CompileOptions,
    data: Path,
    limit: int | None = None,
    images_done: ImagesDone = lambda done, total: None,
) -> list[Row]:
    """Measure float torch, integer reference and compiled code of one network.

    Args:
        options: as for compiling.
        data: labeled images: a pack, or a folder of class folders.
        limit: images to use, evenly spread; None for all.
        images_done: called with (done, total).

    Raises:
        IntswinError: the data has no labels, or its classes do not fit the network.
    """
    network = pipeline.load_float_network(options)
    calibration = pipeline.load_calibration(options, network)
    quantized = pipeline.quantize_network(options, network, calibration)
    compiled = pipeline.build_integer_network(
        options, network, quantized.graph, get_target(options.target)
    )
    images = _labeled(data, network.preprocess, limit)
    columns = _columns(images, compiled.metadata)
    machine = runtime.CompiledNetwork(compiled.library, compiled.metadata)
    forms = {
        "float torch" if network.model is not None else "float": lambda x: pipeline.float_logits(
            network, x
        ),
        "integer reference": lambda x: integer_reference.run(quantized.graph, x),
        f"compiled for {options.target}": machine.logits,
    }
    return _measure(forms, images, columns, images_done)


def evaluate_artifact(
    stored: Artifact,
    data: Path,
    limit: int | None = None,
    images_done: ImagesDone = lambda done, total: None,
) -> list[Row]:
    """Measure an artifact's compiled code against its own integer network.

    Raises:
        IntswinError: the artifact does not run here, or the data does not fit it.
    """
    runtime.check_runs_here(stored)
    machine = runtime.CompiledNetwork(stored.library, stored.metadata)
    graph = stored.graph()
    images = _labeled(data, machine.preprocess, limit)
    columns = _columns(images, stored.metadata)
    forms = {
        "integer reference": lambda x: integer_reference.run(graph, x),
        f"compiled for {stored.metadata['target']['name']}": machine.logits,
    }
    return _measure(forms, images, columns, images_done)


def layer_errors(
    network: pipeline.FloatNetwork, quantized: QuantizedNetwork, images: np.ndarray
) -> list[LayerError]:
    """Signal-to-noise ratio of every integer tensor, in execution order.

    Args:
        network: the float network.
        quantized: what was made of it.
        images: uint8 (N, S, S, 3).
    """
    graph = quantized.graph
    wanted = {node.float_name: node for node in graph.nodes if node.name in quantized.views}
    signal = dict.fromkeys(wanted, 0.0)
    noise = dict.fromkeys(wanted, 0.0)
    saturated = dict.fromkeys(wanted, 0.0)
    limits = {
        name: _ends(graph, wanted[name].out.dtype, wanted[name].out.zero_point) for name in wanted
    }
    for image in images:
        integers = integer_reference.run_all(graph, image[None])

        def compare(op: object, value: object, integers: dict = integers) -> None:
            name = op.name  # type: ignore[attr-defined]
            if name not in wanted or not isinstance(value, torch.Tensor):
                return
            node = wanted[name]
            stored = integers[node.name].reshape(-1)[quantized.views[node.name].reshape(-1)]
            real = (stored.astype(np.float64) - node.out.zero_point) * node.out.scale
            exact = value.double().reshape(-1).numpy()
            signal[name] += float((exact**2).sum())
            noise[name] += float(((exact - real) ** 2).sum())
            low, high = limits[name]
            saturated[name] += float(((stored <= low) | (stored >= high)).mean())

        with torch.no_grad():
            inputs = torch.from_numpy(network.preprocess.normalize(image[None]))
            network.graph.run(inputs, compare)
    return [
        LayerError(
            node.name,
            node.op,
            name,
            10 * float(np.log10(max(signal[name], 1e-30) / max(noise[name], 1e-30))),
            100 * saturated[name] / len(images),
        )
        for name, node in wanted.items()
    ]


def _ends(graph: IntegerGraph, dtype: str, zero_point: int) -> tuple[float, float]:
    """Integers at which a tensor saturates; a ReLU's 0 is a value like any other."""
    info = np.iinfo(dtype)
    low = -np.inf if dtype == "uint8" and zero_point == 0 else float(info.min)
    return low, float(info.max)


def _labeled(data: Path, preprocess: Preprocess, limit: int | None) -> ImageSet:
    images = open_images(data, preprocess, limit)
    if images.labels is None:
        raise IntswinError(f"{data} has no labels; give a pack or a folder of class folders")
    return images


def _columns(images: ImageSet, metadata: dict) -> np.ndarray:
    """Which logits belong to the data's classes: all, or some of ImageNet-1k's."""
    count = len(metadata["classes"])
    if len(images.classes) == count:
        return np.arange(count)
    if count == 1000 and images.imagenet1k_index:
        return np.asarray(images.imagenet1k_index)
    raise IntswinError(
        f"{images.source} has {len(images.classes)} classes and the network {count}; "
        "evaluate on data of its own classes"
    )


def _measure(
    forms: dict[str, Callable[[np.ndarray], np.ndarray]],
    images: ImageSet,
    columns: np.ndarray,
    images_done: ImagesDone,
) -> list[Row]:
    logits: dict[str, list[np.ndarray]] = {form: [] for form in forms}
    done = 0
    for batch in images.batches(BATCH):
        for form, run in forms.items():
            logits[form].append(run(batch))
        done += len(batch)
        images_done(done, len(images))
    joined = {form: np.concatenate(parts) for form, parts in logits.items()}
    labels = images.labels
    assert labels is not None
    float_form = next((form for form in forms if form.startswith("float")), None)
    reference = joined["integer reference"]
    rows = []
    for form, values in joined.items():
        chosen = values[:, columns]
        order = np.argsort(-chosen.astype(np.float64), axis=1, kind="stable")
        top5 = 100 * float((order[:, :5] == labels[:, None]).any(axis=1).mean())
        agreement = None
        if float_form is not None:
            float_best = joined[float_form][:, columns].argmax(axis=1)
            agreement = 100 * float((order[:, 0] == float_best).mean())
        exact = int((values == reference).all(axis=1).sum())
        rows.append(
            Row(
                form,
                100 * float((order[:, 0] == labels).mean()),
                top5 if len(columns) > 5 else None,
                agreement,
                exact if form.startswith("compiled") else None,
            )
        )
    return rows
