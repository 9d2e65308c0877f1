"""Options that several commands have alike: a dataclass whose fields become a command's options."""

from __future__ import annotations

import dataclasses
import functools
import inspect
import typing
from collections.abc import Callable

from intswin.compile import cli_options as option


@dataclasses.dataclass
class NetworkFields:
    """Which float network; named and defaulted as in pipeline.CompileOptions."""

    network: option.Network = "swin_micro"
    activation: option.Activation = "relu"
    checkpoint: option.Checkpoint = None
    pretrained: option.Pretrained = False
    num_classes: option.NumClasses = None
    drop_fc1_bias: option.DropFc1Bias = False
    onnx: option.Onnx = None


@dataclasses.dataclass
class CompileFields(NetworkFields):
    """What to compile: the command line's part of pipeline.CompileOptions."""

    calibration: option.Calibration = None
    calibration_method: option.CalibrationMethod = "mse"
    calibration_images: option.CalibrationImages = 64
    target: option.Target = "llvm"
    batch: option.Batch = 1


def spell_out(command: Callable[..., None]) -> Callable[..., None]:
    """A command whose parameter `fields`, one of these dataclasses, is spelled out as options.

    Typer makes options of a command's signature, so the signature is what changes. All parameters
    must be keyword-only.
    """
    own = inspect.signature(command, eval_str=True)
    group = own.parameters["fields"].annotation
    hints = typing.get_type_hints(group, include_extras=True)
    spelled = [
        inspect.Parameter(
            field.name,
            inspect.Parameter.KEYWORD_ONLY,
            default=field.default,
            annotation=hints[field.name],
        )
        for field in dataclasses.fields(group)
    ]
    parameters: list[inspect.Parameter] = []
    for parameter in own.parameters.values():
        parameters += spelled if parameter.name == "fields" else [parameter]

    @functools.wraps(command)
    def called(**arguments: object) -> None:
        given = {parameter.name: arguments.pop(parameter.name) for parameter in spelled}
        command(fields=group(**given), **arguments)

    called.__signature__ = own.replace(parameters=parameters)  # type: ignore[attr-defined]
    return called
