"""Compare CUDA code with the NumPy reference and with the CPU build, bit for bit.

    python scripts/check_cuda.py --prepare --jobs 4      # anywhere: artifacts and references
    python scripts/check_cuda.py                         # on the GPU; makes what is missing

Every network is compared by its int32 logits, and every kernel of it alone on random inputs over
its whole domain, so that a wrong kernel has a name. Code for cuda-v100 and cuda-t4 runs on a newer
GPU by its PTX, if the driver is as new as the NVRTC that made it. Exit code 1: something differs,
or could not be compiled or run; 2: there is no GPU.
"""

from __future__ import annotations

import argparse
import dataclasses
import datetime
import itertools
import json
import multiprocessing
import os
import platform
import sys
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from intswin.compile import artifact, cuda_check, cuda_driver, runtime
from intswin.compile.cuda_check import FAILED, Comparison
from intswin.compile.gpu_artifacts import ArtifactSpec, Say, Stopwatch, build_missing
from intswin.compile.targets import get_target
from intswin.models.command import script_command
from intswin.models.errors import IntswinError, run_script
from intswin.models.files import write_file
from intswin.models.preprocess import Preprocess

# Between two comparisons, with the start of CUDA and the reference: a kernel may hang.
KERNEL_SECONDS, NETWORK_SECONDS = 120.0, 600.0
MOST_PROCESSES = 6  # for the kernels of an artifact: a new one behind each that fails
IMAGES = {"swin_micro": 256, "swin_tiny_patch4_window7_224": 8}
BATCHES = {"swin_micro": 32, "swin_tiny_patch4_window7_224": 8}


def main() -> None:
    """Parse the command line, make what is missing, compare."""
    options = parse()
    if not options.prepare:
        cuda_driver.gpu()  # before minutes of compiling; all processes are spawned, not forked
    say = Stopwatch()
    networks, activations = options.networks.split(","), options.activations.split(",")
    targets = options.targets.split(",")
    cases = [
        ArtifactSpec(network, activation, target, options.batch or BATCHES.get(network, 1))
        for target, network, activation in itertools.product(targets, networks, activations)
    ]
    on_cpu = [dataclasses.replace(case, target="llvm") for case in cases]
    folder, jobs, seconds = options.artifacts, options.jobs, 60 * options.build_minutes
    failures = build_missing(cases, folder, options.kernels, jobs, say, seconds)
    failures |= build_missing(on_cpu, folder, False, jobs, say, seconds)
    if options.prepare:
        for case in dict.fromkeys(on_cpu):
            if case not in failures:
                prepare_reference(case, options, say)
        sys.exit(1 if failures else 0)
    rows: list[dict[str, Any]] = []
    for case in cases:
        for comparison in check(case, failures.get(case, ""), options, say):
            rows.append({"artifact": case.name, **dataclasses.asdict(comparison)})
            if comparison.different:
                of = f"{comparison.different} of {comparison.count}"
                say(f"{case.name}: {comparison.what}: {of} DIFFERENT, {comparison.detail}")
            write(rows, options)
        own = [row for row in rows if row["artifact"] == case.name]
        exact = sum(not row["different"] for row in own)
        say(f"{case.name}: {exact} of {len(own)} comparisons are bit-exact")
    Console(width=150).print(table(rows), f"on {cuda_driver.gpu().name}")
    wrong = [row for row in rows if row["different"]]
    print(f"{len(rows) - len(wrong)} of {len(rows)} comparisons are bit-exact", flush=True)
    sys.exit(1 if wrong else 0)


def parse() -> argparse.Namespace:
    """The options."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--artifacts", type=Path, default=Path("out/gpu"), help="folder of artifacts")
    add("--reference", type=Path, help="file of logits; default: reference.npz in that folder")
    add("--prepare", action="store_true", help="compile and compute references, run nothing")
    add("--data", type=Path, help="pack of images for swin_micro; default: random pixels")
    add("--networks", default=",".join(IMAGES))
    add("--activations", default="relu,igelu,shiftgelu")
    add("--targets", default="cuda-h100,cuda-v100")
    add("--batch", type=int, help="default: 32 for swin_micro, 8 for swin_tiny")
    add("--images", type=int, help="default: 256 for swin_micro, 8 for swin_tiny")
    add("--no-kernels", dest="kernels", action="store_false", help="networks only")
    add("--build-minutes", type=float, default=10.0, help="limit of compiling")
    add(
        "--jobs", type=int, default=min(8, os.cpu_count() or 1), help="builders; 0: compile nothing"
    )
    add("--json", type=Path, default=Path("out/gpu/check.json"))
    options = parser.parse_args()
    options.reference = options.reference or options.artifacts / "reference.npz"
    return options


def inputs_of(case: ArtifactSpec, metadata: dict[str, Any], options: argparse.Namespace) -> Any:
    """The images that a network is checked on."""
    preprocess = Preprocess.from_json(metadata["preprocessing"])
    data = options.data if case.network == "swin_micro" else None
    return cuda_check.images_for(preprocess, options.images or IMAGES.get(case.network, 8), data)


def prepare_reference(case: ArtifactSpec, options: argparse.Namespace, say: Say) -> None:
    """Compute and keep the logits of the reference and of the CPU build."""
    path = case.path(options.artifacts)
    stored = artifact.read(path)
    images = inputs_of(case, stored.metadata, options)
    references = cuda_check.References(options.reference)
    say(f"{case.name}: reference of {len(images)} images")
    expected = cuda_check.reference_logits(stored, images, references)
    own = cuda_check.llvm_logits(path, stored, images, references)
    different = Comparison.of("llvm", own, expected).different
    say(f"{case.name}: {different} of {expected.size} logits of the CPU build differ")


def check(
    case: ArtifactSpec, failure: str, options: argparse.Namespace, say: Say
) -> Iterator[Comparison]:
    """All comparisons of one artifact, each as soon as it is known."""
    if failure:
        yield Comparison("compilation", 1, 1, failure)
        return
    count = 0
    for _ in range(MOST_PROCESSES if options.kernels else 0):
        failed = False
        for comparison in in_process(KERNEL_SECONDS, kernels, case, options, count):
            count += 1
            failed = comparison.detail.startswith(FAILED)
            yield comparison
        if not failed:
            break
    yield from in_process(NETWORK_SECONDS, network, case, options, say)


def in_process(
    seconds: float, function: Callable[..., Iterator[Comparison]], *arguments: Any
) -> Iterator[Comparison]:
    """What the function yields in a process of its own, which a kernel may end or stop for ever."""
    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=send_all, args=(sender, function, arguments))
    process.start()
    sender.close()
    last: Comparison | None = None
    try:
        while receiver.poll(seconds):
            received = receiver.recv()
            if received is None:
                return
            last = received
            yield received
        process.kill()
        yield Comparison("process", 1, 1, f"{FAILED}no answer in {seconds:.0f} s")
    except (EOFError, OSError):
        if last is None or not last.detail.startswith(FAILED):
            process.join()
            yield Comparison("process", 1, 1, f"{FAILED}it ended with {process.exitcode}")
    finally:
        receiver.close()
        process.join()


def send_all(
    sender: Connection, function: Callable[..., Iterator[Comparison]], arguments: tuple
) -> None:
    """The process of `in_process`; None comes last."""
    for comparison in function(*arguments):
        sender.send(comparison)
    sender.send(None)


def kernels(case: ArtifactSpec, options: argparse.Namespace, skip: int) -> Iterator[Comparison]:
    """Each kernel alone, but for the first `skip`."""
    stored = artifact.read(case.path(options.artifacts))
    library = case.kernels_path(options.artifacts).read_bytes()
    graph, target = stored.graph(), get_target(case.target)
    try:
        runtime.check_runs_here(stored)
        runtime.prepare_device(stored.metadata)
        yield from cuda_check.check_kernels(graph, library, case.batch, target, 0, skip)
    except IntswinError as error:
        yield Comparison("kernels", 1, 1, str(error))


def network(case: ArtifactSpec, options: argparse.Namespace, say: Say) -> Iterator[Comparison]:
    """The logits, against the reference and against the CPU build."""
    path = case.path(options.artifacts)
    stored = artifact.read(path)
    images = inputs_of(case, stored.metadata, options)
    references = cuda_check.References(options.reference)
    try:
        logits = runtime.load(path).logits(images)
    except Exception as error:
        yield Comparison("network", 1, 1, FAILED + str(error).strip().splitlines()[-1])
        return
    say(f"{case.name}: {len(images)} images ran")
    expected = cuda_check.reference_logits(stored, images, references)
    yield Comparison.of(f"{len(images)} images, reference", logits, expected)
    cpu_path = dataclasses.replace(case, target="llvm").path(options.artifacts)
    if not cpu_path.exists():
        say(f"{case.name}: there is no artifact for the CPU, so it is not compared")
        return
    cpu = artifact.read(cpu_path)
    if cpu.graph_bytes != stored.graph_bytes:
        say(f"{case.name}: the CPU's artifact is of another calibration, so not compared")
    else:
        own = cuda_check.llvm_logits(cpu_path, cpu, images, references)
        yield Comparison.of(f"{len(images)} images, llvm", logits, own)


def table(rows: list[dict[str, Any]]) -> Table:
    """A line for each artifact, and one for everything that differs."""
    shown = Table("artifact", "kernels exact", "network", "first difference")
    for name, found in itertools.groupby(rows, key=lambda row: row["artifact"]):
        group = list(found)
        networks = [row for row in group if "images" in row["what"]]
        kernels = [row for row in group if "images" not in row["what"]]
        exact = sum(not row["different"] for row in kernels)
        verdicts = [
            f"{row['what']}: {'exact' if not row['different'] else 'DIFFERENT'}" for row in networks
        ]
        wrong = next((row for row in group if row["different"]), None)
        detail = f"{wrong['what']}: {wrong['detail']}" if wrong else ""
        shown.add_row(name, f"{exact}/{len(kernels)}", "\n".join(verdicts), detail)
    return shown


def write(rows: list[dict[str, Any]], options: argparse.Namespace) -> None:
    """Keep what is known so far."""
    result = {
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "command": script_command(),
        "device": cuda_driver.gpu().name,
        "python": platform.python_version(),
        "rows": rows,
    }
    write_file(options.json, json.dumps(result, indent=1).encode())


if __name__ == "__main__":
    run_script(main)
