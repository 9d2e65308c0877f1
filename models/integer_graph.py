"""The integer network as plain data: a list of operators and their tensors.

This is what quantization produces and what everything else consumes: the NumPy reference executes
it, the Relax emitter turns it into a compiled module, the range verifier walks it, an artifact
carries it. It depends on NumPy alone. `docs/integer-semantics.md` defines each operator.
"""

from __future__ import annotations

import dataclasses
import io
import json
from typing import Any

import numpy as np

Attribute = int | str


@dataclasses.dataclass
class TensorSpec:
    """What an activation tensor is; the scale is metadata that no operator reads.

    Attributes:
        shape: per image, (rows, channels); (height, width, 3) for the input image.
        dtype: "uint8", "int8", "int16" or "int32".
        scale: real value of one step; 0.0 when the channels have `part_scales`.
        zero_point: the stored integer that means 0.0.
        part_scales: scales of equal parts of the channels that have one each: q, k and v.
    """

    shape: tuple[int, ...]
    dtype: str
    scale: float
    zero_point: int = 0
    part_scales: tuple[float, ...] = ()


@dataclasses.dataclass
class Node:
    """One integer operator; its output tensor has the node's name.

    Attributes:
        name: unique, such as "linear_3".
        op: operator of docs/integer-semantics.md section 3.
        inputs: names of activation tensors, in the operator's order.
        tensors: constant tensors by the names that section 3 gives them.
        attrs: static attributes by the names that section 3 gives them.
        out: the output tensor.
        float_name: the float tensor that the output approximates (for per-layer reports).
    """

    name: str
    op: str
    inputs: list[str]
    tensors: dict[str, np.ndarray]
    attrs: dict[str, Attribute]
    out: TensorSpec
    float_name: str = ""


@dataclasses.dataclass
class IntegerGraph:
    """Operators in execution order; the last node's output is the logits (1, classes) int32."""

    input: TensorSpec
    nodes: list[Node]
    input_name: str = "image"

    def spec(self, name: str) -> TensorSpec:
        """The tensor called `name`.

        Raises:
            KeyError: no operator makes it.
        """
        if name == self.input_name:
            return self.input
        for node in self.nodes:
            if node.name == name:
                return node.out
        raise KeyError(name)

    def to_bytes(self) -> bytes:
        """Serialize to one .npz: the graph as JSON beside its constant tensors."""
        header: dict[str, Any] = {
            "input": dataclasses.asdict(self.input),
            "input_name": self.input_name,
            "nodes": [
                {
                    "name": n.name,
                    "op": n.op,
                    "inputs": n.inputs,
                    "attrs": n.attrs,
                    "out": dataclasses.asdict(n.out),
                    "float_name": n.float_name,
                    "tensors": list(n.tensors),
                }
                for n in self.nodes
            ],
        }
        arrays = {f"{n.name}/{key}": value for n in self.nodes for key, value in n.tensors.items()}
        buffer = io.BytesIO()
        header_bytes = np.frombuffer(json.dumps(header).encode(), dtype=np.uint8)
        np.savez(buffer, graph=header_bytes, **arrays)  # type: ignore[arg-type]
        return buffer.getvalue()

    @classmethod
    def from_bytes(cls, data: bytes) -> IntegerGraph:
        """Read what `to_bytes` wrote."""
        with np.load(io.BytesIO(data), allow_pickle=False) as archive:
            header = json.loads(archive["graph"].tobytes().decode())
            nodes = [
                Node(
                    name=n["name"],
                    op=n["op"],
                    inputs=n["inputs"],
                    tensors={key: archive[f"{n['name']}/{key}"] for key in n["tensors"]},
                    attrs=n["attrs"],
                    out=_spec(n["out"]),
                    float_name=n["float_name"],
                )
                for n in header["nodes"]
            ]
        return cls(_spec(header["input"]), nodes, header["input_name"])


def _spec(fields: dict[str, Any]) -> TensorSpec:
    parts = tuple(fields.get("part_scales", ()))  # artifacts made before it existed lack it
    return TensorSpec(**{**fields, "shape": tuple(fields["shape"]), "part_scales": parts})
