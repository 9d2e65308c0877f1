"""The one live table of a tuning job; lines instead of it where no terminal shows them."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Iterable

from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text


@dataclasses.dataclass
class Row:
    """What is shown of a task.

    Attributes:
        name: of the kernel.
        operations: of a call.
        calls: for each image, in all networks.
        limit: trials that will be made.
        default: seconds of the default schedule, None before it is measured.
        best: seconds of the best record, of the default where there is none.
        trials: made so far.
        touched: when it was last worked on.
    """

    name: str
    operations: int
    calls: float
    limit: int
    default: float | None = None
    best: float | None = None
    trials: int = 0
    touched: float = 0.0


class Progress:
    """Shows the rows while a job runs."""

    def __init__(
        self, rows: Iterable[Row], peak: float | None, deadline: float, console: Console
    ) -> None:
        """`peak` in operations a second; `deadline` by time.monotonic()."""
        self._rows, self._peak, self._deadline = list(rows), peak, deadline
        self._console = console
        self._start = time.monotonic()
        self._made_before = sum(row.trials for row in self._rows)
        self._live = Live(console=console, refresh_per_second=2) if console.is_terminal else None

    def __enter__(self) -> Progress:
        if self._live is not None:
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._live is not None:
            self._live.update(Text(""))
            self._live.stop()
        self._console.print(self._view(self._rows))

    def update(self, row: Row, note: str) -> None:
        """A batch of `row` is done; `note` says what came of it."""
        row.touched = time.monotonic()
        if self._live is not None:
            fitting = max(5, self._console.height - 8)
            latest = sorted(self._rows, key=lambda row: -row.touched)[:fitting]
            self._live.update(self._view(latest))
            return
        best = f"{1e6 * row.best:.1f} us" if row.best else "no result"
        self._console.print(
            f"{row.name}: {row.trials}/{row.limit} trials, best {best}, {note}, "
            f"{self._time_left()} left",
            soft_wrap=True,
        )

    def _view(self, rows: list[Row]) -> Group:
        table = Table("task", "best us", "GOPS", "% of peak", "vs default", "trials")
        for column in table.columns[1:]:
            column.justify = "right"
        for row in rows:
            table.add_row(row.name, *self._numbers(row), f"{row.trials}/{row.limit}")
        return Group(table, Text(self._summary()))

    def _numbers(self, row: Row) -> list[str]:
        if not row.best or not row.default:
            return ["", "", "", ""]
        speed = row.operations / row.best
        share = f"{100 * speed / self._peak:.0f}" if self._peak else ""
        return [
            f"{1e6 * row.best:.1f}",
            f"{speed / 1e9:.0f}",
            share,
            f"{row.default / row.best:.2f}x",
        ]

    def _summary(self) -> str:
        measured = [row for row in self._rows if row.best and row.default]
        default = sum(row.calls * (row.default or 0) for row in measured)
        best = sum(row.calls * (row.best or 0) for row in measured)
        gain = f"; all calls together {default / best:.2f}x the default" if best else ""
        trials = sum(row.trials for row in self._rows)
        done = f"{len(measured)}/{len(self._rows)} tasks, {trials} trials"
        return f"{done}{gain}; {self._time_left()} left"

    def _time_left(self) -> str:
        """Until all trials are made, at the speed so far, or until the deadline."""
        now = time.monotonic()
        trials = sum(row.trials for row in self._rows)
        remaining = sum(row.limit for row in self._rows) - trials
        left = self._deadline - now
        if trials > self._made_before:
            left = min(left, remaining * (now - self._start) / (trials - self._made_before))
        if left == float("inf"):
            return "unknown time"
        minutes, seconds = divmod(max(0, round(left)), 60)
        return f"{minutes}:{seconds:02d}"
