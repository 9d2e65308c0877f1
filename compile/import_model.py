"""Step 1: a network from torch or ONNX becomes a float32 Relax module.

Networks are imported for one image; the batch is chosen when the integer network is emitted,
because every integer operator is independent of it (docs/integer-semantics.md, section 1).
"""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from tvm.ir import IRModule

from intswin.models.errors import IntswinError

if TYPE_CHECKING:
    import onnx
    from torch import nn


def import_torch(model: nn.Module, image_size: tuple[int, int], batch: int = 1) -> IRModule:
    """Import a torch network through torch.export.

    Args:
        model: takes normalised images, float32 (1, 3, height, width).
        image_size: (height, width) in pixels.
        batch: images a call, for running the float network itself.

    Returns:
        A module whose `main` maps float32 (batch, 3, height, width) to float32 (batch, classes).
    """
    import torch  # noqa: PLC0415 - a second of import that ONNX users do not need
    from tvm.relax.frontend.torch import from_exported_program  # noqa: PLC0415

    with torch.no_grad(), _quiet():
        program = torch.export.export(model.eval(), (torch.zeros(batch, 3, *image_size),))
    return from_exported_program(program, unwrap_unit_return_tuple=True)


def export_onnx(model: nn.Module, image_size: tuple[int, int], path: Path) -> None:
    """Write a torch network as an ONNX file for one image; the exporter's opset, 18 or later."""
    import torch  # noqa: PLC0415

    with torch.no_grad(), _quiet():
        program = torch.onnx.export(
            model.eval(), (torch.zeros(1, 3, *image_size),), dynamo=True, verbose=False
        )
    if program is None:
        raise RuntimeError("torch.onnx.export returned no program")
    program.save(str(path))


def import_onnx(path: Path) -> IRModule:
    """Import an ONNX file of a network with one NCHW float32 image input and a fixed batch of 1.

    Raises:
        IntswinError: the file is missing, is not ONNX, or has another kind of input.
    """
    import onnx  # noqa: PLC0415
    from tvm.relax.frontend.onnx import from_onnx  # noqa: PLC0415

    try:
        model = onnx.load(str(path))
        onnx.checker.check_model(model)
    except FileNotFoundError:
        raise IntswinError(f"no ONNX file at {path}; give the path of an .onnx file") from None
    except Exception as error:  # onnx raises protobuf, checker and OS errors without a common base
        reason = str(error).strip().splitlines()[0] if str(error).strip() else "unreadable"
        raise IntswinError(f"{path} is not a valid ONNX file ({reason}); export it again") from None
    shape = _input_shape(model)
    if len(shape) != 4 or shape[0] != 1 or shape[1] != 3 or min(shape) < 1:
        raise IntswinError(
            f"{path} takes an input of shape {shape}, not (1, 3, height, width); "
            "export it for one image with fixed sizes"
        )
    return from_onnx(model)


def image_size_of(mod: IRModule) -> tuple[int, int]:
    """(height, width) in pixels that an imported module takes."""
    _, _, height, width = (int(d) for d in mod["main"].params[0].ty.shape)
    return height, width


def _input_shape(model: onnx.ModelProto) -> tuple[int, ...]:
    """Shape of the only graph input that is not an initializer; 0 stands for a symbolic size."""
    constants = {tensor.name for tensor in model.graph.initializer}
    inputs = [value for value in model.graph.input if value.name not in constants]
    if len(inputs) != 1:
        return ()
    return tuple(d.dim_value for d in inputs[0].type.tensor_type.shape.dim)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Silence the exporters' progress lines and deprecation notes; errors still raise."""
    level = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(level)
