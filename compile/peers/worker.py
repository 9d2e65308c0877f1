"""One competitor in a process of its own: `python -m intswin.compile.peers.worker STEP TASK`.

STEP `prepare` writes files and ends. STEP `serve` loads, then answers one request a line until its
stdin closes; between requests it is blocked on the pipe, so that it takes no core from the others.
Answers are JSON lines on stdout; whatever frameworks print goes to stderr.
"""

from __future__ import annotations

import importlib
import json
import os
import sys
import time
from collections.abc import Callable
from typing import IO, Any

import numpy as np

from intswin.compile.peers.task import Loaded, Task, peak_memory_mb

# Untimed calls at the start of a burst wake threads and warm caches: one, and more for so long.
WAKE_SECONDS = 0.02


def main() -> None:
    """Read the task, do the step, report."""
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    step, task = sys.argv[1], Task.from_json(sys.argv[2])
    start = time.perf_counter()
    try:
        _use_cores(task.threads)
        module = importlib.import_module(task.competitor.module)
        if step == "prepare":
            details = module.prepare(task) or {}
            _answer(answers, **details, **_cost(start))
            return
        loaded: Loaded = module.load(task)
        first = loaded.logits(loaded.run())
        reply = {"logits": (first * loaded.scale).tolist(), **_cost(start)}
        if loaded.exact is not None:
            reply["bit_exact"] = bool(np.array_equal(first, loaded.exact))
        _answer(answers, **reply)
    except Exception as error:  # any framework, any reason: it becomes a row of the report
        _answer(answers, error=_one_line(error))
        raise
    for line in sys.stdin:
        _serve(loaded, json.loads(line), answers)


def _serve(loaded: Loaded, request: dict[str, Any], answers: IO[str]) -> None:
    try:
        if request["do"] == "kernels":
            assert loaded.kernel_times is not None
            _wake(loaded.kernel_times)
            times = [loaded.kernel_times() for _ in range(request["calls"])]
            _answer(answers, kernels=times)
        else:
            _answer(answers, seconds=_timed(loaded.run, request["calls"]))
    except Exception as error:
        _answer(answers, error=_one_line(error))
        raise


def _timed(run: Callable[[], Any], calls: int) -> list[float]:
    _wake(run)
    times = []
    for _ in range(calls):
        start = time.perf_counter()
        run()
        times.append(time.perf_counter() - start)
    return times


def _wake(run: Callable[[], Any]) -> None:
    start = time.perf_counter()
    run()
    while time.perf_counter() - start < WAKE_SECONDS:
        run()


def _use_cores(count: int) -> None:
    """Stay on the first cores: nobody gains by threads that it was not asked to use."""
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:count])


def _cost(start: float) -> dict[str, float]:
    return {"seconds": round(time.perf_counter() - start, 2), "peak_mb": peak_memory_mb()}


def _answer(answers: IO[str], **fields: Any) -> None:
    print(json.dumps(fields), file=answers, flush=True)


def _one_line(error: Exception) -> str:
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text}"[:300]


if __name__ == "__main__":
    main()
