"""Artifacts that the GPU scripts need, compiled ahead: here or on the GPU machine, in parallel.

Compiling takes no GPU, so a folder of artifacts can be made on any machine and carried. Builders
are spawned processes: none of them is a fork of a process that uses CUDA.
"""

from __future__ import annotations

import dataclasses
import multiprocessing
import os
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor, TimeoutError, as_completed
from pathlib import Path

from intswin.models.errors import IntswinError

Say = Callable[[str], None]
BUILD_SECONDS = 600.0
_KERNELS = ".kernels.so"  # beside an artifact: its different kernels, to be called alone


@dataclasses.dataclass(frozen=True)
class ArtifactSpec:
    """A network as the pipeline names it: random weights but for swin_micro."""

    network: str
    activation: str
    target: str
    batch: int

    @property
    def name(self) -> str:
        """The stem of its files."""
        return f"{self.network}_{self.activation}_{self.target}_b{self.batch}"

    def path(self, folder: Path) -> Path:
        """The artifact."""
        return folder / f"{self.name}.intswin"

    def kernels_path(self, folder: Path) -> Path:
        """The library of `emit.emit_kernels`."""
        return folder / f"{self.name}{_KERNELS}"


class Stopwatch:
    """Prints lines behind the time of day and the seconds since it was made; can be pickled."""

    def __init__(self) -> None:
        self._start = time.time()

    def __call__(self, line: str) -> None:
        """Print a line at once, so that a run that is cut off still tells."""
        print(
            f"[{time.strftime('%H:%M:%S')} +{time.time() - self._start:6.1f}s] {line}", flush=True
        )


def build_missing(
    specs: Sequence[ArtifactSpec],
    folder: Path,
    kernels: bool,
    jobs: int,
    say: Say,
    seconds: float = BUILD_SECONDS,
) -> dict[ArtifactSpec, str]:
    """Compile what is not in `folder` yet.

    Args:
        specs: what is needed.
        folder: made if missing.
        kernels: also make the libraries of single kernels.
        jobs: processes; 0: what is missing stays so.
        say: is given a line for each.
        seconds: for all together, after which the processes end.

    Returns:
        why some could not be compiled; empty when all are there.
    """
    folder.mkdir(parents=True, exist_ok=True)
    missing = []
    for spec in dict.fromkeys(specs):
        files = [spec.path(folder)] + [spec.kernels_path(folder)] * kernels
        if all(file.exists() for file in files):
            say(f"{spec.name}: made beforehand")
        else:
            missing.append(spec)
    failures: dict[ArtifactSpec, str] = {}

    def note(spec: ArtifactSpec, result: str | float) -> None:
        if isinstance(result, str):
            failures[spec] = result
            say(f"{spec.name}: NOT COMPILED: {result}")
        else:
            say(f"{spec.name}: compiled in {result:.0f} s")

    if jobs == 0:
        for spec in missing:
            note(spec, "it is not there, and --jobs 0 compiles nothing")
    elif missing:
        say(f"compiling {len(missing)} artifacts in {min(jobs, len(missing))} processes")
        threads = max(1, (os.cpu_count() or 1) // jobs)
        context = multiprocessing.get_context("spawn")
        pool = ProcessPoolExecutor(min(jobs, len(missing)), context)
        futures = {pool.submit(_build, spec, folder, kernels, threads): spec for spec in missing}
        try:
            for future in as_completed(futures, timeout=seconds):
                try:
                    note(futures[future], future.result())
                except Exception as error:  # the process died
                    note(futures[future], f"{type(error).__name__}: {error}")
        except TimeoutError:
            for future, spec in futures.items():
                if not future.done():
                    note(spec, f"not done after {seconds:.0f} s")
            for process in list(pool._processes.values()):
                process.kill()
        pool.shutdown(cancel_futures=True)
    return failures


def _build(spec: ArtifactSpec, folder: Path, kernels: bool, threads: int) -> float | str:
    """Compile one; seconds, or why it failed."""
    start = time.monotonic()
    os.environ["OMP_NUM_THREADS"] = os.environ["TVM_NUM_THREADS"] = str(threads)
    try:
        _compile(spec, folder, kernels)
    except IntswinError as error:
        return str(error)
    except Exception as error:
        lines = str(error).strip().splitlines() or [""]
        return f"{type(error).__name__}: {lines[0]} ... {lines[-1]}"
    return time.monotonic() - start


def _compile(spec: ArtifactSpec, folder: Path, kernels: bool) -> None:
    from intswin.compile import artifact  # noqa: PLC0415 - TVM takes seconds to import
    from intswin.compile.build import build, export  # noqa: PLC0415
    from intswin.compile.emit import emit_kernels  # noqa: PLC0415
    from intswin.compile.pipeline import CompileOptions  # noqa: PLC0415
    from intswin.compile.separate_gelu import compile_activation  # noqa: PLC0415
    from intswin.compile.targets import get_target  # noqa: PLC0415

    path = spec.path(folder)
    if path.exists():
        graph = artifact.read(path).graph()
    else:
        # The kernels and their speed are those of any calibration, so one photo will do.
        options = CompileOptions(
            network=spec.network,
            target=spec.target,
            batch=spec.batch,
            calibration_images=1,
        )
        compiled = compile_activation(options, spec.activation)
        compiled.save(path)
        graph = compiled.graph
    if kernels and not spec.kernels_path(folder).exists():
        target = get_target(spec.target)
        executable = build(emit_kernels(graph, spec.batch, target), target)
        partial = folder / f"{spec.name}.{os.getpid()}.so"
        export(executable, partial, target)
        partial.replace(spec.kernels_path(folder))
