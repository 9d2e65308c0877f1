"""Time our integer networks against PyTorch fp16 on this GPU, in one run.

    python scripts/bench_gpu.py --minutes 8 --profile

Artifacts that are not in --artifacts yet are compiled first, in parallel. What is known is written
after every batch, and before max-autotune compiles, so that a run that is cut off keeps it. Weights
are random (no download), which does not change the speed. Left out for lack of time are the most
expensive to build first: max-autotune, which takes some 7 minutes a case; all five need 45 minutes.
"""

from __future__ import annotations

import argparse
import itertools
import os
import platform
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rich.console import Console

from intswin.compile import cuda_driver
from intswin.compile.gpu_artifacts import ArtifactSpec, Say, Stopwatch, build_missing
from intswin.models.command import script_command
from intswin.models.errors import IntswinError, run_script

PACKAGES = ("triton", "cupy")  # whose versions are recorded if they are installed
MEASURE_SECONDS = 12.0  # a case, all contestants together


def main() -> None:
    """Parse the command line, compile, race, write."""
    options = parse()
    if not options.prepare:
        cuda_driver.gpu()  # before minutes of compiling; the builders are spawned, not forked
    end, say = time.monotonic() + 60 * options.minutes, Stopwatch()
    cases = [case.rsplit(":", 1) for case in options.cases.split(",")]
    activations = options.activations.split(",")
    specs = [
        ArtifactSpec(network, activation, options.target, int(batch))
        for (network, batch), activation in itertools.product(cases, activations)
    ]
    seconds = 60 * options.build_minutes
    failures = build_missing(specs, options.artifacts, False, options.jobs, say, seconds)
    if options.prepare:
        sys.exit(1 if failures else 0)
    result = {**conditions(), "target": options.target, "cases": []}

    def keep(case: dict[str, Any]) -> None:
        save({**result, "cases": [*result["cases"], case]}, options.json, say)

    for place, (network, batch) in enumerate(cases):
        left = end - time.monotonic()
        if left <= 0 and result["cases"]:
            say(f"{network} batch {batch}: no time left")
            continue
        share = time.monotonic() + left / (len(cases) - place)
        result["cases"].append(run_case(network, int(batch), options, share, say, keep))
        save(result, options.json, say)
    report(result)


def parse() -> argparse.Namespace:
    """The options."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    tiny, base = "swin_tiny_patch4_window7_224", "swin_base_patch4_window7_224"
    default = ",".join([*(f"{tiny}:{batch}" for batch in (32, 1, 8, 128)), f"{base}:32"])
    add("--minutes", type=float, default=10.0, help="for everything together")
    add("--cases", default=default, help="network:batch, separated by commas, in this order")
    add("--activations", default="relu,igelu,shiftgelu", help="of our networks")
    add("--torch", default="eager,graph,reduce-overhead,max-autotune", help="modes, or nothing")
    add("--torch-activations", default="gelu,relu", help="of PyTorch's networks")
    add("--target", default="cuda-h100")
    add("--artifacts", type=Path, default=Path("out/gpu"), help="folder of artifacts")
    add("--prepare", action="store_true", help="compile the artifacts, measure nothing")
    add("--build-minutes", type=float, default=10.0, help="limit of compiling")
    add(
        "--jobs", type=int, default=min(8, os.cpu_count() or 1), help="builders; 0: compile nothing"
    )
    add("--profile", action="store_true", help="also time every kernel of our ReLU network")
    add("--json", type=Path, default=Path("docs/results/bench_gpu.json"))
    return parser.parse_args()


def run_case(
    network: str,
    batch: int,
    options: argparse.Namespace,
    deadline: float,
    say: Say,
    keep: Callable[[dict[str, Any]], None],
) -> dict[str, Any]:
    """Race all contestants of one network and batch; `keep` is given what is known before that."""
    import torch  # noqa: PLC0415 - a builder imports this script too

    from intswin.compile import gpu_bench  # noqa: PLC0415
    from intswin.compile import gpu_bench_contestants as who  # noqa: PLC0415

    activations = options.activations.split(",")
    folder, target = options.artifacts, options.target
    contestants = [who.ours(network, name, target, batch, folder) for name in activations]
    contestants.append(who.ours_launched(network, target, batch, folder))
    modes = [mode for mode in options.torch.split(",") if mode]
    contestants += who.torch_fp16(network, batch, modes, options.torch_activations.split(","))
    say(f"{network} batch {batch}: building")
    clock = who.torch_clock(torch.cuda.Stream())

    def case_of(rows: dict[str, Any]) -> dict[str, Any]:
        speedups = gpu_bench.speedups(rows)
        return {"network": network, "batch": batch, "rows": rows, "speedups": speedups}

    rows = gpu_bench.race(
        contestants,
        batch,
        clock,
        deadline,
        MEASURE_SECONDS,
        say,
        lambda known: keep(case_of(known)),
    )
    case = case_of(rows)
    for name, row in rows.items():
        if "median_ms" in row:
            say(f"{network} batch {batch}: {name} {row['median_ms']:.4f} ms")
    if options.profile:
        names = [name for name in activations if name in ("relu", "igelu")]
        case["profile"] = {name: profile(network, name, batch, options, say) for name in names}
    who.reset_torch()
    return case


def profile(
    network: str, activation: str, batch: int, options: argparse.Namespace, say: Say
) -> Any:
    """Time every kernel of one of our networks; by kernel alone where operators share kernels."""
    from intswin.compile import artifact, gpu_peak, operator_profile  # noqa: PLC0415
    from intswin.compile import gpu_bench_contestants as who  # noqa: PLC0415
    from intswin.compile.fuse_kernels import fuse_for_target  # noqa: PLC0415
    from intswin.compile.gpu_bench import median_us  # noqa: PLC0415
    from intswin.compile.targets import get_target  # noqa: PLC0415

    spec = ArtifactSpec(network, activation, options.target, batch)
    label = f"{network} {activation}, batch {batch}"
    try:
        opened = who.open_ours(spec, options.artifacts)
        images = who.images(batch, opened.preprocess.image_size)
        runs = [opened.kernel_times(images) for _ in range(3)]
    except IntswinError as error:
        say(f"{label}: not profiled: {error}")
        return str(error)
    peak = gpu_peak.data_sheet(cuda_driver.gpu().name)
    graph = artifact.read(spec.path(options.artifacts)).graph()
    graph = fuse_for_target(graph, batch, get_target(options.target))
    try:
        rows = operator_profile.profile(graph, batch, runs)
    except IntswinError as error:
        say(f"{label}: {error}")
        return [{"kernel": name, "us": round(us, 3)} for name, us in median_us(runs)]
    Console(width=130).print(gpu_peak.table(label, rows, peak))
    return gpu_peak.to_json(rows, peak)


def conditions() -> dict[str, Any]:
    """What the numbers depend on."""
    from intswin.compile import gpu_peak  # noqa: PLC0415
    from intswin.compile.bench import machine_conditions  # noqa: PLC0415

    gpu = cuda_driver.gpu()
    peak = gpu_peak.data_sheet(gpu.name)
    return {
        **machine_conditions(PACKAGES),
        "device": gpu.name,
        "driver": gpu.driver,
        "gpu": vars(gpu),
        "peak": vars(peak) if peak else None,
        "weights": "random (swin_micro: trained); speed does not depend on them",
        "python": platform.python_version(),
        "command": script_command(),
    }


def save(result: dict[str, Any], path: Path, say: Say) -> None:
    """Write what is known so far."""
    from intswin.compile import gpu_bench_report  # noqa: PLC0415

    say("wrote " + ", ".join(str(file) for file in gpu_bench_report.write(result, path)))


def report(result: dict[str, Any]) -> None:
    """Print the table and what follows from it."""
    from intswin.compile import gpu_bench_report  # noqa: PLC0415

    for line in gpu_bench_report.conclusions(result):
        print(line)
    Console(width=150).print(gpu_bench_report.table(result))


if __name__ == "__main__":
    run_script(main)
