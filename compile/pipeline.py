"""The whole way from a network to an artifact, as numbered steps.

1 import      torch or ONNX -> float32 Relax          import_model.py
2 simplify    fold, drop no-ops, name values          float_graph.py, simplify.py
3 calibrate   ranges of every value on real images    calibrate.py
4 quantize    float network -> integer network        quantize.py
5 verify      no int32 can overflow                   verify_ranges.py
6 emit        integer network -> integer Relax        emit.py, operators/
7 build       schedules, proof that no float is left, machine code    build.py, schedules/
8 store       one file                                artifact.py
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from tvm.ir import IRModule
from tvm.ir.transform import PassContext, module_pass
from tvm.target import Target

from intswin.compile import artifact, cuda_code, cuda_toolchain, host_cpu
from intswin.compile.build import build_with_report, export
from intswin.compile.calibrate import Calibration, calibrate
from intswin.compile.emit import emit
from intswin.compile.float_graph import FloatGraph, read_float_graph
from intswin.compile.import_model import image_size_of, import_onnx, import_torch
from intswin.compile.names import known_activation
from intswin.compile.quantize import QuantizedNetwork, quantize
from intswin.compile.simplify import simplify
from intswin.compile.targets import TVM_VERSION, check_versions, get_target, is_cuda
from intswin.compile.verify_integer_only import IntegerOnlyReport
from intswin.compile.verify_ranges import verify_ranges
from intswin.models.data import open_images
from intswin.models.errors import IntswinError
from intswin.models.integer_graph import IntegerGraph
from intswin.models.preprocess import Preprocess
from intswin.models.swin import (
    ASSETS,
    SWIN_MICRO,
    create_model,
    embedded_checkpoint,
    model_preprocess,
)

DEFAULT_METHOD = "mse"
CALIBRATION_IMAGES = 64

Progress = Callable[[str], None]


@dataclasses.dataclass(frozen=True)
class CompileOptions:
    """What to compile.

    Attributes:
        network: swin_micro or a timm Swin, ViT or DeiT.
        activation: of the MLPs; "igelu" and "shiftgelu" are integer forms of a network with GELU.
        checkpoint: a file; None means the embedded one for swin_micro, else random weights.
        pretrained: take timm's weights from the hub.
        num_classes: None for the network's own.
        drop_fc1_bias: remove the bias before a ReLU (as the paper does).
        onnx: an ONNX file instead of `network`.
        calibration: a calibration JSON, or images (a pack or a folder). None means the embedded
            calibration for the embedded network, else the demo photos.
        calibration_method: one of calibrate.METHODS.
        calibration_images: how many images to use, evenly spread.
        preprocess: for ONNX files, which do not say; None for the network's own.
        target: of names.TARGET_NAMES.
        batch: images in one call.
        seed: of random weights.
    """

    network: str = SWIN_MICRO
    activation: str = "relu"
    checkpoint: Path | None = None
    pretrained: bool = False
    num_classes: int | None = None
    drop_fc1_bias: bool = False
    onnx: Path | None = None
    calibration: Path | None = None
    calibration_method: str = DEFAULT_METHOD
    calibration_images: int = CALIBRATION_IMAGES
    preprocess: Preprocess | None = None
    target: str = "llvm"
    batch: int = 1
    seed: int = 0

    def __post_init__(self) -> None:
        known_activation(self.activation)
        if self.batch < 1:
            raise IntswinError(f"a batch of {self.batch} is not possible; use 1 or more")

    @property
    def embedded(self) -> bool:
        """Whether the packaged checkpoint of swin_micro is meant."""
        return self.network == SWIN_MICRO and not (
            self.checkpoint or self.onnx or self.num_classes or self.pretrained
        )

    @property
    def float_activation(self) -> str:
        """Activation of the float network."""
        return "relu" if self.activation == "relu" else "gelu"

    @property
    def checkpoint_path(self) -> Path | None:
        """The checkpoint file, the embedded one included."""
        return embedded_checkpoint(self.float_activation) if self.embedded else self.checkpoint


@dataclasses.dataclass(frozen=True)
class FloatNetwork:
    """Steps 1 and 2: a float network ready to calibrate.

    Attributes:
        model: the torch network, None for ONNX.
        module: the imported Relax module.
        graph: the simplified operators.
    """

    model: nn.Module | None
    module: IRModule
    graph: FloatGraph
    preprocess: Preprocess


@dataclasses.dataclass(frozen=True)
class Compiled:
    """A compiled network: `save` makes the artifact."""

    library: bytes
    metadata: dict[str, Any]
    graph: IntegerGraph

    def save(self, path: str | Path) -> Path:
        """Step 8. Raises IntswinError when `path` cannot be written."""
        return artifact.write(path, self.library, self.metadata, self.graph)


def _silent(message: str) -> None:
    pass


def load_float_network(options: CompileOptions) -> FloatNetwork:
    """Steps 1 and 2.

    Raises:
        IntswinError: the network, its checkpoint or the ONNX file cannot be used.
    """
    if options.onnx is not None:
        module = import_onnx(options.onnx)
        height, width = image_size_of(module)
        if height != width:
            raise IntswinError(
                f"{options.onnx} takes {height}x{width} images; only square ones work"
            )
        preprocess = options.preprocess or Preprocess(image_size=height)
        model = None
    else:
        model = create_model(
            options.network,
            activation=options.float_activation,
            num_classes=options.num_classes,
            checkpoint=options.checkpoint_path,
            pretrained=options.pretrained,
            drop_fc1_bias=options.drop_fc1_bias,
            seed=options.seed,
        )
        preprocess = options.preprocess or model_preprocess(model)
        module = import_torch(model, (preprocess.image_size, preprocess.image_size))
    graph = simplify(read_float_graph(module))
    if options.activation == "relu" and any(op.op == "nn.gelu" for op in graph.ops):
        raise IntswinError("the network has GELU; compile it with --activation igelu or shiftgelu")
    return FloatNetwork(model, module, graph, preprocess)


def load_calibration(
    options: CompileOptions, network: FloatNetwork, progress: Progress = _silent
) -> Calibration:
    """Step 3: read or make the calibration that the options name.

    Raises:
        IntswinError: no images, or a file that is not a calibration.
    """
    source = options.calibration
    if source is None and options.embedded:
        source = ASSETS / f"swin_micro_{options.float_activation}.calibration.json"
    if source is None:
        source = ASSETS / "photos"
        progress("no calibration data given: using the packaged demo photos")
    if source.suffix == ".json":
        return Calibration.load(source)
    images = open_images(source, network.preprocess, options.calibration_images)

    def normalized() -> Any:
        done = 0
        for batch in images.batches(16):
            for image in torch.from_numpy(network.preprocess.normalize(batch)):
                yield image[None]
                done += 1
            progress(f"calibrated {done} of {len(images)} images")

    return calibrate(network.graph, normalized())


def quantize_network(
    options: CompileOptions, network: FloatNetwork, calibration: Calibration
) -> QuantizedNetwork:
    """Steps 4 and 5.

    Raises:
        IntswinError: an operator without integer form, another network's calibration, or an int32
            that could overflow.
    """
    ranges = calibration.for_graph(network.graph, options.calibration_method)
    extremes = calibration.for_graph(network.graph, "min-max")
    gelu = "igelu" if options.activation == "relu" else options.activation
    quantized = quantize(network.graph, ranges, extremes, network.preprocess, gelu)
    verify_ranges(quantized.graph)
    return quantized


def compile_network(options: CompileOptions, progress: Progress = _silent) -> Compiled:
    """Steps 1 to 7.

    Args:
        options: what to compile.
        progress: is given one line at the start of each step.

    Raises:
        IntswinError: see the steps.
    """
    check_versions()
    target = get_target(options.target)
    if is_cuda(target):
        cuda_toolchain.check_installed(target)
    progress("importing the network")
    network = load_float_network(options)
    progress("calibrating")
    calibration = load_calibration(options, network, progress)
    progress("quantizing")
    quantized = quantize_network(options, network, calibration)
    return build_integer_network(options, network, quantized.graph, target, progress)


def build_integer_network(
    options: CompileOptions,
    network: FloatNetwork,
    graph: IntegerGraph,
    target: Target,
    progress: Progress = _silent,
    module: IRModule | None = None,
    float_kernels: str | None = None,
) -> Compiled:
    """Steps 6 and 7.

    A comparison gives the `module` itself, and what `float_kernels` to allow in it
    (`build.build_with_report`).
    """
    progress(f"building for {options.target}")
    module = module or emit(graph, options.batch, target)
    executable, report = build_with_report(module, target, float_kernels)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "library.so"
        try:
            export(executable, path, target)
        except (OSError, RuntimeError) as error:  # the linker's words are in a RuntimeError
            raise IntswinError(
                f"cannot link the library in {folder} ({str(error).strip().splitlines()[0]}); "
                "is there space, and a C compiler?"
            ) from error
        library = path.read_bytes()
    metadata = {
        "network": str(options.onnx) if options.onnx else options.network,
        "activation": options.activation,
        "batch": options.batch,
        **_class_names(options, graph.nodes[-1].out.shape[-1]),
        "preprocessing": network.preprocess.to_json(),
        "calibration_method": options.calibration_method,
        "logit_scale": graph.nodes[-1].out.scale,
        "checkpoint_sha256": _checkpoint_digest(options),
        "target": {"name": options.target, **_requirements(target, library, report)},
        "integer_only": dataclasses.asdict(report),
        "versions": {"intswin": _version(), "tvm": TVM_VERSION},
    }
    return Compiled(library, metadata, graph)


def _requirements(target: Target, library: bytes, report: IntegerOnlyReport) -> dict[str, Any]:
    """What a machine must be to run `library`; for a GPU, and the code that is really in it."""
    if not is_cuda(target):
        return host_cpu.requirements(target)
    arch, ptx = str(target.attrs["arch"]), cuda_toolchain.ptx_arch(target)
    codes = cuda_code.read_checked(library, arch, ptx, report.functions)
    return {
        **host_cpu.requirements(target.host),
        "kind": target.kind.name,
        "arch": arch,
        "ptx": ptx,
        "code": [dataclasses.asdict(code) for code in codes],
    }


def quantize_pass(
    options: CompileOptions, calibration: Calibration, preprocess: Preprocess, target: Target
) -> Any:
    """Steps 2 and 4 to 6 as a TVM pass: float32 Relax module -> integer Relax module.

    For those who have a Relax module of their own; `options` gives method, activation and batch.
    """

    @module_pass(opt_level=0, name="QuantizeToInteger")
    def transform(mod: IRModule, context: PassContext) -> IRModule:
        network = FloatNetwork(None, mod, simplify(read_float_graph(mod)), preprocess)
        graph = quantize_network(options, network, calibration).graph
        return emit(graph, options.batch, target)

    return transform


def _class_names(options: CompileOptions, count: int) -> dict[str, Any]:
    """`classes` and `imagenet1k_index`, from the checkpoint's card or from ImageNet-1k."""
    path = options.checkpoint_path
    card_path = path.with_suffix(".json") if path is not None else None
    if card_path is not None and card_path.is_file():
        card = json.loads(card_path.read_text())
        if len(card.get("classes", [])) == count:
            return {k: card.get(k) for k in ("classes", "imagenet1k_index")}
    if count == 1000:
        from timm.data import ImageNetInfo  # noqa: PLC0415 - reads its tables when imported

        info = ImageNetInfo()
        names = [info.index_to_description(i) for i in range(1000)]
        return {"classes": names, "imagenet1k_index": list(range(1000))}
    return {"classes": [f"class {i}" for i in range(count)], "imagenet1k_index": None}


def _checkpoint_digest(options: CompileOptions) -> str | None:
    path = options.onnx or options.checkpoint_path
    return hashlib.sha256(path.read_bytes()).hexdigest() if path is not None else None


def _version() -> str:
    from importlib import metadata  # noqa: PLC0415

    try:
        return metadata.version("intswin")
    except metadata.PackageNotFoundError:  # run from a source tree that is not installed
        return "source tree"


def float_logits(network: FloatNetwork, images: np.ndarray) -> np.ndarray:
    """Logits of the float network: uint8 (N, S, S, 3) -> float32 (N, classes)."""
    inputs = torch.from_numpy(network.preprocess.normalize(images))
    with torch.no_grad():
        if network.model is not None:
            return network.model(inputs).numpy()
        return torch.cat([network.graph.run(image[None]) for image in inputs]).numpy()
