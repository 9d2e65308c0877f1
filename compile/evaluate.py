"""Accuracy of a network in every form it takes, and which layer loses what.

One table: the float network in torch, the integer reference in NumPy, the compiled library. The
last two must agree in every bit; the table counts the images on which they do.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import torch

from intswin.compile import pipeline, runtime
from intswin.compile.accuracy import ImagesDone, Row, columns_of, measure, open_labeled
from intswin.compile.quantize import QuantizedNetwork
from intswin.compile.targets import get_target
from intswin.models import integer_reference
from intswin.models.integer_graph import IntegerGraph


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
    images = open_labeled(data, network.preprocess, limit)
    calibration = pipeline.load_calibration(options, network)
    quantized = pipeline.quantize_network(options, network, calibration)
    columns = columns_of(images, quantized.graph.nodes[-1].out.shape[-1])
    compiled = pipeline.build_integer_network(
        options, network, quantized.graph, get_target(options.target)
    )
    machine = runtime.open_network(compiled.library, compiled.metadata)
    forms = {
        "float torch" if network.model is not None else "float": lambda x: pipeline.float_logits(
            network, x
        ),
        "integer reference": lambda x: integer_reference.run(quantized.graph, x),
        f"compiled for {options.target}": machine.logits,
    }
    return measure(forms, images, columns, images_done)


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
