"""Measure competitors in turns: each in a worker process, a short burst of calls at a time.

A machine's speed drifts by more than the differences that matter, so everybody is measured in every
round, in an order that changes, while the others are blocked on their pipes.
"""

from __future__ import annotations

import dataclasses
import importlib.metadata
import os
import random
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from intswin.compile.host_cpu import usable_cores
from intswin.compile.peers import process
from intswin.compile.peers.process import CompetitorError, Worker
from intswin.compile.peers.task import Competitor, Task

BURST_SECONDS = 0.15
BURST_CALLS = (3, 15)  # at least and at most
PAUSE = 0.03  # seconds between bursts, in which the last one's threads stop spinning
BURST_TIMEOUT = 120.0
MIN_COSINE = 0.98  # below it the output is not this network's
IDLE_SECONDS = 1.0
INPUTS = Competitor("inputs", "inputs", "intswin.compile.peers.inputs", "", "relu")

Progress = Callable[[str], None]


@dataclass
class Entrant:
    """A competitor while it is measured.

    Attributes:
        reason: why it is not measured; empty while it is in the race.
        prepared: the answer of the step that prepared it (and others).
        first: the worker's first answer: seconds to load, peak memory, logits.
        calls: timed ones of its next burst.
        rounds: seconds of each call, by round.
    """

    task: Task
    worker: Worker | None = None
    reason: str = ""
    prepared: dict[str, Any] = field(default_factory=dict)
    first: dict[str, Any] = field(default_factory=dict)
    cosine: float = float("nan")
    snr_db: float = float("nan")
    calls: int = BURST_CALLS[0]
    rounds: list[list[float]] = field(default_factory=list)

    def drop(self, reason: str) -> None:
        """Take it out of the race."""
        self.reason = reason
        if self.worker is not None:
            self.worker.stop()
            self.worker = None


@dataclass(frozen=True)
class Race:
    """What `run` measured.

    Attributes:
        foreign_cores: mean number of cores that other processes used meanwhile.
        idle_cores: the same of our own workers while none was asked anything.
    """

    entrants: list[Entrant]
    foreign_cores: float
    idle_cores: float


def run(tasks: Iterable[Task], rounds: int, builders: int, progress: Progress) -> Race:
    """Build every competitor, check its output, and time them in turns.

    Args:
        tasks: a folder is of one network and batch.
        rounds: bursts of each.
        builders: how many are prepared and loaded at the same time.
        progress: is given one line a step.

    Raises:
        CompetitorError: the shared inputs cannot be made.
    """
    entrants = [Entrant(task) for task in tasks]
    progress("writing inputs")
    for task in {entrant.task.folder: entrant.task for entrant in entrants}.values():
        Path(task.folder).mkdir(parents=True, exist_ok=True)
        process.prepare(dataclasses.replace(task, competitor=INPUTS))
    try:
        _build(entrants, builders, progress)
        for entrant in entrants:
            _check(entrant)
        idle = _idle_cores(entrants)
        foreign = _measure(entrants, rounds, progress)
    finally:
        for entrant in entrants:
            if entrant.worker is not None:
                entrant.worker.stop()
    return Race(entrants, foreign, idle)


def _build(entrants: list[Entrant], builders: int, progress: Progress) -> None:
    """Prepare each module and activation once, then load; several at a time."""
    groups: dict[tuple[str, str, str], list[Entrant]] = {}
    for entrant in entrants:
        competitor = entrant.task.competitor
        missing = _missing(competitor.packages)
        if missing:
            entrant.reason = f"{missing} is not installed"
        else:
            key = (entrant.task.folder, competitor.module, competitor.activation)
            groups.setdefault(key, []).append(entrant)

    def load(entrant: Entrant) -> None:
        try:
            entrant.worker = Worker("serve", entrant.task)
            entrant.first = entrant.worker.answer(process.LOAD_TIMEOUT)
            progress(f"built {entrant.task.competitor.name} in {entrant.first['seconds']:.0f} s")
        except (CompetitorError, OSError) as error:
            entrant.drop(str(error))
            progress(f"{entrant.task.competitor.name}: {error}")

    def prepare(group: list[Entrant]) -> None:
        task = group[0].task
        progress(f"preparing {task.competitor.name} of {task.network}, batch {task.batch}")
        try:
            answer = process.prepare(task)
            for entrant in group:
                entrant.prepared = answer
        except (CompetitorError, OSError) as error:
            for entrant in group:
                entrant.drop(str(error))
            progress(f"{task.competitor.name}: {error}")

    # Loading waits for all preparations: both at once would take more memory.
    with ThreadPoolExecutor(builders) as pool:
        list(pool.map(prepare, groups.values()))
        list(pool.map(load, [e for group in groups.values() for e in group if not e.reason]))


def _check(entrant: Entrant) -> None:
    """Nobody is fast by being wrong: compare with the float32 network."""
    if entrant.worker is None:
        return
    task = entrant.task
    wanted = np.load(task.path(f"logits_{task.competitor.float_activation}.npy")).astype(np.float64)
    got = np.array(entrant.first.pop("logits"), np.float64)
    if got.shape != wanted.shape:
        entrant.drop(f"wrong output: shape {got.shape} instead of {wanted.shape}")
        return
    norms = np.linalg.norm(got) * np.linalg.norm(wanted)
    error = float(((got - wanted) ** 2).sum())
    entrant.cosine = float((got * wanted).sum() / norms) if norms > 0 else 0.0
    entrant.snr_db = 10 * float(np.log10((wanted**2).sum() / error)) if error > 0 else float("inf")
    if not entrant.cosine >= MIN_COSINE:
        entrant.drop(f"wrong output: cosine {entrant.cosine:.3f} to the float network")
    elif entrant.first.get("bit_exact") is False:
        entrant.drop("wrong output: not equal to the integer reference")


def _measure(entrants: list[Entrant], rounds: int, progress: Progress) -> float:
    """Time everybody `rounds` times after a warm-up; foreign cores meanwhile."""
    shuffled = random.Random(0)
    before = _processor_seconds(entrants)
    start = time.monotonic()
    for turn in range(-1, rounds):
        progress(f"round {turn + 1} of {rounds}")
        racing = [entrant for entrant in entrants if entrant.worker is not None]
        shuffled.shuffle(racing)
        for entrant in racing:
            assert entrant.worker is not None
            request = {"do": "time", "calls": entrant.calls}
            try:
                times = entrant.worker.ask(request, BURST_TIMEOUT)["seconds"]
            except CompetitorError as error:
                entrant.drop(f"failed in round {turn + 1}: {error}")
                continue
            entrant.calls = int(np.clip(BURST_SECONDS / np.median(times), *BURST_CALLS))
            if turn >= 0:
                entrant.rounds.append(times)
            time.sleep(PAUSE)
    elapsed = time.monotonic() - start
    everybody, ours = (b - a for a, b in zip(before, _processor_seconds(entrants), strict=True))
    return max(0.0, (everybody - ours) / elapsed)


def _idle_cores(entrants: list[Entrant]) -> float:
    """Cores that the workers use while nobody asks them anything."""
    time.sleep(IDLE_SECONDS)
    before = _processor_seconds(entrants)[1]
    time.sleep(IDLE_SECONDS)
    return (_processor_seconds(entrants)[1] - before) / IDLE_SECONDS


def _processor_seconds(entrants: list[Entrant]) -> tuple[float, float]:
    """Of the whole machine, the hypervisor's theft included, and of this process and workers."""
    workers = sum(e.worker.cpu_seconds() for e in entrants if e.worker is not None)
    times = os.times()
    ours = workers + sum(times[:4])  # ended workers are among the children
    try:
        line = Path("/proc/stat").read_text().splitlines()[0]
    except OSError:
        return ours, ours
    user, nice, system, _idle, _wait, *interrupts_and_theft = (int(x) for x in line.split()[1:9])
    ticks = user + nice + system + sum(interrupts_and_theft)
    return ticks / os.sysconf("SC_CLK_TCK"), ours


def _missing(packages: Iterable[str]) -> str:
    for package in packages:
        try:
            importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            return package
    return ""


def default_threads() -> int:
    """Four, or every core where there are fewer."""
    return min(4, usable_cores())
