"""Time the variants of one network against each other on this machine.

The variants take turns within one run, because a machine's speed drifts by more than the
differences that matter; compare medians within a run, never across runs.
"""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import importlib.metadata
import os
import platform
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from intswin.compile import host_cpu, runtime
from intswin.compile.compiled_network import Network
from intswin.compile.tvm_runtime import VirtualMachine, aligned_empty, use_all_cores
from intswin.models.command import intswin_command
from intswin.models.errors import IntswinError

INTEGER = ("relu", "igelu", "shiftgelu")
FLOAT = ("float", "torch")  # float32 with GELU: through TVM, and PyTorch eager
CALLS_A_TURN = 3  # timed ones, after one that wakes the variant's threads
WARM_UP_TURNS = 3
PACKAGES = ("intswin", "apache-tvm", "apache-tvm-ffi", "torch", "timm", "numpy")

Progress = Callable[[str], None]
KernelTimes = list[tuple[str, float]]


@dataclass(frozen=True)
class BenchOptions:
    """What to measure.

    Attributes:
        network: swin_micro or a timm name; other networks than swin_micro get random weights.
        target: one that this machine can run. On a GPU, images are copied to it and logits back,
            and the FLOAT variants, which use the CPU, are left out.
        threads: of TVM and torch; None for every core.
        variants: of INTEGER and FLOAT, in the order of the report.
        rounds: timed calls of each variant.
        profile: also time each kernel of the variants that TVM compiled.
        cuda_graph: on a GPU, run a network by one graph, not by a launch for each kernel.
    """

    network: str
    target: str
    batch: int
    threads: int | None
    variants: tuple[str, ...]
    rounds: int
    profile: bool
    cuda_graph: bool = True

    def __post_init__(self) -> None:
        for name in self.variants:
            if name not in INTEGER + FLOAT:
                known = ", ".join(INTEGER + FLOAT)
                raise IntswinError(f"unknown variant {name!r}; use some of: {known}")


@dataclass(frozen=True)
class Variant:
    """One form of the network, compiled and ready: `run` computes one batch."""

    name: str
    run: Callable[[], Any]
    kernel_times: Callable[[], KernelTimes] | None


def run(options: BenchOptions, progress: Progress) -> dict[str, Any]:
    """Compile the variants and time them in turns.

    Returns:
        A JSON object: the conditions, and for each variant milliseconds a batch (median, p95, mean,
        min, max and every sample), images a second, and the median as a multiple of ReLU's (or the
        first variant's).

    Raises:
        IntswinError: the target does not run here, or the pipeline's errors.
    """
    if options.threads:
        os.environ["TVM_NUM_THREADS"] = str(options.threads)
    use_all_cores()
    if options.target.startswith("cuda"):
        integer = tuple(name for name in options.variants if name in INTEGER)
        if not integer:
            raise IntswinError(
                f"on a GPU only {', '.join(INTEGER)} can be measured; "
                "scripts/bench_gpu.py compares with PyTorch there"
            )
        options = dataclasses.replace(options, variants=integer)
    variants = _make_variants(options, progress)
    turns = -(-options.rounds // CALLS_A_TURN)
    samples: dict[str, list[float]] = {variant.name: [] for variant in variants}
    for turn in range(-WARM_UP_TURNS, turns):
        progress(f"measuring, turn {max(turn + 1, 0)} of {turns}")
        # Each follows each other one equally often: threads that still spin slow the next one down.
        first = turn % len(variants)
        for variant in variants[first:] + variants[:first]:
            times = _timed(variant.run)
            if turn >= 0:
                samples[variant.name] += times
    base = "relu" if "relu" in samples else options.variants[0]
    result: dict[str, Any] = {
        **_conditions(options),
        "ratio_to": base,
        "variants": {
            name: summary(times, options.batch, samples[base]) for name, times in samples.items()
        },
    }
    if options.profile:
        progress("timing kernels")
        result["kernels_ms"] = {
            variant.name: median_kernels(variant.kernel_times)
            for variant in variants
            if variant.kernel_times is not None
        }
    return result


def _make_variants(options: BenchOptions, progress: Progress) -> list[Variant]:
    from intswin.compile import cuda_runtime  # noqa: PLC0415
    from intswin.compile.cuda_toolchain import ptx_arch  # noqa: PLC0415
    from intswin.compile.pipeline import (  # noqa: PLC0415
        CompileOptions,
        compile_network,
        load_float_network,
    )
    from intswin.compile.targets import get_target, is_cuda  # noqa: PLC0415

    target = get_target(options.target)
    if is_cuda(target):
        code = {"arch": str(target.attrs["arch"]), "ptx": ptx_arch(target)}
        reason, _ = cuda_runtime.check_runs_here(code)
    else:
        requirements = host_cpu.requirements(target)
        reason = host_cpu.missing(requirements["machine"], requirements["features"])
    if reason:
        raise IntswinError(f"target {options.target} cannot be measured here: {reason}")
    variants = {}
    for name in options.variants:
        if name in INTEGER:
            fields = CompileOptions(
                network=options.network, activation=name, target=options.target, batch=options.batch
            )
            compiled = compile_network(fields, partial(_step, progress, name))
            network = runtime.open_network(
                compiled.library, compiled.metadata, cuda_graph=options.cuda_graph
            )
            variants[name] = _integer_variant(name, network)
    float_names = [name for name in options.variants if name in FLOAT]
    if float_names:
        progress("float: importing the network")
        model = load_float_network(
            CompileOptions(network=options.network, activation="igelu", target=options.target)
        )
        size = model.preprocess.image_size
        pixels = model.preprocess.normalize(_images(options.batch, size))
        makers = {"torch": _torch_variant, "float": _float_variant}
        for name in float_names:
            progress(f"{name}: building")
            variants[name] = makers[name](model.model, pixels, options)
    return [variants[name] for name in options.variants]


def _step(progress: Callable[[str], None], name: str, step: str) -> None:
    progress(f"{name}: {step}")


def _integer_variant(name: str, network: Network) -> Variant:
    images = _images(network.batch, network.preprocess.image_size)
    return Variant(name, lambda: network(images), lambda: network.kernel_times(images))


def _torch_variant(model: Any, pixels: np.ndarray, options: BenchOptions) -> Variant:
    import torch  # noqa: PLC0415

    torch.set_num_threads(options.threads or host_cpu.usable_cores())
    tensor = torch.from_numpy(pixels)

    def call() -> Any:
        with torch.inference_mode():
            return model(tensor)

    return Variant("torch", call, None)


def _float_variant(model: Any, pixels: np.ndarray, options: BenchOptions) -> Variant:
    from intswin.compile.import_model import import_torch  # noqa: PLC0415
    from intswin.compile.schedules.float_default import build_float  # noqa: PLC0415
    from intswin.compile.targets import get_target  # noqa: PLC0415

    batch, _, height, width = pixels.shape
    module = import_torch(model, (height, width), batch)
    executable = build_float(module, get_target(options.target))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "library.so"
        executable.export_library(str(path))
        machine = VirtualMachine(path.read_bytes())
    array = aligned_empty(pixels.shape, "float32")
    array[:] = pixels
    return Variant("float", lambda: machine.main(array), lambda: machine.kernel_times(array))


def _images(batch: int, size: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (batch, size, size, 3), np.uint8)


def _timed(call: Callable[[], Any]) -> list[float]:
    """Seconds of each call of one turn."""
    call()
    times = []
    for _ in range(CALLS_A_TURN):
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return times


def summary(seconds: list[float], batch: int, base: list[float] | None = None) -> dict[str, Any]:
    """A report's row: `seconds` of each call of one batch, and their ratio to those of `base`."""
    times = 1e3 * np.array(seconds)
    median = float(np.median(times))
    return {
        "median_ms": round(median, 4),
        "p95_ms": round(float(np.percentile(times, 95)), 4),
        "mean_ms": round(float(times.mean()), 4),
        "min_ms": round(float(times.min()), 4),
        "max_ms": round(float(times.max()), 4),
        "images_per_s": round(1e3 * batch / median, 2),
        **({} if base is None else {"ratio": round(median / (1e3 * float(np.median(base))), 4)}),
        "samples_ms": [round(float(t), 4) for t in times],
    }


def median_kernels(kernel_times: Callable[[], KernelTimes], calls: int = 10) -> dict[str, float]:
    """Milliseconds a batch spent in each kernel, most expensive first: medians of some calls."""
    runs: dict[str, list[float]] = {}
    for call in range(calls):
        for name, seconds in kernel_times():
            runs.setdefault(name, [0.0] * calls)[call] += 1e3 * seconds
    medians = {name: round(float(np.median(times)), 4) for name, times in runs.items()}
    return dict(sorted(medians.items(), key=lambda item: -item[1]))


def _conditions(options: BenchOptions) -> dict[str, Any]:
    return {
        "network": options.network,
        "target": options.target,
        "batch": options.batch,
        "rounds": options.rounds,
        "threads": int(os.environ.get("TVM_NUM_THREADS") or os.environ["OMP_NUM_THREADS"]),
        **machine_conditions(),
        **_gpu_conditions(options),
        "command": intswin_command(),
    }


def _gpu_conditions(options: BenchOptions) -> dict[str, Any]:
    """What replaces the CPU in the conditions."""
    if not options.target.startswith("cuda"):
        return {}
    from intswin.compile import cuda_driver  # noqa: PLC0415

    gpu = cuda_driver.gpu()
    return {"device": gpu.name, "driver": gpu.driver, "cuda_graph": options.cuda_graph}


def machine_conditions(packages: Sequence[str] = ()) -> dict[str, Any]:
    """What any measurement here depends on, with the versions of more `packages` if installed."""
    versions = {}
    for name in (*PACKAGES, *packages):
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions[name] = importlib.metadata.version(name)
    return {
        "device": "cpu",
        "cpu": host_cpu.cpu_name(),
        "cores": host_cpu.usable_cores(),
        "system": platform.platform(),
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "versions": versions,
    }
