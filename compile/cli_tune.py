"""The command `intswin tune`; cli.py registers it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from intswin.compile import cli_options as option
from intswin.models.errors import IntswinError


def tune(
    *,
    network: Annotated[
        str, typer.Option(help="One or more networks, separated by commas.")
    ] = "swin_micro",
    activation: Annotated[
        str, typer.Option(help="One or more of relu, igelu, shiftgelu; separated by commas.")
    ] = "relu",
    num_classes: option.NumClasses = None,
    onnx: option.Onnx = None,
    batch: Annotated[str, typer.Option(help="One or more batches, separated by commas.")] = "1",
    target: option.Target = "llvm",
    trials: Annotated[
        int, typer.Option(help="Candidates of each kernel, with those of earlier runs.", min=1)
    ] = 64,
    hours: Annotated[
        float | None, typer.Option(help="Stop after so many hours. Default: no limit.", min=0)
    ] = None,
    logs: Annotated[
        Path, typer.Option(help="Folder of the logs; `compile` looks in ./tuning_logs.")
    ] = Path("tuning_logs"),
    move_aside: Annotated[
        bool,
        typer.Option(
            "--move-aside", help="Rename a log of other versions and start anew, not refuse it."
        ),
    ] = False,
    rpc_tracker: Annotated[
        str | None,
        typer.Option(help="host:port of TVM's RPC tracker, to measure on its servers."),
    ] = None,
    rpc_key: Annotated[str | None, typer.Option(help="Key of the servers to use.")] = None,
) -> None:
    """Search fast schedules on this machine and keep them for `compile`."""
    from rich.console import Console  # noqa: PLC0415

    from intswin.compile import tune as job  # noqa: PLC0415

    console = Console(highlight=False)
    options = job.TuneOptions(
        networks=tuple(network.split(",")),
        activations=tuple(activation.split(",")),
        batches=_batches(batch),
        num_classes=num_classes,
        onnx=onnx,
        target=target,
        trials=trials,
        hours=hours,
        logs=logs,
        move_aside=move_aside,
        rpc_tracker=rpc_tracker,
        rpc_key=rpc_key,
    )
    console.print(str(job.tune(options, console)), soft_wrap=True)


def _batches(text: str) -> tuple[int, ...]:
    try:
        return tuple(int(number) for number in text.split(","))
    except ValueError as error:
        raise IntswinError(f"--batch {text!r}: give numbers separated by commas") from error
