"""Tune small kernels; `tune_program.py FOLDER TRIALS [TARGET]` tunes one, for other processes."""

import sys
import time
from pathlib import Path

import numpy as np
from rich.console import Console

import graphs
from intswin.compile import tune
from intswin.compile.targets import get_target
from intswin.compile.tuner.store import Store
from intswin.compile.tuner.tasks import extract_tasks
from operator_runner import emit_operator

CASES = {
    "relu": graphs.random_linear(np.random.default_rng(0), 49, 64, 128, zero_point=0),
    "residual": graphs.random_linear(
        np.random.default_rng(0), 49, 128, 64, out="i16", residual=True
    ),
}
ONE_CASE = {"relu": CASES["relu"]}


def tune_small(folder, trials, target_name="llvm", cases=CASES, **options):
    """Tune to the end; returns the tasks."""
    target = get_target(target_name)
    tasks = extract_tasks(((emit_operator(case, 1, target), 1) for case in cases.values()), target)
    store = Store(Path(folder), target)
    try:
        chosen = tune.TuneOptions((), trials=trials, **options)
        console = Console(highlight=False, width=120)
        tune.run_job(tasks, target, store, chosen, time.monotonic() + 300, console)
        store.trim()
    finally:
        store.close()
    return tasks


if __name__ == "__main__":
    tune_small(sys.argv[1], int(sys.argv[2]), *sys.argv[3:], cases=ONE_CASE)
