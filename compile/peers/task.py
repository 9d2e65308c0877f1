"""What a competitor is asked to do, and the files that all of them share.

The coordinator writes a Task as JSON on a worker's command line; `inputs.prepare` writes the shared
files. A competitor is one variant in a module with three functions, whose imports of its framework
stay inside them, because the coordinator imports the module too:

    environment(threads) -> dict    variables that must be set before the process starts
    prepare(task) -> dict or None   write files for this activation and batch (all variants);
                                    returns what the report should know about it
    load(task) -> Loaded            be ready to run
"""

from __future__ import annotations

import dataclasses
import json
import resource
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

SEED = 0  # of random weights


@dataclass(frozen=True)
class Competitor:
    """One row of the comparison.

    Attributes:
        name: unique.
        label: for people.
        module: Python module with environment, prepare and load.
        variant: which of the module's forms.
        activation: of the MLPs: "relu" or "gelu", or ours: "relu", "igelu", "shiftgelu",
            "igelu-unfused" (compile/separate_gelu.py), "relu-untuned" (default schedules).
        packages: distributions that it needs.
    """

    name: str
    label: str
    module: str
    variant: str
    activation: str
    packages: tuple[str, ...] = ()

    @property
    def float_activation(self) -> str:
        """Activation of the float network that it approximates."""
        return "relu" if self.activation.startswith("relu") else "gelu"


@dataclass(frozen=True)
class Task:
    """A competitor's work: one batch of one network on some threads.

    Attributes:
        folder: where files are shared and kept for the next run of the same task.
        data: a folder of photos or a pack to calibrate on.
    """

    competitor: Competitor
    network: str
    batch: int
    threads: int
    folder: str
    data: str

    def to_json(self) -> str:
        """The fields as JSON; `from_json` reads it back."""
        return json.dumps(dataclasses.asdict(self))

    @classmethod
    def from_json(cls, text: str) -> Task:
        """The task that `to_json` wrote."""
        fields = json.loads(text)
        competitor = fields.pop("competitor")
        packages = tuple(competitor.pop("packages"))
        return cls(Competitor(**competitor, packages=packages), **fields)

    def path(self, name: str) -> Path:
        """A file of the shared folder."""
        return Path(self.folder) / name

    @property
    def calibration_images(self) -> np.ndarray:
        """uint8 (N, S, S, 3)."""
        return np.load(self.path("calibration_uint8.npy"))

    @property
    def calibration_pixels(self) -> np.ndarray:
        """Normalized float32 (N, 3, S, S); N is a multiple of the batch."""
        return np.load(self.path("calibration_float32.npy"))

    @property
    def images(self) -> np.ndarray:
        """The batch that is timed, uint8 (batch, S, S, 3)."""
        return np.load(self.path("images_uint8.npy"))

    @property
    def pixels(self) -> np.ndarray:
        """The same normalized, float32 (batch, 3, S, S)."""
        return np.load(self.path("images_float32.npy"))


@dataclass(frozen=True)
class Loaded:
    """A competitor that is ready.

    Attributes:
        run: compute the task's batch, in the framework's own arrays.
        logits: what `run` returned as (batch, classes), NumPy.
        scale: real value of one logit step.
        exact: integers that the logits must equal, where there is a reference.
        kernel_times: (name, seconds) of each kernel of one call, where that can be had.
    """

    run: Callable[[], Any]
    logits: Callable[[Any], np.ndarray] = np.asarray
    scale: float = 1.0
    exact: np.ndarray | None = None
    kernel_times: Callable[[], list[tuple[str, float]]] | None = None


def peak_memory_mb() -> float:
    """The most memory, in MiB, that this process had since it started its program.

    getrusage would give that of the process it was forked from, if that is more.
    """
    try:
        status = Path("/proc/self/status").read_text()
    except OSError:
        return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, 1)
    peak = next(line for line in status.splitlines() if line.startswith("VmHWM:"))
    return round(int(peak.split()[1]) / 1024, 1)
