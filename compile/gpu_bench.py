"""Race forms of one network on a GPU, for one batch: built one by one, then timed in turns.

Everything runs in one stream of this process. A sample is some calls between two CUDA events,
long enough that the events do not count; the clocks of a GPU drift, so compare within a race only.
"""

from __future__ import annotations

import dataclasses
import gc
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from intswin.compile.bench import summary
from intswin.models.errors import IntswinError

Call = Callable[[], Any]
Say = Callable[[str], None]

SAMPLE_SECONDS = 4e-3  # a sample lasts about that long
MOST_CALLS = 200  # of a sample
WARM_UP_SECONDS = 0.3  # for each, so that clocks and caches are those of steady work
FEWEST_ROUNDS = 5
SLOW_SECONDS = 100.0  # to build; more than measuring the others takes


@dataclasses.dataclass(frozen=True)
class Contestant:
    """One form of the network.

    Attributes:
        name: key in the report.
        label: for people.
        build: makes the call that computes one batch in the current stream of torch.
        seconds: that building takes, about; an expensive one is left out when time is short.
    """

    name: str
    label: str
    build: Callable[[], Call]
    seconds: float = 5.0


def race(
    contestants: Sequence[Contestant],
    batch: int,
    time_calls: Callable[[Call, int], float],
    deadline: float,
    measure_seconds: float,
    say: Say,
    keep: Callable[[dict[str, dict[str, Any]]], None] = lambda rows: None,
) -> dict[str, dict[str, Any]]:
    """Build and time them.

    Args:
        contestants: in the order in which they are built; the first is what others compare with.
        batch: images of a call.
        time_calls: seconds of some calls in a row, by the GPU's clock.
        deadline: by time.monotonic(), for the measurement too.
        measure_seconds: for all together.
        say: is given progress.
        keep: is given the rows of all before a slow one is built, should that never end.

    Returns:
        for each a row of `bench.summary` with its label, or {"label", "reason"} without numbers;
        no row has a ratio when the first contestant has no numbers.

    Raises:
        IntswinError: one of them failed after it was built; it is named.
    """
    rows: dict[str, dict[str, Any]] = {}
    calls: dict[str, Call] = {}
    counts: dict[str, int] = {}

    def timed() -> dict[str, dict[str, Any]]:
        samples = _take_turns(calls, counts, time_calls, measure_seconds, deadline)
        base = samples.get(contestants[0].name)
        return rows | {
            name: {**rows[name], **summary(times, batch, base), "calls_a_sample": counts[name]}
            for name, times in samples.items()
        }

    for one in contestants:
        slow = one.seconds >= SLOW_SECONDS
        left = deadline - (1 + slow) * measure_seconds - time.monotonic()
        if calls and one.seconds > left:
            reason = f"no time left to build it ({one.seconds:.0f} s)"
            rows[one.name] = {"label": one.label, "reason": reason}
            say(f"{one.name}: {reason}")
            continue
        if calls and slow:
            keep(timed())
        rows[one.name] = {"label": one.label}
        start = time.monotonic()
        try:
            call = one.build()
            counts[one.name] = _warm_up(call, time_calls)
        except Exception as error:  # of torch, CUDA or the compiler; the others go on
            lines = str(error).strip().splitlines() or [type(error).__name__]
            # Torch says what is wrong in the first line, TVM in the last one.
            reason = " ... ".join(dict.fromkeys([lines[0], lines[-1]]))
            rows[one.name]["reason"] = reason
            say(f"{one.name}: FAILED: {reason}")
            gc.collect()
            continue
        calls[one.name] = call
        say(f"{one.name}: ready after {time.monotonic() - start:.1f} s")
    return timed()


def _warm_up(call: Call, time_calls: Callable[[Call, int], float]) -> int:
    """Run for a while; returns how many calls make a sample."""
    time_calls(call, 3)
    start, seconds = time.monotonic(), time_calls(call, 3) / 3
    while time.monotonic() - start < WARM_UP_SECONDS:
        seconds = time_calls(call, 3) / 3
    return min(MOST_CALLS, max(1, round(SAMPLE_SECONDS / seconds)))


def _take_turns(
    calls: dict[str, Call],
    counts: dict[str, int],
    time_calls: Callable[[Call, int], float],
    measure_seconds: float,
    deadline: float,
) -> dict[str, list[float]]:
    """Seconds of a call, one number for each round; each follows each other one equally often."""
    names = list(calls)
    samples: dict[str, list[float]] = {name: [] for name in names}
    end = min(time.monotonic() + measure_seconds, max(deadline, time.monotonic()))
    rounds = 0
    while names and (rounds < FEWEST_ROUNDS or time.monotonic() < end):
        first = rounds % len(names)
        for name in names[first:] + names[:first]:
            try:
                time_calls(calls[name], 1)  # brings the network's own data to the caches
                samples[name].append(time_calls(calls[name], counts[name]) / counts[name])
            except Exception as error:  # of CUDA: nothing runs in this process any more
                line = str(error).strip().split("\n")[0]
                raise IntswinError(f"{name} failed while it was timed: {line}") from error
        rounds += 1
    return samples


def speedups(rows: dict[str, dict[str, Any]]) -> dict[str, float]:
    """What the goals are about: how many times faster than others our ReLU network is."""
    medians = {name: row["median_ms"] for name, row in rows.items() if "median_ms" in row}
    ours = medians.get("ours-relu")
    if not ours:
        return {}
    found = {name: round(ms / ours, 3) for name, ms in medians.items() if name != "ours-relu"}
    torch = [value for name, value in found.items() if name.startswith("torch-")]
    return {**found, **({"fastest-torch": min(torch)} if torch else {})}


def median_us(times: Sequence[Sequence[tuple[str, float]]]) -> list[tuple[str, float]]:
    """Microseconds of each kernel in order: medians of some runs of `kernel_times`."""
    medians = 1e6 * np.median([[seconds for _, seconds in run] for run in times], axis=0)
    return [(name, float(us)) for (name, _), us in zip(times[0], medians, strict=True)]
