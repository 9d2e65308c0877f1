"""Candidates as shared libraries: those built ahead, others built when they are asked for."""

from __future__ import annotations

import itertools
from pathlib import Path

from tvm.target import Target

from intswin.compile.tuner import worker
from intswin.compile.tuner.builds import Builds
from intswin.compile.tuner.processes import Pool, WorkerError
from intswin.compile.tuner.space import Tile
from intswin.compile.tuner.tasks import Task

BUILD_SECONDS = 30.0  # the limit of a candidate


class Libraries:
    """Of one target."""

    def __init__(
        self,
        target: Target,
        builds: Builds | None,
        builders: Pool,
        scratch: Path,
        built_only: bool = False,
    ) -> None:
        """Remember where libraries come from.

        Args:
            target: of the code.
            builds: what was built ahead.
            builders: the processes that build.
            scratch: folder of what they build.
            built_only: build nothing.
        """
        self._target, self._builds, self._builders = target, builds, builders
        self._scratch, self._built_only = scratch, built_only
        self._numbers = itertools.count()

    def get(self, wanted: list[tuple[Task, Tile]]) -> list[str | WorkerError]:
        """The library of each tile of a kernel, or why there is none."""
        built: dict[tuple[str, Tile], str | WorkerError] = {}
        missing: dict[tuple[str, Tile], Task] = {}
        for task, tile in wanted:
            ahead = None if self._builds is None else self._builds.get(task, tile)
            if ahead is not None:
                built[task.key, tile] = ahead
            elif self._built_only:
                built[task.key, tile] = WorkerError("not built ahead")
            else:
                missing[task.key, tile] = task
        workloads = {task.key: task.workload_json for task in missing.values()}
        arguments = [
            (
                workloads[key],
                str(self._target),
                tile,
                str(self._scratch / f"{next(self._numbers)}.so"),
            )
            for key, tile in missing
        ]
        results = self._builders.results(BUILD_SECONDS, worker.build, arguments)
        built |= dict(zip(missing, results, strict=True))
        return [built[task.key, tile] for task, tile in wanted]

    def discard(self, library: str) -> None:
        """Remove a library, unless it was built ahead."""
        if Path(library).parent == self._scratch:
            Path(library).unlink()
