"""What is inside an artifact, as rich tables: the network, its operators, sizes and proofs."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from rich.console import RenderableType
from rich.table import Table

from intswin.compile import cuda_code
from intswin.compile.artifact import Artifact
from intswin.compile.verify_ranges import verify_ranges
from intswin.models.integer_graph import IntegerGraph, Node


def report(stored: Artifact) -> Iterator[RenderableType]:
    """The tables, one after another. The ranges are computed anew from the stored weights.

    Raises:
        IntswinError: an operator of the network can overflow.
    """
    graph = stored.graph()
    yield _summary(stored, graph)
    yield _operators(graph)
    yield _ranges(graph)
    yield _integer_only(stored)
    if stored.metadata["target"]["kind"] == "cuda":
        yield _device_code(stored)


def multiplications(node: Node, graph: IntegerGraph) -> int:
    """Multiply-accumulates of an operator for one image (matrix products only)."""
    if node.op == "linear":
        return graph.spec(node.inputs[0]).shape[0] * node.tensors["weight"].size
    if node.op == "attention":
        windows, tokens = node.tensors["rows"].shape
        return 2 * windows * tokens**2 * int(node.attrs["heads"]) * int(node.attrs["d"])
    return 0


def _summary(stored: Artifact, graph: IntegerGraph) -> Table:
    metadata = stored.metadata
    target, preprocess = metadata["target"], metadata["preprocessing"]
    weights = sum(t.size for n in graph.nodes for k, t in n.tensors.items() if k == "weight")
    macs = sum(multiplications(node, graph) for node in graph.nodes)
    versions = ", ".join(f"{name} {version}" for name, version in metadata["versions"].items())
    size = preprocess["image_size"]
    table = Table("", "", show_header=False, box=None, pad_edge=False, title=str(stored.path))
    for name, value in (
        ("network", f"{metadata['network']}, {metadata['activation']}"),
        ("classes", f"{len(metadata['classes'])}: {_shortened(metadata['classes'])}"),
        ("input", f"uint8 ({metadata['batch']}, {size}, {size}, 3)"),
        ("output", f"int32 ({metadata['batch']}, {len(metadata['classes'])})"),
        ("logit scale", f"{metadata['logit_scale']:.6g}"),
        ("preprocessing", f"{preprocess['interpolation']}, crop {preprocess['crop_pct']}"),
        ("target", f"{target['name']} ({_machine(target)})"),
        ("CPU features", " ".join(target["features"])),
        ("operators", f"{len(graph.nodes)}, {macs / 1e6:.1f} M multiply-accumulates an image"),
        ("int8 weights", f"{weights / 1e6:.2f} M"),
        ("file", f"{stored.size / 1e6:.1f} MB, library {len(stored.library) / 1e6:.1f} MB"),
        ("checkpoint", f"SHA-256 {metadata['checkpoint_sha256'] or 'none (random weights)'}"),
        ("versions", versions),
    ):
        table.add_row(name, value)
    return table


def _operators(graph: IntegerGraph) -> Table:
    table = Table("operator", "kind", "output", "dtype", "scale", "zero", "M MAC", "constants kB")
    for column in table.columns[4:]:
        column.justify = "right"
    for node in graph.nodes:
        activation = node.attrs.get("activation", "none")
        kind = node.op if activation == "none" else f"{node.op}+{activation}"
        macs = multiplications(node, graph)
        constants = sum(tensor.nbytes for tensor in node.tensors.values())
        table.add_row(
            node.name,
            kind,
            "x".join(map(str, node.out.shape)),
            node.out.dtype,
            " ".join(f"{scale:.4g}" for scale in node.out.part_scales or (node.out.scale,)),
            str(node.out.zero_point),
            f"{macs / 1e6:.2f}" if macs else "",
            f"{constants / 1e3:.1f}" if constants else "",
        )
    return table


def _ranges(graph: IntegerGraph) -> Table:
    """The widest intermediate of each kind over the network's operators."""
    kinds = {node.name: node.op for node in graph.nodes}
    widest: dict[tuple[str, str], tuple[float, str, int, int, int]] = {}
    for entry in verify_ranges(graph):
        use = max(entry.hi, -entry.lo - 1) / entry.limit
        key = kinds[entry.node], entry.intermediate
        if use > widest.get(key, (-np.inf,))[0]:
            widest[key] = (use, entry.node, entry.lo, entry.hi, entry.limit)
    table = Table("kind", "intermediate", "lowest", "highest", "limit", "used %", "widest in")
    for column in table.columns[2:6]:
        column.justify = "right"
    for (kind, intermediate), (use, name, lo, hi, limit) in widest.items():
        table.add_row(kind, intermediate, str(lo), str(hi), str(limit), f"{100 * use:.2f}", name)
    table.title = "largest possible intermediates: none overflows"
    return table


def _integer_only(stored: Artifact) -> Table:
    proof = stored.metadata["integer_only"]
    table = Table("type of the result", "operations in the lowered code")
    table.columns[1].justify = "right"
    for dtype, count in sorted(proof["operations"].items()):
        table.add_row(dtype, str(count))
    for name, count in proof.get("device_functions", {}).items():
        table.add_row(name, str(count))
    table.title = f"integer only: {len(proof['functions'])} kernels, no float operation"
    return table


def _device_code(stored: Artifact) -> Table:
    """The GPU code in the library, read from it anew."""
    table = Table("GPU code", "for", "bytes", "kernels")
    table.columns[2].justify = "right"
    for code in cuda_code.read(stored.library):
        table.add_row(code.kind, code.arch, str(code.size), " ".join(code.kernels))
    table.title = "what the library holds for the GPU"
    return table


def _machine(target: dict[str, Any]) -> str:
    host = f"{target['machine']} {target['mcpu']}"
    return f"{target['arch']}, host {host}" if target["kind"] == "cuda" else host


def _shortened(names: list[str], limit: int = 10) -> str:
    return ", ".join(names[:limit]) + (", ..." if len(names) > limit else "")
