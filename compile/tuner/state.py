"""How far the tuner is with a kernel."""

from __future__ import annotations

from collections.abc import Iterable

from tvm.target import Target

from intswin.compile.tuner import space
from intswin.compile.tuner.search import propose
from intswin.compile.tuner.space import Tile
from intswin.compile.tuner.store import Store
from intswin.compile.tuner.table import Row
from intswin.compile.tuner.tasks import Task

BATCH = 16  # candidates


class State:
    """A task, its trials and its best record.

    Attributes:
        best: the tile of the best record; None: there is none.
        reference: path of the library with the default schedule, once there is one.
        best_library: of the best record.
        exhausted: nothing is left to try.
    """

    def __init__(self, task: Task, target: Target, store: Store, limit: int) -> None:
        self.task, self.trials = task, store.trials.get(task.key, {})
        self.row = Row(task.spec.description, task.spec.operations, task.calls, limit)
        self.best: Tile | None = None
        self.best_library = ""
        self.reference = ""
        self.exhausted = False
        self.default_tile = space.default_tile(task.shape)
        records = store.log.records.get(task.key)
        if records:
            self.best = space.tile_of_trace(records[0].trace, target)
        self.row.default = self.trials.get(self.default_tile)
        self.row.best = records[0].seconds if records else self.row.default
        self.row.trials = len(self.trials)

    @property
    def urgency(self) -> float:
        """Seconds of an image that this kernel takes, less the more it was tried; 0: finished."""
        if self.exhausted or len(self.trials) >= self.row.limit:
            return 0.0
        # Before anything is measured: as if at 100 GOPS.
        seconds = self.row.best or self.row.operations / 1e11
        return self.row.calls * seconds / (len(self.trials) + BATCH)

    def missing(self) -> list[Tile]:
        """What candidates are compared with and is not built: the default, the best record."""
        tiles = [] if self.reference else [self.default_tile]
        if self.best is not None and not self.best_library:
            tiles.append(self.best)
        return tiles

    def proposals(self, hints: list[Tile], seed: int) -> list[Tile]:
        """The candidates of the next batch; none: the space is used up."""
        count = min(BATCH, self.row.limit - len(self.trials))
        return propose(self.task.shape, self.trials, hints, count, seed)


def hints_for(state: State, states: Iterable[State]) -> list[Tile]:
    """The best tiles of kernels with the same matrix."""
    matrix = space.matrix(state.task.shape)
    return [
        other.best
        for other in states
        if other is not state
        and other.best is not None
        and space.matrix(other.task.shape) == matrix
    ]
