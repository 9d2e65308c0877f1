"""Our integer-only network, by the pipeline that users call and the runtime that they call."""

from __future__ import annotations

import dataclasses
import hashlib
from pathlib import Path

import numpy as np

from intswin.compile.peers.task import SEED, Loaded, Task


def environment(threads: int) -> dict[str, str]:
    """TVM's thread pool; its idle threads stop spinning by themselves."""
    return {"TVM_NUM_THREADS": str(threads)}


def prepare(task: Task) -> None:
    """Compile, and compute the logits of the NumPy reference."""
    path = artifact_path(task)
    built_from = path.with_suffix(".sources")
    digest = _sources_digest()
    if built_from.exists() and built_from.read_text() == digest:
        return
    from intswin.compile.pipeline import CompileOptions, compile_network  # noqa: PLC0415
    from intswin.models import integer_reference  # noqa: PLC0415

    options = CompileOptions(
        network=task.network,
        activation=task.competitor.activation,
        batch=task.batch,
        seed=SEED,
    )
    if not options.embedded:
        options = dataclasses.replace(options, calibration=Path(task.data))
    compiled = compile_network(options)
    expected = integer_reference.run(compiled.graph, task.images)
    np.save(path.with_suffix(".npy"), expected)
    compiled.save(path)
    built_from.write_text(digest)


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
