"""What each command does, with what it prints; cli.py parses the arguments.

`fields` are those of pipeline.CompileOptions. The pipeline is imported inside the functions: it
brings torch and TVM, which `predict` and `inspect` do without.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from intswin.compile import artifact as artifact_file
from intswin.models.errors import IntswinError
from intswin.models.files import check_writable

OUTPUT_FOLDER = Path("out")
DEFAULT_ARTIFACT = OUTPUT_FOLDER / "swin_micro_relu_llvm_b1.intswin"
LAYERS_IMAGES = 8  # images that `evaluate --per-layer` averages over

# A file or a pipe gets whole lines: rich would cut tables to 80 columns there.
stdout = Console(highlight=False, width=None if sys.stdout.isatty() else 160)
stderr = Console(stderr=True, highlight=False)


def compile_artifact(fields: dict[str, Any], output: Path | None) -> None:
    """`intswin compile`."""
    path = output or OUTPUT_FOLDER / (
        f"{_name(fields)}_{fields['activation']}_{fields['target']}_b{fields['batch']}.intswin"
    )
    check_writable(path)
    from intswin.compile.pipeline import CompileOptions, compile_network  # noqa: PLC0415

    with _progress() as progress:
        compile_network(CompileOptions(**fields), progress).save(path)
    stdout.print(f"{path}  {_size(path.stat().st_size)}", soft_wrap=True)


def calibrate(fields: dict[str, Any], data: Path | None, output: Path | None) -> None:
    """`intswin calibrate`."""
    activation = "relu" if fields["activation"] == "relu" else "gelu"  # that of the float network
    path = output or OUTPUT_FOLDER / f"{_name(fields)}_{activation}.calibration.json"
    check_writable(path)
    from intswin.compile import pipeline  # noqa: PLC0415

    options = pipeline.CompileOptions(**fields, calibration=data or pipeline.ASSETS / "photos")
    with _progress() as progress:
        progress("importing the network")
        network = pipeline.load_float_network(options)
        calibration = pipeline.load_calibration(options, network, progress)
    calibration.save(path)
    stdout.print(f"{path}  {calibration.images} images", soft_wrap=True)


def predict(photos: Sequence[Path], artifact: Path | None, top: int) -> None:
    """`intswin predict`."""
    from intswin.compile import runtime  # noqa: PLC0415

    if artifact is None and not DEFAULT_ARTIFACT.exists():
        stderr.print(f"{DEFAULT_ARTIFACT} does not exist: compiling it first")
        from intswin.compile.pipeline import CompileOptions, compile_network  # noqa: PLC0415

        check_writable(DEFAULT_ARTIFACT)
        with _progress() as progress:
            compile_network(CompileOptions(), progress).save(DEFAULT_ARTIFACT)
    network = runtime.load(artifact or DEFAULT_ARTIFACT)
    table = Table("photo", "label", "probability", box=None, pad_edge=False)
    table.columns[2].justify = "right"
    for photo, predictions in zip(photos, network.predict(list(photos), top), strict=True):
        for rank, prediction in enumerate(predictions):
            name = photo.name if rank == 0 else ""
            table.add_row(name, prediction.label, f"{100 * prediction.probability:.1f} %")
    stdout.print(table)


def evaluate(
    fields: dict[str, Any],
    data: Path | None,
    artifact: Path | None,
    limit: int | None,
    per_layer: bool,
) -> None:
    """`intswin evaluate`."""
    if data is None:
        raise IntswinError(
            "give labeled images: --data PACK.npz or --data FOLDER (or INTSWIN_DATA)"
        )
    with _progress() as progress:
        if per_layer:
            _print_layers(fields, data, limit or LAYERS_IMAGES, progress)
            return

        def images_done(done: int, total: int) -> None:
            progress(f"{done} of {total} images")

        if artifact is not None:
            stored = artifact_file.read(artifact)
            from intswin.compile.accuracy import evaluate_artifact  # noqa: PLC0415

            rows = evaluate_artifact(stored, data, limit, images_done)
        else:
            progress("compiling")
            from intswin.compile.evaluate import evaluate as evaluate_network  # noqa: PLC0415
            from intswin.compile.pipeline import CompileOptions  # noqa: PLC0415

            rows = evaluate_network(CompileOptions(**fields), data, limit, images_done)
    table = Table("form", "top-1 %", "top-5 %", "same top-1 as float %", "bit-exact images")
    for column in table.columns[1:]:
        column.justify = "right"
    for row in rows:
        table.add_row(
            row.form,
            f"{row.top1:.2f}",
            _optional(row.top5, ".2f"),
            _optional(row.agreement, ".2f"),
            _optional(row.bit_exact, "d"),
        )
    stdout.print(table)


def evaluate_table(data: Path | None, calibration: Path | None, limit: int | None) -> None:
    """`intswin evaluate --table`."""
    if data is None:
        raise IntswinError(
            "give labeled images: --data PACK.npz or --data FOLDER (or INTSWIN_DATA)"
        )
    from intswin.compile import accuracy_table  # noqa: PLC0415

    with _progress() as progress:
        rows = accuracy_table.table(data, calibration, limit, progress)
    table = Table("method", "arithmetic", "top-1 %")
    table.columns[2].justify = "right"
    for row in rows:
        table.add_row(row.method, row.arithmetic, f"{row.top1:.2f}")
    stdout.print(table)


def bench(
    network: str,
    target: str,
    batch: int,
    threads: int | None,
    variants: Sequence[str],
    *,
    rounds: int,
    profile: bool,
    cuda_graph: bool,
    output: Path | None,
) -> None:
    """`intswin bench`."""
    path = output or OUTPUT_FOLDER / f"bench_{network}_{target}_b{batch}.json"
    check_writable(path)
    from intswin.compile import bench as benchmark  # noqa: PLC0415
    from intswin.compile import bench_report  # noqa: PLC0415

    with _progress() as progress:
        result = benchmark.run(
            benchmark.BenchOptions(
                network, target, batch, threads, tuple(variants), rounds, profile, cuda_graph
            ),
            progress,
        )
    for table in bench_report.tables(result):
        stdout.print(table)
    for written in bench_report.write(result, path):
        stdout.print(str(written), soft_wrap=True)


def inspect(artifact: Path | None) -> None:
    """`intswin inspect`."""
    from intswin.compile import inspect_artifact  # noqa: PLC0415

    for part in inspect_artifact.report(artifact_file.read(artifact or DEFAULT_ARTIFACT)):
        stdout.print(part)


def _print_layers(
    fields: dict[str, Any], data: Path, limit: int, progress: Callable[[str], None]
) -> None:
    from intswin.compile import evaluate as evaluation  # noqa: PLC0415
    from intswin.compile import pipeline  # noqa: PLC0415
    from intswin.models.data import open_images  # noqa: PLC0415

    progress("quantizing")
    options = pipeline.CompileOptions(**fields)
    network = pipeline.load_float_network(options)
    calibration = pipeline.load_calibration(options, network, progress)
    quantized = pipeline.quantize_network(options, network, calibration)
    images = open_images(data, network.preprocess, limit).decode()
    progress("comparing")
    table = Table("operator", "kind", "SNR dB", "saturated %")
    for column in table.columns[2:]:
        column.justify = "right"
    for layer in evaluation.layer_errors(network, quantized, images):
        table.add_row(layer.node, layer.op, f"{layer.snr_db:.1f}", f"{layer.saturated:.3f}")
    stdout.print(table)


@contextlib.contextmanager
def _progress() -> Iterator[Callable[[str], None]]:
    """A spinner with the current step on a terminal; silence elsewhere."""
    if not stderr.is_terminal:
        yield lambda message: None
        return
    with stderr.status("starting") as status:
        yield status.update


def _name(fields: dict[str, Any]) -> str:
    return fields["onnx"].stem if fields["onnx"] else fields["network"]


def _size(count: int) -> str:
    return f"{count / 1e6:.1f} MB"


def _optional(value: float | None, form: str) -> str:
    return "" if value is None else format(value, form)
