"""Step 3: which range of values each tensor of the float network takes on real images.

Images run through the float graph; each value's histogram gives its range by every method at once,
so one small JSON file serves all of them. Weights need no images: their ranges are exact.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import torch

from intswin.compile.float_graph import FloatGraph, FloatOp
from intswin.models.errors import IntswinError
from intswin.models.files import write_file

METHODS = ("min-max", "percentile-99.9", "percentile-99.99", "mse")
_BINS = 4096
_MOVEMENT = {
    "reshape", "permute_dims", "squeeze", "expand_dims", "broadcast_to", "strided_slice", "take",
    "concat", "split", "tuple_get_item", "nn.pad", "copy", "constant",
}  # fmt: skip


@dataclasses.dataclass
class Calibration:
    """Ranges (low, high) in real units of every value of a float graph, by method.

    Attributes:
        fingerprint: of the graph that was calibrated; another graph's ranges are refused.
        images: how many images were seen.
        ranges: method -> value name -> (low, high), low <= 0 <= high.
    """

    fingerprint: str
    images: int
    ranges: dict[str, dict[str, tuple[float, float]]]

    def save(self, path: Path) -> None:
        """Write as JSON, atomically."""
        rounded = {
            method: {name: [float(f"{v:.7g}") for v in pair] for name, pair in table.items()}
            for method, table in self.ranges.items()
        }
        fields = {
            "format": "intswin-calibration-1",
            "fingerprint": self.fingerprint,
            "images": self.images,
            "ranges": rounded,
        }
        write_file(path, json.dumps(fields, indent=1).encode())

    @classmethod
    def load(cls, path: Path) -> Calibration:
        """Read what `save` wrote.

        Raises:
            IntswinError: the file is missing or is no calibration.
        """
        try:
            fields = json.loads(Path(path).read_text())
            if fields["format"] != "intswin-calibration-1":
                raise KeyError("format")
            ranges = {
                method: {name: (float(lo), float(hi)) for name, (lo, hi) in table.items()}
                for method, table in fields["ranges"].items()
            }
            return cls(fields["fingerprint"], int(fields["images"]), ranges)
        except FileNotFoundError:
            raise IntswinError(
                f"no calibration file at {path}; make one with: intswin calibrate --data DATA"
            ) from None
        except (KeyError, TypeError, ValueError, AttributeError):
            raise IntswinError(
                f"{path} is not an intswin calibration; make one with: intswin calibrate"
            ) from None

    def for_graph(self, graph: FloatGraph, method: str) -> dict[str, tuple[float, float]]:
        """The ranges by one method, after checking that they are this graph's.

        Raises:
            IntswinError: another network was calibrated, or the method is unknown.
        """
        if method not in self.ranges:
            known = ", ".join(self.ranges)
            raise IntswinError(f"no calibration method {method!r}; this file has: {known}")
        if self.fingerprint != fingerprint(graph):
            raise IntswinError(
                "the calibration belongs to another network (other operators or shapes); calibrate "
                "this one: intswin calibrate"
            )
        return self.ranges[method]


def fingerprint(graph: FloatGraph) -> str:
    """Hash of a graph's operators and shapes, without its weights (fine-tuning keeps it)."""
    text = ";".join(f"{op.name}:{op.shape}" for op in graph.ops)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def calibrate(graph: FloatGraph, images: Iterable[torch.Tensor]) -> Calibration:
    """Run images through a simplified float graph and collect the ranges of its values.

    Args:
        graph: from `simplify`.
        images: normalised float32 images (1, 3, height, width), one at a time.

    Raises:
        IntswinError: there are no images, or a value is not finite.
    """
    matmul_inputs = {name for op in graph.ops if op.op == "matmul" for name in op.value_args}
    histograms: dict[str, _Histogram] = {}

    def observe(op: FloatOp, value: object) -> None:
        if isinstance(value, torch.Tensor) and (op.op not in _MOVEMENT or op.name in matmul_inputs):
            histograms.setdefault(op.name, _Histogram(op.name)).add(value)

    count = 0
    with torch.no_grad():
        for image in images:
            graph.run(image, observe)
            count += 1
    if count == 0:
        raise IntswinError("no calibration images; give a folder or pack with at least one image")
    ranges: dict[str, dict[str, tuple[float, float]]] = {method: {} for method in METHODS}
    for name, histogram in histograms.items():
        for method in METHODS:
            ranges[method][name] = histogram.range(method)
    return Calibration(fingerprint(graph), count, ranges)


class _Histogram:
    """Counts over [-limit, limit]; when values pass the limit it doubles and bins merge."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.low = self.high = self.limit = 0.0
        self.counts = np.zeros(_BINS, dtype=np.float64)

    def add(self, value: torch.Tensor) -> None:
        low, high = (float(v) for v in torch.aminmax(value))
        if not (np.isfinite(low) and np.isfinite(high)):
            raise IntswinError(f"value {self.name} is not finite in the float network")
        self.low, self.high = min(self.low, low), max(self.high, high)
        reach = max(-low, high)
        if self.limit == 0.0:
            self.limit = reach or 1e-6
        while reach > self.limit:
            quarter = _BINS // 4
            merged = self.counts.reshape(-1, 2).sum(axis=1)
            self.counts = np.concatenate([np.zeros(quarter), merged, np.zeros(quarter)])
            self.limit *= 2
        counts = torch.histc(value.reshape(-1).float(), _BINS, -self.limit, self.limit)
        self.counts += counts.numpy()

    def range(self, method: str) -> tuple[float, float]:
        if method == "min-max":
            return self.low, self.high
        if method == "mse":
            return self._least_squares()
        fraction = float(method.removeprefix("percentile-")) / 100
        edges = np.linspace(-self.limit, self.limit, _BINS + 1)
        cumulative = np.cumsum(self.counts) / self.counts.sum()
        # each side on its own: the fraction counts the values between 0 and the bound
        high = edges[1:][np.searchsorted(cumulative, fraction)]
        low = edges[:-1][np.searchsorted(cumulative, 1 - fraction, side="right")]
        return min(0.0, max(self.low, low)), max(0.0, min(self.high, high))

    def _least_squares(self) -> tuple[float, float]:
        """The fraction of min-max whose 255-step quantization has the least squared error."""
        centers = (np.arange(_BINS) + 0.5) * (2 * self.limit / _BINS) - self.limit
        used = self.counts > 0
        centers, counts = centers[used], self.counts[used]
        # a tensor of both signs is quantized symmetrically, one of (nearly) one sign is not
        symmetric = -self.low > 0.25 * self.high
        reach = max(-self.low, self.high)
        low, high = (-reach, reach) if symmetric else (self.low, self.high)
        best, best_error = 1.0, np.inf
        for fraction in np.linspace(0.2, 1.0, 81):
            lo, hi = fraction * low, fraction * high
            step = max(hi - lo, 1e-12) / 255
            quantized = np.clip(np.round(centers / step), np.round(lo / step), np.round(hi / step))
            error = float(np.sum(counts * (centers - quantized * step) ** 2))
            if error < best_error:
                best, best_error = float(fraction), error
        return best * low, best * high
