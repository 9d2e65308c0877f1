"""Tune the CUDA kernels of the networks on this GPU, unattended, within a given time.

    python scripts/tune_cuda.py --minutes 6

or, where a GPU is scarce, with the candidates built ahead on a machine without one:

    python scripts/tune_cuda.py --prepare --builds out/builds --minutes 60
    python scripts/tune_cuda.py --builds out/builds --built-only --minutes 6

Kernels are measured alone. Then the fastest of each can be compared inside the networks, in some
minutes; with --prepare and --builds as well, to build ahead:

    python scripts/tune_cuda.py --in-network --targets cuda-h100 --minutes 6

Code for cuda-h100 is tuned on an H100 or H200. Code for cuda-v100 is tuned on the same card, which
runs its compute_70 PTX: a proxy, not a V100, and the README in its folder says so. Every batch of
candidates is in the log when it is done: killed or out of time, it goes on where it stopped when it
is run again. Each record was compared with the NumPy reference on random inputs over the whole
domain.
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import sys
import tempfile
import time
from pathlib import Path

from rich.console import Console

from intswin.compile import artifact, cuda_driver, tuning_log
from intswin.compile.gpu_artifacts import ArtifactSpec, Stopwatch, build_missing
from intswin.compile.host_cpu import usable_cores
from intswin.compile.separate_gelu import emit_activation
from intswin.compile.targets import check_versions, cuda_arch, get_target, has_mma
from intswin.compile.tune import TuneOptions, read_networks, tune
from intswin.compile.tuner import cuda_in_network
from intswin.compile.tuner.builds import Builds
from intswin.compile.tuner.libraries import Libraries
from intswin.compile.tuner.log_readme import write_log_readme
from intswin.compile.tuner.prepare import prepare
from intswin.compile.tuner.processes import Pool
from intswin.compile.tuner.space import Tile
from intswin.compile.tuner.store import Store
from intswin.models.errors import IntswinError, run_script


def main() -> None:
    """Parse the command line and tune each target in turn."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--minutes", type=float, default=10.0, help="for everything together")
    add("--targets", default="cuda-h100:0.7,cuda-v100:1", help="name:share of the time left")
    add("--networks", default="swin_tiny_patch4_window7_224,swin_micro")
    add("--activations", default="relu,igelu")
    add("--batches", default="32,1,8,128")
    add("--trials", type=int, default=96, help="of each kernel, at most")
    add("--logs", type=Path, default=Path(__file__).parents[1] / "tuning_logs")
    add("--move-aside", action="store_true", help="rename logs of other versions, start anew")
    add("--builds", type=Path, help="folder of candidates built ahead, which are tried first")
    add("--prepare", action="store_true", help="fill --builds; needs no GPU and measures nothing")
    add("--built-only", action="store_true", help="try nothing but --builds and build nothing")
    add("--in-network", action="store_true", help="try nothing new, compare in the networks")
    add("--artifacts", type=Path, default=Path("out/gpu"), help="their folder, for --in-network")
    add("--jobs", type=int, help="candidates built at a time; default: the cores")
    options = parser.parse_args()
    end, say = time.monotonic() + 60 * options.minutes, Stopwatch()
    console = Console(highlight=False)
    job = TuneOptions(
        networks=tuple(options.networks.split(",")),
        activations=tuple(options.activations.split(",")),
        batches=tuple(int(batch) for batch in options.batches.split(",")),
        trials=options.trials,
        logs=options.logs,
        move_aside=options.move_aside,
        builds=options.builds,
        prepare=options.prepare,
        built_only=options.built_only,
        jobs=options.jobs,
    )
    gpu = None if options.prepare else cuda_driver.gpu()
    if gpu is not None:
        say(f"{gpu.name}, sm_{gpu.capability[0]}{gpu.capability[1]}, driver for CUDA {gpu.driver}")
    networks = [] if options.in_network else read_networks(job, console)
    failed = False
    for entry in options.targets.split(","):
        target, _, share = entry.partition(":")
        hours = max(0.0, float(share or 1) * (end - time.monotonic()) / 3600)
        say(
            f"{'preparing' if options.prepare else 'tuning'} for {target}, {60 * hours:.1f} minutes"
        )
        one = dataclasses.replace(job, target=target, hours=hours)
        try:
            if options.in_network:
                folder = tune_in_network(one, options.artifacts, say, console)
            else:
                folder = tune(one, console, networks)
        except IntswinError as error:
            say(f"{target}: {error}")
            failed = True
            continue
        if gpu is None:
            continue
        write_readme(folder, job, target, gpu, options.in_network)
        say(f"wrote {folder}")
    sys.exit(1 if failed else 0)


def tune_in_network(job: TuneOptions, artifacts: Path, say: Stopwatch, console: Console) -> Path:
    """Compare the fastest trials of each kernel inside the networks; the folder of the log."""
    assert job.hours is not None
    deadline = time.monotonic() + 3600 * job.hours
    check_versions()
    target, jobs = get_target(job.target), job.jobs or usable_cores()
    specs = [
        ArtifactSpec(network, activation, job.target, batch)
        for activation, network, batch in itertools.product(
            job.activations, job.networks, job.batches
        )
    ]
    failures = build_missing(specs, artifacts, False, jobs, say, 3600 * job.hours)
    for spec, reason in failures.items():
        raise IntswinError(f"{spec.name}: {reason}")
    builds = None if job.builds is None else Builds(job.builds, target)
    folder = job.logs / tuning_log.log_name(target)
    store = Store(folder, target, job.move_aside)
    builders, decided = Pool(jobs), dict[str, Tile]()
    try:
        with tempfile.TemporaryDirectory(prefix="intswin-tune-") as scratch:
            libraries = Libraries(target, builds, builders, Path(scratch), job.built_only)
            for spec in specs:
                if time.monotonic() > deadline:
                    say(f"{spec.name}: no time left")
                    continue
                case = read_case(spec, artifacts)
                if builds is not None and job.prepare:
                    wanted = cuda_in_network.missing(case, target, store, builds)
                    prepare(wanted, target, builds, jobs, deadline, console)
                else:
                    cuda_in_network.choose(
                        case, target, store, libraries, decided, deadline, console
                    )
    except cuda_driver.CudaError as error:  # nothing runs in this process any more
        raise IntswinError(f"{spec.name}: {error}") from error
    finally:
        builders.close()
        store.close()
    return folder


def read_case(spec: ArtifactSpec, artifacts: Path) -> cuda_in_network.Case:
    """The network of an artifact, and what it is compiled from."""
    found = artifact.read(spec.path(artifacts))
    module = emit_activation(found.graph(), spec.batch, get_target(spec.target), spec.activation)
    return cuda_in_network.Case(spec.name, spec.batch, module, found.library, found.metadata)


def write_readme(
    folder: Path, job: TuneOptions, target: str, gpu: cuda_driver.Gpu, in_network: bool
) -> None:
    """Say next to a log where it comes from."""
    tuned = (
        f"{', '.join(job.networks)}; {', '.join(job.activations)}; "
        f"batch {', '.join(map(str, job.batches))}; target `{target}`"
    )
    capability = f"sm_{gpu.capability[0]}{gpu.capability[1]}"
    arch, notes = cuda_arch(get_target(target)), []
    if in_network:
        notes.append("The last command chose records by the time of these whole networks.")
    if arch != 10 * gpu.capability[0] + gpu.capability[1]:
        name = target.removeprefix("cuda-").upper()
        multiplies = "with" if has_mma(get_target(target)) else "without"
        notes.append(f"""\
This log is a proxy: no {name} was at hand. The candidates are sm_{arch} code {multiplies} tensor
cores, which the driver compiled from compute_{arch} PTX for the GPU above. What is best there need
not be best on the real card; tune again on one.""")
    machine = f"GPU: {gpu.name} ({capability}), driver for CUDA {gpu.driver}"
    write_log_readme(folder, tuned, machine, "\n\n".join(notes))


if __name__ == "__main__":
    run_script(main)
