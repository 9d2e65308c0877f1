"""Our integer-only network, by the pipeline that users call and the runtime that they call."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from intswin.compile.peers.task import SEED, Loaded, Task, peak_memory_mb

if TYPE_CHECKING:
    from intswin.models.integer_graph import IntegerGraph


# Turns for which a thread of TVM's pool looks for work before it sleeps: about 12 ms. By default
# they are ten times as many, so that our pools would spin on into the next competitor's burst.
_SPINS = 30_000
UNTUNED = "relu-untuned"


def environment(threads: int) -> dict[str, str]:
    """TVM's thread pool; its threads sleep before the pause between bursts is over."""
    return {"TVM_NUM_THREADS": str(threads), "TVM_THREAD_POOL_SPIN_COUNT": str(_SPINS)}


def prepare(task: Task) -> dict[str, Any]:
    """Compile, and compute the logits of the NumPy reference.

    Returns:
        compile_seconds, without importing Python packages; compile_peak_mb, with them.
    """
    path = artifact_path(task)
    built = path.with_suffix(".json")
    digest = _sources_digest()
    if built.exists():
        known = json.loads(built.read_text())
        if known.pop("sources") == digest:
            return known
    from intswin.compile.pipeline import CompileOptions  # noqa: PLC0415
    from intswin.compile.separate_gelu import compile_activation  # noqa: PLC0415
    from intswin.compile.tuning_log import FOLDERS_VARIABLE  # noqa: PLC0415

    name = task.competitor.activation
    if name == UNTUNED:
        name = "relu"
        os.environ[FOLDERS_VARIABLE] = ""
    options = CompileOptions(
        network=task.network,
        batch=task.batch,
        seed=SEED,
    )
    if not options.embedded:
        options = dataclasses.replace(options, calibration=Path(task.data))
    start = time.perf_counter()
    compiled = compile_activation(options, name)
    cost = {
        "compile_seconds": round(time.perf_counter() - start, 2),
        "compile_peak_mb": peak_memory_mb(),
    }
    np.save(path.with_suffix(".npy"), _reference(compiled.graph, task.images))
    compiled.save(path)
    built.write_text(json.dumps({"sources": digest, **cost}))
    return cost


def load(task: Task) -> Loaded:
    """Open the artifact; logits are int32."""
    from intswin.compile import runtime  # noqa: PLC0415

    path = artifact_path(task)
    network = runtime.load(path)
    images = task.images
    return Loaded(
        run=lambda: network(images),
        scale=network.metadata["logit_scale"],
        exact=np.load(path.with_suffix(".npy")),
        kernel_times=lambda: network.kernel_times(images),
    )


def _reference(graph: IntegerGraph, images: np.ndarray) -> np.ndarray:
    """Its logits; a large batch repeats few images, and the reference is slow."""
    from intswin.models import integer_reference  # noqa: PLC0415

    flat = images.reshape(len(images), -1)
    _, first, where = np.unique(flat, axis=0, return_index=True, return_inverse=True)
    return integer_reference.run(graph, images[first])[where.reshape(-1)]


def artifact_path(task: Task) -> Path:
    """Where `prepare` leaves the artifact."""
    return task.path(f"ours_{task.competitor.activation}.intswin")


def _sources_digest() -> str:
    """Of our own files, so that no stale artifact is measured."""
    digest = hashlib.sha256()
    root = Path(__file__).parents[2]
    for folder in ("compile", "models", "tuning_logs"):
        for file in sorted((root / folder).rglob("*")):
            if file.suffix in (".py", ".json"):
                digest.update(str(file.relative_to(root)).encode() + file.read_bytes())
    return digest.hexdigest()
