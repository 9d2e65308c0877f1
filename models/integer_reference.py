"""Run a whole IntegerGraph in NumPy: what compiled networks are compared with.

Images go through in chunks, so that memory depends on neither the number of images nor, much, the
size of the network. Chunks run one after the other: BLAS has threads of its own, and calling it
from several threads at once made it up to twenty times slower.
"""

from __future__ import annotations

import numpy as np

from intswin.models.errors import IntswinError
from intswin.models.integer_graph import IntegerGraph, Node
from intswin.models.integer_ops import execute

# Elements of the largest int32 array of a chunk (8 MiB): large enough that NumPy's cost per call
# does not count, small enough for a cache.
_CHUNK_ELEMENTS = 1 << 21


def run(graph: IntegerGraph, images: np.ndarray, checked: bool = False) -> np.ndarray:
    """Logits of a batch.

    Args:
        graph: the network.
        images: uint8, (B, height, width, 3) as `graph.input` says.
        checked: compute in int64 and raise where an int32 would have wrapped (slower).

    Returns:
        int32, (B, classes).

    Raises:
        IntswinError: the images do not have the network's shape or are not uint8.
        OverflowError: `checked`, and an intermediate leaves int32.
    """
    name = graph.nodes[-1].name
    logits = _run(graph, images, keep=[name], checked=checked)[name]
    return logits[:, 0]


def run_all(
    graph: IntegerGraph, images: np.ndarray, checked: bool = False
) -> dict[str, np.ndarray]:
    """Every activation of a batch by tensor name, the input included: (B, *spec.shape) each.

    Arguments and errors are those of `run`; memory is that of all activations of all images.
    """
    keep = [graph.input_name, *(n.name for n in graph.nodes)]
    return _run(graph, images, keep, checked)


def _run(
    graph: IntegerGraph, images: np.ndarray, keep: list[str], checked: bool
) -> dict[str, np.ndarray]:
    if images.dtype != np.uint8 or images.shape[1:] != graph.input.shape:
        raise IntswinError(
            f"images are {images.dtype} {images.shape[1:]}; "
            f"this network takes uint8 {graph.input.shape}"
        )
    step = max(1, _CHUNK_ELEMENTS // max(_elements(n) for n in graph.nodes))
    chunks = [images[i : i + step] for i in range(0, len(images), step)] or [images]
    parts = [_run_chunk(graph, chunk, keep, checked) for chunk in chunks]
    return {name: np.concatenate([part[name] for part in parts]) for name in keep}


def _run_chunk(
    graph: IntegerGraph, images: np.ndarray, keep: list[str], checked: bool
) -> dict[str, np.ndarray]:
    """Run the operators in order; drop each activation after its last reader unless kept."""
    last_reader = {name: node.name for node in graph.nodes for name in node.inputs}
    alive = {graph.input_name: images}
    for node in graph.nodes:
        alive[node.name] = execute(node, [alive[name] for name in node.inputs], checked)
        for name in set(node.inputs):
            if last_reader[name] == node.name and name not in keep:
                del alive[name]
    return {name: alive[name] for name in keep}


def _elements(node: Node) -> int:
    """Elements of the largest array that the operator makes for one image."""
    if node.op == "attention":
        windows, tokens = node.tensors["rows"].shape
        return windows * tokens * tokens * int(node.attrs["heads"])
    return int(np.prod(node.out.shape))
