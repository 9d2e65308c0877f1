"""Candidates that were built ahead, where there is time: a folder that is carried to the GPU.

A file's name says what it is: the workload, the tile and a hash of its bytes, by which a copy that
was cut short is found out. The folder of a target says what else determines the code. A candidate
that cannot be built has a file with the reason.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

from tvm.target import Target

from intswin.compile import tuning_log
from intswin.compile.tuner import space
from intswin.compile.tuner.processes import WorkerError
from intswin.compile.tuner.space import Tile
from intswin.compile.tuner.tasks import Task
from intswin.models.errors import IntswinError
from intswin.models.files import write_file

_BUILT, _FAILED = ".so", ".failed"


class Builds:
    """The candidates of one target in a folder.

    Attributes:
        broken: files that are not what their names say; they are not used.
    """

    def __init__(self, folder: Path, target: Target) -> None:
        """Read the folder, which need not exist."""
        attributes = json.loads(str(target))
        attributes.pop("num-cores", None)  # of the machine that asks; the code is for any number
        context = json.dumps([attributes, tuning_log.fingerprint(target)], sort_keys=True)
        self._folder = folder / f"{tuning_log.log_name(target)}-{_hash(context.encode())}"
        self._target = target
        self._found: dict[str, dict[Tile, Path]] = {}
        self._broken: list[Path] = []
        for path in sorted(self._folder.glob("[!.]*")):
            self._read(path)

    @property
    def broken(self) -> int:
        """How many files are not what their names say."""
        return len(self._broken)

    def check_any(self) -> None:
        """Raise IntswinError when there is nothing for this target and these versions."""
        if not self._found:
            name = tuning_log.log_name(self._target)
            raise IntswinError(
                f"{self._folder.parent} holds no builds of this version for {name}; "
                "make them with --prepare"
            )

    def tiles(self, task: Task) -> list[Tile]:
        """The tiles of a task that were built, or cannot be, the default first."""
        found = self._found.get(task.key, {})
        default = space.default_tile(task.shape)
        return sorted(found, key=lambda tile: tile != default)

    def get(self, task: Task, tile: Tile) -> str | WorkerError | None:
        """The path of the library, why it cannot be built, or None: nothing is known."""
        path = self._found.get(task.key, {}).get(tile)
        if path is None:
            return None
        return str(path) if path.suffix == _BUILT else WorkerError(path.read_text())

    def add(self, task: Task, tile: Tile, built: str | WorkerError) -> None:
        """Keep what a build gave: the library of this path, or why there is none.

        Raises:
            IntswinError: the folder cannot be written.
        """
        failed = isinstance(built, WorkerError)
        data = Path(built).read_bytes() if isinstance(built, str) else str(built).encode()
        values = "-".join(map(str, vars(tile).values()))
        stem = f"{task.key}_{values}"
        for path in [path for path in self._broken if path.name.startswith(f"{stem}_")]:
            path.unlink(missing_ok=True)
            self._broken.remove(path)
        name = f"{stem}_{_hash(data)}{_FAILED if failed else _BUILT}"
        path = write_file(self._folder / name, data)
        self._found.setdefault(task.key, {})[tile] = path

    def _read(self, path: Path) -> None:
        try:
            key, values, digest = path.stem.split("_")
            tile = space.tile(self._target, [int(value) for value in values.split("-")])
            if path.suffix not in {_BUILT, _FAILED} or digest != _hash(path.read_bytes()):
                raise ValueError("not what the name says")
        except (ValueError, TypeError, OSError):
            self._broken.append(path)
            return
        self._found.setdefault(key, {})[tile] = path


def _hash(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()[:16]
