"""A tuning log as the tuner writes it: one process at a time, every line whole or not at all.

Beside the records, which only hold schedules proven faster than the default, lies a journal of
every candidate that was measured. A job that was killed goes on from it; compiling ignores it.
"""

from __future__ import annotations

import base64
import fcntl
import json
import os
import struct
from collections.abc import Collection
from pathlib import Path
from typing import Any

from tvm import s_tir
from tvm.s_tir import meta_schedule as ms
from tvm.target import Target

from intswin.compile import tuning_log
from intswin.compile.tuner import space
from intswin.compile.tuner.compaction import compact
from intswin.compile.tuner.space import Tile
from intswin.compile.tuner.tasks import Task
from intswin.models.errors import IntswinError
from intswin.models.files import write_file

JOURNAL = "journal.jsonl"

Trials = dict[Tile, float | None]  # seconds of a call; None: it failed


class Store:
    """The log of one target, locked until `close`."""

    def __init__(self, folder: Path, target: Target, move_aside: bool = False) -> None:
        """Open or make the log.

        Args:
            folder: of the target, made if missing.
            target: what is tuned for.
            move_aside: rename a log with another fingerprint instead of refusing it.

        Raises:
            IntswinError: another process has the log, it has another fingerprint, or the folder
                cannot be written.
        """
        self.folder, self._target = folder, target
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._lock = (folder / ".lock").open("a")
        except OSError as error:
            raise IntswinError(f"cannot write {folder}: {error.strerror or error}") from error
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            self._lock.close()
            raise IntswinError(f"another process is tuning into {folder}") from error
        try:
            self._check_fingerprint(move_aside)
        except BaseException:
            self.close()
            raise
        self.log = tuning_log.read_log(folder)
        self.trials, self.broken = self._read_journal()
        self.broken += self.log.broken
        self._indices = {w[0]: i for i, w in enumerate(self.log.workloads) if w is not None}
        self._lines = len(self.log.workloads)

    def close(self) -> None:
        """Unlock."""
        self._lock.close()

    def add_trials(self, task: Task, results: dict[Tile, float | str]) -> None:
        """Append what was measured, seconds or the reason of a failure, in one write."""
        lines = []
        for tile, result in results.items():
            key = "error" if isinstance(result, str) else "seconds"
            lines.append({"workload": task.key, "tile": _fields(tile), key: result})
            self.trials.setdefault(task.key, {})[tile] = None if isinstance(result, str) else result
        self._append(JOURNAL, lines)

    def add_record(self, task: Task, schedule: s_tir.Schedule, seconds: float) -> None:
        """Append a record, and the workload before its first one."""
        workload = ms.database.Workload(task.module)
        if task.key not in self._indices:
            self._append(tuning_log.WORKLOADS, [_without_spaces(workload.as_json())])
            self._indices[task.key] = self._lines
            self._lines += 1
        arguments = ms.arg_info.ArgInfo.from_prim_func(task.module["main"])
        record = ms.database.TuningRecord(
            schedule.trace, workload, [seconds], self._target, arguments
        ).as_json()
        self._append(tuning_log.RECORDS, [[self._indices[task.key], record]])

    def trim(self) -> None:
        """Keep the best records of each workload, and the workloads that have one."""
        self.forget(())

    def forget(self, keys: Collection[str]) -> None:
        """Trim, without some workloads; their trials stay, so that none is made again."""
        self._indices = compact(self.folder, keys)
        self._lines = len(self._indices)

    def _check_fingerprint(self, move_aside: bool) -> None:
        wanted = tuning_log.fingerprint(self._target)
        stored = tuning_log.stored_fingerprint(self.folder)
        names = (tuning_log.WORKLOADS, tuning_log.RECORDS, JOURNAL)
        if stored is None and any((self.folder / name).exists() for name in names):
            stored = {}
        different = "" if stored is None else tuning_log.differences(stored, wanted)
        if different and not move_aside:
            raise IntswinError(
                f"{self.folder} was tuned with other {different}; "
                "--move-aside keeps it under another name and starts anew"
            )
        if different:
            self._move_aside((*names, tuning_log.FINGERPRINT))
        if different or stored is None:
            text = json.dumps(wanted, indent=1) + "\n"
            write_file(self.folder / tuning_log.FINGERPRINT, text.encode())

    def _move_aside(self, names: tuple[str, ...]) -> None:
        number = 1
        while (old := self.folder.with_name(f"{self.folder.name}.old{number}")).exists():
            number += 1
        old.mkdir()
        for name in names:
            if (self.folder / name).exists():
                (self.folder / name).rename(old / name)

    def _read_journal(self) -> tuple[dict[str, Trials], int]:
        trials: dict[str, Trials] = {}
        broken = 0
        path = self.folder / JOURNAL
        for line in path.read_text(errors="replace").splitlines() if path.exists() else ():
            try:
                entry = json.loads(line)
                seconds = None if "error" in entry else float(entry["seconds"])
                tile = space.tile(self._target, entry["tile"])
                trials.setdefault(entry["workload"], {})[tile] = seconds
            except (ValueError, TypeError, KeyError):
                broken += 1
        return trials, broken

    def _append(self, name: str, lines: list[Any]) -> None:
        """Append lines of JSON by one write, on a new line even behind one that is torn."""
        path = self.folder / name
        text = "".join(json.dumps(line, separators=(",", ":")) + "\n" for line in lines)
        try:
            with path.open("ab+", buffering=0) as file:
                size = file.seek(0, os.SEEK_END)
                if size:
                    file.seek(size - 1)
                    if file.read(1) != b"\n":
                        text = "\n" + text
                file.write(text.encode())
                os.fsync(file.fileno())
        except OSError as error:
            raise IntswinError(f"cannot write {path}: {error.strerror or error}") from error


def _without_spaces(workload: list[str]) -> list[str]:
    """A workload's [hash, module], of half the size.

    The module is base64 of a 64-bit length and a JSON text, which TVM writes with indentation.
    """
    key, encoded = workload
    text = json.loads(base64.b64decode(encoded)[8:])
    data = json.dumps(text, separators=(",", ":")).encode()
    return [key, base64.b64encode(struct.pack("<Q", len(data)) + data).decode()]


def _fields(tile: Tile) -> list[int]:
    return list(vars(tile).values())
