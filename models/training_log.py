"""The numbers of a training run by step: lines of JSON, and TensorBoard's curves if wanted."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from intswin.models.errors import IntswinError
from intswin.models.files import write_atomically


class TrainingLog:
    """Appends to a file that a run which goes on continues.

    Args:
        path: of the file: an object with `step` and some numbers in each line.
        tensorboard: folder of TensorBoard's files; None for none.

    Raises:
        IntswinError: TensorBoard is wanted and not installed.
    """

    def __init__(self, path: Path, tensorboard: Path | None) -> None:
        self._path = path
        self._writer: Any = None
        if tensorboard is None:
            return
        try:
            from torch.utils.tensorboard import SummaryWriter  # noqa: PLC0415 - optional
        except ImportError as error:
            raise IntswinError(
                "tensorboard is not installed; pip install tensorboard, or leave out --tensorboard"
            ) from error
        self._writer = SummaryWriter(str(tensorboard))

    def write(self, step: int, values: Mapping[str, float | None]) -> None:
        """Append numbers of a step; None is a number that this run does not have."""
        with open(self._path, "a") as file:
            file.write(json.dumps({"step": step, **values}) + "\n")
        if self._writer is not None:
            for name, value in values.items():
                if value is not None:
                    self._writer.add_scalar(name, value, step)

    def flush(self) -> None:
        """Have TensorBoard's file on disk; the lines are there already."""
        if self._writer is not None:
            self._writer.flush()

    def forget_after(self, step: int) -> None:
        """Drop the lines of later steps, which a run that goes on from `step` writes again."""
        if not self._path.exists():
            return
        lines = self._path.read_text().splitlines()
        text = "".join(f"{line}\n" for line in lines if _step_of(line) <= step)
        write_atomically(self._path, lambda temporary: temporary.write_text(text))


def _step_of(line: str) -> float:
    try:
        return json.loads(line)["step"]
    except (ValueError, KeyError):
        return math.inf  # a line cut short by a kill
