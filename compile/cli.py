"""The command `intswin`: parses arguments, calls commands.py, turns errors into one line.

Heavy modules are imported inside the commands, so that --help and predict are quick.
"""

from __future__ import annotations

import sys

import typer

from intswin.compile import cli_distill, cli_tune
from intswin.compile import cli_options as option
from intswin.compile.cli_fields import CompileFields, NetworkFields, spell_out
from intswin.models.errors import USER_ERROR, IntswinError

INTERRUPTED = 130
# Packages that the extra "compile" brings; running an artifact needs none of them.
COMPILE_PACKAGES = {
    "torch", "torchvision", "timm", "safetensors", "onnx", "onnxscript", "xgboost", "matplotlib",
}  # fmt: skip

app = typer.Typer(
    name="intswin",
    help="Integer-only int8 Swin transformers, compiled by Apache TVM.",
    no_args_is_help=False,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)


@app.command("compile")
@spell_out
def compile_(*, fields: CompileFields, output: option.ArtifactOutput = None) -> None:
    """Quantize a network to integers and compile it to one file."""
    from intswin.compile import commands  # noqa: PLC0415

    commands.compile_artifact(vars(fields), output)


@app.command()
@spell_out
def calibrate(
    *,
    fields: NetworkFields,
    data: option.CalibrationData = None,
    calibration_images: option.CalibrationImages = 64,
    output: option.CalibrationOutput = None,
) -> None:
    """Collect the ranges of a float network's values on images, for `compile --calibration`."""
    from intswin.compile import commands  # noqa: PLC0415

    given = {**vars(fields), "calibration_images": calibration_images}
    commands.calibrate(given, data, output)


@app.command()
def predict(
    *,
    photos: option.Photos,
    artifact: option.Artifact = None,
    top: option.Top = 3,
) -> None:
    """Classify photos with a compiled network."""
    from intswin.compile import commands  # noqa: PLC0415

    commands.predict(photos, artifact, top)


@app.command()
@spell_out
def evaluate(
    *,
    data: option.LabeledData = None,
    artifact: option.EvaluatedArtifact = None,
    fields: CompileFields,
    limit: option.Limit = None,
    per_layer: option.PerLayer = False,
    table: option.Table = False,
) -> None:
    """Accuracy of the float network, the integer reference and the compiled code."""
    from intswin.compile import commands  # noqa: PLC0415

    if table:
        commands.evaluate_table(data, fields.calibration, limit)
        return
    commands.evaluate(vars(fields), data, artifact, limit, per_layer)


@app.command()
def bench(
    *,
    network: option.Network = "swin_micro",
    target: option.Target = "llvm",
    batch: option.Batch = 1,
    threads: option.Threads = None,
    variants: option.Variants = "relu,igelu,shiftgelu,float,torch",
    rounds: option.Rounds = 50,
    profile: option.Profile = False,
    cuda_graph: option.CudaGraph = True,
    output: option.BenchOutput = None,
) -> None:
    """Time the variants of one network in turns and compare them."""
    from intswin.compile import commands  # noqa: PLC0415

    commands.bench(
        *(network, target, batch, threads, variants.split(",")),
        rounds=rounds,
        profile=profile,
        cuda_graph=cuda_graph,
        output=output,
    )


@app.command()
def inspect(artifact: option.ArtifactArgument = None) -> None:
    """Print what is inside an artifact: operators, types, scales, sizes, proofs."""
    from intswin.compile import commands  # noqa: PLC0415

    commands.inspect(artifact)


app.command()(cli_tune.tune)
app.command()(cli_distill.distill)


def main() -> None:
    """Run the command line; the user's mistakes exit with 2 and one line on stderr."""
    try:
        status = app(args=sys.argv[1:] or ["--help"], standalone_mode=False)
    except (IntswinError, OSError) as error:
        status = _fail(str(error))
    except typer.Abort:
        status = INTERRUPTED
    except KeyboardInterrupt:
        print(file=sys.stderr)
        status = INTERRUPTED
    except ModuleNotFoundError as error:
        if (error.name or "").split(".")[0] not in COMPILE_PACKAGES:
            raise
        status = _fail(
            f"{error.name} is not installed; compiling needs more packages than running: "
            f"pip install 'intswin[compile]'"
        )
    except typer.BadParameter.__base__ as error:  # type: ignore[misc]  # click's UsageError
        status = _fail(f"{error.format_message()} (see: intswin --help)")  # type: ignore[attr-defined]
    sys.exit(status or 0)


def _fail(message: str) -> int:
    print(f"intswin: error: {' '.join(message.split())}", file=sys.stderr)
    return USER_ERROR


if __name__ == "__main__":
    main()
