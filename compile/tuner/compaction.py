"""What of a tuning log is kept when a job ends: the best records, and the workloads they are of.

Kernels of which nothing is faster than the default, and those whose records were dropped, would
leave their workloads behind, which are most of a log's bytes. A record names its workload by the
number of its line, so dropping one changes both files, and the process may be killed between the
two. So each step replaces one file, and after each the log says the same:

1. the records that are not kept go;
2. lines near the start without a record get copies of the lines at the end that have one;
3. the records of the copied lines name the copies;
4. the lines at the end, which no record names any more, go.

The next compaction finishes one that was interrupted.
"""

from __future__ import annotations

import json
from collections.abc import Collection
from pathlib import Path

from intswin.compile.tuning_log import RECORDS, WORKLOADS, Record, read_lines, read_log
from intswin.models.files import write_file

BEST_RECORDS = 3  # of a workload


def compact(folder: Path, dropped: Collection[str]) -> dict[str, int]:
    """Keep the best records of each workload and the workloads that have any; drop broken lines.

    Args:
        folder: of the log, which the caller has locked.
        dropped: hashes of workloads whose records are not kept.

    Returns:
        the number of the line, from 0, of each workload by its hash.

    Raises:
        IntswinError: the folder cannot be written; the log is whole nevertheless.
    """
    log = read_log(folder)
    kept = {key: found for key, found in log.records.items() if key not in dropped}
    # Of the two lines that an interruption may leave of a workload, either would do.
    numbers = {w[0]: n for n, w in enumerate(log.workloads) if w is not None and w[0] in kept}
    _write(folder / RECORDS, _record_lines(kept, numbers))

    count = len(numbers)
    free = iter(sorted(set(range(count)) - set(numbers.values())))
    lines = read_lines(folder / WORKLOADS)
    for key, number in numbers.items():
        if number >= count:
            numbers[key] = next(free)
            lines[numbers[key]] = lines[number]
    _write(folder / WORKLOADS, lines)
    _write(folder / RECORDS, _record_lines(kept, numbers))
    _write(folder / WORKLOADS, lines[:count])
    return numbers


def _record_lines(kept: dict[str, list[Record]], numbers: dict[str, int]) -> list[str]:
    return [
        json.dumps([numbers[key], record.fields], separators=(",", ":"))
        for key in sorted(kept, key=numbers.__getitem__)
        for record in kept[key][:BEST_RECORDS]
    ]


def _write(path: Path, lines: list[str]) -> None:
    """Replace a file by one rename, unless it has these lines already."""
    if lines != read_lines(path):
        write_file(path, "".join(f"{line}\n" for line in lines).encode())
