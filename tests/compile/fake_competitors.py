"""Competitors that need no framework; the variant says how each behaves."""

import os
import time

import numpy as np

from intswin.compile.peers.task import Loaded

LOGITS = np.linspace(-1, 1, 20).reshape(2, 10)


def environment(threads):
    return {"FAKE_THREADS": str(threads)}


def prepare(task):
    if task.competitor.name == "inputs":
        for name in ("relu", "gelu"):
            np.save(task.path(f"logits_{name}.npy"), LOGITS)
    if task.competitor.variant == "unprepared":
        raise RuntimeError("cannot convert\nthis network")


def load(task):
    assert os.environ["FAKE_THREADS"] == str(task.threads)
    print("what frameworks print does not disturb the protocol")
    os.system("echo nor what their programs print")
    variant = task.competitor.variant
    if variant == "unloadable":
        raise ValueError("no such kernel")
    calls = 0

    def run():
        nonlocal calls
        calls += 1
        if variant == "dies" and calls > 5:
            os._exit(3)
        if variant == "hangs" and calls > 5:
            time.sleep(60)
        if variant == "raises" and calls > 5:
            raise RuntimeError("out of memory")
        time.sleep(0.02 if variant == "slow" else 0.002)
        return np.roll(LOGITS, 1) if variant == "wrong" else LOGITS

    if variant in ("exact", "inexact"):
        scale = 2.0 / 19
        return Loaded(
            run=lambda: np.round(run() / scale).astype(np.int32),
            scale=scale,
            exact=np.round(LOGITS / scale).astype(np.int32) + (variant == "inexact"),
        )
    return Loaded(run, lambda logits: logits[:1] if variant == "short" else logits)
