"""Every option of the command line with its help, once; cli.py and cli_fields.py use them."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from intswin.compile.names import ACTIVATIONS, TARGET_NAMES, known_activation, known_target

NETWORK = "Network"
CALIBRATION = "Calibration"

Network = Annotated[
    str, typer.Option(help="swin_micro, or any Swin, ViT or DeiT of timm.", rich_help_panel=NETWORK)
]
Activation = Annotated[
    str,
    typer.Option(
        help=f"MLP activation: {', '.join(ACTIVATIONS)}.",
        callback=known_activation,
        rich_help_panel=NETWORK,
    ),
]
Checkpoint = Annotated[
    Path | None,
    typer.Option(
        help="Weights, .safetensors or .pth. Default: embedded for swin_micro, else random.",
        rich_help_panel=NETWORK,
    ),
]
Pretrained = Annotated[
    bool, typer.Option("--pretrained", help="Weights from timm's hub.", rich_help_panel=NETWORK)
]
NumClasses = Annotated[
    int | None, typer.Option(help="Classes, if not the network's own.", rich_help_panel=NETWORK)
]
DropFc1Bias = Annotated[
    bool,
    typer.Option("--drop-fc1-bias", help="No bias before a ReLU.", rich_help_panel=NETWORK),
]
Onnx = Annotated[
    Path | None,
    typer.Option(help="An ONNX file instead of --network.", rich_help_panel=NETWORK),
]

Calibration = Annotated[
    Path | None,
    typer.Option(
        help="A calibration JSON, a folder of photos or an .npz pack. Default: the embedded "
        "calibration, else the packaged photos.",
        rich_help_panel=CALIBRATION,
    ),
]
CalibrationMethod = Annotated[
    str,
    typer.Option(
        help="min-max, percentile-99.9, percentile-99.99 or mse.", rich_help_panel=CALIBRATION
    ),
]
CalibrationImages = Annotated[
    int, typer.Option(help="Images to calibrate on, at most.", rich_help_panel=CALIBRATION)
]

Target = Annotated[
    str,
    typer.Option(help=f"{', '.join(TARGET_NAMES)}; llvm is this CPU.", callback=known_target),
]
Batch = Annotated[int, typer.Option(help="Images in one call.")]
ArtifactOutput = Annotated[
    Path | None,
    typer.Option("--output", "-o", help="Default: out/NETWORK_ACTIVATION_TARGET_bBATCH.intswin."),
]

CalibrationData = Annotated[
    Path | None,
    typer.Option("--data", help="Photos: a folder or an .npz pack. Default: the packaged photos."),
]
CalibrationOutput = Annotated[
    Path | None,
    typer.Option("--output", "-o", help="Default: out/NETWORK_ACTIVATION.calibration.json."),
]

Photos = Annotated[list[Path], typer.Argument(help="Image files.", show_default=False)]
Artifact = Annotated[
    Path | None,
    typer.Option(help="Compiled network. Default: that of `intswin compile`, made if missing."),
]
ArtifactArgument = Annotated[
    Path | None,
    typer.Argument(
        help="Compiled network. Default: that of `intswin compile`.", metavar="ARTIFACT"
    ),
]
Top = Annotated[int, typer.Option(help="Classes to print for each photo.", min=1)]

LabeledData = Annotated[
    Path | None,
    typer.Option(
        "--data",
        help="Labeled images: an .npz pack or a folder of class folders.",
        envvar="INTSWIN_DATA",
    ),
]
EvaluatedArtifact = Annotated[
    Path | None,
    typer.Option(
        "--artifact", help="Measure this file (and not the float network) instead of compiling."
    ),
]
Limit = Annotated[
    int | None, typer.Option(help="Images to use, evenly spread. Default: all.", min=1)
]
PerLayer = Annotated[
    bool, typer.Option("--per-layer", help="Signal-to-noise ratio of every integer tensor.")
]
Table = Annotated[
    bool,
    typer.Option(
        "--table",
        help="Compare the embedded networks with PTQ4ViT and FQ-ViT, all calibrated on "
        "--calibration.",
    ),
]

Variants = Annotated[
    str, typer.Option(help="Some of relu, igelu, shiftgelu, float, torch; separated by commas.")
]
Threads = Annotated[
    int | None, typer.Option(help="Threads of TVM and torch. Default: every core.", min=1)
]
Rounds = Annotated[int, typer.Option(help="Timed calls of each variant.", min=1)]
CudaGraph = Annotated[
    bool, typer.Option(help="On a GPU, run a network as one CUDA graph, not kernel by kernel.")
]
Profile = Annotated[bool, typer.Option("--profile", help="Time each kernel too.")]
BenchOutput = Annotated[
    Path | None,
    typer.Option(
        "--output",
        "-o",
        help="JSON; a .png beside it. Default: out/bench_NETWORK_TARGET_bBATCH.json.",
    ),
]
