"""Whether compiled networks and each of their kernels equal the NumPy reference, bit for bit."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import tvm
from tvm.target import Target

from intswin.compile import artifact, runtime
from intswin.compile.emit import different_nodes
from intswin.compile.fuse_kernels import fuse_for_target
from intswin.compile.targets import is_cuda
from intswin.compile.tvm_runtime import CPU, CUDA, POOLED_ALLOCATOR, load_executable
from intswin.models import integer_reference
from intswin.models.data import open_images
from intswin.models.integer_graph import IntegerGraph, Node
from intswin.models.integer_ops import execute
from intswin.models.preprocess import Preprocess

FAILED = "failed: "  # starts the detail of what did not run to its end


@dataclasses.dataclass(frozen=True)
class Comparison:
    """Results that should be equal.

    Attributes:
        what: was compared.
        count: numbers.
        different: of them.
        detail: the first difference; empty when there is none.
    """

    what: str
    count: int
    different: int
    detail: str = ""

    @staticmethod
    def of(what: str, actual: np.ndarray, expected: np.ndarray) -> Comparison:
        """Compare two arrays, which may not even have the same shape."""
        if actual.shape != expected.shape or actual.dtype != expected.dtype:
            detail = f"{actual.dtype} {actual.shape} for {expected.dtype} {expected.shape}"
            return Comparison(what, expected.size, expected.size, detail)
        wrong = np.argwhere(actual != expected)
        if not len(wrong):
            return Comparison(what, expected.size, 0)
        at = tuple(int(i) for i in wrong[0])
        detail = f"first at {at}: {actual[at]} for {expected[at]}"
        return Comparison(what, expected.size, len(wrong), detail)


class References:
    """Logits of networks, kept in a file: computing them takes minutes.

    A graph is known by the hash of its bytes, so that logits of another calibration are not used.
    """

    def __init__(self, path: Path | None) -> None:
        """`path` may not exist yet; None keeps nothing."""
        self._path = path
        self._arrays: dict[str, np.ndarray] = {}
        if path is not None and path.exists():
            with np.load(path, allow_pickle=False) as stored:
                self._arrays = {key: stored[key] for key in stored.files}

    def logits(
        self, key: str, images: np.ndarray, compute: Callable[[np.ndarray], np.ndarray]
    ) -> np.ndarray:
        """The logits that `compute` gives for the images, from the file if it has them."""
        name = hashlib.sha256(f"{key} {_digest(images.tobytes())}".encode()).hexdigest()[:32]
        if name not in self._arrays:
            self._arrays[name] = compute(images)
            if self._path is not None:
                self._path.parent.mkdir(parents=True, exist_ok=True)
                np.savez_compressed(self._path, **self._arrays)  # type: ignore[arg-type]
        return self._arrays[name]


def images_for(preprocess: Preprocess, count: int, data: Path | None) -> np.ndarray:
    """Images of a pack or folder, evenly spread over it, or random pixels.

    Raises:
        IntswinError: the pack cannot be read.
    """
    if data is None:
        size = preprocess.image_size
        return np.random.default_rng(0).integers(0, 256, (count, size, size, 3), np.uint8)
    return np.concatenate(list(open_images(data, preprocess, count).batches(64)))


def reference_logits(
    stored: artifact.Artifact, images: np.ndarray, references: References
) -> np.ndarray:
    """Of models/integer_reference.py."""
    graph = stored.graph()
    key = f"reference {_digest(stored.graph_bytes)}"
    return references.logits(key, images, lambda x: integer_reference.run(graph, x))


def llvm_logits(
    path: Path, stored: artifact.Artifact, images: np.ndarray, references: References
) -> np.ndarray:
    """Of the artifact for the CPU at `path`, which has the graph of `stored`."""
    key = f"llvm {_digest(stored.graph_bytes)}"
    return references.logits(key, images, lambda x: runtime.load(path).logits(x))


def check_kernels(
    graph: IntegerGraph, library: bytes, batch: int, target: Target, seed: int, skip: int = 0
) -> Iterator[Comparison]:
    """Run each kernel of a library on random inputs of its whole domain.

    A kernel that fails is the last one: this process can use CUDA no more, and TVM may end it.

    Args:
        graph: as quantization made it.
        library: what `emit.emit_kernels` made of the graph for this batch and target.
        batch: images.
        target: of the library.
        seed: of the inputs.
        skip: how many of the first kernels are left out.
    """
    graph, cuda = fuse_for_target(graph, batch, target), is_cuda(target)
    machine = load_executable(library)
    devices = [(CUDA if cuda else CPU, 0, POOLED_ALLOCATOR)]
    devices += [(CPU, 0, POOLED_ALLOCATOR)] if cuda else []
    machine["vm_initialization"](*(number for device in devices for number in device))
    device = tvm.cuda(0) if cuda else tvm.cpu(0)
    rng = np.random.default_rng(seed)
    for index in different_nodes(graph)[skip:]:
        node = graph.nodes[index]
        inputs = [_random(graph.spec(name), batch, rng) for name in node.inputs]
        tensors = [tvm.runtime.tensor(array, device) for array in inputs]
        try:
            actual = machine[f"kernel_{index}"](*tensors).numpy()
        except Exception as error:
            reason = str(error).strip().splitlines()[-1]
            yield Comparison(_name(node), 1, 1, FAILED + reason)
            return
        yield Comparison.of(_name(node), actual, execute(node, inputs))


def _random(spec: Any, batch: int, rng: np.random.Generator) -> np.ndarray:
    limits = np.iinfo(spec.dtype)
    shape = (batch, *spec.shape)
    array = rng.integers(limits.min, limits.max, shape, spec.dtype, endpoint=True)
    # Runs of extremes: saturation, and rows without any variance.
    rows = array.reshape(-1, shape[-1])
    rows[1::31], rows[2::37], rows[3::41] = limits.max, limits.min, 0
    return array


def _name(node: Node) -> str:
    rows, channels = (*node.out.shape, 1)[:2]
    activation = str(node.attrs.get("activation", "none"))
    extra = f" {activation}" if activation != "none" else ""
    return f"{node.op} {node.name} -> {rows}x{channels} {node.out.dtype}{extra}"


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
